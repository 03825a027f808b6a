"""The objective in the engine: what is off costs nothing, cadences, all terms together, exact resume with everything that they remember."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from servers.learner.engine import Engine
from servers.learner.losses import WEIGHTS, KdSettings
from servers.learner.phase import phase_of
from servers.manifest_tables import TermName
from syscalls import limits
from syscalls.errors import RecurosError

SPEC: dict[str, Any] = {
    "teacher": {"kind": "patch", "layers": 3, "width": 16, "heads": 4},
    "student": {"kind": "patch", "layers": 2, "width": 8, "heads": 2},
    "ema": 0.9,
}
DISTIL = {"name": "distil", "index": 0, "train": "student", "windows": 10, "steps": 6, "lr": 3e-3}
ALL = dict.fromkeys(WEIGHTS, 0.1)


def batch_at(step: int, size: int = 8) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1000 + step)
    return {
        "ids": torch.arange(size) + step * size,
        "x": torch.rand(size, 8, 8, generator=g),
        "labels": torch.randint(0, 10, (size,), generator=g),
        "weight": torch.rand(size, generator=g) + 0.1,
    }


def engine_with(**kd: Any) -> Engine:
    engine = Engine({**SPEC, "kd": kd}, 7)
    engine.begin(DISTIL)
    return engine


def run(engine: Engine, steps: int) -> None:
    for _ in range(steps):
        engine.micro_step(batch_at(engine.step))


def test_the_names_of_terms_are_the_same_everywhere() -> None:
    assert TermName.__args__ == limits.TERMS  # type: ignore[attr-defined]


class Asked:
    """Counts what models are asked for."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        for name, role in engine.roles.items():
            original = role.model.forward

            def forward(batch: Any, _name: str = name, _original: Any = original, **asked: bool) -> Any:
                self.calls.append((_name, tuple(sorted(k for k, v in asked.items() if v))))
                return _original(batch, **asked)

            monkeypatch.setattr(role.model, "forward", forward)


def test_a_term_that_is_off_costs_no_pass_and_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with(mix=0.5, alpha=0.0)
    asked = Asked(engine, monkeypatch)
    engine.micro_step(batch_at(0))
    assert asked.calls == [("student", ()), ("teacher", ())]
    engine.set_kd(mix=0.0)
    asked.calls.clear()
    engine.micro_step(batch_at(1))
    assert asked.calls == [("student", ())]
    engine.set_kd(terms={"calibration": 0.1})
    asked.calls.clear()
    engine.micro_step(batch_at(2))
    assert asked.calls == [("student", ())], "calibration needs no teacher"
    engine.set_kd(terms={"cka": 0.1, "at": 0.1})
    asked.calls.clear()
    engine.micro_step(batch_at(3))
    assert asked.calls == [
        ("student", ("need_attention", "need_hidden")),
        ("teacher", ("need_attention", "need_hidden")),
    ]
    assert not [path for path in engine_with(mix=0.5, alpha=0.0).capture() if path.startswith(("loss/", "projector/"))]


def test_a_cadence_skips_steps_and_weighs_the_others_accordingly() -> None:
    engine, plain = engine_with(alpha=0.0, rkd=0.1, every={"rkd": 3}), engine_with(alpha=0.0, rkd=0.3)
    first, always = engine.micro_step(batch_at(0)), plain.micro_step(batch_at(0))
    assert first.loss == always.loss, "every third step, three times as heavy"
    names = [set(engine.micro_step(batch_at(i)).terms) for i in (1, 2, 3)]
    assert ["rkd" in n for n in names] == [False, False, True]


def test_the_whole_loss_is_the_sum_of_weighted_terms() -> None:
    given = {name: 0.01 * (i + 1) for i, name in enumerate(WEIGHTS)}
    engine = engine_with(mix=0.3, alpha=0.5, allow=(0, 1, 2), **given)
    done = engine.micro_step(batch_at(0))
    weights = {"kd": 0.3, "hint": 0.5, **{name: 0.01 * (i + 1) for i, name in enumerate(WEIGHTS)}}
    weights["task"] *= 0.7
    assert set(done.terms) == {*weights, "cka_undefined", "ewc_anchored"}
    assert done.loss == pytest.approx(sum(w * done.terms[n] for n, w in weights.items()), rel=1e-5)
    assert all(np.isfinite(v) for v in done.terms.values())


def test_sample_weights_of_any_scale_give_the_same_step() -> None:
    digests = []
    for scale in (1.0, 1024.0):
        engine = engine_with(mix=0.3, alpha=0.5, **ALL)
        batch = batch_at(0)
        batch["weight"] = batch["weight"] * scale
        engine.micro_step(batch)
        digests.append(engine.digest())
    assert digests[0] == digests[1]


@pytest.mark.parametrize("at", [2, 7, 11])
def test_restore_with_every_term_on_continues_bit_for_bit(at: int) -> None:
    straight = engine_with(mix=0.3, alpha=0.5, every={"jacobian": 2}, **ALL)

    def go(engine: Engine, stop: int) -> None:
        while engine.step < stop:
            if engine.step == 5 and engine.generation == 0:
                engine.swap("snapshot")
            run(engine, 1)

    go(straight, at)
    leaves, digest = straight.capture(), straight.digest()
    assert "loss/cka/sums" in leaves
    assert ("loss/ewc/fisher" in leaves) == (at > 5)
    go(straight, 14)
    end = straight.digest()
    straight.restore(leaves)
    assert straight.digest() == digest
    go(straight, 14)
    assert straight.digest() == end
    other = Engine({**SPEC, "kd": {}}, 7)
    other.restore(leaves)
    go(other, 14)
    assert other.digest() == end


def test_a_refused_step_leaves_what_terms_remember_alone() -> None:
    engine = engine_with(cka=0.2)
    run(engine, 2)
    digest = engine.digest()
    batch = batch_at(2)
    batch["x"][0, 0, 0] = float("nan")
    with pytest.raises(RecurosError, match="step 2: the"):
        engine.micro_step(batch)
    assert engine.digest() == digest


def test_ewc_holds_the_student_near_what_mattered_to_the_generation_before() -> None:
    moved = {}
    for weight in (1e-9, 1_000.0):
        engine = engine_with(alpha=0.0, ewc=weight)
        run(engine, 6)
        engine.swap("snapshot")
        start = engine.roles["student"].arena.flat.clone()
        done = [engine.micro_step(batch_at(engine.step)).terms["ewc"] for _ in range(10)]
        assert done[0] == 0.0
        fisher = engine._objective.memory.kept["ewc/fisher"]
        flat = torch.cat([p.detach().reshape(-1) for p in engine.roles["student"].arena.parameters])
        anchor = engine._objective.memory.kept["ewc/anchor"]
        moved[weight] = float((fisher * (flat - anchor).square()).sum())
        assert not torch.equal(start, engine.roles["student"].arena.flat)
    assert moved[1_000.0] < 0.5 * moved[1e-9]


def test_a_born_again_student_is_held_to_nothing() -> None:
    engine = engine_with(alpha=0.0, ewc=1.0)
    run(engine, 2)
    engine.swap("checkpoint")
    assert engine.micro_step(batch_at(2)).terms["ewc_anchored"] == 0.0


def test_declared_layers_are_the_ones_compared() -> None:
    seen = {}
    for pairs in ((), ((1, 3), (2, 1))):
        engine = engine_with(mix=0.0, alpha=0.0, cka=1.0, layer_map=pairs)
        seen[pairs] = engine.micro_step(batch_at(0)).terms["cka"]
    assert seen[()] != seen[((1, 3), (2, 1))]
    with pytest.raises(RecurosError, match="teacher layer 9"):
        engine_with(layer_map=((1, 9),)).micro_step(batch_at(0))


def test_a_term_that_a_model_cannot_serve_is_refused_when_it_is_asked_for_and_nothing_changes() -> None:
    engine = Engine({"teacher": {"kind": "mlp"}, "student": {"kind": "mlp", "width": 8}, "kd": {"alpha": 0.0}}, 1)
    engine.begin(DISTIL)
    digest = engine.digest()
    with pytest.raises(RecurosError, match=r"at needs attention, which the teacher \(mlp\) does not give") as caught:
        engine.set_kd(terms={"at": 0.1})
    assert caught.value.code == "E2-LIMIT"
    assert engine.digest() == digest
    specs = {r: {"kind": "hf-config", "config": BERT, "task": "classify"} for r in ("teacher", "student")}
    tokens = Engine({**specs, "kd": {"alpha": 0.0}}, 1)
    tokens.begin(DISTIL)
    with pytest.raises(RecurosError, match="jacobian needs inputs of numbers"):
        tokens.set_kd(terms={"jacobian": 0.1})


@pytest.mark.parametrize(
    "values", [{"cka": -0.1}, {"at": float("nan")}, {"rkd": 1e9}, {"every": {"kd": 2}}, {"every": {"cka": 0}}]
)
def test_weights_and_cadences_outside_their_limits_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecurosError) as caught:
        KdSettings().changed(**values)
    assert caught.value.code == "E2-LIMIT"


def test_a_policy_sets_weights_for_its_windows_and_an_operators_last() -> None:
    engine = engine_with(alpha=0.0)
    engine.apply_policy({"cka": 0.3})
    assert "cka" in engine.micro_step(batch_at(0)).terms
    engine.apply_policy({})
    assert "cka" not in engine.micro_step(batch_at(1)).terms
    engine.set_kd(terms={"cka": 0.3})
    assert "cka" in engine.micro_step(batch_at(2)).terms


def test_a_student_can_learn_from_its_teacher_alone() -> None:
    done = engine_with(mix=0.0, alpha=1.0, task=0.0).micro_step(batch_at(0))
    assert set(done.terms) == {"hint"}
    assert done.loss == done.terms["hint"]


def test_cyclic_rates_restart_and_snapshot_swaps_keep_the_student() -> None:
    phase = phase_of({**DISTIL, "schedule": "cyclic", "cycles": 3, "lr_floor": 0.0})
    rates = [phase.lr_at(i) for i in range(60)]
    assert rates[0] == rates[20] == rates[40] == pytest.approx(3e-3)
    assert rates[19] == rates[39] < 0.01 * rates[0]
    assert rates[:20] == sorted(rates[:20], reverse=True)
    engine = engine_with(alpha=0.0)
    run(engine, 3)
    before = {p: leaf.id for p, leaf in engine.capture().items()}
    engine.swap("snapshot")
    after = {p: leaf.id for p, leaf in engine.capture().items()}
    for path, leaf in before.items():
        if path.startswith("student/"):
            assert after[path] == leaf == after[path.replace("student/", "teacher/", 1)]


BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "num_labels": 3,
    "attention_probs_dropout_prob": 0.0,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}


@pytest.mark.parametrize(("teacher", "task"), [(BERT, "classify"), (LLAMA, "causal-lm")])
def test_hugging_face_pairs_of_other_widths_and_heads_take_every_term_over_layers(
    teacher: dict[str, Any], task: str
) -> None:
    student = {**teacher, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 12}
    specs = {
        role: {"kind": "hf-config", "config": c, "task": task}
        for role, c in (("teacher", teacher), ("student", student))
    }
    kd = {"mix": 0.5, "alpha": 0.5, **ALL, "jacobian": 0.0}
    engine = Engine({**specs, "kd": kd}, 3)
    engine.begin(DISTIL)
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (5, 9), generator=g)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0, 1])}
    done = [engine.micro_step(batch) for _ in range(3)]
    assert all(np.isfinite(v) for m in done for v in m.terms.values())
    assert done[0].terms["minilm_vr"] > 0
    assert done[0].terms["at"] > 0
    leaves = engine.capture()
    end = engine.micro_step(batch).loss
    engine.restore(leaves)
    assert engine.micro_step(batch).loss == end


def test_padding_weighs_nothing_in_attention_terms() -> None:
    specs = {r: {"kind": "hf-config", "config": BERT, "task": "classify"} for r in ("teacher", "student")}
    values = []
    for filler in (7, 23):
        engine = Engine(
            {**specs, "kd": {"mix": 0.0, "alpha": 0.0, "at": 1.0, "minilm_vr": 1.0, "attention_mse": 1.0}}, 3
        )
        engine.begin(DISTIL)
        engine.roles["student"].model.module.eval()
        ids = torch.tensor([[3, 4, 5, filler, filler], [6, 7, 8, 9, 10]])
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        values.append(
            engine.micro_step({"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])}).terms
        )
    for name in ("at", "minilm_vr", "attention_mse"):
        assert values[0][name] == pytest.approx(values[1][name], rel=1e-5)
