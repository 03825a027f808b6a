"""Loss terms against independent float64 closed forms, and the normalisations that other libraries get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from servers.learner.losses import TERMS, WEIGHTS, KdSettings, Rows, unit_mean
from servers.learner.losses.hint import HintTerm, build_projectors, checked_map, uniform_map
from servers.learner.losses.kd import KdTerm
from servers.learner.losses.task import TaskTerm
from syscalls.errors import RecurosError


def _logits(seed: int, n: int, classes: int, scale: float = 3.0) -> Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed)) * scale


def _rows(n: int = 6, classes: int = 7, weight: Tensor | None = None, **more: object) -> Rows:
    targets = torch.arange(n) % classes
    return Rows(
        student=_logits(1, n, classes).requires_grad_(),
        targets=targets,
        weight=torch.ones(n) if weight is None else weight,
        teacher=_logits(2, n, classes),
        **more,  # type: ignore[arg-type]
    )


def _softmax64(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _kd64(rows: Rows, tau: float) -> float:
    assert rows.teacher is not None
    p = _softmax64(rows.teacher.double().numpy() / tau)
    q = _softmax64(rows.student.detach().double().numpy() / tau)
    per_row = (p * (np.log(p) - np.log(q))).sum(axis=-1)
    return float(tau**2 * (per_row * rows.weight.double().numpy()).sum() / len(per_row))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 50), st.floats(1.0, 4.0))
def test_kd_is_tau_squared_times_class_sum_averaged_over_rows(n: int, classes: int, tau: float) -> None:
    rows = _rows(n, classes)
    value = KdTerm().value(rows, KdSettings(temperature=tau)).detach()
    assert float(value) == pytest.approx(_kd64(rows, tau), rel=2e-4, abs=1e-6)


def test_kd_is_not_the_common_wrong_normalisations() -> None:
    rows, tau = _rows(8, 100), 4.0
    value = float(KdTerm().value(rows, KdSettings(temperature=tau)).detach())
    assert value == pytest.approx(16 * _kd64(rows, tau) / tau**2, rel=1e-4), "tau squared was dropped"
    assert value > 50 * _kd64(rows, tau) / 100, "the mean went over classes"


def test_kd_gradient_is_tau_times_softmax_difference_over_rows() -> None:
    rows, tau = _rows(5, 9), 2.5
    KdTerm().value(rows, KdSettings(temperature=tau)).backward()
    assert rows.student.grad is not None
    assert rows.teacher is not None
    q = _softmax64(rows.student.detach().double().numpy() / tau)
    p = _softmax64(rows.teacher.double().numpy() / tau)
    np.testing.assert_allclose(rows.student.grad.numpy(), tau * (q - p) / 5, atol=1e-6)


def test_kd_of_equal_logits_is_zero() -> None:
    logits = _logits(0, 4, 5)
    rows = Rows(logits, torch.zeros(4, dtype=torch.int64), torch.ones(4), teacher=logits)
    assert float(KdTerm().value(rows, KdSettings()).detach()) == 0.0


def test_task_weights_of_mean_one_leave_a_uniform_batch_unchanged_and_shift_emphasis() -> None:
    plain = TaskTerm().value(_rows(), KdSettings()).detach()
    scaled = TaskTerm().value(_rows(weight=unit_mean(torch.full((6,), 37.0))), KdSettings()).detach()
    assert float(plain) == float(scaled)
    weight = unit_mean(torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    rows = _rows(weight=weight)
    single = -float(torch.log_softmax(rows.student.detach(), -1)[0, 0])
    assert float(TaskTerm().value(rows, KdSettings()).detach()) == pytest.approx(single, rel=1e-6)


def test_task_label_smoothing_matches_the_closed_form() -> None:
    rows = _rows(label_smoothing=0.1)
    log_q = np.log(_softmax64(rows.student.detach().double().numpy()))
    target = np.full((6, 7), 0.1 / 7)
    target[np.arange(6), rows.targets.numpy()] += 0.9
    assert float(TaskTerm().value(rows, KdSettings()).detach()) == pytest.approx(
        float(-(target * log_q).sum(1).mean()), rel=1e-6
    )


def test_task_under_mixup_is_the_cross_entropy_with_the_mixed_label() -> None:
    targets, share = torch.tensor([3, 3, 0, 6, 1, 5]), torch.tensor([0.0, 0.5, 0.25, 0.1, 0.4, 0.3])
    rows = _rows(other=(targets, share))
    soft = np.zeros((6, 7))
    for i in range(6):
        soft[i, i] += 1 - float(share[i])
        soft[i, targets[i]] += float(share[i])
    expected = -(soft * np.log(_softmax64(rows.student.detach().double().numpy()))).sum() / 6
    assert float(TaskTerm().value(rows, KdSettings()).detach()) == pytest.approx(expected, rel=1e-5)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(RecurosError, match="sum to nothing") as caught:
        unit_mean(torch.zeros(3))
    assert caught.value.code == "E2-DATA"


def test_hint_is_the_weighted_mean_square_summed_over_layers() -> None:
    g = torch.Generator().manual_seed(5)
    student = tuple(torch.randn(11, 3, generator=g) for _ in range(2))
    teacher = tuple(torch.randn(11, 4, generator=g) for _ in range(2))
    weight = unit_mean(torch.rand(11, generator=g))
    projectors = build_projectors("linear", 2, 3, 4)
    rows = _rows(student_hidden=student, teacher_hidden=teacher, hidden_weight=weight, projectors=tuple(projectors))
    expected = 0.0
    for s, t, phi in zip(student, teacher, projectors, strict=True):
        assert isinstance(phi, nn.Linear)
        projected = s.double().numpy() @ phi.weight.detach().double().numpy().T + phi.bias.detach().double().numpy()
        squared = ((t.double().numpy() - projected) ** 2).mean(axis=1)
        expected += float((squared * weight.double().numpy()).mean())
    assert float(HintTerm().value(rows, KdSettings()).detach()) == pytest.approx(expected, rel=1e-5)


def test_identity_hint_needs_equal_widths() -> None:
    assert isinstance(build_projectors("none", 1, 8, 8)[0], nn.Identity)
    with pytest.raises(RecurosError, match="equal widths"):
        build_projectors("none", 1, 8, 16)


def test_uniform_map_spreads_layers_and_ends_at_both_last() -> None:
    assert uniform_map(2, 4) == ((1, 2), (2, 4))
    assert uniform_map(4, 4) == ((1, 1), (2, 2), (3, 3), (4, 4))
    assert uniform_map(3, 2) == ((1, 1), (2, 1), (3, 2))


def test_declared_map_naming_a_missing_layer_is_refused() -> None:
    with pytest.raises(RecurosError, match="teacher layer 9"):
        checked_map(((1, 9),), 2, 4)


@pytest.mark.parametrize(
    "values", [{"temperature": 0.5}, {"temperature": 4.5}, {"mix": 1.1}, {"alpha": -1.0}, {"mix": float("nan")}]
)
def test_settings_outside_their_limits_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(RecurosError) as caught:
        KdSettings().changed(**values)
    assert caught.value.code == "E2-LIMIT"


def test_the_terms_are_listed_with_distinct_names_and_sum_by_the_documented_weights() -> None:
    kd = KdSettings(mix=0.3, alpha=2.0)
    on = {t.name: t.coefficient(kd) for t in TERMS if t.coefficient(kd)}
    assert on == {"task": 0.7, "kd": 0.3, "hint": 2.0}
    assert len({t.name for t in TERMS}) == len(TERMS) == 2 + len(WEIGHTS)
    kd = kd.changed(allow=(0, 1))  # a constraint, without which its loss is off
    for name in WEIGHTS:
        assert {t.name: t.coefficient(kd.changed(**{name: 0.5})) for t in TERMS}[name] == (
            0.35 if name == "task" else 0.5
        )
