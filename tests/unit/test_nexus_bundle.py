"""Bundles: what is in them, what loads them, and what is noticed when one byte of them is not as it was written."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nexus import NexusModel
from nexus.bundle import decode, load, verify
from nexus.bundle import format as form
from nexus.bundle.write import seal, write_bundle
from nexus.model.router import Router
from nexus.model.tokenizer import byte_tokenizer
from syscalls.errors import RecurosError
from tests.unit import nexus_support as make
from tests.unit.nexus_support import one_thread  # noqa: F401

IDS = torch.tensor([[100, 101, 102, 32, 10]])
PROMPT = "def f"
GATED = form.adapter_path("canary")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "b"
    make.bundle(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def code_of(act: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(RecurosError) as caught:
        act()
    return caught.value.code, str(caught.value)


def reseal(bundle: Path, change: Callable[[dict[str, Any]], None] = lambda _data: None) -> None:
    """Write a manifest that fits the files as they are now: what someone who alters a bundle with care would do."""
    data = json.loads((bundle / form.MANIFEST).read_text())
    change(data)
    seal(bundle, {key: value for key, value in data.items() if key not in ("digest", "files")})


# What a bundle is


def test_the_layout_is_the_one_of_the_reference_page(made: Path) -> None:
    files = {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()}
    page = (Path(__file__).parents[2] / "docs" / "reference" / "nexus-bundle.md").read_text(encoding="utf-8")
    for path in files:
        name = path.replace("code_adapter", "CAPABILITY_adapter").replace("sort_adapter", "CAPABILITY_adapter")
        assert f"`{name.replace('canary_adapter', 'CAPABILITY_adapter')}`" in page
    assert {form.BACKBONE, form.ROUTER, form.CONFIG, form.MANIFEST, form.REPORT, "README.md", "LICENSE"} <= files
    for key in form.TOP_KEYS:
        assert f"`{key}`" in page


def test_the_manifest_has_every_file_with_its_hash(made: Path) -> None:
    manifest = form.read_manifest(made)
    files = {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()} - {form.MANIFEST}
    assert manifest.files.keys() == files
    for path, (sha, size) in manifest.files.items():
        data = (made / path).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (sha, size)
    assert manifest.bundle_id == hashlib.sha256((made / form.MANIFEST).read_bytes()).hexdigest()
    assert {n: (c.tier, c.gated) for n, c in manifest.capabilities.items()} == {
        "code": (1, False),
        "sort": (2, False),
        "canary": (3, True),
    }


def test_plain_transformers_loads_backbone_and_tokenizer(made: Path) -> None:
    backbone, report = AutoModelForCausalLM.from_pretrained(made / "backbone", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(backbone(IDS).logits, make.student()(IDS).logits)
    assert AutoTokenizer.from_pretrained(made / "tokenizer")(PROMPT).input_ids == list(PROMPT.encode())


def test_what_is_loaded_computes_what_was_written(made: Path) -> None:
    student, model = make.student(), NexusModel.load(made)
    for name in (None, "code"):
        student.set_adapter(name)
        model.student.set_adapter(name)
        assert torch.equal(model.student(IDS).logits, student(IDS).logits)


def test_writing_twice_writes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make.bundle(tmp_path / "again")
    one, two = form.read_manifest(made), form.read_manifest(tmp_path / "again")
    assert one.files == two.files


def test_generate_says_what_transformers_generate_says(made: Path) -> None:
    model, student = NexusModel.load(made), make.student()
    prompt = torch.tensor([list(PROMPT.encode())])
    for name in ("code", "sort"):
        student.set_adapter(name)
        wanted = student.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)[0]
        outcome = decode.Outcome()
        text = model.generate(PROMPT, name, max_new_tokens=20, outcome=outcome)
        ids = [token for token in wanted[prompt.shape[1] :].tolist() if token != 258]
        assert outcome.tokens == ids
        assert text == byte_tokenizer().decode(ids, skip_special_tokens=True)
        assert outcome.prompt_tokens == len(PROMPT)
        assert outcome.finish == ("stop" if len(ids) < 20 else "length")


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3}, {"temperature": 2.0, "top_p": 0.7}])
def test_streaming_says_what_not_streaming_says(made: Path, options: dict[str, Any]) -> None:
    model = NexusModel.load(made)
    pieces = list(model.generate(PROMPT, "code", stream=True, max_new_tokens=60, **options))
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate(PROMPT, "code", max_new_tokens=60, **options)


def test_text_comes_in_whole_characters() -> None:
    tokenizer = byte_tokenizer()
    for data in ("aé漢🙂z".encode(), b"\xff\xc3a\xe6\xbc", b"\x80\x80", b"ok\xf0\x9f"):
        text = decode.Text(tokenizer)
        pieces = [text.push(byte) for byte in data] + [text.finish()]
        assert "".join(pieces) == data.decode("utf-8", "replace") == tokenizer.decode(list(data))
    text = decode.Text(tokenizer)
    assert [text.push(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]


class SpaceTokens:
    """A tokenizer whose words bring their space only when they do not come first, as sentence-piece decoders do."""

    backend_tokenizer = None
    words = ("see", "spot", "run")

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(self.words[i] for i in ids)


def test_words_keep_their_spaces_while_streaming() -> None:
    text = decode.Text(SpaceTokens())
    assert [text.push(i) for i in (0, 1, 2)] + [text.finish()] == ["see", " spot", " run", ""]


def test_sampling_follows_the_distribution() -> None:
    logits, draw = torch.tensor([0.0, 1.0, 2.0, -1.0]), torch.Generator().manual_seed(1)
    for choice, odds in (
        (decode.Choice(2.0), torch.softmax(logits / 2, 0)),
        (decode.Choice(1.0, 0.8), torch.softmax(logits, 0) * torch.tensor([0, 1, 1, 0])),
    ):
        counts = torch.zeros(4)
        for _ in range(4000):
            counts[decode._choose(logits, choice, draw)] += 1
        torch.testing.assert_close(counts / 4000, odds / odds.sum(), atol=0.03, rtol=0)


def test_the_router_chooses_where_nobody_says(made: Path) -> None:
    model = NexusModel.load(made)
    assert model.route("7 7 2").capability == "sort"
    for prompt, name in (("7 7 2", "sort"), ("def g(x):", "code")):
        assert model.generate(prompt, max_new_tokens=9) == model.generate(prompt, name, max_new_tokens=9)


def test_a_tier_two_adapter_is_loaded_when_it_is_first_wanted(made: Path) -> None:
    model = NexusModel.load(made)
    assert model.student.adapter_names == ["code"]
    model.generate("1", "sort", max_new_tokens=1)
    assert model.student.adapter_names == ["code", "sort"]


# Refused when asked


@pytest.mark.parametrize(
    ("prompt", "capability", "options", "code"),
    [
        ("x" * make.CONTEXT, "code", {}, "E2-LIMIT"),
        ("x" * make.CONTEXT, None, {}, "E2-LIMIT"),
        ("x", "canary", {}, "E5-DENIED"),
        ("x", "canary", {"enable_uncensored": False}, "E5-DENIED"),
        ("x", "canary", {"enable_uncensored": 1}, "E2-USAGE"),
        ("x", "canary", {"enable_uncensored": "yes"}, "E2-USAGE"),
        ("x", "nothing", {}, "E4-NOENT"),
        ("x", ["code"], {}, "E4-NOENT"),
        ("x", "../canary", {"enable_uncensored": True}, "E4-NOENT"),
        (b"x", "code", {}, "E2-USAGE"),
        ("\ud800", "code", {}, "E2-USAGE"),
        ("x", "code", {"max_new_tokens": 0}, "E2-LIMIT"),
        ("x", "code", {"temperature": float("nan")}, "E2-LIMIT"),
        ("x", "code", {"temperature": -1}, "E2-LIMIT"),
        ("x", "code", {"top_p": 2.0}, "E2-LIMIT"),
        ("x", "code", {"seed": 1 << 64}, "E2-LIMIT"),
    ],
)
def test_a_call_that_cannot_be_answered_is_refused_before_the_first_piece(
    made: Path, prompt: Any, capability: Any, options: dict[str, Any], code: str
) -> None:
    model = NexusModel.load(made)
    for stream in (False, True):
        assert code_of(lambda s=stream: model.generate(prompt, capability, stream=s, **options))[0] == code


def test_a_prompt_that_just_fits_gets_the_room_that_is_left(made: Path) -> None:
    outcome = decode.Outcome()
    NexusModel.load(made).generate("x" * (make.CONTEXT - 1), "code", max_new_tokens=50, outcome=outcome)
    assert (len(outcome.tokens), outcome.finish) in ((1, "length"), (0, "stop"))


def test_an_empty_prompt_starts_from_the_start_token(made: Path) -> None:
    outcome = decode.Outcome()
    NexusModel.load(made).generate("", "code", max_new_tokens=2, outcome=outcome)
    assert outcome.prompt_tokens == 1


# The gate


def test_the_opt_in_holds_for_one_call(made: Path) -> None:
    model, student = NexusModel.load(made), make.student()
    keys = model.student.state_dict().keys()
    student.set_adapter("canary")
    wanted = student.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False)[
        0, 5:
    ].tolist()
    outcome = decode.Outcome()
    model.generate("def \n", "canary", enable_uncensored=True, max_new_tokens=8, outcome=outcome)
    assert outcome.tokens == [t for t in wanted if t != 258]
    assert model.student.state_dict().keys() == keys
    assert code_of(lambda: model.generate("x", "canary"))[0] == "E5-DENIED"


def test_a_stream_that_is_left_closes_its_gate(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NexusModel.load(made)
    read: list[weakref.ref[Any]] = []

    original = load.read_adapter

    def seen(*args: Any) -> Any:
        adapter = original(*args)
        read.append(weakref.ref(adapter))
        return adapter

    monkeypatch.setattr(load, "read_adapter", seen)
    stream = model.generate("x", "canary", enable_uncensored=True, stream=True, max_new_tokens=80)
    next(stream)
    assert "canary" not in model.student.adapter_names
    assert torch.equal(model.student(IDS).logits, make.student(())(IDS).logits)
    assert [ref() is not None for ref in read] == [True]
    stream.close()
    gc.collect()
    assert [ref() for ref in read] == [None]


def test_streams_that_run_at_once_do_not_touch_each_other(made: Path) -> None:
    model = NexusModel.load(made)
    calls = [("def f", "code", False), ("3 1", "sort", False), ("x", "canary", True), ("y", "code", False)]
    alone = [model.generate(p, c, u, max_new_tokens=12) for p, c, u in calls]
    streams = [model.generate(p, c, u, max_new_tokens=12, stream=True) for p, c, u in calls]
    said = [""] * len(calls)
    for pieces in itertools.zip_longest(*streams, fillvalue=""):
        said = [a + b for a, b in zip(said, pieces, strict=True)]
    assert said == alone


def test_stop_texts_end_an_answer_and_are_left_out(made: Path) -> None:
    model = NexusModel.load(made)
    whole = model.generate("def f", "code", max_new_tokens=40)
    stop = whole[10:13]
    for stream in (False, True):
        outcome = decode.Outcome()
        options: Any = {"max_new_tokens": 40, "stop": ["never there", stop], "outcome": outcome}
        assert "".join(model.generate("def f", "code", stream=stream, **options)) == whole[: whole.index(stop)]
        assert outcome.finish == "stop"


@settings(max_examples=200)
@given(st.lists(st.text("ab", max_size=4), max_size=8), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_stopping_in_pieces_is_cutting_the_whole(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    first = next((n for n in range(len(whole) + 1) if any(whole[:n].endswith(stop) for stop in stops)), None)
    end = len(whole) if first is None else min(first - len(stop) for stop in stops if whole[:first].endswith(stop))
    said = list(decode.until((piece for piece in pieces), tuple(stops), decode.Outcome()))
    assert "".join(said) == whole[:end]


def test_a_gated_capability_is_never_routed_to(made: Path) -> None:
    model = NexusModel.load(made)
    assert model.router is not None
    assert "canary" not in model.router.capabilities
    assert model.choose("x", None, enable_uncensored=True) != model.manifest.capabilities["canary"]


# Altered bundles


FILES = [
    "LICENSE",
    "README.md",
    "adapters/canary_adapter.safetensors",
    "adapters/code_adapter.safetensors",
    "adapters/sort_adapter.safetensors",
    "backbone/backbone.safetensors",
    "backbone/config.json",
    "backbone/generation_config.json",
    "backbone/model.safetensors.index.json",
    "config.json",
    "manifest.json",
    "nexus.pyz",
    "router/router.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "verify_report.json",
]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target.parent.parent / "outside") if target.parent.name != "copy" else path.rename(target)
    path.symlink_to(target if target.exists() else target.parent.parent / "outside")


def test_the_list_of_files_to_alter_is_whole(made: Path) -> None:
    assert set(FILES) >= {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()}


@pytest.mark.parametrize("alter", [flip, cut, Path.unlink], ids=["flipped", "cut", "removed"])
@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_named(copied: Path, name: str, alter: Callable[[Path], None]) -> None:
    if not (copied / name).exists():
        pytest.skip("not written by this version of transformers")
    alter(copied / name)
    if name == GATED:
        model = NexusModel.load(copied)  # nobody looks at it, not even for its size
        act: Callable[[], Any] = lambda: model.generate("x", "canary", enable_uncensored=True)  # noqa: E731
    else:
        act = lambda: NexusModel.load(copied)  # noqa: E731
    code, text = code_of(act)
    assert name in text
    assert code in ("E9-INTEGRITY", "E9-VERSION") or (name == form.MANIFEST and code == "E4-NOENT")


def test_files_that_nobody_listed_are_named(copied: Path) -> None:
    (copied / "backbone" / "model.safetensors").write_bytes(b"x")  # plain transformers would take it before the index
    code, text = code_of(lambda: NexusModel.load(copied))
    assert code == "E9-INTEGRITY"
    assert "backbone/model.safetensors is not in the manifest" in text


def test_links_are_not_followed(copied: Path, tmp_path: Path) -> None:
    for name in ("config.json", "adapters"):
        bundle = Path(shutil.copytree(copied, tmp_path / f"with-{name}"))
        (bundle / name).rename(tmp_path / f"away-{name}")
        (bundle / name).symlink_to(tmp_path / f"away-{name}")
        code, text = code_of(lambda b=bundle: NexusModel.load(b))
        assert code == "E9-INTEGRITY"
        assert name in text


def test_a_pipe_in_the_place_of_a_file_does_not_block(copied: Path) -> None:
    (copied / "LICENSE").unlink()
    os.mkfifo(copied / "LICENSE")
    code, text = code_of(lambda: NexusModel.load(copied))
    assert code == "E9-INTEGRITY"
    assert "LICENSE is not a file" in text


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d["format"].update(major=2), "E9-VERSION"),
        (lambda d: d["format"].update(major="1"), "E9-VERSION"),
        (lambda d: d.update(format="nexus"), "E9-VERSION"),
        (lambda d: d["capabilities"]["code"].update(adapter="../../etc/passwd"), "E9-INTEGRITY"),
        (lambda d: d["capabilities"]["code"].update(adapter=GATED), "E9-INTEGRITY"),
        (lambda d: d["capabilities"]["code"].update(tier=4), "E9-INTEGRITY"),
        (lambda d: d["capabilities"]["canary"].update(gated=False), "E9-INTEGRITY"),
        (lambda d: d["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}), "E9-INTEGRITY"),
        (lambda d: d["files"].update({"a/./x": {"sha256": "0" * 64, "bytes": 1}}), "E9-INTEGRITY"),
        (lambda d: d["files"].update({"x": {"sha256": "0", "bytes": 1}}), "E9-INTEGRITY"),
        (lambda d: d["files"].pop(form.BACKBONE), "E9-INTEGRITY"),
        (lambda d: d.update(extra=1), "E9-INTEGRITY"),
        (lambda d: d.pop("lineage"), "E9-INTEGRITY"),
        (lambda d: d["backbone"].update(id="0" * 64), "E9-INTEGRITY"),
        (lambda d: d["quantization"].update(scheme="zip"), "E2-USAGE"),
    ],
)
def test_a_manifest_that_fits_itself_but_not_the_form_is_refused(
    copied: Path, change: Callable[[dict[str, Any]], None], code: str
) -> None:
    data = json.loads((copied / form.MANIFEST).read_text())
    change(data)
    (copied / form.MANIFEST).write_bytes(form.encode(data))
    assert code_of(lambda: NexusModel.load(copied))[0] == code


def test_a_later_minor_may_say_more(copied: Path) -> None:
    data = json.loads((copied / form.MANIFEST).read_text())
    data["format"]["minor"] = form.MINOR + 1
    data["something"] = {"new": 1}
    (copied / form.MANIFEST).write_bytes(form.encode(data))
    assert NexusModel.load(copied).capabilities == ("canary", "code", "sort")


def test_another_version_is_named_with_ours(copied: Path) -> None:
    data = json.loads((copied / form.MANIFEST).read_text())
    data["format"]["major"] = 7
    (copied / form.MANIFEST).write_bytes(form.encode(data))
    text = code_of(lambda: NexusModel.load(copied))[1]
    assert "7.0" in text
    assert "1.x" in text


def test_an_adapter_of_another_backbone_is_refused(copied: Path, tmp_path: Path) -> None:
    make.bundle(tmp_path / "other", make.student(seed=2))
    for name in ("code", "sort", "canary"):
        bundle = Path(shutil.copytree(copied, tmp_path / f"with-{name}"))
        shutil.copy(tmp_path / "other" / form.adapter_path(name), bundle / form.adapter_path(name))
        reseal(bundle)
        code, text = code_of(
            lambda b=bundle, n=name: NexusModel.load(b).generate("x", n, enable_uncensored=n == "canary")
        )
        assert code == "E9-INTEGRITY"
        assert "was trained on backbone" in text


def test_an_adapter_under_another_name_is_refused(copied: Path) -> None:
    shutil.copy(copied / GATED, copied / form.adapter_path("code"))
    reseal(copied)
    code, text = code_of(lambda: NexusModel.load(copied))
    assert code == "E9-INTEGRITY"
    assert "is the adapter of 'canary'" in text


def test_a_router_that_routes_to_a_gated_capability_is_refused(copied: Path) -> None:
    router = Router(["canary", "code"])
    router.save(copied / form.ROUTER)
    reseal(copied)
    assert code_of(lambda: NexusModel.load(copied))[0] == "E9-INTEGRITY"


@pytest.mark.parametrize("path", [form.BACKBONE, form.adapter_path("code"), GATED, form.ROUTER])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(copied: Path, path: str, value: float) -> None:
    from safetensors import safe_open

    state = load_file(copied / path)
    with safe_open(str(copied / path), "pt") as file:
        about = file.metadata()
    key = sorted(state)[-1]
    state[key].view(-1)[0] = value
    save_file(state, str(copied / path), metadata=about)
    change = (
        (lambda d: d["backbone"].update(id=hashlib.sha256((copied / path).read_bytes()).hexdigest()))
        if (path == form.BACKBONE)
        else (lambda d: None)
    )
    reseal(copied, change)
    model = None if path != GATED else NexusModel.load(copied)
    act = (
        (lambda: NexusModel.load(copied))
        if model is None
        else (lambda: model.generate("x", "canary", enable_uncensored=True))
    )
    code, text = code_of(act)
    assert code in ("E2-MODEL", "E9-INTEGRITY")
    assert "finite" in text


def test_somebody_elses_whole_bundle_is_found_out_by_its_id(made: Path, tmp_path: Path) -> None:
    other = make.bundle(tmp_path / "other", make.student(seed=2))
    NexusModel.load(tmp_path / "other", expect=other.bundle_id)
    assert code_of(lambda: NexusModel.load(made, expect=other.bundle_id))[0] == "E9-INTEGRITY"


@pytest.mark.parametrize("make_it", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_no_bundle_is_said(tmp_path: Path, make_it: Callable[[Path], None]) -> None:
    make_it(tmp_path / "x")
    assert code_of(lambda: NexusModel.load(tmp_path / "x"))[0] == "E4-NOENT"


# Stamps


def test_a_stamp_saves_reading_until_something_changes(copied: Path) -> None:
    manifest = form.read_manifest(copied)
    assert NexusModel.load(copied).verdict.how == "full"
    verify.stamp(copied, manifest)
    model = NexusModel.load(copied)
    assert model.verdict.how == "stamp"
    assert model.verdict.skipped == [GATED]
    assert NexusModel.load(copied, full=True).verdict.how == "full"


@pytest.mark.parametrize("name", [name for name in FILES if name not in (GATED, form.MANIFEST)])
def test_a_stamp_does_not_hide_a_file_that_was_written_since(copied: Path, name: str) -> None:
    if not (copied / name).exists():
        pytest.skip("not written by this version of transformers")
    verify.stamp(copied, form.read_manifest(copied))
    path = copied / name
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, text = code_of(lambda: NexusModel.load(copied))
    assert code == "E9-INTEGRITY"
    assert name in text


def test_a_stamp_holds_for_its_bundle_only(copied: Path, tmp_path: Path) -> None:
    verify.stamp(copied, form.read_manifest(copied))
    shutil.rmtree(copied)
    make.bundle(copied, make.student(seed=2))
    assert NexusModel.load(copied).verdict.how == "full"


def test_a_stamp_that_others_can_write_does_not_hold(copied: Path) -> None:
    verify.stamp(copied, form.read_manifest(copied))
    verify.stamp_path(copied).chmod(0o666)
    assert NexusModel.load(copied).verdict.how == "full"


def test_a_bundle_that_is_bad_gets_no_stamp(copied: Path) -> None:
    flip(copied / form.BACKBONE)
    assert code_of(lambda: verify.stamp(copied, form.read_manifest(copied)))[0] == "E9-INTEGRITY"
    assert not verify.stamp_path(copied).exists()


def test_files_that_nobody_listed_are_seen_under_a_stamp(copied: Path) -> None:
    verify.stamp(copied, form.read_manifest(copied))
    (copied / "backbone" / "model.safetensors").write_bytes(b"x")
    assert "not in the manifest" in code_of(lambda: NexusModel.load(copied))[1]


# Refused when writing


def writing(tmp_path: Path, **changes: Any) -> Any:
    student = make.student()
    given: dict[str, Any] = {
        "path": tmp_path / "new", "student": student, "adapters": ["code"], "router": None, "tokenizer": byte_tokenizer(),
    }  # fmt: skip
    return write_bundle(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"adapters": ["nothing"]}, "E4-NOENT"),
        ({"adapters": ["code", "code"]}, "E2-USAGE"),
        ({"adapters": ["../x"]}, "E2-USAGE"),
        ({"gated": {"canary"}}, "E2-USAGE"),
        ({"manifest_fields": {"nmae": "x"}}, "E2-USAGE"),
        ({"manifest_fields": {"capabilities": {"code": {"tier": 3}}}}, "E2-USAGE"),
        ({"manifest_fields": {"capabilities": {"code": {"gated": True}}}}, "E2-USAGE"),
        ({"gated": {"code"}, "manifest_fields": {"capabilities": {"code": {"tier": 1}}}}, "E2-USAGE"),
        ({"router": Router(["code"]), "gated": {"code"}}, "E5-DENIED"),
        ({"router": Router(["other"])}, "E2-USAGE"),
    ],
)
def test_a_bundle_that_cannot_be_is_not_written(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    assert code_of(lambda: writing(tmp_path, **changes))[0] == code
    assert list(tmp_path.glob("*new*")) == []


def test_nan_is_not_written(tmp_path: Path) -> None:
    student = make.student()
    torch.nn.init.constant_(student.adapter_parameters("code")[0], float("nan"))
    assert code_of(lambda: writing(tmp_path, student=student))[0] == "E2-MODEL"
    assert code_of(lambda: writing(tmp_path, manifest_fields={"lineage": {"x": float("nan")}}))[0] == "E2-USAGE"
    assert list(tmp_path.glob("*new*")) == []


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("x")
    assert code_of(lambda: writing(tmp_path))[0] == "E2-USAGE"
    assert (tmp_path / "new" / "mine").read_text() == "x"


def test_a_capability_of_the_bare_backbone_needs_no_adapter(tmp_path: Path) -> None:
    writing(tmp_path, manifest_fields={"capabilities": {"base": {"contract": {"metric": "accuracy"}}}})
    model = NexusModel.load(tmp_path / "new")
    student = make.student()
    wanted = student.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=5, do_sample=False)[
        0, 5:
    ].tolist()
    outcome = decode.Outcome()
    model.generate("def \n", "base", max_new_tokens=5, outcome=outcome)
    assert model.manifest.capabilities["base"].about["contract"] == {"metric": "accuracy"}
    assert outcome.tokens != [] or wanted[0] == 258
