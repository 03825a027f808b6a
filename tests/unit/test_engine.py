"""The engine: exact resume at any step, in this process and a fresh one; swaps, pruning, refusal of non-finite losses."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from servers.learner.arena import Arena, FlatAdamW
from servers.learner.engine import Engine
from servers.learner.state import Leaf
from servers.learner.trace import joined
from syscalls.errors import RecurosError

SPEC: dict[str, Any] = {
    "teacher": {"kind": "patch", "layers": 2, "width": 16, "heads": 2},
    "student": {"kind": "patch", "layers": 1, "width": 8, "heads": 2},
    "optimizer": {"weight_decay": 0.05},
    "ema": 0.9,
    "kd": {"temperature": 2.0, "mix": 0.7, "alpha": 0.5},
}
TEACH = {"name": "teach", "index": 0, "train": "teacher", "windows": 2, "steps": 5, "lr": 3e-3, "warmup_steps": 2}
DISTIL = {"name": "distil", "index": 1, "train": "student", "windows": 4, "steps": 5, "lr": 3e-3}


def batch_at(step: int, size: int = 8) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1000 + step)
    return {
        "ids": torch.arange(size) + step * size,
        "x": torch.rand(size, 8, 8, generator=g),
        "labels": torch.randint(0, 10, (size,), generator=g),
        "weight": torch.rand(size, generator=g) + 0.1,
    }


def run_to(engine: Engine, stop: int) -> None:
    """Drive the two phases up to global step `stop`, beginning phases where they are due."""
    while engine.step < stop:
        if engine.step == 0:
            engine.begin(TEACH)
        elif engine.step == 10 and not engine.is_in(DISTIL):
            engine.begin(DISTIL)
        engine.micro_step(batch_at(engine.step))


@pytest.mark.parametrize("at", [0, 3, 10, 17])
def test_restore_at_any_step_then_continuing_equals_the_uninterrupted_run(at: int) -> None:
    straight = Engine(SPEC, 7)
    run_to(straight, at)
    leaves, digest = straight.capture(), straight.digest()
    run_to(straight, 25)
    end = straight.digest()
    # In place, after damage by further steps.
    straight.restore(leaves)
    assert straight.digest() == digest
    run_to(straight, 25)
    assert straight.digest() == end
    # In an engine that shares nothing but the spec.
    other = Engine(SPEC, 7)
    other.restore(leaves)
    assert other.digest() == digest
    run_to(other, 25)
    assert other.digest() == end


CHILD = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import json
from test_engine import SPEC, run_to, load
from servers.learner.engine import Engine
engine = Engine(SPEC, 7)
engine.restore(load(Path(sys.argv[1])))
before = engine.digest()
run_to(engine, 25)
print(json.dumps([before, engine.digest()]))
"""


def save(leaves: dict[str, Leaf], folder: Path) -> None:
    index = []
    for number, (path, leaf) in enumerate(leaves.items()):
        (folder / str(number)).write_bytes(leaf.data)
        index.append([path, leaf.dtype, list(leaf.shape)])
    (folder / "index.json").write_text(json.dumps(index))


def load(folder: Path) -> dict[str, Leaf]:
    index = json.loads((folder / "index.json").read_text())
    return {
        path: Leaf(dtype, tuple(shape), memoryview((folder / str(number)).read_bytes()))
        for number, (path, dtype, shape) in enumerate(index)
    }


def test_a_fresh_process_resumes_mid_phase_bit_for_bit(tmp_path: Path) -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 14)
    save(engine.capture(), tmp_path)
    digest = engine.digest()
    run_to(engine, 25)
    here = Path(__file__).parent
    code = CHILD.format(root=str(here.parents[1]), tests=str(here))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [digest, engine.digest()]


def test_same_spec_and_seed_start_alike_and_another_seed_does_not() -> None:
    assert Engine(SPEC, 3).digest() == Engine(SPEC, 3).digest() != Engine(SPEC, 4).digest()


def test_captured_leaves_do_not_change_when_training_goes_on() -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 12)
    leaves = engine.capture()
    before = {path: bytes(leaf.data) for path, leaf in leaves.items()}
    run_to(engine, 15)
    engine.swap("ema")
    assert before == {path: bytes(leaf.data) for path, leaf in leaves.items()}


def test_a_frozen_teacher_is_the_same_leaves_from_capture_to_capture() -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 12)
    first = engine.capture()
    run_to(engine, 13)
    second = engine.capture()
    teacher = [p for p in first if p.startswith("teacher/")]
    assert teacher
    assert all(first[p] is second[p] for p in teacher)
    assert any(first[p].id != second[p].id for p in first if p.startswith("student/"))


def test_swap_by_ema_promotes_the_average_and_leaves_the_student() -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 15)
    before = engine.capture()
    engine.swap("ema")
    after = engine.capture()
    for path, leaf in before.items():
        role, _, rest = path.partition("/")
        if role == "student":
            assert after[path].id == leaf.id
        if role == "ema":
            assert after[f"teacher/{rest}"].id == leaf.id
    assert engine.generation == 1
    assert engine.param_count("teacher") == engine.param_count("student")
    assert engine.micro_step(batch_at(15)).terms["hint"] >= 0.0, "projectors fit the new teacher"


def test_swap_by_checkpoint_promotes_the_student_and_starts_a_new_one() -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 15)
    before = engine.capture()
    engine.swap("checkpoint")
    after = engine.capture()
    matrix = "blocks.0.fc1/weight"
    assert after[f"teacher/{matrix}"].id == before[f"student/{matrix}"].id
    assert after[f"student/{matrix}"].id != before[f"student/{matrix}"].id
    assert after[f"ema/{matrix}"].id == after[f"student/{matrix}"].id


@pytest.mark.parametrize("mode", ["ema", "checkpoint"])
def test_a_swap_survives_restore_into_an_engine_of_the_first_architecture(mode: str) -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 15)
    engine.swap(mode)
    engine.micro_step(batch_at(15))
    leaves, digest = engine.capture(), engine.digest()
    other = Engine(SPEC, 7)
    other.restore(leaves)
    assert other.digest() == digest
    for e in (engine, other):
        run_to(e, 20)
    assert other.digest() == engine.digest()


def test_a_rollback_over_a_swap_restores_the_first_teacher() -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 15)
    leaves, digest = engine.capture(), engine.digest()
    engine.swap("ema")
    run_to(engine, 17)
    engine.restore(leaves)
    assert engine.digest() == digest


def test_swap_is_refused_while_the_teacher_is_trained() -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 2)
    with pytest.raises(RecurosError, match="still trains the teacher"):
        engine.swap("ema")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_before_parameters_change(bad: float) -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 12)
    digest = engine.digest()
    batch = batch_at(12)
    batch["x"][3, 2, 2] = bad
    with pytest.raises(RecurosError, match=r"step 12: the task is nan") as caught:
        engine.micro_step(batch)
    assert caught.value.code == "E7-LOSS"
    assert caught.value.details == {"step": 12, "term": "task"}
    assert engine.digest() == digest


def test_a_term_that_is_off_is_not_evaluated_and_no_projector_exists() -> None:
    engine = Engine({**SPEC, "kd": {"alpha": 0.0, "mix": 0.5}}, 7)
    engine.begin(DISTIL)
    assert set(engine.micro_step(batch_at(0)).terms) == {"task", "kd"}
    assert not [p for p in engine.capture() if p.startswith("projector/")]
    engine.set_kd(mix=0.0)
    done = engine.micro_step(batch_at(1))
    assert set(done.terms) == {"task"}
    assert done.trace is None, "no teacher ran"
    engine.set_kd(alpha=1.0)
    assert set(engine.micro_step(batch_at(2)).terms) == {"task", "hint"}


def test_a_policy_overlays_the_operators_settings_and_ends_with_its_window() -> None:
    engine = Engine(SPEC, 7)
    engine.apply_policy({"temperature": 3.0, "weights": 0})
    assert engine.kd.temperature == 3.0
    engine.set_kd(temperature=1.5, mix=0.2)
    assert (engine.kd.temperature, engine.kd.mix) == (3.0, 0.2)
    engine.apply_policy({})
    assert engine.kd.temperature == 1.5


def test_refused_settings_change_nothing() -> None:
    engine = Engine(SPEC, 7)
    engine.begin(DISTIL)
    digest = engine.digest()
    with pytest.raises(RecurosError, match="equal widths"):
        engine.set_kd(proj="none", temperature=3.0)
    assert engine.digest() == digest


def test_pruning_zeroes_the_smallest_weights_and_the_mask_holds_and_travels() -> None:
    engine = Engine(SPEC, 7)
    run_to(engine, 12)
    engine.prune(0.5)
    run_to(engine, 14)
    leaves = engine.capture()
    assert "mask/student/flat" in leaves
    other = Engine(SPEC, 7)
    other.restore(leaves)
    run_to(other, 18)
    weights = [p for p in other.roles["student"].model.module.parameters() if p.dim() > 1]
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros / sum(w.numel() for w in weights) == pytest.approx(0.5, abs=0.01)


def test_the_trace_has_a_row_per_sample_with_kl_zero_against_oneself() -> None:
    engine = Engine({**SPEC, "ema": 0.0}, 7)
    engine.begin(DISTIL)
    engine.micro_step(batch_at(0))
    engine.swap("ema")  # momentum 0: the average is the student itself
    seen = engine.micro_step(batch_at(1)).trace
    assert seen is not None
    trace = joined([seen])
    assert trace["id"].tolist() == batch_at(1)["ids"].tolist()
    assert trace["agree"].tolist() == [1] * 8
    assert trace["kl"].abs().max() < 1e-6
    torch.testing.assert_close(trace["entropy_s"], trace["entropy_t"])
    assert trace["label_ok"].dtype == trace["agree"].dtype == torch.uint8


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    engine = Engine(SPEC, 7)
    engine.begin(TEACH)
    rates = [engine.micro_step(batch_at(i)).lr for i in range(10)]
    assert rates[:3] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_a_snapshot_of_another_model_is_refused_by_path() -> None:
    engine = Engine(SPEC, 7)
    leaves = engine.capture()
    name = "student/blocks.0.fc1/weight"
    leaf = leaves[name]
    with pytest.raises(RecurosError, match=name):
        engine.restore({**leaves, name: Leaf("F32", (leaf.shape[1], leaf.shape[0]), leaf.data)})
    with pytest.raises(RecurosError, match=name):
        engine.restore({path: leaf for path, leaf in leaves.items() if path != name})


def test_a_student_that_is_its_teacher_is_left_where_it_is_by_the_hint() -> None:
    """Generations would drift apart otherwise: a projector that starts at random outweighs every other term of a first step."""
    engine = Engine({**SPEC, "ema": 1e-6, "kd": {"temperature": 2.0, "mix": 1.0, "alpha": 1.0}}, 7)
    run_to(engine, 15)
    engine.swap("ema")
    engine.begin({**DISTIL, "index": 2, "name": "again", "lr": 1e-3})
    student = engine.roles["student"].arena
    before = student.flat.detach().clone()
    for step in range(20):
        done = engine.micro_step(batch_at(100 + step))
        assert done.terms["hint"] < 1e-2
        assert done.terms["kd"] < 1e-2
    assert float((student.flat.detach() - before).norm() / before.norm()) < 0.05


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_the_update_is_torchs_adamw_bit_for_bit(decay: float) -> None:
    torch.manual_seed(1)
    ours = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    theirs = copy.deepcopy(ours)
    arena = Arena(ours)
    arena.train(True)
    update = FlatAdamW(arena, weight_decay=decay, betas=(0.9, 0.98), eps=1e-8)
    groups = [
        {"params": [p for p in theirs.parameters() if (p.dim() > 1) is matrices], "weight_decay": decay * matrices}
        for matrices in (True, False)
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    for step in range(5):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            assert p.grad is not None
            p.grad.copy_(q.grad)
        for group in reference.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        update.step(1e-3 * (step + 1))
        reference.step()
    assert update.steps == 5
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
