"""Models behind one face: built-in and Hugging Face kinds, refusals by name, and scores against closed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from servers.learner.engine import Engine
from servers.learner.trace import joined
from servers.models.directory import check_weights, context_of
from servers.models.evaluate import ECE_BINS, evaluate
from servers.models.hf import HfModel
from servers.models.model import Model, Output
from servers.models.patch import PatchConfig, PatchTransformer
from servers.models.registry import build, check_pair
from syscalls.errors import RecurosError

LM: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CLASSIFIER: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "hidden_dropout_prob": 0.1,
}
LM_SPEC: dict[str, Any] = {"kind": "hf-config", "task": "causal-lm", "config": LM}
CLASSIFIER_SPEC: dict[str, Any] = {"kind": "hf-config", "task": "classify", "config": CLASSIFIER}


def tokens(seed: int = 0, rows: int = 4, length: int = 12) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (rows, length), generator=g)
    mask = torch.ones_like(ids)
    ids[0, 7:] = 0
    mask[0, 7:] = 0
    return {
        "ids": torch.arange(rows),
        "weight": torch.ones(rows),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.arange(rows) % 3,
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    build(LM_SPEC, 5).module.save_pretrained(tmp_path / "lm")  # type: ignore[operator]
    return tmp_path / "lm"


def test_patch_model_reports_its_shape_and_gives_what_hooks_read() -> None:
    model = PatchTransformer(PatchConfig(layers=2, width=16, heads=2))
    seen: list[Tensor] = []
    model.get_submodule("blocks.1.attn").register_forward_hook(lambda _m, _i, out: seen.append(out[1]))
    logits, hidden, attention = model(torch.rand(3, 8, 8), need_hidden=True, need_attention=True)
    assert logits.shape == (3, 10)
    assert [tuple(h.shape) for h in hidden] == [(3, 16, 16)] * 3
    assert torch.equal(seen[0], attention[1])
    torch.testing.assert_close(attention[1].sum(-1), torch.ones(3, 2, 16))
    assert model(torch.rand(3, 8, 8))[1:] == ((), ())


def test_patch_embedding_reads_the_pixels_of_its_own_patch() -> None:
    model = PatchTransformer(PatchConfig(layers=1, width=8, heads=2))
    image = torch.zeros(1, 8, 8)
    base = model.embed(image)
    image[0, 2:4, 6:8] = 1.0  # second row of patches, last column
    changed = (model.embed(image) - base).abs().sum(-1)[0].nonzero()[:, 0].tolist()
    assert changed == [7]


def test_other_image_sizes_are_refused_with_both_shapes() -> None:
    with pytest.raises(RecurosError, match=r"\(3, 28, 28\), expected \[batch, 8, 8\]"):
        PatchTransformer(PatchConfig())(torch.rand(3, 28, 28))


@pytest.mark.parametrize(
    "spec",
    [{"kind": "patch"}, {"kind": "mlp"}, LM_SPEC, CLASSIFIER_SPEC],
    ids=["patch", "mlp", "lm", "classifier"],
)
def test_a_build_depends_on_its_seed_alone_and_its_architecture_rebuilds_it(spec: dict[str, Any]) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, second, other = build(spec, 1), build(spec, 1), build(spec, 2)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [torch.cat([p.flatten() for p in m.module.parameters()]) for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    rebuilt = build(json.loads(json.dumps(first.architecture)), 1)
    assert rebuilt.architecture == first.architecture
    assert rebuilt.param_count == first.param_count > 0


def test_the_perceptron_is_the_formula_and_hands_out_its_layers() -> None:
    model = build({"kind": "mlp", "layers": 2, "width": 5}, 3)
    x = torch.rand(4, 8, 8)
    out = model.forward({"x": x}, need_hidden=True)
    (w0, b0, w1, b1, w2, b2) = (p.detach() for p in model.module.parameters())
    first = x.reshape(4, 64) @ w0.T + b0
    second = first.clamp(min=0) @ w1.T + b1
    torch.testing.assert_close(out.logits, second.clamp(min=0) @ w2.T + b2)
    for given, expected in zip(out.hidden, (first, first.clamp(min=0), second.clamp(min=0)), strict=True):
        torch.testing.assert_close(given, expected[:, None, :])
    assert out.hidden[0].shape == (4, 1, model.hidden_width)
    assert model.forward({"x": x}).hidden == ()
    assert build({"kind": "mlp"}, 0).param_count == 85_002
    assert build({"kind": "mlp", "layers": 1, "width": 32}, 0).param_count == 2_410
    with pytest.raises(RecurosError, match=r"\(3, 28, 28\), expected \[batch, 8, 8\]"):
        model.forward({"x": torch.rand(3, 28, 28)})
    with pytest.raises(RecurosError, match="width 0"):
        build({"kind": "mlp", "width": 0}, 0)


def test_hints_between_networks_that_cut_images_differently_are_refused() -> None:
    spec = {"teacher": {"kind": "patch", "layers": 1, "width": 8, "heads": 2}, "student": {"kind": "mlp", "width": 6}}
    batch = {"x": torch.rand(3, 8, 8), "labels": torch.arange(3), "ids": torch.arange(3)}
    phase = {"name": "distil", "index": 0, "train": "student", "steps_total": 4, "lr": 1e-3}
    mixed = Engine(spec, 0)
    mixed.begin(phase)
    with pytest.raises(RecurosError, match="3 hidden positions in this batch, the teacher 48") as caught:
        mixed.micro_step(batch)
    assert caught.value.code == "E2-MODEL"
    mixed.set_kd(alpha=0.0)
    assert mixed.micro_step(batch).terms.keys() == {"task", "kd"}
    alike = Engine({**spec, "teacher": {"kind": "mlp", "layers": 4, "width": 9}}, 0)
    alike.begin(phase)
    assert alike.micro_step(batch).terms["hint"] > 0


def test_valid_positions_are_next_token_targets_that_are_not_padding() -> None:
    model, batch = build(LM_SPEC, 1), tokens()
    out = model.forward(batch, need_hidden=True)
    assert out.valid_mask is not None
    assert out.valid_mask[0].tolist() == [True] * 6 + [False] * 6
    assert out.valid_mask[1].tolist() == [True] * 11 + [False]
    assert torch.equal(model.targets(batch)[1, :-1], batch["input_ids"][1, 1:])
    assert len(out.hidden) == model.num_layers + 1
    without_mask = model.forward({"input_ids": batch["input_ids"]})
    assert without_mask.valid_mask is not None
    assert torch.equal(without_mask.valid_mask, out.valid_mask), "the pad id says the same"


def test_a_local_directory_loads_with_its_weights(directory: Path) -> None:
    loaded, made = build({"kind": "hf", "path": str(directory)}, 99), build(LM_SPEC, 5)
    assert loaded.task == "causal-lm"
    for (name, a), (_, b) in zip(loaded.module.named_parameters(), made.module.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("size", "says"),
    [(0, "0 bytes are less"), (5, "5 bytes are less"), (300, "300 bytes are less"), (-1, "it was cut off")],
)
def test_weights_that_were_cut_off_are_refused_without_loading_them(directory: Path, size: int, says: str) -> None:
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    check_weights(directory)
    file.write_bytes(whole[:size])
    with pytest.raises(RecurosError, match=says) as caught:
        check_weights(directory)
    assert caught.value.code == "E2-MODEL"
    assert str(file) in caught.value.message
    assert "save or copy the model again" in caught.value.hint


def test_a_sharded_directory_must_have_every_shard(directory: Path) -> None:
    module = build(LM_SPEC, 5).module
    (directory / "model.safetensors").unlink()
    module.save_pretrained(directory, max_shard_size="4KB")  # type: ignore[operator]
    check_weights(directory)
    assert build({"kind": "hf", "path": str(directory)}, 0).param_count == build(LM_SPEC, 5).param_count
    gone = sorted(directory.glob("model-*.safetensors"))[-1]
    gone.unlink()
    with pytest.raises(RecurosError, match=f"{gone.name} cannot be loaded: the file is missing"):
        check_weights(directory)


def test_attention_modules_return_probabilities(directory: Path) -> None:
    model = build({"kind": "hf", "path": str(directory)}, 0)
    seen: list[Any] = []
    name = next(n for n, _ in model.module.named_modules() if n.endswith("self_attn"))
    model.module.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.append(out[1]))
    model.forward(tokens())
    assert seen[0].shape == (4, 2, 12, 12)


def test_what_is_not_a_model_directory_is_named_with_what_is_missing(tmp_path: Path, directory: Path) -> None:
    def refusal(spec: dict[str, Any]) -> str:
        with pytest.raises(RecurosError) as caught:
            build(spec, 0)
        assert caught.value.code == "E2-MODEL"
        assert caught.value.hint
        return caught.value.message

    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{tmp_path / 'absent'} does not exist" in refusal({"kind": "hf", "path": str(tmp_path / "absent")})
    assert f"{empty} is not a model directory: missing config.json" in refusal({"kind": "hf", "path": str(empty)})
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    message = refusal({"kind": "hf", "path": str(directory)})
    assert "missing model.safetensors" in message
    assert "pytorch_model.bin, a pickle format" in message
    (directory / "pytorch_model.bin").rename(directory / "model.safetensors")
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    assert "cannot be loaded" in refusal({"kind": "hf", "path": str(directory)})
    (directory / "config.json").write_text("{}")
    assert "names no model_type" in refusal({"kind": "hf", "path": str(directory)})
    assert "kind 'x' is unknown" in refusal({"kind": "x"})
    assert "unknown key 'depth'" in refusal({"kind": "patch", "depth": 3})
    assert "width 10" in refusal({"kind": "patch", "width": 10, "heads": 4})
    unknown = {"kind": "hf-config", "task": "causal-lm", "config": {"model_type": "gpt22"}}
    assert "model_type = 'gpt22' is no architecture" in refusal(unknown)
    odd = {"kind": "hf-config", "task": "classify", "config": {**CLASSIFIER, "hidden_size": 15}}
    assert "no model can be built" in refusal(odd)


def test_a_student_from_a_config_has_the_teachers_task() -> None:
    untold = {"kind": "hf-config", "config": CLASSIFIER}
    engine = Engine({"teacher": CLASSIFIER_SPEC, "student": untold}, 1)
    assert engine.roles["student"].model.task == "classify"
    with pytest.raises(RecurosError, match="names no architecture"):
        build(untold, 0)


@pytest.mark.parametrize(
    ("config", "length", "says"),
    [
        ({**CLASSIFIER, "max_position_embeddings": 16}, 17, "does not take 2 x 17 tokens"),
        ({"model_type": "gpt2", "vocab_size": 40, "n_embd": 8, "n_layer": 1, "n_head": 1}, 8, "pad"),
        ({**CLASSIFIER, "model_type": "roberta", "max_position_embeddings": 18, "pad_token_id": 1}, 17, "2 x 17"),
    ],
)
def test_what_an_architecture_cannot_take_is_refused_before_any_window(
    config: dict[str, Any], length: int, says: str
) -> None:
    model = build({"kind": "hf-config", "task": "classify", "config": config}, 0)
    assert isinstance(model, HfModel)
    with pytest.raises(RecurosError, match=says) as caught:
        model.check_takes(length)
    assert caught.value.code == "E2-MODEL"
    assert "pad_token_id" in caught.value.hint
    limit = context_of(config)
    if limit is not None:
        model.check_takes(limit)


def test_a_directory_without_the_head_of_the_task_is_refused(directory: Path) -> None:
    with pytest.raises(RecurosError, match=r"lacks 1 tensors of a classify model, the first is score\.weight"):
        build({"kind": "hf", "path": str(directory), "task": "classify"}, 0)


def test_pairs_that_cannot_be_compared_are_refused() -> None:
    lm, classifier, patch = build(LM_SPEC, 0), build(CLASSIFIER_SPEC, 0), build({"kind": "patch"}, 0)
    with pytest.raises(RecurosError, match="teacher's task is causal-lm, the student's classify"):
        check_pair(lm, classifier, {}, {})
    with pytest.raises(RecurosError, match="teacher has 3 classes, the student 10"):
        check_pair(classifier, patch, {}, {})
    check_pair(lm, build(LM_SPEC, 1), {}, {})


def test_differing_label_sets_are_refused_at_the_first_label_that_differs(tmp_path: Path) -> None:
    sets = {"a": {"no": 0, "yes": 1}, "b": {"yes": 0, "no": 1}, "c": {"LABEL_0": 0, "LABEL_1": 1}}
    for name, labels in sets.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"label2id": labels}))
    lm = build(LM_SPEC, 0)
    a, b, c = ({"kind": "hf", "path": str(tmp_path / name)} for name in "abc")
    with pytest.raises(RecurosError, match="label sets of teacher and student differ, first at 'no'") as caught:
        check_pair(lm, lm, a, b)
    assert caught.value.code == "E2-MODEL"
    check_pair(lm, lm, a, a)
    check_pair(lm, lm, a, c)  # a student that was saved without names takes the teacher's


def test_differing_tokenizers_are_refused_at_the_first_token_that_differs(tmp_path: Path) -> None:
    for name, vocab in (("a", {"x": 0, "y": 1}), ("b", {"x": 0, "z": 1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    lm = build(LM_SPEC, 0)
    specs = [{"kind": "hf", "path": str(tmp_path / name)} for name in "ab"]
    with pytest.raises(RecurosError, match="tokenizers of teacher and student differ, first at token 'y'"):
        check_pair(lm, lm, *specs)
    check_pair(lm, lm, specs[0], specs[0])


@pytest.mark.parametrize("spec", [LM_SPEC, CLASSIFIER_SPEC], ids=["lm", "classifier-with-dropout"])
def test_the_engine_distils_hugging_face_models_and_resumes_them_exactly(spec: dict[str, Any]) -> None:
    engine = Engine({"teacher": spec, "student": {**spec, "config": {**spec["config"], "num_hidden_layers": 1}}}, 3)
    engine.begin({"name": "d", "index": 0, "train": "student", "steps_total": 10, "lr": 1e-3})
    metrics = [engine.micro_step(tokens(i)) for i in range(3)]
    assert set(metrics[-1].terms) == {"task", "kd", "hint"}
    seen = metrics[-1].trace
    assert seen is not None
    assert set(joined([seen])["id"].tolist()) == {0, 1, 2, 3}
    leaves = engine.capture()
    expected = [engine.micro_step(tokens(i)).loss for i in range(3, 6)]
    engine.swap("ema")
    engine.restore(leaves)
    assert [engine.micro_step(tokens(i)).loss for i in range(3, 6)] == expected


class Fixed(Model):
    """Logits that are the input: a model whose scores can be written down."""

    def __init__(self, classes: int) -> None:
        self.module = torch.nn.Linear(1, 1)
        self.task = "classify"
        self.num_classes = classes

    def forward(self, batch: dict[str, Tensor], need_hidden: bool = False) -> Output:
        return Output(batch["x"], (), None)

    def example(self, rows: int, tokens: int) -> dict[str, Tensor]:
        return {"x": torch.zeros(rows, self.num_classes)}


def test_scores_match_float64_closed_forms_whatever_the_batch() -> None:
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(301, 6, generator=g) * 2, torch.randint(0, 6, (301,), generator=g)
    arrays = {"x": logits, "labels": labels}
    z = logits.double().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    y = labels.numpy()
    confidence, hit = p.max(1), p.argmax(1) == y
    ece = 0.0
    for k in range(ECE_BINS):
        inside = (confidence > k / ECE_BINS) & (confidence <= (k + 1) / ECE_BINS)
        if inside.any():
            ece += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    for batch in (7, 301):
        scores = evaluate(Fixed(6), arrays, batch=batch)
        assert scores["accuracy"] == pytest.approx(hit.mean())
        assert scores["nll"] == pytest.approx(-np.log(p[np.arange(301), y]).mean())
        assert scores["brier"] == pytest.approx(((p - np.eye(6)[y]) ** 2).sum(1).mean())
        assert scores["ece"] == pytest.approx(ece, abs=1e-9)
        assert scores["n"] == 301


def test_language_model_scores_count_tokens_not_padding_and_leave_the_mode_alone() -> None:
    model, batch = build(LM_SPEC, 1), tokens()
    model.module.train()
    scores = evaluate(model, batch, batch=3)
    assert model.module.training
    assert scores["n"] == 6 + 3 * 11
    assert scores["bits_per_token"] == pytest.approx(scores["nll"] / np.log(2))
    assert scores["nll"] == pytest.approx(np.log(40), rel=0.1)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(RecurosError, match="empty"):
        evaluate(Fixed(3), {"x": torch.zeros(0, 3), "labels": torch.zeros(0, dtype=torch.int64)})
