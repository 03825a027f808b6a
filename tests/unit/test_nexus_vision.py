"""A vision teacher from its making to a bundle that reads images: tower, profile, targets, encoder and decoder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nexus import NexusModel
from nexus import run as runs
from nexus.context import Context, read_json
from nexus.data import teachers
from nexus.data.towers import VisionTeacher
from nexus.model.pixels import Pixels, decoder_of, digits, encoder_of
from nexus.stages import architect, distill, gate, profile, scope
from servers.dataset import digits as images
from servers.models.mlp import MlpConfig, MlpModel
from syscalls.errors import RecurosError
from tests.unit.nexus_support import one_thread  # noqa: F401

APP = """
[app]
name = "sight"
teachers = "t.csv"
contracts = "c.md"
[student]
width = 32
layers = 1
heads = 2
context = 80
[training]
steps = 10
window = 5
batch = 16
adapter-steps = 10
adapter-batch = 16
engine = "in-process"
anchor = "pca"
[profiling]
items = 40
pilot-items = 20
key-layers = 1
[[teacher]]
id = "eye"
model-name = "sight/eye"
licence = "made here"
mode = "vision"
make = { width = 32, layers = 2, heads = 2, steps = 200, batch = 32, lr = 3e-3 }
[[capability]]
name = "digits"
teacher = "eye"
data = { kind = "digit-images", train = 400, validation = 60, test = 60 }
"""


def write_app(folder: Path, text: str = APP) -> Path:
    (folder / "t.csv").write_text(
        "ModelName,Parameters,Category,BestFeature\nsight/eye,20k,image,digits\n", encoding="utf-8"
    )
    table = "| capability | metric | retain | chance | items |\n|---|---|---|---|---|\n| digits | exact-match | 0.9 | 0.1 | 400 |\n"
    (folder / "c.md").write_text(table, encoding="utf-8")
    (folder / "app.toml").write_text(text, encoding="utf-8")
    return folder / "app.toml"


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """Stages 0 to 4, and a bundle that no gate has seen."""
    folder = tmp_path_factory.mktemp("sight")
    with runs.opened(folder / "run", write_app(folder)) as found:
        scope.scope(found)
        scope.registry(found)
        profile.profile(found)
        architect.architect(found)
        distill.distill(found)
        gate.pack(found, folder / "bundle", {"verdict": "not verified"})
        yield found


def bundle(ctx: Context) -> Path:
    return ctx.root.parent / "bundle"


def test_the_teacher_has_learnt_to_see_and_its_answers_are_the_targets(ctx: Context) -> None:
    table = ctx.app.teacher("eye")
    teacher = teachers.load(table, ctx.paths.teachers / "eye")
    assert isinstance(teacher, VisionTeacher)
    data = ctx.data("digits")["test"]
    assert float(teacher.scores(data, "exact-match").mean()) > 0.6
    recorded = distill.teacher_scores(ctx, "digits", "test")
    assert np.array_equal(teacher.scores(data, "exact-match"), recorded)
    # The same images straight from the data set, through the network and no tower, up to the sixteen levels of grey.
    table_rows = images.load({}).columns("test")
    with torch.no_grad():
        guess = teacher.module(torch.from_numpy(table_rows["x"]).float())[0].argmax(-1).numpy()
    direct = float((guess == table_rows["labels"]).mean())
    assert abs(direct - float(recorded.mean())) < 0.15


def test_its_blocks_were_profiled(ctx: Context) -> None:
    folder = ctx.paths.profiles / "eye" / "digits"
    meta = read_json(next(iter(folder.glob("layer_*_meta.json"))))
    assert (meta["width"], meta["name"][:7]) == (32, "blocks.")
    heads = read_json(folder / "heads_importance.json")
    assert {(h["kind"], h["index"]) for h in heads} == {
        *(("head", n) for n in range(2)),
        *(("channels", n) for n in range(4)),
    }


def test_a_bundle_takes_an_image_and_gives_a_class(ctx: Context) -> None:
    model = NexusModel.load(bundle(ctx))
    rows = images.load({}).columns("test")
    prompt = model.encode_input("digits", rows["x"][0])
    known = {p for split in ctx.data("digits").values() for p, _ in split.texts()}
    encoded = {model.encode_input("digits", image) for image in rows["x"]}
    assert prompt.startswith("image ")
    assert len(prompt) == len("image ") + 64 + len(" = ")
    assert len(encoded & known) >= 55  # the test items are such prompts
    answer = model.generate(prompt, "digits", max_new_tokens=1)
    assert isinstance(answer, str)
    assert [model.decode_answer("digits", str(n)) for n in range(10)] == list(range(10))
    with pytest.raises(RecurosError, match="names no class"):
        model.decode_answer("digits", "a cat")


def test_what_is_no_image_is_refused(ctx: Context) -> None:
    model = NexusModel.load(bundle(ctx))
    for bad in (torch.zeros(8, 7), torch.full((8, 8), float("nan")), [[0.0] * 8] * 9):
        with pytest.raises(RecurosError, match="expected finite numbers"):
            model.encode_input("digits", bad)
    with pytest.raises(RecurosError, match="has no encoder"):
        model.encode_input("text", torch.zeros(8, 8))


@pytest.mark.parametrize("path", ["encoders/digits.json", "decoders/digits.json"])
def test_a_tampered_or_missing_tower_is_refused(ctx: Context, tmp_path: Path, path: str) -> None:
    shutil.copytree(bundle(ctx), tmp_path / "b")
    file = tmp_path / "b" / path
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"kind"', b'"kinc"'))
    with pytest.raises(RecurosError, match="does not match its SHA-256"):
        NexusModel.load(tmp_path / "b")
    file.unlink()
    with pytest.raises(RecurosError, match="cannot be read"):
        NexusModel.load(tmp_path / "b")


def test_the_code_of_images_is_exact_up_to_its_levels() -> None:
    pixels, labels = digits()
    image = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    back = pixels.decode(pixels.encode(image))
    assert float((back - image).abs().max()) <= 0.5 / 15 + 1e-6
    assert pixels.encode(back) == pixels.encode(image)
    prompt = pixels.encode(image)
    for bad in (prompt[:-1], "x" + prompt[1:], prompt.replace(prompt[10], " ")):
        with pytest.raises(RecurosError, match="is no image"):
            pixels.decode(bad)
    dropped = prompt[:6] + " " + prompt[7:]
    assert float(pixels.decode(dropped, damaged=True)[0, 0]) == 0.0
    assert torch.equal(pixels.decode(dropped, damaged=True).flatten()[1:], back.flatten()[1:])
    assert encoder_of(pixels.to_map(), "e") == pixels
    assert decoder_of(labels.to_map(), "d") == labels


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {**Pixels().to_map(), "more": 1},
        {**Pixels().to_map(), "side": 0},
        {**Pixels().to_map(), "levels": "aa"},
        {**Pixels().to_map(), "kind": "sounds"},
    ],
)
def test_a_description_of_no_encoder_is_refused(said: object) -> None:
    with pytest.raises(RecurosError, match="E9-INTEGRITY"):
        encoder_of(said, "encoders/x.json")


@pytest.mark.parametrize("said", [[], {"kind": "labels", "labels": []}, {"kind": "labels", "labels": [1]}])
def test_a_description_of_no_decoder_is_refused(said: object) -> None:
    with pytest.raises(RecurosError, match="E9-INTEGRITY"):
        decoder_of(said, "decoders/x.json")


def test_a_vision_teacher_of_other_form_or_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecurosError, match="without transformer blocks"):
        VisionTeacher(MlpModel(MlpConfig()).module)
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
    other = APP.replace('kind = "digit-images", train', 'kind = "jsonl", path = "x.jsonl", train')
    with pytest.raises(RecurosError, match="sees images"), runs.opened(tmp_path / "r", write_app(tmp_path, other)):
        pass
    other = APP.replace('mode = "vision"', 'mode = "encoder"')
    with pytest.raises(RecurosError, match="makes no encoder"), runs.opened(tmp_path / "r", write_app(tmp_path, other)):
        pass
