"""A run of an experiment in one process: the servers' own engine, stream and policies, with nothing in between.

Responsible for: driving phases window by window as the runtime does (the same lag between evidence and policy, the same
evaluation cadence), and scoring what came out: accuracy and fidelity to the teacher apart. Refuses: to read a split other
than the one that it is handed; the loop itself trains on `train` and shows the Observer `validation`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from servers.dataset.stream import Stream
from servers.dataset.table import Columns
from servers.learner.engine import Engine, StepMetrics
from servers.learner.losses.kd import kl_rows
from servers.learner.state import leaf_of
from servers.learner.trace import joined
from servers.models.evaluate import evaluate
from servers.models.model import Batch, Model, valid_rows
from servers.observer.diagnostics import Samples, read_trace
from servers.observer.ood import outlying
from servers.observer.packs import pack_of
from servers.observer.policy import Pack, numbers_of
from servers.observer.state import HELD_OUT_MOMENTUM, State, decide, fold
from syscalls import limits

WINDOW_STEPS: Final = 25
EVAL_EVERY: Final = 10
SCORED_ROWS: Final = 200
"""Rows of one forward pass when a split is scored."""


def tensors(columns: Columns) -> Batch:
    """NumPy columns as a batch."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in columns.items()}


@dataclass
class Watcher:
    """The Observer in process: folds the trace of window k, and its decision is in force from window k + 2 on.

    `training`, `validation`: what the Observer's server would fetch for held-out calibration and for its look at which samples are
    strange; without validation the rules that need it have no evidence. `order`: a permutation of the training samples that the
    weights are dealt out by: the control that keeps everything about the weights (their values, their dynamics) except which
    sample gets which.
    """

    training: Batch
    temperature: float
    table: Mapping[str, Any] = field(default_factory=dict)
    pack: Pack = field(default_factory=lambda: pack_of("starter"))
    order: NDArray[np.int64] | None = None
    validation: Batch | None = None

    def __post_init__(self) -> None:
        self.numbers = numbers_of(self.pack, self.table)
        self.state = State(self.temperature, self.temperature, Samples(len(self.training["ids"])))
        self.temperatures: list[float] = []
        self.weights: list[NDArray[np.float32]] = []
        self._coming: dict[int, tuple[dict[str, Any], NDArray[np.float32] | None]] = {}
        self._in_force: tuple[dict[str, Any], NDArray[np.float32] | None] = ({}, None)

    def policy(self, window: int) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """Settings and sample weights of a window."""
        self._in_force = self._coming.pop(window, self._in_force)
        return self._in_force

    def see(self, window: int, engine: Engine, done: list[StepMetrics]) -> None:
        """Take the evidence of a window and decide on it."""
        rows = joined([m.trace for m in done if m.trace is not None])
        if not rows:
            return
        trace = read_trace({name: leaf_of(values) for name, values in rows.items()})
        metrics = {"generation": engine.generation, "temperature": engine.kd.temperature}
        figures = fold(self.state, window, trace, metrics, {})
        decision = decide(self.state, self.pack, self.numbers, figures, {})
        weights = decision.weights
        if weights is not None:
            self.weights.append(weights)
            weights = weights if self.order is None else weights[self.order]
        self.temperatures.append(self.state.temperature)
        self._coming[window + limits.POLICY_LAG_WINDOWS] = (decision.settings, weights)
        if self.validation is not None and (window + 1) % EVAL_EVERY == 0:
            self._evaluate(engine, self.validation)

    def _evaluate(self, engine: Engine, validation: Batch) -> None:
        """Held-out calibration, and once which training samples the teacher finds strange: as the Observer's `evaluate` does."""
        ece = engine.evaluate("student", validation)["ece"]
        self.state.held_out.add(ece, self.numbers.get("ece_momentum", HELD_OUT_MOMENTUM))
        if self.numbers.get("ood_most") and math.isnan(self.state.samples.threshold):
            teacher = engine.roles["teacher"].model
            seen, held = (features(teacher, arrays) for arrays in (self.training, validation))
            self.state.look(*outlying(seen, self.training["labels"].numpy(), held))

    def report(self) -> dict[str, float]:
        """What the Observer did.

        Where the temperature went; how far the weights spread (their standard deviation; the mean is 1); the shares of samples
        that weigh nothing, and that are shut out as outliers among them.
        """
        strange = float(self.state.samples.outliers.mean())
        return {
            "temperature_last": self.temperatures[-1] if self.temperatures else self.temperature,
            "weight_spread": float(np.mean([w.std() for w in self.weights])) if self.weights else 0.0,
            "weightless_share": float(np.mean([(w == 0).mean() for w in self.weights])) if self.weights else 0.0,
            "gated_share": strange if strange <= self.numbers.get("ood_most", 0.0) else 0.0,
        }


@torch.no_grad()
def features(model: Model, arrays: Batch) -> NDArray[np.float64]:
    """The last hidden state of each sample, averaged over positions: [n, width]."""
    was_training = model.module.training
    model.module.eval()
    found = model.forward(arrays, need_hidden=True).hidden[-1].mean(dim=1)
    model.module.train(was_training)
    values: NDArray[np.float64] = found.double().numpy()
    return values


@dataclass
class Spent:
    """What a phase took. `queries`: rows that the teacher was asked about."""

    steps: int = 0
    queries: int = 0
    cpu_seconds: float = 0.0


def train(
    engine: Engine,
    stream: Stream,
    phase: dict[str, Any],
    watcher: Watcher | None = None,
    after_window: Callable[[int, Spent], None] | None = None,
) -> Spent:
    """Run a phase to its end. `after_window` is told windows done and what was spent; its own time is not counted."""
    windows, rest = divmod(int(phase["steps_total"]), WINDOW_STEPS)
    if rest:
        raise ValueError(f"steps_total = {phase['steps_total']} is no multiple of {WINDOW_STEPS}")
    spent = Spent()
    for window in range(windows):
        started = time.process_time()
        settings, weights = watcher.policy(window) if watcher else ({}, None)
        first = window * WINDOW_STEPS
        if window == 0:
            engine.begin(phase)
        engine.apply_policy(settings)
        made = stream.window(str(phase["name"]), first, WINDOW_STEPS, weights)
        done = [engine.micro_step(tensors(columns)) for columns in made.batches]
        if watcher:
            watcher.see(window, engine, done)
        spent.steps += len(done)
        spent.queries += sum(stream.batch for m in done if "kd" in m.terms)
        spent.cpu_seconds += time.process_time() - started
        if after_window:
            after_window(window + 1, spent)
    return spent


@torch.no_grad()
def fidelity(student: Model, teacher: Model, arrays: Batch) -> dict[str, float]:
    """{"agreement": share of rows with one top class, "kl": mean KL(teacher || student) in nats at temperature 1}."""
    modes = [(m.module, m.module.training) for m in (student, teacher)]
    for module, _ in modes:
        module.eval()
    count, agree, kl = 0, 0.0, 0.0
    for start in range(0, len(next(iter(arrays.values()))), SCORED_ROWS):
        part = {name: values[start : start + SCORED_ROWS] for name, values in arrays.items()}
        s, t = (m.forward(part) for m in (student, teacher))
        ours, theirs = valid_rows(s.logits, s.valid_mask).double(), valid_rows(t.logits, s.valid_mask).double()
        agree += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        kl += float(kl_rows(theirs, ours, 1.0).sum())
        count += len(ours)
    for module, was in modes:
        module.train(was)
    return {"agreement": agree / count, "kl": kl / count}


def scored(engine: Engine, arrays: Batch) -> dict[str, float]:
    """The student on a split: the task's scores, and fidelity to the teacher."""
    student, teacher = engine.roles["student"].model, engine.roles["teacher"].model
    return {**evaluate(student, arrays, batch=SCORED_ROWS), **fidelity(student, teacher, arrays)}
