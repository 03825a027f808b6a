"""The default pack: temperature from calibration, weights on informative disagreement; pruning, swaps, plateaus, collapse, probes.

Responsible for: temperature, up by `temperature_step` when the student's held-out ECE exceeds its moving average by `ece_rise`,
else down when the student's mean entropy exceeds the teacher's by `entropy_excess`; weights w_i ~ (1 + weight_gain * d_i / mean d) *
gate_i * band_i, with d_i the sample's disagreement, band_i = `band_floor` for the lowest and highest teacher entropies and gate_i = 0
beyond the in-distribution threshold (`ood`), bounded, mean 1; and `rules`. Refuses: to move the temperature again before its last
move can be seen; with a `temperature_guard`, to move it on in a generation in which a move was followed by a fall of held-out
accuracy by more than that (the move is taken back); to follow a teacher that is worse than its student (mix `worse_mix` while it
is); to leave out more than `ood_most` of the samples as outliers: that many are the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.observer import rules
from servers.observer.diagnostics import Floats, Samples
from servers.observer.policy import Decision, Evidence, Number, Numbers, Pack, bounded_weights
from syscalls import limits

NUMBERS: Final = {
    "temperature_step": Number(0.10, 0.0, 0.5, "relative change of the temperature"),
    "temperature_min": Number(
        limits.TEMPERATURE_MIN, limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX, "lowest temperature"
    ),
    "temperature_max": Number(
        limits.TEMPERATURE_MAX, limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX, "highest temperature"
    ),
    "ece_rise": Number(0.10, 0.0, 10.0, "relative rise of held-out ECE over its average that raises the temperature"),
    "ece_momentum": Number(0.9, 0.0, 0.999, "weight of the past in the average of held-out ECE"),
    "entropy_excess": Number(
        0.10, 0.0, 10.0, "relative excess of student over teacher entropy that lowers the temperature"
    ),
    # A change shows in the evidence only after the policy lag; acting sooner would act twice on one cause.
    "cooldown": Number(limits.POLICY_LAG_WINDOWS + 1, 1, 10_000, "windows between two changes of temperature"),
    "temperature_guard": Number(
        0.0,
        0.0,
        1.0,
        "fall of held-out accuracy after a move that takes it back and ends the rule for the generation; 0 never looks",
    ),
    "drop_low": Number(0.10, 0.0, 0.45, "share of samples with the lowest teacher entropy outside the band"),
    "drop_high": Number(0.10, 0.0, 0.45, "share of samples with the highest teacher entropy outside the band"),
    "band_floor": Number(0.0, 0.0, 1.0, "factor for samples outside the band; 0 leaves them out"),
    "ood_most": Number(0.25, 0.0, 1.0, "largest share of samples to leave out as outliers; 0 leaves none out"),
    "weight_gain": Number(1.0, 0.0, 100.0, "how much disagreement adds to a weight"),
    "weight_min": Number(0.25, 0.0, 1.0, "lowest weight"),
    "weight_max": Number(4.0, 1.0, 100.0, "highest weight"),
    "worse_margin": Number(0.02, 0.0, 1.0, "held-out accuracy by which the teacher must be behind to count as worse"),
    "worse_mix": Number(
        0.1, 0.01, 1.0, "share of distillation while the teacher is worse than the student; 1 ignores it"
    ),
    **rules.PRUNE,
    **rules.SWAP,
    **rules.PLATEAU,
    **rules.COLLAPSE,
    **rules.CADENCE,
    **rules.CURRICULUM,
}


def decide(evidence: Evidence, numbers: Numbers) -> Decision:
    """Settings {"temperature", and what the rules ask for}, weights and order F32 [n_train]."""
    temperature, reasons = _temperature(evidence, numbers)
    settings, more = rules.merged(
        _worse_teacher(evidence, numbers),
        rules.prune_ramp(evidence, numbers),
        rules.swap(evidence, numbers, "ema"),
        rules.plateau(evidence, numbers),
        rules.cadence(evidence, numbers),
        rules.collapse(evidence, numbers),
    )
    if "hold" in settings or "restore" in settings:
        settings.pop("swap", None)  # not to teach with what has collapsed
    return Decision(
        {"temperature": temperature, **settings},
        weights_of(evidence.samples, numbers, evidence.gate),
        (*reasons, *more),
        rules.curriculum(evidence.samples, numbers),
    )


def _worse_teacher(evidence: Evidence, numbers: Numbers) -> rules.Asked:
    """A teacher that is behind its student has little left to teach: listen to the labels, until it is so no more."""
    student, teacher = evidence.held_out.accuracy, evidence.held_out.teacher
    if (
        student is None
        or teacher is None
        or numbers["worse_mix"] >= 1.0
        or teacher >= student - numbers["worse_margin"]
    ):
        return rules.NOTHING
    mix = numbers["worse_mix"]
    return {"mix": mix}, (f"mix {mix:g}: held out, the teacher has {teacher:.4f} and the student {student:.4f}",)


def _temperature(evidence: Evidence, numbers: Numbers) -> tuple[float, tuple[str, ...]]:
    tau, held_out = evidence.temperature, evidence.held_out
    guards = evidence.guards
    if not evidence.settled(numbers) or guards.frozen == evidence.generation:
        return tau, ()
    if evidence.spoiled(numbers):
        back, accuracy = guards.moved[0], guards.moved[1]
        reason = f"held-out accuracy {held_out.accuracy:.4f} after {accuracy:.4f} before the move; no more in this generation"
        return back, (f"temperature {tau:.3f} -> {back:.3f}: {reason}",)
    step = numbers["temperature_step"]
    # The first evaluation has nothing to be compared with.
    if held_out.fresh and held_out.count > 1 and held_out.ece > held_out.ema * (1 + numbers["ece_rise"]):
        reason = f"held-out ECE {held_out.ece:.4f} exceeds its average {held_out.ema:.4f}"
        return _moved(tau, tau * (1 + step), reason, numbers)
    student, teacher = (evidence.diagnostics.get(f"entropy_{side}") for side in ("student", "teacher"))
    if student is not None and teacher is not None and student > teacher * (1 + numbers["entropy_excess"]):
        reason = f"student entropy {student:.4f} exceeds the teacher's {teacher:.4f}"
        return _moved(tau, tau * (1 - step), reason, numbers)
    return tau, ()


def _moved(tau: float, wanted: float, reason: str, numbers: Numbers) -> tuple[float, tuple[str, ...]]:
    bounded = min(max(wanted, numbers["temperature_min"]), numbers["temperature_max"])
    if bounded == tau:
        return tau, ()
    return bounded, (f"temperature {tau:.3f} -> {bounded:.3f}: {reason}",)


def weights_of(samples: Samples, numbers: Numbers, gate: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Weights F32 [n_train], mean 1 over the samples that are not left out; None while none was traced.

    Samples not traced yet count as the mean of those that were. A gate's samples get exactly 0, as do those outside the
    band when `band_floor` is 0.
    """
    seen = samples.seen
    if not seen.any():
        return None
    disagreement = samples.disagreement[seen]
    mean = float(disagreement.mean())
    raw = np.ones(len(disagreement))
    if mean > 0:
        raw += numbers["weight_gain"] * disagreement / mean
    raw[_outside(samples.entropy[seen], numbers["drop_low"], numbers["drop_high"])] *= numbers["band_floor"]
    closed = _outside(samples.entropy[seen], float(gate.get("drop_low", 0.0)), float(gate.get("drop_high", 0.0)))
    raw[closed] = 0.0
    strange = samples.outliers[seen]
    if 0 < strange.mean() <= numbers["ood_most"]:
        raw[strange] = 0.0
    return _spread(raw, seen, numbers)


def _spread(raw: Floats, seen: NDArray[np.bool_], numbers: Numbers) -> NDArray[np.float32]:
    """Bounded weights for all samples from the raw weights of the seen ones."""
    kept = raw > 0
    full = np.full(len(seen), float(raw[kept].mean()) if kept.any() else 1.0)
    full[seen] = raw
    open_samples = full > 0
    full[open_samples] = bounded_weights(full[open_samples], numbers["weight_min"], numbers["weight_max"])
    return full.astype(np.float32)


def _outside(entropy: Floats, low: float, high: float) -> NDArray[np.int64]:
    """Positions of the floor(low * n) lowest and floor(high * n) highest entropies; ties go by position."""
    order = np.argsort(entropy, kind="stable").astype(np.int64)
    n = len(order)
    return np.concatenate((order[: int(low * n)], order[n - int(high * n) :]))


PACK = Pack("starter", decide, NUMBERS)
