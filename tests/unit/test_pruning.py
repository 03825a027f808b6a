"""Pruning: which weights, heads and neurons go and when, models that are really smaller, and exact resume in the middle of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kfs.checkout import checkout
from kfs.objects import NewObject
from kfs.store import Store
from servers.learner.engine import Engine
from servers.learner.gates import BETA, GAMMA, ZETA, Gates, stretched
from servers.learner.pruning import RAMP, movement_share
from servers.models.registry import build, from_checkout
from servers.models.structure import structure_of
from syscalls import masks
from syscalls.errors import RecurosError

SPEC: dict[str, Any] = {
    "teacher": {"kind": "patch", "layers": 2, "width": 16, "heads": 4},
    "student": {"kind": "patch", "layers": 2, "width": 16, "heads": 4},
    "ema": 0.9,
    "kd": {"mix": 0.5, "alpha": 0.5},
}
DISTIL = {"name": "distil", "index": 0, "train": "student", "windows": 10, "steps": 6, "lr": 3e-3}


def batch_at(step: int, size: int = 8) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1000 + step)
    return {"x": torch.rand(size, 8, 8, generator=g), "labels": torch.randint(0, 10, (size,), generator=g)}


def engine_at(steps: int = 3, **kd: Any) -> Engine:
    engine = Engine({**SPEC, "kd": {**SPEC["kd"], **kd}}, 7)
    engine.begin(DISTIL)
    run(engine, steps)
    return engine


def run(engine: Engine, steps: int) -> None:
    for _ in range(steps):
        engine.micro_step(batch_at(engine.step))


def weights(engine: Engine, role: str = "student") -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in engine.roles[role].model.module.named_parameters()}


def logits(engine: Engine) -> Tensor:
    module = engine.roles["student"].model.module
    training = module.training
    module.eval()
    with torch.no_grad():
        found: Tensor = engine.roles["student"].model.forward(batch_at(99)).logits
    module.train(training)
    return found


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"sparsity": 0.5}, {"method": "magnitude", "target": 0.5}),
        ({"method": "movement", "target": 0.6, "steps": 40}, {"method": "movement", "target": 0.6, "steps": 40}),
        ({"method": "heads", "heads": [[2, 1], [1, 3], [2, 1]]}, {"method": "heads", "heads": [[1, 3], [2, 1]]}),
        ({"method": "l0", "target": 0.5, "weight": 2}, {"method": "l0", "target": 0.5, "weight": 2.0}),
    ],
)
def test_mask_specs_have_one_normal_form(spec: dict[str, Any], found: dict[str, Any]) -> None:
    assert masks.checked(spec) == found == masks.checked(found)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({}, "needs a target"),
        ({"sparsity": 1.0}, "target 1.0 is outside"),
        ({"sparsity": True}, "target True is outside"),
        ({"sparsity": 0.5, "method": "l0"}, "sparsity stands alone"),
        ({"method": "lottery", "target": 0.5}, "'lottery' is unknown"),
        ({"method": "movement", "target": 0.0}, r"outside \(0, 1\)"),
        ({"method": "movement", "target": float("nan")}, "outside"),
        ({"method": "movement", "target": 0.5, "steps": 9}, "at least 10"),
        ({"method": "magnitude", "target": 0.5, "steps": 90}, "takes no 'steps'"),
        ({"method": "heads", "heads": []}, "no pairs"),
        ({"method": "heads", "heads": [[0, 1]]}, "counted from 1"),
        ({"method": "heads", "heads": [[1, 1]], "target": 0.5}, "target or heads"),
        ({"method": "l0", "target": 0.5, "weight": 0}, "outside"),
    ],
)
def test_mask_specs_that_mean_nothing_are_refused_with_their_bound(spec: dict[str, Any], text: str) -> None:
    with pytest.raises(RecurosError, match=text) as caught:
        masks.checked(spec)
    assert caught.value.code == "E2-USAGE"


# Movement


def test_the_share_is_zero_until_the_last_third_and_then_a_cubic() -> None:
    assert movement_share(0.0, 0.6) == 0.0 == pytest.approx(movement_share(1 - RAMP, 0.6), abs=1e-12)
    assert movement_share(1 - RAMP / 2, 0.6) == pytest.approx(0.6 * (1 - 0.5**3))
    assert movement_share(1.0, 0.6) == movement_share(2.0, 0.6) == 0.6
    shares = [movement_share(i / 100, 0.6) for i in range(101)]
    assert shares == sorted(shares)


def test_scores_are_the_sum_of_minus_lr_gradient_times_weight_after_the_warm_up() -> None:
    engine = engine_at(0)
    engine.prune({"method": "movement", "target": 0.5, "steps": 30})
    arena = engine.roles["student"].arena
    expected = np.zeros(arena.flat.numel())
    for step in range(12):
        before = arena.flat.detach().double().numpy().copy()
        done = engine.micro_step(batch_at(step))
        assert arena.grad is not None
        if step >= 3:  # a tenth of 30
            expected -= done.lr * arena.grad.double().numpy() * before
    assert engine._pruning.scores is not None
    np.testing.assert_allclose(engine._pruning.scores.numpy(), expected, rtol=1e-4, atol=1e-9)


def test_movement_keeps_what_has_the_highest_signed_scores_and_then_refits() -> None:
    engine = engine_at(0)
    engine.prune({"method": "movement", "target": 0.6, "steps": 30})
    run(engine, 29)
    assert engine._pruning.scores is not None
    assert not engine.pruned
    candidates = torch.cat([torch.full((s.numel,), len(s.shape) > 1) for s in engine.roles["student"].arena.slots])
    scores = torch.cat([v.reshape(-1) for v in engine.roles["student"].arena.views(engine._pruning.scores)])
    assert float(scores[candidates].min()) < 0 < float(scores[candidates].max()), "signed, or this shows nothing"
    run(engine, 1)
    assert engine.pruned
    assert engine._pruning.mask is not None
    mask = torch.cat([v.reshape(-1) for v in engine.roles["student"].arena.views(engine._pruning.mask)]).bool()
    assert bool(mask[~candidates].all())
    kept = int(mask[candidates].sum())
    assert kept == int(candidates.sum()) - int(0.6 * int(candidates.sum()))
    assert engine._pruning.scores is None
    held = engine._pruning.mask.clone()
    run(engine, 3)
    assert not engine.pruned
    flat = engine.roles["student"].arena.flat
    assert bool((flat[held == 0] == 0).all())
    assert bool((engine._roles.ema[held == 0] == 0).all())
    assert engine.sparsity == pytest.approx(1 - (kept + int((~candidates).sum())) / len(mask))


def test_a_weight_that_moves_away_from_zero_scores_above_one_that_shrinks() -> None:
    engine = engine_at(0)
    engine.prune({"method": "movement", "target": 0.5, "steps": 20})
    engine._pruning.schedule["done"] = 10
    arena = engine.roles["student"].arena
    assert arena.grad is not None
    arena.grad.zero_()
    arena.flat[:2] = torch.tensor([0.5, 0.5])
    arena.grad[:2] = torch.tensor([-1.0, 1.0])  # descent makes the first grow and the second shrink
    engine._pruning.score(engine.roles["student"], 0.1)
    assert engine._pruning.scores is not None
    assert engine._pruning.scores[:2].tolist() == pytest.approx([0.05, -0.05])


def test_a_schedule_without_a_length_takes_most_of_the_phase_and_a_second_one_is_refused() -> None:
    engine = engine_at(10)
    engine.prune({"method": "movement", "target": 0.5})
    assert engine._pruning.schedule["steps"] == 40  # four fifths of 50
    with pytest.raises(RecurosError, match="movement is at step 0 of 40"):
        engine.prune({"method": "l0", "target": 0.5})


# Heads and neurons


def test_named_heads_are_removed_from_the_model_and_its_answers_are_those_with_the_heads_silent() -> None:
    engine = engine_at(4)
    before = engine.param_count("student")
    old = weights(engine)
    width = 4
    out = engine.roles["student"].model.module.get_parameter("blocks.1.attn.out.weight")
    with torch.no_grad():
        saved = out.clone()
        out[:, 2 * width : 3 * width] = 0.0
        silent = logits(engine)
        out.copy_(saved)
    engine.prune({"method": "heads", "heads": [[2, 3]]})
    torch.testing.assert_close(logits(engine), silent, rtol=1e-5, atol=1e-6)
    assert before - engine.param_count("student") == width * 16 + 3 * width * 16 + 3 * width
    architecture = engine.roles["student"].model.architecture
    assert (architecture["layer_heads"], architecture["head_width"]) == ([4, 3], 4)
    new = weights(engine)
    rows = [i for i in range(48) if not 8 <= i % 16 < 12]
    assert torch.equal(new["blocks.1.attn.qkv.weight"], old["blocks.1.attn.qkv.weight"][rows])
    assert engine.sparsity == 0.0, "what is not there needs no mask"
    again = build(architecture, 0)
    assert again.param_count == engine.param_count("student")
    run(engine, 3)


def test_moments_and_average_move_with_the_weights_that_are_left() -> None:
    engine = engine_at(4)
    optimizer, arena = engine._optimizers["student"], engine.roles["student"].arena
    names = [s.path for s in arena.slots]
    at = names.index("blocks.0.attn.out/weight")
    before = [arena.views(flat)[at].clone() for flat in (optimizer.exp_avg, optimizer.exp_avg_sq, engine._roles.ema)]
    engine.prune({"method": "heads", "heads": [[1, 1]]})
    optimizer, arena = engine._optimizers["student"], engine.roles["student"].arena
    after = [arena.views(flat)[at] for flat in (optimizer.exp_avg, optimizer.exp_avg_sq, engine._roles.ema)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, old[:, 4:])
    assert optimizer.steps == 4


def test_a_share_of_heads_takes_those_that_write_least_and_leaves_each_layer_one() -> None:
    engine = engine_at(2)
    module = engine.roles["student"].model.module
    with torch.no_grad():
        for layer in range(2):
            out = module.get_parameter(f"blocks.{layer}.attn.out.weight")
            out.copy_(torch.ones(16, 16) * (1 + layer))
            out[:, 4:8] *= 0.01
    engine.prune({"method": "heads", "target": 0.25})
    assert engine.roles["student"].model.architecture["layer_heads"] == [3, 3]
    engine.prune({"method": "heads", "target": 0.99})
    assert engine.roles["student"].model.architecture["layer_heads"] == [1, 1]


@pytest.mark.parametrize(
    ("heads", "text"),
    [
        ([[3, 1]], "layer 3 has no head 1"),
        ([[1, 5]], "layer 1 has no head 5"),
        ([[1, h] for h in (1, 2, 3, 4)], "no head would be left"),
    ],
)
def test_heads_that_are_not_there_are_refused_and_nothing_changes(heads: list[list[int]], text: str) -> None:
    engine = engine_at(2)
    digest = engine.digest()
    with pytest.raises(RecurosError, match=text):
        engine.prune({"method": "heads", "heads": heads})
    assert engine.digest() == digest


def test_gates_are_the_papers_hard_concrete() -> None:
    log_a = torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64)
    s = 1 / (1 + np.exp(-log_a.numpy()))
    np.testing.assert_allclose(stretched(log_a).numpy(), np.clip(s * 1.2 - 0.1, 0, 1), rtol=1e-12)
    model = build(SPEC["student"], 0)
    gates = Gates(structure_of(model))
    with torch.no_grad():
        for a in gates.log_a:
            a.fill_(0.3)
    torch.manual_seed(0)
    opened = []
    for _ in range(300):
        gates.draw()
        opened.append(float((torch.cat(gates._drawn) > 0).float().mean()))
    expected = 1 / (1 + np.exp(-(0.3 - BETA * np.log(-GAMMA / ZETA))))
    assert np.mean(opened) == pytest.approx(expected, abs=0.01)
    assert float(gates.penalty(0.5, 2.0).detach()) == pytest.approx(2 * 2 * (expected - 0.5), abs=1e-5)
    assert float(gates.penalty(1 - expected + 1e-3, 2.0).detach()) == pytest.approx(0.004, abs=1e-4)


def test_l0_ends_in_a_smaller_model_that_answers_as_the_gated_one_did() -> None:
    engine = engine_at(0)
    engine.prune({"method": "l0", "target": 0.5, "steps": 20})
    run(engine, 19)
    gates = engine._pruning.gates
    assert gates is not None
    opened = torch.cat([a.detach().clone() for a in gates.log_a])
    assert len(opened.unique()) > 10, "gates were learned"
    # What the end will keep: closed gates are driven shut so that folding is exact.
    with torch.no_grad():
        for a in gates.log_a:
            a.copy_(torch.where(torch.arange(len(a)) % 2 == 0, a.abs() + 1.0, -20.0))
    gated = logits(engine)
    carry = engine._pruning._open_for_good(engine._roles)
    engine._follow_layout(carry)
    torch.testing.assert_close(logits(engine), gated, rtol=1e-4, atol=1e-5)
    architecture = engine.roles["student"].model.architecture
    assert architecture["layer_heads"] == [2, 2]
    assert architecture["layer_neurons"] == [16, 16]
    assert "gate" not in engine._optimizers
    run(engine, 3)


def test_a_swap_ends_gates_first_so_that_the_teacher_is_what_the_student_was() -> None:
    engine = engine_at(0)
    engine.prune({"method": "l0", "target": 0.5, "steps": 50})
    run(engine, 5)
    engine.swap("snapshot")
    teacher, student = (engine.roles[r].model for r in ("teacher", "student"))
    assert teacher.architecture == student.architecture
    assert teacher.param_count < engine_at(0).param_count("student")
    run(engine, 2)


def test_a_born_again_student_has_the_pruned_shape_and_no_mask() -> None:
    engine = engine_at(2)
    engine.prune({"method": "heads", "heads": [[1, 1]]})
    engine.prune(0.5)
    engine.swap("checkpoint")
    assert engine.sparsity == 0.0
    assert engine.roles["student"].model.architecture["layer_heads"] == [3, 4]
    run(engine, 2)


# Exact resume


@pytest.mark.parametrize("method", ["movement", "l0", "heads", "magnitude"])
@pytest.mark.parametrize("at", [1, 9, 17, 24])
def test_restore_at_any_step_of_a_schedule_continues_bit_for_bit(method: str, at: int) -> None:
    spec: dict[str, Any] = {"method": method, "target": 0.5}
    if method in ("movement", "l0"):
        spec["steps"] = 20
    terms = {"cka": 0.2, "rkd": 0.1, "calibration": 0.1}
    straight = engine_at(0, **terms)
    straight.prune(spec)
    run(straight, at)
    leaves, digest = straight.capture(), straight.digest()
    run(straight, 26 - at)
    end = straight.digest()
    straight.restore(leaves)
    assert straight.digest() == digest
    run(straight, 26 - at)
    assert straight.digest() == end
    other = Engine({**SPEC, "kd": {**SPEC["kd"], **terms}}, 7)
    other.restore(leaves)
    assert other.digest() == digest
    run(other, 26 - at)
    assert other.digest() == end


def test_a_rollback_over_a_cut_brings_the_larger_student_back() -> None:
    engine = engine_at(3)
    leaves, digest = engine.capture(), engine.digest()
    engine.prune({"method": "heads", "heads": [[1, 1]]})
    engine.prune({"method": "l0", "target": 0.3, "steps": 10})
    run(engine, 12)
    engine.restore(leaves)
    assert engine.digest() == digest
    assert engine.roles["student"].model.architecture == SPEC["student"] | {"mlp_ratio": 2, "classes": 10}
    run(engine, 2)


# Hugging Face models

TINY: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 30,
    },
    "llama": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "vocab_size": 30,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 16},
}


@pytest.mark.parametrize("kind", sorted(TINY))
def test_neurons_of_hugging_face_models_are_really_removed_and_heads_silenced(kind: str) -> None:
    task = "classify" if kind == "bert" else "causal-lm"
    extra: dict[str, Any] = (
        {"num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if kind == "bert" else {}
    )
    if kind == "gpt2":
        extra = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = {"model_type": kind, "max_position_embeddings": 16, **TINY[kind], **extra}
    if kind == "gpt2":
        config.pop("max_position_embeddings")
    spec = {"kind": "hf-config", "config": config, "task": task}
    engine = Engine({"teacher": spec, "student": spec, "kd": {"alpha": 0.0}}, 3)
    engine.begin(DISTIL)

    def batch(step: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(step)
        ids = torch.randint(3, 30, (4, 8), generator=g)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2, 0])}

    def answer() -> Tensor:
        module = engine.roles["student"].model.module
        module.eval()
        with torch.no_grad():
            found: Tensor = engine.roles["student"].model.forward(batch(9)).logits
        module.train()
        return found

    engine.micro_step(batch(0))
    before, size = engine.param_count("student"), structure_of(engine.roles["student"].model)[-1].count
    engine.prune({"method": "l0", "target": 0.5, "steps": 10})
    engine.micro_step(batch(1))
    gates = engine._pruning.gates
    assert gates is not None
    with torch.no_grad():
        for a in gates.log_a:
            a.copy_(torch.where(torch.arange(len(a)) % 2 == 0, a.abs() + 1.0, -20.0))
    gated = answer()
    engine._follow_layout(engine._pruning._open_for_good(engine._roles))
    torch.testing.assert_close(answer(), gated, rtol=1e-4, atol=1e-5)
    units = structure_of(engine.roles["student"].model)
    assert [u.count for u in units if u.kind == "neurons"] == [size // 2] * 2
    assert engine.param_count("student") < before
    assert engine.sparsity > 0.0, "a head that the config cannot do without is held at zero"
    rebuilt = build(engine.roles["student"].model.architecture, 0)
    assert rebuilt.param_count == engine.param_count("student")
    engine.micro_step(batch(2))


def test_models_whose_parts_have_no_known_names_are_refused() -> None:
    engine = Engine({"teacher": SPEC["teacher"], "student": {"kind": "mlp"}, "kd": {"alpha": 0.0}}, 3)
    engine.begin(DISTIL)
    digest = engine.digest()
    with pytest.raises(RecurosError, match="heads and neurons of a mlp model") as caught:
        engine.prune({"method": "l0", "target": 0.5})
    assert caught.value.code == "E2-USAGE", "the kernel drops the request; the plan goes on"
    assert engine.digest() == digest


# What a checkout says


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (None, "dense"),
        ({"sparsity": 0.5}, "sparse"),
        ({"method": "heads", "heads": [[1, 1], [2, 1]]}, "smaller"),
    ],
)
def test_a_checkout_says_whether_the_model_is_smaller_or_sparse_and_loads(
    tmp_path: Path, spec: dict[str, Any] | None, kind: str
) -> None:
    engine = engine_at(3)
    whole = engine.param_count("student")
    if spec is not None:
        engine.prune(spec)
        run(engine, 1)
    leaves = engine.capture()
    objects = {leaf.id: NewObject(leaf.dtype, leaf.shape, leaf.data, "snapshot") for leaf in leaves.values()}
    with Store.open_writer(tmp_path / "store") as store:
        root, _ = store.put_snapshot({path: leaf.id for path, leaf in leaves.items()}, objects)
        note = checkout(store, root, tmp_path / "out")
    assert note["form"]["kind"] == kind
    model = from_checkout(tmp_path / "out")
    assert model.param_count == note["form"]["parameters"] == engine.param_count("student")
    assert note["form"]["removed"]["parameters"] == whole - model.param_count
    zeros = sum(int((p == 0).sum()) for p in model.module.parameters())
    assert note["form"]["zeros"] == zeros
    for name, p in engine.roles["student"].model.module.named_parameters():
        assert torch.equal(p, model.module.get_parameter(name))
