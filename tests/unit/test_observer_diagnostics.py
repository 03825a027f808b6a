"""Diagnostics, trajectories and the Observer's state, against plain oracles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.observer.diagnostics import (
    COLUMNS,
    SAMPLE_MOMENTUM,
    Samples,
    diagnose,
    expected_calibration_error,
    gained,
    probe_figures,
    probe_sums,
    read_trace,
)
from servers.observer.packs import starter
from servers.observer.policy import Decision, numbers_of
from servers.observer.state import History, State, decide, decode_evidence, encode_evidence, fold
from servers.observer.trajectory import HISTORY, MOMENTUM, Trajectory
from syscalls.errors import RecurosError
from syscalls.pages import Array, pack_arrays, unpack_arrays


def arrays_of(**columns: Any) -> dict[str, Array]:
    n = len(columns["id"])
    base = {
        "label_ok": [1] * n,
        "confidence": [0.9] * n,
        "entropy_s": [0.5] * n,
        "entropy_t": [0.2] * n,
        "kl": [0.1] * n,
    }
    values = {**base, "agree": [1] * n, **columns}
    rows = []
    for name, (dtype, kind) in COLUMNS.items():
        data = np.asarray(values[name], dtype=kind)
        rows.append((name, dtype, data.shape, data.data))
    return unpack_arrays(pack_arrays(rows).view)[0]


def make_trace(**columns: Any) -> Any:
    return read_trace(arrays_of(**columns))


def slow_ece(confidence: list[float], ok: list[int]) -> float:
    """The definition, bin by bin, with exact edges."""
    total = 0.0
    for b in range(15):
        inside = [i for i, c in enumerate(confidence) if b / 15 < c <= (b + 1) / 15 or (b == 0 and c == 0)]
        if inside:
            gap = sum(ok[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside)
            total += abs(gap) * len(inside) / len(confidence)
    return total


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 1)), min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_ece_is_its_definition(rows: list[tuple[float, int]]) -> None:
    # A confidence within rounding of an edge may fall on either side of it.
    rows = [(c, ok) for c, ok in rows if abs(c * 15 - round(c * 15)) > 1e-9]
    if rows:
        confidence, ok = [c for c, _ in rows], [ok for _, ok in rows]
        found = expected_calibration_error(np.asarray(confidence), np.asarray(ok, dtype=np.float64))
        assert found == pytest.approx(slow_ece(confidence, ok), abs=1e-12)


def test_ece_is_none_without_rows() -> None:
    assert expected_calibration_error(np.zeros(0), np.zeros(0)) is None


def test_a_trace_becomes_the_means_of_its_finite_rows() -> None:
    trace = make_trace(
        id=[0, 1, 2, 3],
        label_ok=[1, 0, 1, 1],
        confidence=[0.9, 0.8, 0.7, np.nan],
        agree=[1, 0, 0, 1],
        kl=[0.1, 0.3, 0.5, 9],
    )
    figures = diagnose(trace)
    assert figures["rows"] == 3
    assert figures["dropped"] == 1
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["disagreement"] == pytest.approx(2 / 3)
    assert figures["kl"] == pytest.approx(0.3)
    assert figures["confidence"] == pytest.approx(0.8)
    assert figures["entropy_teacher"] == pytest.approx(0.2)


@pytest.mark.parametrize("fault", ["missing", "type", "length"])
def test_a_malformed_trace_is_refused(fault: str) -> None:
    arrays = arrays_of(id=[0, 1])
    if fault == "missing":
        del arrays["kl"]
    elif fault == "type":
        arrays["kl"] = arrays["id"]
    else:
        arrays["kl"] = arrays_of(id=[0, 1, 2])["kl"]
    with pytest.raises(RecurosError, match="trace column") as caught:
        read_trace(arrays)
    assert caught.value.code == "E2-WIRE"


def test_samples_average_over_rows_then_over_windows() -> None:
    samples = Samples(4)
    samples.add(make_trace(id=[1, 1, 2], agree=[0, 1, 1], entropy_t=[0.2, 0.4, 1.0]))
    assert samples.disagreement[1] == pytest.approx(0.5)
    assert samples.entropy[1] == pytest.approx(0.3)
    assert samples.seen.tolist() == [False, True, True, False]
    samples.add(make_trace(id=[1], agree=[0], entropy_t=[0.8]))
    assert samples.disagreement[1] == pytest.approx(SAMPLE_MOMENTUM * 0.5 + (1 - SAMPLE_MOMENTUM))
    assert samples.entropy[2] == pytest.approx(1.0)
    with pytest.raises(RecurosError, match="names sample 4; the training split has 4"):
        samples.add(make_trace(id=[4]))


def cka_map(*rows: dict[str, float]) -> dict[str, Any]:
    fields = ["xy", "xx", "yy", "batches"]
    table = {"kind": "array", "fields": fields, "rows": [{"values": [row.get(f, 0.0) for f in fields]} for row in rows]}
    return {"1": {"program": "builtin:cka,every=25", "hook": "on_kd_step", "map": {"maps": {"sums": table}}}}


def test_cka_is_the_windows_gain_divided_once() -> None:
    first = probe_sums(cka_map({"xy": 1, "xx": 4, "yy": 1, "batches": 1}, {"xy": 1, "xx": 1, "yy": 1, "batches": 1}))
    second = probe_sums(cka_map({"xy": 4, "xx": 8, "yy": 5, "batches": 3}, {"xy": 1, "xx": 1, "yy": 1, "batches": 1}))
    assert probe_figures(gained(first, {}))["cka"] == pytest.approx((0.5 + 1) / 2)
    assert probe_figures(gained(second, first))["cka"] == pytest.approx(3 / 4)  # b saw no new batch
    assert probe_figures(gained(first, second))["cka"] == pytest.approx((0.5 + 1) / 2)  # a count fell: all began anew
    negative = probe_sums(cka_map({"xy": 1, "xx": -1, "yy": 1, "batches": 1}))
    assert probe_figures(gained(negative, {}))["cka"] is None


def test_the_calibration_probe_gives_nll_and_other_probes_nothing() -> None:
    totals = {"fields": ["rows", "correct", "nll", "brier", "skipped"], "values": [10, 9, 5.0, 2.0, 0]}
    maps = {
        "2": {"program": "builtin:ece", "map": {"totals": totals}},
        "3": {"program": "builtin:rms", "map": {"layers": {}}},
    }
    found = probe_figures(gained(probe_sums(maps), {}))
    assert {name: value for name, value in found.items() if value is not None} == {"nll": 0.5, "brier": 0.2}


def test_the_builtin_cka_probe_and_the_observer_read_one_map_alike() -> None:
    import torch

    from probes import library
    from probes.program import Context

    probe = library.build("builtin:cka", every=1)
    torch.manual_seed(0)
    for _ in range(3):
        x = torch.randn(32, 6)
        pairs = [(name, x, x @ torch.randn(6, 9) + torch.randn(32, 9)) for name in ("0:0", "1:2")]
        probe.fire(Context("on_kd_step", "on_kd_step", 0, {"hidden": pairs}))
    probe.summary()
    document = {"maps": {name: held.to_dict() for name, held in probe.maps.items()}, "summary": probe.summary()}
    found = probe_figures(gained(probe_sums({"1": {"program": "builtin:cka", "map": document}}), {}))
    assert found["cka"] == pytest.approx(probe.summary()["cka"], rel=1e-12)


def test_a_trajectory_keeps_average_slope_and_a_bounded_history() -> None:
    trajectory = Trajectory()
    for window in range(100):
        trajectory.add(window, {"kl": 2.0 * window + 1, "gap": None, "bad": math.nan})
    series = trajectory.series["kl"]
    assert set(trajectory.series) == {"kl"}
    assert series.slope == pytest.approx(2.0)
    assert len(series.recent) == HISTORY
    assert series.last == 199
    ema = 1.0
    for window in range(1, 100):
        ema = MOMENTUM * ema + (1 - MOMENTUM) * (2.0 * window + 1)
    assert series.ema == pytest.approx(ema)
    assert Trajectory.of_map(trajectory.to_map()).to_map() == trajectory.to_map()


def trace_at(window: int, n: int = 20) -> Any:
    rng = np.random.default_rng(window)
    return make_trace(
        id=rng.permutation(n)[:12],
        agree=rng.integers(0, 2, 12),
        entropy_t=rng.random(12),
        entropy_s=rng.random(12) + 0.5,
        confidence=rng.random(12),
    )


def fresh(n: int = 20) -> State:
    return State(temperature=2.0, initial=2.0, samples=Samples(n))


def run(state: State, windows: range) -> list[Decision]:
    numbers = numbers_of(starter.PACK, {})
    made = []
    for window in windows:
        figures = fold(state, window, trace_at(window), {"kd": 1.0, "generation": 0}, {})
        made.append(decide(state, starter.PACK, numbers, figures, {}))
    return made


def test_an_observer_that_starts_again_from_evidence_decides_the_same() -> None:
    state = fresh()
    run(state, range(7))
    state.held_out.add(0.1, 0.9)
    numbers = numbers_of(starter.PACK, {})
    data = encode_evidence(state, "b3:" + "0" * 64, {}, Decision(), numbers, state.origin())
    again = decode_evidence(data)
    for one, other in zip(run(state, range(7, 12)), run(again, range(7, 12)), strict=True):
        assert one.settings == other.settings
        assert one.reasons == other.reasons
        assert one.weights is not None
        assert other.weights is not None
        assert (one.weights == other.weights).all()
    assert state.to_map() == again.to_map()


def test_a_window_that_runs_again_is_counted_once() -> None:
    straight = fresh()
    run(straight, range(5))
    history, state = History(), fresh()
    for window in (0, 1, 2, 3):
        history.keep(window, state)
        run(state, range(window, window + 1))
    back = history.before(2)
    assert back is not None
    run(back, range(2, 5))
    assert back.to_map() == straight.to_map()
    assert history.before(0) is not None
    assert history.before(0) is None


def test_a_new_generation_forgets_what_belonged_to_the_old_teacher() -> None:
    state = fresh()
    run(state, range(3))
    state.held_out.add(0.2, 0.9)
    kl_windows = state.trajectory.series["kl"].count
    fold(state, 3, make_trace(id=[5]), {"kd": 1.0, "generation": 1}, {})
    assert state.samples.seen.sum() == 1
    assert state.held_out.count == 0
    assert state.trajectory.series["kl"].count == kl_windows + 1


def test_the_terms_that_were_on_have_trajectories_of_their_own() -> None:
    state = fresh()
    metrics = {"kd": 0.5, "task": 1.5, "term.cka": 0.25, "cka": 0.9, "term.ewc": math.inf, "loss": 2.0}
    figures = fold(state, 0, trace_at(0), metrics, {})
    found = {name: value for name, value in figures.items() if name.startswith("loss_")}
    assert found == {"loss_kd": 0.5, "loss_task": 1.5, "loss_cka": 0.25, "loss_ewc": None}
    assert {"loss_kd", "loss_task", "loss_cka"} <= set(state.trajectory.series)
    assert "loss_ewc" not in state.trajectory.series


def test_the_operators_temperature_stands_until_the_pack_moves_it() -> None:
    state = fresh()
    fold(state, 0, trace_at(0), {"kd": 1.0, "temperature": 3.0}, {})
    assert (state.temperature, state.initial) == (3.0, 3.0)
    state.temperature = 3.3
    fold(state, 1, trace_at(1), {"kd": 1.0, "temperature": 1.5}, {})
    assert (state.temperature, state.initial) == (3.3, 3.0)


def test_evidence_of_another_version_is_refused() -> None:
    import msgpack

    with pytest.raises(RecurosError, match="has version 9, this Observer reads 3") as caught:
        decode_evidence(msgpack.packb({"version": 9}))
    assert caught.value.code == "E9-VERSION"
