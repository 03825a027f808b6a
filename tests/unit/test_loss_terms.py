"""Each further term of the objective against an oracle that shares no code with it, its gradient, and the pitfalls that are known."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from servers.learner.losses import KdSettings, Look, Memory, Rows, Term, unit_mean
from servers.learner.losses.at import AttentionTerm
from servers.learner.losses.attention import require_distribution
from servers.learner.losses.attention_mse import AttentionMseTerm
from servers.learner.losses.calibration import CalibrationTerm, soft_binned
from servers.learner.losses.cka import MOMENTUM, CkaTerm, hsic
from servers.learner.losses.cosine import CosineTerm
from servers.learner.losses.embedding import EmbeddingTerm
from servers.learner.losses.ewc import EwcTerm, anchor_at, measured
from servers.learner.losses.jacobian import JacobianTerm, pulled
from servers.learner.losses.minilm import LastAttentionTerm, ValueRelationTerm, same_heads
from servers.learner.losses.rkd import RkdAngleTerm, RkdDistanceTerm, cosines, distances
from servers.models.evaluate import binned, ece_of
from servers.models.patch import PatchConfig, PatchModel
from syscalls.errors import RecurosError

KD = KdSettings()


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rows(**fields: Any) -> Rows:
    base = {
        "student": drawn(0, 4, 3),
        "targets": torch.tensor([0, 1, 2, 0]),
        "weight": torch.ones(4, dtype=torch.float64),
    }
    return Rows(**{**base, **fields})


def gradient_is_right(term: Term, leaf: Tensor, make: Any) -> None:
    """torch's finite differences, in float64, through a fresh memory each time."""
    leaf = leaf.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: term.value(make(x), KD), (leaf,), atol=1e-6)


# CKA


def hsic64(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012 as U-statistic: the mean over all ordered quadruples of distinct rows of the HSIC kernel."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    n, total, count = len(x), 0.0, 0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
        count += 1
    return total / count


@pytest.mark.parametrize(("n", "d1", "d2"), [(7, 2, 3), (6, 9, 4)])
def test_hsic_is_the_u_statistic_over_quadruples_whichever_way_it_is_computed(n: int, d1: int, d2: int) -> None:
    x, y = drawn(1, n, d1) + 3.0, drawn(2, n, d2) - 1.0
    found = hsic(x[None], y[None])[0]
    want = [hsic64(a.numpy(), b.numpy()) for a, b in ((x, y), (x, x), (y, y))]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-9)


def cka_rows(student: Tensor, teacher: Tensor, memory: Memory | None = None) -> Rows:
    return rows(student_hidden=(student,), teacher_hidden=(teacher,), memory=memory or Memory())


def test_cka_sees_rotation_and_scale_as_alike_and_independent_features_as_different() -> None:
    x = drawn(3, 64, 5)
    turn, _ = np.linalg.qr(drawn(4, 5, 5).numpy())
    assert float(CkaTerm().value(cka_rows(x, 7 * x @ torch.from_numpy(turn)), KD)) == pytest.approx(0.0, abs=1e-9)
    x, y = drawn(5, 32, 384), drawn(6, 32, 384)
    biased = _biased_cka(x.numpy(), y.numpy())
    assert biased > 0.9, "the pitfall: biased CKA calls independent features alike"
    assert abs(1.0 - float(CkaTerm().value(cka_rows(x, y), KD))) < 0.15


def _biased_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def test_cka_averages_the_sums_and_divides_once() -> None:
    term, memory = CkaTerm(), Memory()
    batches = [(drawn(i, 12, 4), drawn(i + 50, 12, 6) + drawn(i, 12, 6)) for i in range(5)]
    for x, y in batches:
        value = float(term.value(cka_rows(x, y, memory), KD))
        memory.commit()
    sums = np.zeros(3)
    for x, y in batches:
        sums = MOMENTUM * sums + hsic(x[None], y[None])[0].numpy()
    assert value == pytest.approx(1.0 - sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-9)


def test_the_first_batchs_gradient_is_that_of_its_own_ratio() -> None:
    teacher = drawn(7, 9, 4)
    gradient_is_right(CkaTerm(), drawn(8, 9, 3), lambda x: cka_rows(x, teacher))


def test_later_gradients_differentiate_the_ratio_at_the_averages() -> None:
    memory, term = Memory(), CkaTerm()
    term.value(cka_rows(drawn(1, 10, 4), drawn(2, 10, 4), memory), KD)
    memory.commit()
    x, y = drawn(3, 10, 4).requires_grad_(), drawn(4, 10, 4)
    term.value(cka_rows(x, y, memory), KD).backward()
    now = [float(v) for v in hsic(x.detach()[None], y[None])[0]]
    before = [float(v) for v in hsic(drawn(1, 1, 10, 4), drawn(2, 1, 10, 4))[0]]
    xy, xx, yy = ((MOMENTUM * b + n) / (1 + MOMENTUM) for b, n in zip(before, now, strict=True))
    z = x.detach().clone().requires_grad_()
    h = hsic(z[None], y[None])[0]
    (-(h[0] / math.sqrt(xx * yy)) + 0.5 * xy * h[1] / (xx * math.sqrt(xx * yy))).backward()
    torch.testing.assert_close(x.grad, z.grad)


def test_a_collapsed_layer_is_reported_and_is_no_nan() -> None:
    found = cka_rows(torch.ones(8, 3, dtype=torch.float64).requires_grad_(), drawn(1, 8, 3))
    value = CkaTerm().value(found, KD)
    value.backward()
    assert float(value.detach()) == 1.0
    assert found.reports == {"cka_undefined": 1.0}
    assert torch.isfinite(found.student_hidden[0].grad).all()  # type: ignore[arg-type]


def test_cka_of_fewer_than_four_rows_is_refused() -> None:
    with pytest.raises(RecurosError, match="at least 4 positions a micro-batch, this one has 3") as caught:
        CkaTerm().value(cka_rows(drawn(1, 3, 2), drawn(2, 3, 2)), KD)
    assert caught.value.code == "E2-DATA"


def test_an_offset_of_300_costs_single_precision_cka_nothing() -> None:
    x, y = drawn(1, 64, 16), drawn(2, 64, 16)
    exact = float(CkaTerm().value(cka_rows(x, y), KD))
    shifted = CkaTerm().value(cka_rows((x + 300).float(), (y + 300).float()), KD)
    assert float(shifted) == pytest.approx(exact, abs=2e-3)


# Attention


def attention(seed: int, heads: int, tokens: int = 5, batch: int = 2) -> Tensor:
    return torch.softmax(2 * drawn(seed, batch, heads, tokens, tokens), dim=-1)


def attention_rows(student: Tensor, teacher: Tensor, share: Tensor | None = None, **more: Any) -> Rows:
    if share is None:
        share = torch.full(student.shape[::2][:1] + student.shape[2:3], 1.0, dtype=torch.float64)
        share = share / share.numel()
    return rows(
        student_attention=(student,),
        teacher_attention=(teacher,),
        last_attention=(student, teacher),
        query_share=share,
        **more,
    )


def attention_kl64(student: np.ndarray, teacher: np.ndarray, share: np.ndarray) -> float:
    total = 0.0
    for b, h, q in itertools.product(*map(range, student.shape[:3])):
        p, s = teacher[b, h, q], student[b, h, q]
        total += share[b, q] / student.shape[1] * sum(x * math.log(x / y) for x, y in zip(p, s, strict=True) if x > 0)
    return total


@pytest.mark.parametrize("term", [AttentionTerm(), LastAttentionTerm()])
def test_attention_transfer_is_kl_of_the_teacher_from_the_student(term: Term) -> None:
    student, teacher = attention(1, 3), attention(2, 3)
    share = torch.rand(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    share[1, 3:] = 0.0
    share = share / share.sum()
    value = float(term.value(attention_rows(student, teacher, share), KD))
    assert value == pytest.approx(attention_kl64(student.numpy(), teacher.numpy(), share.numpy()), rel=1e-9)
    assert value != pytest.approx(attention_kl64(teacher.numpy(), student.numpy(), share.numpy()), rel=1e-3)


def test_different_numbers_of_heads_are_compared_by_their_means() -> None:
    student, teacher = attention(1, 2), attention(2, 4)
    found = AttentionTerm().value(attention_rows(student, teacher), KD)
    s, t = student.mean(1, keepdim=True).numpy(), teacher.mean(1, keepdim=True).numpy()
    assert float(found) == pytest.approx(attention_kl64(s, t, np.full((2, 5), 0.1)), rel=1e-9)


def test_causal_attention_has_a_finite_divergence_and_a_right_gradient() -> None:
    mask = torch.ones(5, 5).triu(1).bool()
    teacher = torch.softmax(drawn(1, 2, 2, 5, 5).masked_fill(mask, -math.inf), -1)

    def of(scores: Tensor) -> Rows:
        return attention_rows(torch.softmax(scores.masked_fill(mask, -math.inf), -1), teacher)

    gradient_is_right(AttentionTerm(), drawn(2, 2, 2, 5, 5), of)
    gradient_is_right(AttentionMseTerm(), drawn(2, 2, 2, 5, 5), of)


def test_attention_mse_is_the_distance_of_scores_up_to_what_softmax_forgets() -> None:
    s, t = drawn(1, 2, 3, 5, 5), drawn(2, 2, 3, 5, 5)
    value = AttentionMseTerm().value(attention_rows(torch.softmax(s, -1), torch.softmax(t, -1)), KD)
    a, b = s.numpy() - s.numpy().mean(-1, keepdims=True), t.numpy() - t.numpy().mean(-1, keepdims=True)
    assert float(value) == pytest.approx(float(((a - b) ** 2).mean()), rel=1e-9)


def test_attention_that_dropout_changed_is_refused_by_its_setting() -> None:
    require_distribution(attention(1, 2), "student")
    dropped = nn.functional.dropout(attention(1, 2), 0.5)
    with pytest.raises(RecurosError, match="attention dropout is active") as caught:
        require_distribution(dropped, "student")
    assert "attention_probs_dropout_prob" in caught.value.hint


def test_attention_over_other_positions_is_refused() -> None:
    with pytest.raises(RecurosError, match="over 5 positions, the teacher over 7"):
        AttentionTerm().value(attention_rows(attention(1, 2, 5), attention(2, 2, 7)), KD)


@pytest.mark.parametrize(("student_heads", "teacher_heads"), [(2, 2), (2, 3)])
def test_value_relations_are_softmaxes_of_scaled_products(student_heads: int, teacher_heads: int) -> None:
    student, teacher = drawn(1, 2, student_heads, 4, 6), drawn(2, 2, teacher_heads, 4, 4 if teacher_heads == 3 else 5)
    value = ValueRelationTerm().value(
        rows(last_values=(student, teacher), query_share=torch.full((2, 4), 1 / 8, dtype=torch.float64)), KD
    )
    if student_heads == teacher_heads:
        relations = [_relation64(v.numpy()) for v in (student, teacher)]
        assert float(value) == pytest.approx(attention_kl64(*relations, np.full((2, 4), 1 / 8)), rel=1e-9)
    else:
        cut = same_heads(student, teacher)
        assert [tuple(v.shape) for v in cut] == [(2, 2, 4, 6), (2, 2, 4, 6)]
        joined = teacher.transpose(1, 2).reshape(2, 4, 12)
        assert torch.equal(cut[1][:, 1], joined[:, :, 6:])


def _relation64(v: np.ndarray) -> np.ndarray:
    scores = np.exp(np.einsum("bhid,bhjd->bhij", v, v) / math.sqrt(v.shape[-1]))
    found: np.ndarray = scores / scores.sum(-1, keepdims=True)
    return found


# RKD


def pooled_rows(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Rows:
    weight = student.new_ones(len(student)) if weight is None else weight
    return rows(student_pooled=(student,), teacher_pooled=(teacher,), sample_weight=weight)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def rkd_distance64(s: np.ndarray, t: np.ndarray, w: np.ndarray) -> float:
    pairs = list(itertools.combinations(range(len(s)), 2))

    def scaled(x: np.ndarray) -> list[float]:
        found = [math.dist(x[i], x[j]) for i, j in pairs]
        return [d / (sum(found) / len(found)) for d in found]

    weight = [w[i] * w[j] for i, j in pairs]
    return sum(a * huber(x - y) for a, x, y in zip(weight, scaled(s), scaled(t), strict=True)) / sum(weight)


def rkd_angle64(s: np.ndarray, t: np.ndarray, w: np.ndarray) -> float:
    total = weights = 0.0
    for i, j, k in itertools.permutations(range(len(s)), 3):
        cos = []
        for x in (s, t):
            a, b = x[i] - x[j], x[k] - x[j]
            cos.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        total += w[i] * w[j] * w[k] * huber(cos[0] - cos[1])
        weights += w[i] * w[j] * w[k]
    return total / weights


@pytest.mark.parametrize(("term", "oracle"), [(RkdDistanceTerm(), rkd_distance64), (RkdAngleTerm(), rkd_angle64)])
def test_rkd_is_the_papers_sum_over_pairs_and_triples(term: Term, oracle: Any) -> None:
    student, teacher = drawn(1, 7, 3), drawn(2, 7, 5) * 40
    for weight in (torch.ones(7, dtype=torch.float64), drawn(3, 7).abs()):
        value = float(term.value(pooled_rows(student, teacher, unit_mean(weight)), KD))
        assert value == pytest.approx(oracle(student.numpy(), teacher.numpy(), weight.numpy()), rel=1e-9)
    gradient_is_right(term, student, lambda x: pooled_rows(x, teacher))


@pytest.mark.parametrize("term", [RkdDistanceTerm(), RkdAngleTerm()])
def test_rkd_ignores_shifts_turns_and_scale(term: Term) -> None:
    x = drawn(1, 10, 4)
    turn = torch.from_numpy(np.linalg.qr(drawn(2, 4, 4).numpy())[0])
    assert float(term.value(pooled_rows(x, 5 * x @ turn + 2), KD)) == pytest.approx(0.0, abs=1e-12)


def test_an_offset_of_300_costs_single_precision_distances_nothing() -> None:
    x = drawn(1, 64, 24)
    exact = np.array([math.dist(a, b) for a, b in itertools.combinations(x.numpy(), 2)])
    exact /= exact.mean()
    shifted = (x + 300).float()
    naive = torch.cdist(shifted, shifted, compute_mode="use_mm_for_euclid_dist")[
        tuple(torch.triu_indices(64, 64, offset=1))
    ]
    assert np.abs((naive / naive.mean()).numpy() - exact).max() > 5e-3, "the pitfall: an uncentred Gram matrix"
    pairs = distances(shifted)[tuple(torch.triu_indices(64, 64, offset=1))]
    assert np.abs(pairs.numpy() - exact).max() < 2e-5


def test_samples_that_coincide_give_no_nan() -> None:
    x = drawn(1, 6, 3)
    x[1] = x[0]
    for term in (RkdDistanceTerm(), RkdAngleTerm()):
        leaf = x.clone().requires_grad_()
        term.value(pooled_rows(leaf, drawn(2, 6, 3)), KD).backward()
        assert torch.isfinite(leaf.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(cosines(torch.ones(4, 2))).all()
    assert torch.isfinite(distances(torch.ones(4, 2))).all()


def test_a_large_batch_is_thinned_and_a_single_sample_refused() -> None:
    x, y = drawn(1, 130, 3), drawn(2, 130, 3)
    thin = float(RkdDistanceTerm().value(pooled_rows(x[::3], y[::3]), KD))
    assert float(RkdDistanceTerm().value(pooled_rows(x, y), KD)) == thin
    with pytest.raises(RecurosError, match="rkd_angle needs at least 3 samples"):
        RkdAngleTerm().value(pooled_rows(x[:2], y[:2]), KD)


# EWC and Jacobian drift


def look_at(student: PatchModel, teacher: PatchModel, size: int = 6) -> Look:
    batch = {
        "x": torch.rand(size, 8, 8, generator=torch.Generator().manual_seed(1)),
        "labels": torch.zeros(size).long(),
    }
    return Look(student, teacher, list(student.module.parameters()), batch, nullcontext, 11)


def patch(seed: int, **sizes: int) -> PatchModel:
    torch.manual_seed(seed)
    return PatchModel(PatchConfig(**{"layers": 1, "width": 8, "heads": 2, **sizes}))


def test_fisher_squares_each_samples_gradient_and_not_the_batchs() -> None:
    model = patch(1)
    look = look_at(model, model)
    found = measured(look)
    drawing = look.generator()
    squares, batch = torch.zeros_like(found), torch.zeros_like(found)
    functional_params = dict(model.module.named_parameters())
    for i in range(6):
        x = look.batch["x"][i : i + 1]
        p = torch.softmax(model.module(x)[0], -1)
        label = int(torch.multinomial(p.detach(), 1, generator=drawing))

        def log_p(params: dict[str, Tensor], x: Tensor = x, label: int = label) -> Tensor:
            return torch.log_softmax(torch.func.functional_call(model.module, params, (x,))[0], -1)[0, label]

        grads = torch.func.grad(log_p)(functional_params)
        flat = torch.cat([grads[n].reshape(-1) for n, _ in model.module.named_parameters()]).detach()
        squares += flat.square() / 6
        batch += flat / 6
    torch.testing.assert_close(found, squares, rtol=1e-4, atol=1e-9)
    assert float(batch.square().sum()) < 0.6 * float(found.sum()), (
        "the pitfall: the batch's gradient squared is too small"
    )


def test_ewc_is_half_the_fisher_weighted_distance_from_the_anchor() -> None:
    model = patch(1)
    look, memory = look_at(model, model), Memory()
    assert float(EwcTerm().value(rows(look=look, memory=memory), KD)) == 0.0, "no generation before this one"
    anchor_at(memory, look.parameters)
    first = rows(look=look, memory=memory)
    assert float(EwcTerm().value(first, KD).detach()) == 0.0
    assert first.reports == {"ewc_anchored": 1.0}
    memory.commit()
    fisher = memory.kept["ewc/fisher"]
    with torch.no_grad():
        for p in model.module.parameters():
            p.add_(0.01)
    value = EwcTerm().value(rows(look=look, memory=memory), KD)
    assert float(value.detach()) == pytest.approx(0.5 * 1e-4 * float(fisher.sum()), rel=1e-3)
    value.backward()
    grads = torch.cat([p.grad.reshape(-1) for p in model.module.parameters() if p.grad is not None])
    torch.testing.assert_close(grads, 0.01 * fisher, rtol=1e-3, atol=1e-9)


def test_measuring_fisher_leaves_mode_gradients_and_random_numbers_alone() -> None:
    model = patch(1)
    model.module.train()
    state = torch.get_rng_state()
    measured(look_at(model, model))
    assert model.module.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.module.parameters())


def test_jacobian_drift_estimates_the_frobenius_norm_of_the_difference() -> None:
    student, teacher = patch(1), patch(2, layers=2, width=16)
    look = look_at(student, teacher, 3)
    exact = 0.0
    for i in range(3):
        x = look.batch["x"][i : i + 1]
        j = [torch.autograd.functional.jacobian(lambda x, m=m: m.module(x)[0], x)[0] for m in (student, teacher)]
        exact += float((j[0] - j[1]).square().sum()) / 3
    draws = []
    for seed in range(400):
        again = Look(student, teacher, look.parameters, look.batch, nullcontext, seed)
        draws.append(float(JacobianTerm().value(rows(look=again), KD).detach()))
    mean, error = np.mean(draws), np.std(draws) / math.sqrt(len(draws))
    assert abs(mean - exact) < 4 * error, (mean, exact, error)


def test_jacobian_drift_of_a_model_from_itself_is_zero_and_has_a_second_derivative() -> None:
    model = patch(1)
    look = look_at(model, model)
    assert float(JacobianTerm().value(rows(look=look), KD).detach()) == 0.0
    other = look_at(model, patch(3))
    JacobianTerm().value(rows(look=other), KD).backward()
    weight = model.module.blocks[0].attn.qkv.weight
    assert weight.grad is not None
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            weight.add_(direction, alpha=step)
        values.append(float(JacobianTerm().value(rows(look=other), KD).detach()))
        with torch.no_grad():
            weight.sub_(direction, alpha=step)
    assert float((weight.grad * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-2, rel=2e-2)


def test_the_same_direction_is_pulled_through_both_models() -> None:
    model = patch(1)
    x, v = torch.rand(2, 8, 8), torch.eye(10)[:2]
    found = pulled(model, x, v, graph=False)
    j = torch.autograd.functional.jacobian(lambda x: model.module(x)[0], x)
    torch.testing.assert_close(found[0], j[0, 0, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], j[1, 1, 1], rtol=1e-4, atol=1e-6)


def test_jacobian_of_tokens_is_refused() -> None:
    look = look_at(patch(1), patch(2))
    tokens = Look(look.student, look.teacher, look.parameters, {"input_ids": torch.zeros(2, 3)}, nullcontext, 1)
    with pytest.raises(RecurosError, match="this batch has input_ids"):
        JacobianTerm().value(rows(look=tokens), KD)


# Calibration, cosine, embedding


def test_soft_bins_match_numpy_and_become_hard_ones_as_they_sharpen(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(1)
    confidence = torch.rand(200, generator=g, dtype=torch.float64) * 0.9 + 0.1
    hit = (torch.rand(200, generator=g, dtype=torch.float64) < confidence**2).double()
    weight = unit_mean(torch.rand(200, generator=g, dtype=torch.float64))
    c, a, w = confidence.numpy(), hit.numpy(), weight.numpy()
    member = np.exp(-((c[:, None] - (np.arange(15) + 0.5) / 15) ** 2) / 0.01)
    member = member / member.sum(1, keepdims=True) * w[:, None]
    size = member.sum(0)
    want = sum(size * ((member * (a - c)[:, None]).sum(0) / size) ** 2) / w.sum()
    assert float(soft_binned(confidence, hit, weight)) == pytest.approx(float(want), rel=1e-9)
    monkeypatch.setattr("servers.learner.losses.calibration.SOFTNESS", 1e-7)
    hard = binned(confidence, hit)
    gaps = ((hard[2] - hard[1]) / hard[0].clamp_min(1)) ** 2
    sharp = float(soft_binned(confidence, hit, torch.ones(200, dtype=torch.float64)))
    assert sharp == pytest.approx(float((gaps * hard[0]).sum() / 200), rel=1e-6)
    assert ece_of(hard) > 0


def test_the_calibration_term_is_small_for_a_calibrated_model_and_its_gradient_lowers_overconfidence() -> None:
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(4000, 5, generator=g, dtype=torch.float64) * 2
    labels = torch.multinomial(torch.softmax(logits, -1), 1, generator=g)[:, 0]
    weight = torch.ones(4000, dtype=torch.float64)
    calibrated = CalibrationTerm().value(rows(student=logits, targets=labels, weight=weight), KD)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    sharp = CalibrationTerm().value(rows(student=logits * scale, targets=labels, weight=weight), KD)
    assert 10 * float(calibrated) < 2e-3 < float(sharp.detach())
    sharp.backward()
    assert float(scale.grad) > 0  # type: ignore[arg-type]
    gradient_is_right(CalibrationTerm(), drawn(3, 4, 3), lambda x: rows(student=x))


def test_cosine_is_one_less_the_cosine_of_the_last_mapped_layer() -> None:
    student, teacher = (drawn(1, 6, 4), drawn(2, 6, 4)), (drawn(3, 6, 4), drawn(4, 6, 4))
    weight = unit_mean(drawn(5, 6).abs())
    found = rows(
        student_hidden=student, teacher_hidden=teacher, hidden_weight=weight, projectors=(nn.Identity(), nn.Identity())
    )
    s, t = student[1].numpy(), teacher[1].numpy()
    cos = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert float(CosineTerm().value(found, KD)) == pytest.approx(float(((1 - cos) * weight.numpy()).mean()), rel=1e-9)


def test_embedding_is_the_weighted_mean_square_after_its_projector() -> None:
    student, teacher, weight = drawn(1, 6, 3), drawn(2, 6, 4), unit_mean(drawn(3, 6).abs())
    project = nn.Linear(3, 4).double()
    found = EmbeddingTerm().value(
        rows(embeddings=(student, teacher), embedding_projector=project, hidden_weight=weight), KD
    )
    p = student.numpy() @ project.weight.detach().numpy().T + project.bias.detach().numpy()
    want = (((p - teacher.numpy()) ** 2).mean(1) * weight.numpy()).mean()
    assert float(found.detach()) == pytest.approx(float(want), rel=1e-9)
