"""Every built-in against an independent float64 oracle that shares no code with it."""

import math

import numpy as np
import pytest
import torch

from probes import library
from probes.library import cka
from probes.library.rows import spread
from probes.program import Context


def fire(program, hook, site=None, step=0, **tensors):
    with torch.no_grad():
        program.fire(Context(hook, site or hook, step, tensors))


def kd(program, **tensors):
    fire(program, "on_kd_step", **tensors)
    return program.summary()


# CKA


def hsic1_by_definition(k, l):  # noqa: E741
    """Song et al. 2012, equation 4, term by term: [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n(n-3))."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    total = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ l @ one) / (n - 2)
    )
    return total / (n * (n - 3))


def biased_cka(x, y):
    """Kornblith et al. 2019, equation 4 with the linear kernel."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def pair(x, y, name="blocks.0"):
    return [(name, torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))]


@pytest.mark.parametrize("n", [4, 5, 32, 200])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_hsic_agrees_with_the_definition_even_at_a_large_offset(n, offset):
    x, y = normal(1, n, 24) + offset, normal(2, n, 40) - offset
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    # The definition itself cancels badly at a large offset, so the oracle runs in extended precision.
    a, b = x.numpy().astype(np.longdouble), y.numpy().astype(np.longdouble)
    k, l = a @ a.T, b @ b.T  # noqa: E741
    expected = (hsic1_by_definition(k, l), hsic1_by_definition(k, k), hsic1_by_definition(l, l))
    scale = math.sqrt(abs(expected[1] * expected[2]))
    np.testing.assert_allclose(cka.hsic1(x, y), [float(e) for e in expected], atol=3e-4 * scale, rtol=1e-4)


def test_cka_sums_over_batches_and_divides_once():
    program, sums = library.build("builtin:cka"), np.zeros(3)
    for seed in range(6):
        x, noise = normal(seed, 16, 8), normal(100 + seed, 16, 8)
        y = x @ normal(50, 8, 12) + (noise @ normal(51, 8, 12)) * (1 + seed)
        kd(program, hidden=pair(x, y))
        k, l = x @ x.T, y @ y.T  # noqa: E741
        sums += (hsic1_by_definition(k, l), hsic1_by_definition(k, k), hsic1_by_definition(l, l))
    expected = sums[0] / math.sqrt(sums[1] * sums[2])
    assert program.summary()["pairs"]["blocks.0"]["cka"] == pytest.approx(expected, rel=1e-4)


def test_independent_gaussians_score_zero_where_the_biased_estimator_scores_nine_tenths():
    x, y = normal(3, 32, 384), normal(4, 32, 384)
    assert biased_cka(x, y) == pytest.approx(0.92, abs=0.02)
    program = library.build("builtin:cka")
    for seed in range(20):
        kd(program, hidden=pair(normal(2 * seed, 32, 384), normal(2 * seed + 1, 32, 384)))
    assert abs(program.summary()["cka"]) < 0.05


def test_cka_is_one_for_a_rotation_and_scale_of_itself():
    x = normal(5, 64, 16)
    rotation = np.linalg.qr(normal(6, 16, 16))[0]
    assert kd(library.build("builtin:cka"), hidden=pair(x, 3 * x @ rotation + 1))["cka"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("x", "status"),
    [
        (np.ones((32, 8)), "not positive"),
        (np.tile(normal(9, 1, 384) * 7, (256, 1)), "not positive"),
        (normal(1, 3, 8), "no batch of 4"),
        (np.full((32, 8), np.nan), "no batch of 4"),
    ],
)
def test_an_undefined_cka_is_reported_and_never_nan(x, status):
    summary = kd(library.build("builtin:cka"), hidden=pair(x, normal(2, len(x), 8)))
    assert summary["cka"] is None
    assert status in summary["pairs"]["blocks.0"]["status"]


def test_cka_decay_weights_the_sums_and_not_the_ratio():
    program, sums = library.build("builtin:cka,decay=0.5"), np.zeros(3)
    for seed in range(4):
        x, y = normal(seed, 20, 6), normal(seed, 20, 6) + normal(seed + 9, 20, 6)
        kd(program, hidden=pair(x, y))
        k, l = x @ x.T, y @ y.T  # noqa: E741
        sums = sums * 0.5 + (hsic1_by_definition(k, l), hsic1_by_definition(k, k), hsic1_by_definition(l, l))
    assert program.summary()["cka"] == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-4)


def test_cka_takes_the_same_tokens_of_both_sides_and_pools_when_lengths_differ():
    x = normal(7, 8, 64, 12)
    program = library.build("builtin:cka,rows=100")
    assert kd(program, hidden=pair(x, x @ normal(8, 12, 12) * 0 + x))["cka"] == pytest.approx(1, abs=1e-5)
    assert program.sums.get("blocks.0")["rows"] == 100
    y = np.repeat(x, 2, axis=1)  # twice the tokens, the same mean
    pooled = library.build("builtin:cka")
    assert kd(pooled, hidden=pair(x, y))["cka"] == pytest.approx(1, abs=1e-4)
    assert pooled.sums.get("blocks.0")["rows"] == 8


@pytest.mark.parametrize(("total", "rows"), [(1024, 256), (17, 4), (1000, 999), (4096, 100)])
def test_spread_rows_are_distinct_and_reach_every_position_of_a_sequence(total, rows):
    index = spread(total, rows, torch.device("cpu")).tolist()
    assert len(set(index)) == rows
    assert max(index) < total
    if rows >= 100:
        assert len({i % 16 for i in index}) == 16


# Calibration


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def ece_by_loop(logits, labels, bins=15):
    p = softmax(logits)
    total = 0.0
    for b in range(bins):
        inside = [i for i in range(len(p)) if b / bins < p[i].max() <= (b + 1) / bins]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(p) * abs(accuracy - np.mean([p[i].max() for i in inside]))
    nll = np.mean([-np.log(p[i, labels[i]]) for i in range(len(p))])
    brier = np.mean([sum((p[i, k] - (k == labels[i])) ** 2 for k in range(p.shape[1])) for i in range(len(p))])
    return total, nll, brier


def test_ece_by_hand():
    # Confidences 0.8 (right), 0.8 (wrong), 0.6 (right): |0.5 - 0.8| * 2/3 + |1 - 0.6| * 1/3.
    p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    summary = kd(library.build("builtin:ece"), student_logits=p.log(), labels=torch.tensor([0, 1, 1]))
    assert summary["ece"] == pytest.approx(0.3 * 2 / 3 + 0.4 / 3, abs=1e-6)
    assert summary["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.6)) / 3, abs=1e-6)
    assert summary["brier"] == pytest.approx((0.08 + 1.28 + 0.32) / 3, abs=1e-6)
    assert summary["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("bins", [10, 15])
def test_ece_nll_and_brier_agree_with_loops_over_several_batches(bins):
    logits, labels = 3 * normal(1, 300, 10), np.random.default_rng(2).integers(0, 10, 300)
    program = library.build(f"builtin:ece,bins={bins}")
    for part in np.split(np.arange(300), 3):
        kd(program, student_logits=torch.tensor(logits[part]), labels=torch.tensor(labels[part]))
    summary = program.summary()
    assert (summary["ece"], summary["nll"], summary["brier"]) == pytest.approx(
        ece_by_loop(logits, labels, bins), rel=1e-9
    )
    assert summary["rows"] == 300


def test_padding_and_soft_labels_are_left_out_and_nan_rows_counted():
    logits = torch.tensor(normal(1, 2, 6, 5))
    labels = torch.randint(0, 5, (2, 6), generator=torch.Generator().manual_seed(0))
    labels[:, 4:] = -100
    program = library.build("builtin:ece")
    summary = kd(program, student_logits=logits, labels=labels)
    expected = ece_by_loop(logits[:, :4].reshape(-1, 5).numpy(), labels[:, :4].reshape(-1).numpy())
    assert (summary["ece"], summary["nll"], summary["brier"]) == pytest.approx(expected, rel=1e-9)
    kd(program, student_logits=logits, labels=torch.rand(2, 6, 5))
    assert program.totals.values[4] == 12
    logits[0, 0, 0] = math.nan
    kd(program, student_logits=logits, labels=labels)
    assert program.summary()["rows"] == 8 + 7
    assert program.count.nans == 1


def test_a_step_of_nothing_but_padding_folds_in_nothing():
    logits, labels = torch.randn(4, 3), torch.full((4,), -100)
    for name in ("ece", "disagreement", "entropy"):
        assert (
            kd(library.build(f"builtin:{name}"), student_logits=logits, teacher_logits=logits, labels=labels)["rows"]
            == 0
        )


# Agreement and entropy


def test_disagreement_and_kl_agree_with_loops():
    s, t = normal(1, 200, 7), normal(2, 200, 7)
    p, q = softmax(t), softmax(s)
    kl = np.mean([sum(p[i, k] * math.log(p[i, k] / q[i, k]) for k in range(7)) for i in range(200)])
    summary = kd(library.build("builtin:disagreement"), student_logits=torch.tensor(s), teacher_logits=torch.tensor(t))
    assert summary["kl"] == pytest.approx(kl, rel=1e-9)
    assert summary["disagreement"] == np.mean(s.argmax(1) != t.argmax(1))


def test_a_class_that_the_teacher_excludes_adds_nothing_to_the_kl():
    t, s = torch.tensor([[0.0, 0.0, -math.inf]]), torch.zeros(1, 3)
    summary = kd(library.build("builtin:disagreement"), student_logits=s, teacher_logits=t)
    assert summary["kl"] == pytest.approx(math.log(3) - math.log(2), abs=1e-6)


def test_disagreement_refuses_different_class_counts_by_name():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        kd(library.build("builtin:disagreement"), student_logits=torch.ones(2, 3), teacher_logits=torch.ones(2, 4))


def test_entropy_agrees_with_a_loop_and_spans_zero_to_log_classes():
    s = np.vstack([2 * normal(1, 100, 6), np.zeros((1, 6)), [[0, -np.inf, -np.inf, -np.inf, -np.inf, -np.inf]]])
    p = softmax(s)
    expected = np.mean([-sum(x * math.log(x) for x in row if x > 0) for row in p])
    program = library.build("builtin:entropy")
    summary = kd(program, student_logits=torch.tensor(s), teacher_logits=torch.zeros(4, 6))
    assert summary["student"] == pytest.approx(expected, rel=1e-9)
    assert summary["teacher"] == pytest.approx(math.log(6), rel=1e-6)
    held = program.histograms["teacher"]
    assert (sum(held.counts), held.counts[-1], held.below, held.above, held.nans) == (4, 4, 0, 0, 0)


def test_rows_bound_the_work_and_both_sides_use_the_same_ones():
    logits = torch.tensor(normal(3, 64, 32, 11))
    summary = kd(library.build("builtin:disagreement,rows=128"), student_logits=logits, teacher_logits=logits)
    assert (summary["rows"], summary["disagreement"]) == (128, 0)
    assert summary["kl"] == pytest.approx(0, abs=1e-12)


# Layers and gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_rms_agrees_with_numpy_in_every_precision(dtype):
    program = library.build("builtin:rms")
    chunks = [torch.tensor(normal(i, 8, 16) * 300, dtype=dtype) for i in range(3)]
    for x in chunks:
        fire(program, "on_forward", "student/blocks.0", output=x)
    values = np.concatenate([x.double().numpy().ravel() for x in chunks])
    layer = program.summary()["layers"]["student/blocks.0"]
    assert layer["rms"] == pytest.approx(math.sqrt(np.mean(values**2)), rel=1e-5)
    assert layer["absmax"] == np.abs(values).max()


def test_rms_counts_what_is_not_finite_and_measures_the_rest():
    program = library.build("builtin:rms")
    x = torch.tensor([3.0, math.nan, 4.0, math.inf])
    fire(program, "on_forward", "student/a", output=x)
    fire(program, "on_forward", "student/b", output=None)
    layer = program.summary()["layers"]["student/a"]
    assert layer == {"rms": pytest.approx(math.sqrt(12.5)), "absmax": 4.0, "nonfinite": 2}
    assert program.layers.get("student/b")["empty"] == 1


def test_gradnorm_agrees_with_numpy_and_totals_one_step():
    program = library.build("builtin:gradnorm")
    grads = {(step, name): normal(step, 5, 3) * (1 + len(name)) for step in (25, 50) for name in ("a", "bb")}
    for (step, name), grad in grads.items():
        fire(program, "on_grad", name, step, grad=torch.tensor(grad))
    fire(program, "on_grad", "a", 50, grad=torch.tensor([math.inf]))
    summary = program.summary()
    last = {name: np.linalg.norm(grads[50, name]) for name in ("a", "bb")}
    assert summary["parameters"] == pytest.approx(last)
    assert summary["global"] == pytest.approx(math.hypot(*last.values()))
    assert (summary["step"], summary["nonfinite"]) == (50, 1)
