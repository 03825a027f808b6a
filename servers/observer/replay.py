"""Decide recorded policies again: `python -m servers.observer.replay`.

Responsible for: one line of JSON on stdout for each decision of the plan (msgpack on stdin): whether the pack, given the stored
evidence (trace, probe maps, the state before, held-out calibration), gives the recorded settings, weights and evidence byte for
byte, and what differs where it does not. Refuses: to take the record's word for what can be computed. Imports no torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import numpy as np

from kfs.objects import object_id
from kfs.store import Store
from servers.observer.diagnostics import Samples, read_trace
from servers.observer.packs import pack_of
from servers.observer.policy import HeldOut, numbers_of
from servers.observer.state import (
    HELD_OUT_MOMENTUM,
    State,
    decide,
    decode_evidence,
    encode_evidence,
    fold,
    read_evidence,
    settings_of,
)
from syscalls.errors import RecurosError
from syscalls.pages import unpack_arrays

ABSENT: Final = ("timeout", "lost")
SHOWN_CHARS: Final = 160
TEMPERATURE_DEFAULT: Final = 2.0


class Wrong(Exception):  # noqa: N818 - a finding on its way out of a decision, not an error of this process
    """A recorded input or outcome that does not hold."""

    def __init__(self, what: str, detail: str, verdict: str = "differs") -> None:
        super().__init__(detail)
        self.what = what
        self.verdict = verdict


class Replay:
    """The decisions of one plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._store = Store.open_reader(plan["store"])

    def decision(self, d: dict[str, Any]) -> dict[str, Any]:
        """The verdict on one policy record: equal, differs or missing."""
        row: dict[str, Any] = {"seq": d["seq"], "window": d["window"], "pack": d["pack"], "findings": []}
        try:
            self._check(d)
            row["verdict"] = "equal"
        except Wrong as wrong:
            row |= {"verdict": wrong.verdict, "findings": [{"what": wrong.what, "detail": str(wrong)}]}
        except RecurosError as error:
            verdict = "missing" if error.code in ("E4-NOENT", "E75-AGAIN") else "differs"
            row |= {"verdict": verdict, "findings": [{"what": "evidence", "detail": error.message}]}
        return row

    def _check(self, d: dict[str, Any]) -> None:
        if d["pack"] in ABSENT:  # the absence is the input: nobody decided, so nothing may be decided
            if d["settings"] or d["inputs"]:
                raise Wrong("policy", f"an absence ({d['pack']}) carries settings {_short(d['settings'])}")
            return
        if d["actor"] != "observer":
            raise Wrong("policy", f"the policy is by {d['actor']}; only the Observer decides")
        papers = self._plan["configs"].get(d["config"])
        if papers is None:
            raise Wrong(
                "papers", "the commit names no papers of its run: it was written by an older version", "missing"
            )
        table = papers.get("policy") or {}
        pack = pack_of(str(table.get("pack") or "starter"))
        if d["pack"] != pack.name:
            raise Wrong("policy", f"the record is by pack {d['pack']!r}; the run's is {pack.name!r}")
        if not d["trace"]:
            if "kd" in d["metrics"] and pack.name != "static":
                raise Wrong("evidence", f"window {d['window']} had a teacher, and no evidence is stored", "missing")
            self._compare(d, {}, [])
            return
        if d["settings"].get("refused") and not d["inputs"]:
            raise Wrong("evidence", f"nothing was decided on it: {_short(d['settings']['refused'])}", "missing")
        settings, blobs = self._decide(d, pack, numbers_of(pack, table))
        self._compare(d, settings, blobs)

    def _decide(
        self, d: Mapping[str, Any], pack: Any, numbers: Mapping[str, float]
    ) -> tuple[dict[str, Any], list[str]]:
        """The settings as a record holds them, and the ids of weights (where there are some) and evidence."""
        arrays, meta = unpack_arrays(memoryview(bytes(self._store.get(d["trace"]).data)))
        if meta.get("window") != d["window"]:
            raise Wrong("evidence", f"trace {d['trace']} is of window {meta.get('window')}")
        rows = read_trace(arrays)
        if not len(rows):
            return {}, []
        state, before = self._before(d, numbers)
        state.follow(d["window"], d["policy"].get("kd") or {})
        state.extend(d["policy"].get("gate") or {})
        figures = fold(state, d["window"], rows, d["metrics"], meta["maps"])
        decision = decide(state, pack, numbers, figures, d["policy"].get("gate") or {})
        if not decision.settings and not decision.refused:
            return {}, []
        settings = settings_of(state, decision, figures)
        evidence = encode_evidence(state, d["snapshot"], figures, decision, numbers, before)
        blobs = [object_id("U8", (len(evidence),), evidence)]
        if decision.refused:
            return settings, blobs
        settings["weights"] = ""
        for name, values in (("order", decision.order), ("weights", decision.weights)):
            if values is not None:
                column = np.ascontiguousarray(values, dtype="<f4")
                settings[name] = object_id("F32", column.shape, column.data)
                blobs.insert(0, settings[name])
        return settings, blobs

    def _before(self, d: Mapping[str, Any], numbers: Mapping[str, float]) -> tuple[State, dict[str, Any]]:
        """The state that the window was folded into: an earlier evidence, brought up to date by the recorded evaluations."""
        if not d["inputs"]:
            raise Wrong("policy", "the record names no evidence, and the pack decides on it")
        document = read_evidence(bytes(self._store.get(d["inputs"][-1]).data))
        before = document.get("before")
        if not isinstance(before, dict):
            raise Wrong(
                "evidence", "it does not say what it started from: it was written by an older version", "missing"
            )
        earlier = str(before["evidence"])
        if earlier != d["previous"] and (earlier or not d["gap"]):
            expected = d["previous"] or "nothing: no policy was decided before"
            raise Wrong("evidence", f"it starts from {earlier or 'nothing'}; the ledger's last is {expected}")
        if not earlier:
            state = State.of_map(before["state"])
            if not d["gap"]:
                self._check_fresh(d, state)
            state.look_again(before)
            return state, state.origin()
        data = bytes(self._store.get(earlier).data)
        state = decode_evidence(data)
        if state.window >= d["window"]:
            raise Wrong(
                "evidence", f"it starts from evidence {earlier} of window {state.window}, which is no earlier one"
            )
        momentum = numbers.get("ece_momentum", HELD_OUT_MOMENTUM)
        state.look_again(before)
        self._evaluate(state.held_out, str(read_evidence(data)["snapshot"]), before["held_out"], momentum)
        return state, state.origin()

    def _check_fresh(self, d: Mapping[str, Any], state: State) -> None:
        """The first decision starts from the run's temperature and from nothing seen."""
        kd = (self._plan["configs"][d["config"]]["model"].get("kd")) or {}
        tau = float(kd.get("temperature") or TEMPERATURE_DEFAULT)
        if state.to_map() != State(tau, tau, Samples(len(state.samples.entropy))).to_map():
            raise Wrong(
                "evidence", "it is the first decision and does not start from an Observer that has seen nothing"
            )

    def _evaluate(self, held: HeldOut, snapshot: str, said: list[Any], momentum: float) -> None:
        """Add as many of the recorded validations of the last traced snapshot as were known; the figures must be theirs."""
        known = self._plan["held_out"].get(snapshot, [])
        added = int(said[0]) - held.count
        if not 0 <= added <= len(known):
            raise Wrong("evidence", f"it counts {added} validations of {snapshot}; the ledger holds {len(known)}")
        for ece, accuracy, teacher in known[:added]:
            held.add(ece, momentum, accuracy, teacher, snapshot)
        if held.to_list() != list(said):
            raise Wrong(
                "evidence",
                f"held-out scores {list(said)} are not what the recorded validations give: {held.to_list()}",
            )

    def _compare(self, d: Mapping[str, Any], settings: dict[str, Any], blobs: list[str]) -> None:
        recorded = d["settings"]
        differing = sorted(k for k in {*settings, *recorded} if settings.get(k) != recorded.get(k))
        if differing:
            text = ", ".join(
                f"{k} {_short(recorded.get(k))} where {_short(settings.get(k))} follows" for k in differing
            )
            raise Wrong("policy", f"the record says {text}")
        if blobs != d["inputs"]:
            raise Wrong("policy", f"the record names {_short(d['inputs'])}; the decision made {_short(blobs)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def main() -> int:
    """Answer for every decision of the plan on stdin."""
    plan = msgpack.unpackb(sys.stdin.buffer.read(), strict_map_key=False)
    replay = Replay(plan)
    for d in plan["decisions"]:
        print(json.dumps(replay.decision(d)), flush=True)  # noqa: T201 - the answer
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
