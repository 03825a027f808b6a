"""The Observer's handlers.

Responsible for: answering every `trace` with one `policy_submit`, `evaluate` and `calibrate` on held-out data. Refuses: to
touch the learner. It maps trace pages read-only, holds no parameter and no right to write any.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from kfs.ids import is_object_id
from kfs.records import RecordKind
from kfs.store import Store
from servers.models.model import Batch
from servers.observer.diagnostics import Samples, Trace, read_trace
from servers.observer.evaluation import Evaluator, tensors
from servers.observer.mediation import consider
from servers.observer.ood import outlying
from servers.observer.packs import pack_of
from servers.observer.policy import Decision, numbers_of
from servers.observer.readers import Figures
from servers.observer.state import (
    HELD_OUT_MOMENTUM,
    History,
    State,
    accuracies,
    decide,
    decode_evidence,
    encode_evidence,
    fold,
    settings_of,
)
from syscalls.errors import RecurosError
from syscalls.pages import pack_arrays, unpack_arrays
from syscalls.serve import Handler, Kernel, serve

THREADS: Final = 1
LOOK_SAMPLES_MAX: Final = 20_000
"""Training samples beyond which the in-distribution gate is not computed: it takes a pass of the teacher over all of them."""
TEMPERATURE_DEFAULT: Final = 2.0
RECORDS_BACK_MAX: Final = 4096
"""How far back a restarted Observer looks for its last policy; a window makes a handful of records."""


class ObserverService:
    """Diagnostics and policies of one run."""

    def __init__(self, kernel: Kernel) -> None:
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        self._kernel = kernel
        config = kernel.config
        table = config.get("policy") or {}
        self._pack = pack_of(str(table.get("pack") or "starter"))
        self._numbers = numbers_of(self._pack, table)
        self._kd = config.get("kd") or (config.get("model") or {}).get("kd") or {}
        self._batch = int((config.get("data") or {}).get("batch") or 32)
        self._store_path = Path(str(config["store"]))
        self._reader: Store | None = None
        self._evaluator_made: Evaluator | None = None
        self._splits: dict[str, Batch] = {}
        self._n_train = self._classes = 0
        self._state: State | None = None
        self._history = History()
        self._traced = ""  # the snapshot whose evidence was folded in last
        self.handlers: Mapping[str, Handler] = {
            "trace": self.trace,
            "evaluate": self.evaluate,
            "calibrate": self.calibrate,
            "consider": self.consider,
        }
        self.info: dict[str, Any] = {"pack": self._pack.name, "numbers": self._numbers, "threads": THREADS}

    def idle(self) -> bool:
        """Everything happens on request."""
        return False

    def drain(self) -> None:
        """Close the store."""
        if self._reader is not None:
            self._reader.close()

    # --- policies ----------------------------------------------------------------------------------------------------

    def trace(
        self,
        *,
        window: int,
        snapshot: str,
        metrics: dict[str, Any],
        maps: dict[str, Any],
        policy: dict[str, Any],
        page: int,
    ) -> None:
        """Evidence of a staged window; answered by `policy_submit`, with {} where there is nothing to decide."""
        rows = self._read(page) if page else None
        if rows is None or not len(rows):
            self._submit(window, {}, 0)  # no teacher ran: it is being trained itself, or distillation is off
            return
        state = self._state_before(window, policy)
        self._history.keep(window, state)
        before = state.origin()
        self._kernel.checkpoint()
        state.follow(window, policy.get("kd") or {})
        state.extend(policy.get("gate") or {})
        try:
            figures = fold(state, window, rows, metrics, maps)
            decision = decide(state, self._pack, self._numbers, figures, policy.get("gate") or {})
        except (
            RecurosError
        ) as error:  # the evidence makes no sense: that is a record, and the run goes on without a change
            self._state = self._history.before(window)
            self._submit(window, {"refused": f"the evidence cannot be used: {error.message}"[:1000]}, 0)
            return
        self._state, self._traced = state, snapshot
        self._kernel.checkpoint()
        if decision.settings or decision.refused:
            settings = settings_of(state, decision, figures)
            self._submit(window, settings, self._offer(snapshot, figures, decision, before))
        else:
            self._submit(window, {}, 0)

    def _read(self, page: int) -> Trace | None:
        """The rows of a trace page. A page that cannot be read is said in the log and counts as none."""
        try:
            source = self._kernel.map(page)  # refused when the policy timed out while this waited in the queue
            try:
                return read_trace(unpack_arrays(source.view)[0])
            finally:
                source.close()
                self._kernel.release(page)
        except RecurosError as error:
            print(f"trace page {page}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the server's log
            return None

    def _state_before(self, window: int, policy: Mapping[str, Any]) -> State:
        """The state to fold `window` into: the one held, an earlier one when the window runs again, or the recorded one."""
        state = self._state
        if state is not None and state.window >= window:
            state = self._history.before(window)
        if state is None:
            state = self._recorded(window, policy)
        if state is None:
            tau = float(self._kd.get("temperature") or TEMPERATURE_DEFAULT)
            state = State(temperature=tau, initial=tau, samples=Samples(self._train_size()))
        return state

    def _recorded(self, window: int, policy: Mapping[str, Any]) -> State | None:
        """The state in the newest recorded evidence of an earlier window, else in that of the policy in force."""
        in_force = policy.get("evidence")
        evidence = str(in_force) if is_object_id(in_force) else ""
        if not self._store_path.is_dir():
            return None
        store = self._store()
        store.refresh()
        for seq in range(store.size - 1, max(-1, store.size - 1 - RECORDS_BACK_MAX), -1):
            record = store.record(seq)
            if record.kind is RecordKind.POLICY and record.args["window"] < window and record.input_ids:
                evidence = record.input_ids[-1]  # the kernel lists weights before evidence
                break
        return decode_evidence(bytes(store.get(evidence).data)) if evidence else None

    def _offer(self, snapshot: str, figures: Figures, decision: Decision, before: dict[str, Any]) -> int:
        """Weights, order and evidence in one page: "weights" and "order" F32 [n_train] (if any) and "evidence" U8."""
        assert self._state is not None
        evidence = encode_evidence(self._state, snapshot, figures, decision, self._numbers, before)
        rows: list[tuple[str, str, tuple[int, ...], Any]] = [("evidence", "U8", (len(evidence),), evidence)]
        for name, values in (("order", decision.order), ("weights", decision.weights)):
            if values is not None:
                column = np.ascontiguousarray(values, dtype="<f4")
                rows.insert(0, (name, "F32", column.shape, column.data))
        page = pack_arrays(rows, {"window": self._state.window})
        try:
            return self._kernel.offer(page)
        finally:
            page.close()

    def _submit(self, window: int, settings: dict[str, Any], blobs: int) -> None:
        """Submit. A window that rolled back wants no policy any more, a runtime that stops none at all: no faults."""
        try:
            self._kernel.syscall("policy_submit", window=window, settings=settings, pack=self._pack.name, blobs=blobs)
        except RecurosError as error:
            if blobs:
                self._kernel.release(blobs)
            if error.code not in (
                "E2-USAGE",
                "E2-LIMIT",
                "E75-AGAIN",
            ):  # out of bounds is a refusal, which the kernel records
                raise
            if self._state is not None:
                self._state.evidence = ""  # it was not stored, so the next decision carries its whole state
            print(f"policy of window {window}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the server's log

    # --- held-out data -----------------------------------------------------------------------------------------------

    def evaluate(self, snapshot: str, split: str) -> dict[str, Any]:
        """Scores of a snapshot's student and teacher on a split.

        Validation scores of the snapshot traced last also feed the policies; other snapshots and the test split never do.
        """
        scores = self._evaluator().scores(snapshot, split)
        ece = scores["student"].get("ece")
        if split == "validation" and snapshot == self._traced and self._state is not None and ece is not None:
            momentum = self._numbers.get("ece_momentum", HELD_OUT_MOMENTUM)
            self._state.held_out.add(ece, momentum, *accuracies(scores), snapshot)
            self._look(self._state, snapshot)
        return {"scores": scores}

    def consider(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """The policy's word on an interrupt."""
        labels, classes = np.zeros(0, dtype=np.int64), 1 << 31
        if kind == "constraint":
            data = self._split("validation")
            if "labels" in data and data["labels"].dim() == 1:
                labels, classes = data["labels"].numpy(), self._classes
        accept, reason = consider(kind, body, self._pack.name, self._numbers, labels, classes)
        return {"accept": accept, "reason": reason}

    def _look(self, state: State, snapshot: str) -> None:
        """Once in a generation: which training samples the teacher finds strange, where the pack asks."""
        n = self._train_size()
        if not self._numbers.get("ood_most") or not math.isnan(state.samples.threshold) or n > LOOK_SAMPLES_MAX:
            return
        try:
            if "labels" not in self._split("validation") or self._split("validation")["labels"].dim() != 1:
                raise RecurosError("E2-DATA", "a language model's rows have no classes to be near to")
            train, labels = self._evaluator().features(snapshot, "train")
            state.look(*outlying(train, labels, self._evaluator().features(snapshot, "validation")[0]))
        except RecurosError as error:
            state.look(np.zeros(0), math.inf)  # nothing is left out, and it is not tried again in this generation
            print(f"no in-distribution gate: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the server's log

    def calibrate(self, snapshot: str, mode: str) -> dict[str, Any]:
        """A scaling temperature for the student of a snapshot."""
        return {"result": self._evaluator().calibrate(snapshot, mode)}

    def _evaluator(self) -> Evaluator:
        if self._evaluator_made is None:
            self._evaluator_made = Evaluator(self._store(), self._split, self._kernel.checkpoint, self._batch)
        return self._evaluator_made

    def _store(self) -> Store:
        if self._reader is None:
            self._reader = Store.open_reader(self._store_path)
        return self._reader

    def _train_size(self) -> int:
        if not self._n_train:
            self._split("validation")  # any split's page tells the sizes of all three
        return self._n_train

    def _split(self, name: str) -> Batch:
        """A split's columns; fetched once, since splits never change."""
        if name not in self._splits:
            handle = int(self._kernel.call("dataset.split", name=name)["page"])
            source = self._kernel.map(handle)
            try:
                arrays, meta = unpack_arrays(source.view)
                self._splits[name] = tensors(arrays)
                self._n_train, self._classes = int(meta["sizes"]["train"]), int(meta["classes"])
            finally:
                arrays = {}
                source.close()
                self._kernel.release(handle)
        return self._splits[name]


def main() -> int:
    """Serve until drained."""
    return serve("observer", ObserverService)
