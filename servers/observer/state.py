"""What the Observer remembers across windows, and how a window is folded into it.

Responsible for: the one state (temperature decided, trajectory, held-out calibration, per-sample averages, probe sums), its
encoding inside the evidence of every policy, and stepping back when a window is run again. Refuses: evidence of another
version (E9-VERSION). Pure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgpack

from kfs.objects import object_id
from servers.observer.diagnostics import Floats, Samples, Trace, diagnose, gained, probe_figures, probe_sums
from servers.observer.policy import Decision, Evidence, Guards, HeldOut, Numbers, Pack, Progress, checked
from servers.observer.readers import Figures, Sums, looked_figures
from servers.observer.rules import progress_of
from servers.observer.signals import (
    Generations,
    capacity_ceiling,
    efficiency,
    generation_signals,
    noted,
    window_signals,
)
from servers.observer.trajectory import Trajectory
from syscalls import limits
from syscalls.errors import RecurosError

VERSION: Final = 3
LOSSES: Final = (
    *((name, name) for name in ("task", "kd", "hint")),
    *((name, f"term.{name}") for name in limits.TERMS if name != "task"),
)
"""Name of a loss term and of its figure in what the learner reports."""
LONG_AGO: Final = -(1 << 31)
HELD_OUT_MOMENTUM: Final = 0.9


@dataclass
class State:
    """`window`: the last one folded in. `generation`: teacher generation the per-sample averages belong to.

    `initial` is the temperature before any policy: while the pack has not moved away from it, the operator's stands.
    `looked`: whether distances were taken since the last evidence. `evidence`: id of the stored evidence that holds this state, apart
    from evaluations that came later; "" when none does.
    """

    temperature: float
    initial: float
    samples: Samples
    window: int = -1
    generation: int = 0
    changed_at: int = LONG_AGO
    trajectory: Trajectory = field(default_factory=Trajectory)
    held_out: HeldOut = field(default_factory=HeldOut)
    sums: Sums = field(default_factory=dict)
    generations: Generations = field(default_factory=list)
    guards: Guards = field(default_factory=Guards)
    steered_at: int = 0
    passes: int = 0
    progress: Progress | None = None
    looked: bool = False
    evidence: str = ""

    def origin(self) -> dict[str, Any]:
        """What a decision starts from, as its evidence tells it: an earlier evidence (else the state itself), and calibration."""
        whole = {} if self.evidence else {"state": self.to_map()}
        look = {"look": self.samples.to_map()} if self.looked else {}
        return {"evidence": self.evidence, "held_out": self.held_out.to_list(), **whole, **look}

    def look(self, distance: Floats, threshold: float) -> None:
        """Distances from the training distribution, as of now; the next evidence tells them, since they come from outside."""
        self.samples.look(distance, threshold)
        self.looked = True

    def look_again(self, origin: Mapping[str, Any]) -> None:
        """Take over what an origin says was looked at since the evidence it names."""
        if "look" in origin:
            said = Samples.of_map(origin["look"])
            self.look(said.distance, said.threshold)

    def follow(self, window: int, kd: Mapping[str, Any]) -> None:
        """An operator's `rl_set_kd` stands until later evidence moves it: take its temperature over, once."""
        at, temperature = int(kd.get("window", 0)), float(kd.get("temperature", -1.0))
        if self.steered_at < at <= window and temperature > 0:
            self.temperature = self.initial = temperature
            self.steered_at = self.changed_at = at

    def extend(self, gate: Mapping[str, Any]) -> None:
        """Room for the samples that came by interrupts; the gate says how many there are now."""
        if gate.get("extra"):
            self.samples.grow(int(gate["extra"][-1][3]))

    def to_map(self) -> dict[str, Any]:
        """Plain values; `of_map` reads them back exactly."""
        return {
            "temperature": self.temperature,
            "initial": self.initial,
            "window": self.window,
            "generation": self.generation,
            "changed_at": self.changed_at,
            "trajectory": self.trajectory.to_map(),
            "held_out": self.held_out.to_list(),
            "sums": self.sums,
            "generations": self.generations,
            "guards": self.guards.to_list(),
            "steered_at": self.steered_at,
            "passes": self.passes,
            "samples": self.samples.to_map(),
        }

    @classmethod
    def of_map(cls, values: Mapping[str, Any]) -> State:
        """Inverse of `to_map`."""
        return cls(
            temperature=float(values["temperature"]),
            initial=float(values["initial"]),
            samples=Samples.of_map(values["samples"]),
            window=int(values["window"]),
            generation=int(values["generation"]),
            changed_at=int(values["changed_at"]),
            trajectory=Trajectory.of_map(values["trajectory"]),
            held_out=HeldOut(*values["held_out"]),
            generations=[list(row) for row in values["generations"]],
            guards=Guards(*values["guards"]),
            steered_at=int(values["steered_at"]),
            passes=int(values["passes"]),
            sums={row: dict(fields) for row, fields in values["sums"].items()},
        )

    def copy(self) -> State:
        """A state that shares nothing with this one."""
        made = State.of_map(msgpack.unpackb(msgpack.packb(self.to_map()), strict_map_key=False))
        made.evidence, made.looked = self.evidence, self.looked
        return made


def fold(state: State, window: int, trace: Trace, metrics: Mapping[str, Any], maps: Mapping[str, Any]) -> Figures:
    """Fold a window into the state; its diagnostics.

    A new generation has another teacher: per-sample averages, held-out calibration and probe sums start anew.
    """
    state.evidence = ""
    generation = int(metrics.get("generation", state.generation))
    back = 0 <= state.guards.restored_at <= window  # another teacher and student, of an earlier generation
    if generation != state.generation or back:
        held = state.held_out
        if state.generations and not back:  # what came after the generation's last window
            state.generations = noted(state.generations, state.generation, held.accuracy, None, held.snapshot)
        state.generation = generation
        state.samples = Samples(len(state.samples.entropy))
        state.held_out = HeldOut()
        state.changed_at = LONG_AGO
        state.passes = 0
        state.guards.restored_at, state.guards.moved, state.guards.judged = -1, [], [generation, 0]
    if state.guards.moved and window <= state.changed_at + limits.POLICY_LAG_WINDOWS:
        state.guards.moved[2] = state.held_out.count  # evaluations up to here saw nothing of the move
    if state.temperature == state.initial:  # the pack has not moved it: the one in force is the operator's
        state.temperature = state.initial = float(metrics.get("temperature", state.initial))
    now = probe_sums(maps)
    figures = {**diagnose(trace), **probe_figures(gained(now, state.sums)), **looked_figures(maps), **_terms(metrics)}
    figures |= window_signals(figures)
    state.sums = now
    state.samples.add(trace)
    state.samples.settle()
    state.trajectory.add(window, figures)
    state.window = window
    figures |= _signals(state, figures, metrics)
    at = progress_of(metrics, state.passes, figures["rows"], len(state.samples.entropy), limits.POLICY_LAG_WINDOWS)
    if at is not None and at.phase_step >= at.phase_steps:
        state.passes += 1
        at = replace(at, passes=state.passes)
    state.progress = at
    return figures


def _terms(metrics: Mapping[str, Any]) -> Figures:
    """The values of the loss terms that were on, by `loss_NAME`; that of EWC is the distance from what is to be kept."""
    named = {f"loss_{name}": metrics[key] for name, key in LOSSES if isinstance(metrics.get(key), int | float)}
    return {name: float(value) if math.isfinite(value) else None for name, value in named.items()}


def _signals(state: State, figures: Figures, metrics: Mapping[str, Any]) -> Figures:
    """What the history says, with the newest window in it; these have trajectories of their own."""
    held = state.held_out
    state.generations = noted(
        state.generations, state.generation, held.accuracy, figures["entropy_student"], held.snapshot
    )
    found: Figures = {
        "capacity_ceiling": capacity_ceiling(state.trajectory.series.get("kl")),
        "efficiency": efficiency(held.accuracy, held.teacher, metrics, figures.get("sparsity")),
        **generation_signals(state.generations),
    }
    state.trajectory.add(state.window, found)
    return found


def decide(state: State, pack: Pack, numbers: Numbers, figures: Figures, gate: Mapping[str, Any]) -> Decision:
    """The pack's decision on the state as it is, checked against its bounds and taken note of."""
    _judge(state, numbers, figures.get("collapse"))
    evidence = Evidence(
        window=state.window,
        diagnostics=figures,
        trajectory=state.trajectory,
        held_out=state.held_out,
        samples=state.samples,
        temperature=state.temperature,
        changed_at=state.changed_at,
        gate=gate,
        progress=state.progress,
        guards=state.guards,
        generation=state.generation,
        generations=state.generations,
    )
    decision = checked(pack.decide(evidence, numbers), numbers, gate)
    if evidence.settled(numbers):
        state.held_out.fresh = False
    temperature = decision.settings.get("temperature", state.temperature)
    guards = state.guards
    if temperature != state.temperature:
        if evidence.spoiled(numbers):
            guards.moved, guards.frozen = [], state.generation
        elif state.held_out.accuracy is not None:
            guards.moved = [state.temperature, state.held_out.accuracy, state.held_out.count]
        state.temperature, state.changed_at = temperature, state.window
    elif evidence.judges and evidence.settled(numbers):
        guards.moved = []  # it did no harm
    if "restore" in decision.settings:
        guards.restores, guards.collapsed = guards.restores + 1, 0
        guards.restored_at = state.window + limits.POLICY_LAG_WINDOWS
    cadence = int(decision.settings.get("cadence", 1))
    if cadence != guards.cadence:
        guards.cadence, guards.cadence_at = cadence, state.window
    return decision


def _judge(state: State, numbers: Numbers, collapse: float | None) -> None:
    """Count validations in a row that were beyond the collapse threshold; each is counted once."""
    guards, now = state.guards, [state.generation, state.held_out.count]
    if now == guards.judged or not state.held_out.count:
        return
    guards.judged = now
    most = numbers.get("collapse_most", 0.0)
    guards.collapsed = guards.collapsed + 1 if most > 0 and collapse is not None and collapse > most else 0


def encode_evidence(
    state: State, snapshot: str, figures: Figures, decision: Decision, numbers: Numbers, before: Mapping[str, Any]
) -> bytes:
    """The evidence of a policy as msgpack: what it was decided from, why, and the state to go on from.

    `before` is `State.origin` of the state that the window was folded into: with the window's trace it makes the decision
    a function of stored inputs.
    """
    document = {
        "version": VERSION,
        "window": state.window,
        "snapshot": snapshot,
        "diagnostics": figures,
        "slopes": {name: series.slope for name, series in state.trajectory.series.items()},
        "numbers": dict(numbers),
        "settings": decision.settings,
        "refused": decision.refused,
        "reasons": list(decision.reasons),
        "before": dict(before),
        "state": state.to_map(),
    }
    data: bytes = msgpack.packb(document, use_bin_type=True)
    state.evidence, state.looked = object_id("U8", (len(data),), data), False
    return data


def read_evidence(data: bytes) -> dict[str, Any]:
    """The document inside an evidence object; E9-VERSION for another version."""
    document = msgpack.unpackb(data, raw=False, strict_map_key=False)
    if not isinstance(document, dict) or document.get("version") != VERSION:
        found = document.get("version") if isinstance(document, dict) else None
        raise RecurosError("E9-VERSION", f"policy evidence has version {found}, this Observer reads {VERSION}")
    return document


def decode_evidence(data: bytes) -> State:
    """The state inside an evidence object."""
    state = State.of_map(read_evidence(data)["state"])
    state.evidence = object_id("U8", (len(data),), data)
    return state


def settings_of(state: State, decision: Decision, figures: Figures) -> dict[str, Any]:
    """The complete settings wanted, or why they are refused, with a few figures for whoever reads the ledger."""
    small: dict[str, Any] = {name: value for name, value in figures.items() if value is not None}
    if state.held_out.count:
        small["held_out_ece"] = state.held_out.ece
        small["held_out_ece_average"] = state.held_out.ema
    if decision.reasons:
        small["why"] = "; ".join(decision.reasons)
    if decision.refused:
        return {"refused": decision.refused, "evidence": small}
    settings: dict[str, Any] = dict(decision.settings)
    if state.temperature == state.initial:
        settings.pop("temperature", None)
    if decision.order is not None:
        settings["order"] = 1
    return {**settings, "weights": 0, "evidence": small}


def accuracies(scores: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The student's and the teacher's accuracy in the scores of an evaluation."""
    found = [(scores.get(role) or {}).get("accuracy") for role in ("student", "teacher")]
    student, teacher = (float(value) if isinstance(value, int | float) else None for value in found)
    return student, teacher


class History:
    """States before the latest windows, so that a window that rolled back and runs again is not counted twice.

    Two windows can be outstanding; the kernel hands their traces out in order.
    """

    def __init__(self) -> None:
        self._before: deque[tuple[int, State]] = deque(maxlen=2 * limits.POLICY_LAG_WINDOWS)

    def keep(self, window: int, state: State) -> None:
        """Remember the state as it is before `window` is folded in."""
        self._before.append((window, state.copy()))

    def before(self, window: int) -> State | None:
        """The state before `window`, dropping what came after; None when it is not remembered."""
        found: State | None = None
        while self._before and self._before[-1][0] >= window:
            found = self._before.pop()[1]
        return found
