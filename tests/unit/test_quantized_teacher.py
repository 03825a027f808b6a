"""Teachers in 8 and 4 bits: they teach, cost little state, come back from their directory, and are refused where they cannot serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from kfs.store import Store
from servers.learner.engine import Engine
from servers.learner.teacher_cache import TeacherCache
from servers.models import quantized
from servers.models.registry import build
from servers.observer.evaluation import load_role
from syscalls.errors import RecurosError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*")
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
STUDENT = {"kind": "hf-config", "config": {"model_type": "llama", **SIZES, "hidden_size": 32, "num_hidden_layers": 1}}
PHASE = {"name": "distil", "index": 0, "train": "student", "steps_total": 100, "lr": 1e-2, "schedule": "constant"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "llama"
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2)).save_pretrained(path)
    return path


def tokens(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(1, 64, (4, 12), generator=torch.Generator().manual_seed(seed))
    return {"ids": torch.arange(4), "weight": torch.ones(4), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def spec(directory: Path, load: str, **kd: Any) -> dict[str, Any]:
    teacher = {"kind": "hf", "path": str(directory), "load": load}
    return {"teacher": teacher, "student": STUDENT, "kd": {"mix": 0.9, "alpha": 0.5, **kd}}


@pytest.fixture(scope="module", params=["int8", "nf4"])
def load(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_answers_like_the_model_that_it_was_and_takes_less(directory: Path, load: str) -> None:
    whole = build({"kind": "hf", "path": str(directory)}, 0)
    small = build({"kind": "hf", "path": str(directory), "load": load}, 0)
    with torch.no_grad():
        a, b = (torch.log_softmax(m.forward(tokens(0)).logits, -1) for m in (whole, small))
    assert b.dtype == torch.float32
    apart = float((a.exp() * (a - b)).sum(-1).mean())
    assert 0 < apart < {"int8": 0.01, "nf4": 0.5}[load]
    assert small.param_count == whole.param_count
    held = [sum(p.numel() * p.element_size() for p in m.module.parameters()) for m in (whole, small)]
    assert held[1] < 0.75 * held[0]  # embedding and head stay as they were


def test_a_student_learns_from_it_and_every_step_and_restore_is_exact(directory: Path, load: str) -> None:
    engine = Engine(spec(directory, load, cka=0.1), 7)
    engine.begin(PHASE)
    losses = [engine.micro_step(tokens(n % 4)).terms["kd"] for n in range(12)]
    assert losses[-1] < losses[0]
    leaves = engine.capture()
    assert not [path for path in leaves if path.startswith("teacher/")]
    ahead = [engine.micro_step(tokens(n)).loss for n in range(3)]
    again = Engine(spec(directory, load, cka=0.1), 7)
    again.restore(leaves)
    assert again.digest() == engine.root_of(leaves)
    assert [again.micro_step(tokens(n)).loss for n in range(3)] == ahead


def test_after_a_swap_the_student_teaches_and_before_it_the_directory_does(directory: Path, load: str) -> None:
    engine = Engine(spec(directory, load), 7)
    engine.begin(PHASE)
    engine.micro_step(tokens(0))
    before = engine.capture()
    engine.swap("snapshot")
    assert not engine.roles["teacher"].model.frozen
    assert [path for path in engine.capture() if path.startswith("teacher/")]
    engine.micro_step(tokens(1))
    engine.restore(before)
    assert engine.roles["teacher"].model.frozen
    assert engine.digest() == engine.root_of(before)


def test_other_files_in_its_directory_are_not_the_same_teacher(directory: Path, tmp_path: Path) -> None:
    engine = Engine(spec(directory, "int8"), 7)
    told = engine.roles["teacher"].model.architecture
    moved = tmp_path / "other"
    torch.manual_seed(4)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(moved)
    with pytest.raises(RecurosError, match="the state was made with b3:") as caught:
        build({**told, "path": str(moved)}, 0)
    assert caught.value.code == "E2-MODEL"


def test_the_observer_scores_it_and_the_cache_tells_it_from_others(directory: Path, load: str, tmp_path: Path) -> None:
    engine = Engine(spec(directory, load), 7)
    engine.begin(PHASE)
    leaves = engine.capture()
    with Store.open_writer(tmp_path / "store") as store:
        ids = {}
        for path, leaf in leaves.items():
            ids[path] = leaf.id
            if path == "policy/roles/state":
                from kfs.objects import NewObject

                store.put([NewObject(leaf.dtype, leaf.shape, leaf.data, "snapshot")])
        model = load_role(store, ids, "teacher")
    with torch.no_grad():
        expected = engine.roles["teacher"].model.forward(tokens(0)).logits
        assert torch.equal(model.forward(tokens(0)).logits, expected)
    cache = TeacherCache("here", 1 << 20)
    engine.keep_teacher_outputs(cache)
    for _ in range(3):
        engine.micro_step(tokens(0))
    keys = {
        cache._key(Engine(spec(directory, kind), 7).roles["teacher"], tokens(0), frozenset({1}), {})
        for kind in quantized.LOADS
    }
    assert len(keys) == len(quantized.LOADS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": {**PHASE, "train": "teacher"}}, "phase 'distil' trains the teacher, which is loaded in 8 or 4 bits"),
        ({"student": True}, "a student in 8 or 4 bits cannot be trained"),
        ({"load": "int3"}, "load 'int3' is unknown"),
    ],
)
def test_what_it_cannot_be_is_refused(directory: Path, change: dict[str, Any], message: str) -> None:
    given = spec(directory, str(change.get("load", "int8")))
    if "student" in change:
        given["student"] = given["teacher"]
    with pytest.raises(RecurosError, match=message) as caught:
        Engine(given, 7).begin(change.get("phase", PHASE))
    assert caught.value.code == "E2-MODEL"


def test_what_a_kernel_does_not_take_is_refused_with_its_reason(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(self: Any, *_: Any, **__: Any) -> None:
        raise NotImplementedError("blocksize 64 of 20 columns\nand more")

    monkeypatch.setattr(LlamaForCausalLM, "forward", no)
    with pytest.raises(
        RecurosError, match="does not run in nf4 here: NotImplementedError: blocksize 64 of 20 columns"
    ) as caught:
        build({"kind": "hf", "path": str(directory), "load": "nf4"}, 0)
    assert caught.value.hint == 'load = "int8" or "float32"'
