"""Re-execute recorded windows in a fresh process: `python -m servers.learner.replay --batches FD`.

Responsible for: one line of JSON on stdout for each window of the plan (msgpack on stdin): whether the recorded base, batches, phase,
policy and directives give the recorded snapshot bit for bit, and what is wrong where they do not. Batches come through FD, made
anew by `servers.dataset.replay`. Refuses: to call two environments equal that are not. Where code or environment differ from the
recorded ones it names what differs and runs nothing, unless the plan says `force`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

import msgpack
import torch

from kfs.store import Store
from servers.learner.engine import Engine, deterministic
from servers.learner.entry import batches_of, enter
from servers.learner.provenance import code_digest, code_files, environment, environment_digest
from servers.learner.state import Leaf, tensor_of, value_of
from servers.models.model import Batch
from syscalls import limits
from syscalls.errors import RecurosError
from syscalls.pages import unpack_arrays

NAMED_MAX: Final = 6
"""How many differing tensors or files are named."""


class Wrong(Exception):  # noqa: N818 - a finding on its way out of a window, not an error of this process
    """A recorded input or result that does not hold."""

    def __init__(self, what: str, detail: str, verdict: str = "differs") -> None:
        super().__init__(detail)
        self.what = what
        self.verdict = verdict


class Replay:
    """The windows of one plan."""

    def __init__(self, plan: dict[str, Any], batches: BinaryIO) -> None:
        self._plan = plan
        self._pages = batches
        self._store = Store.open_reader(plan["store"])
        self._engines: dict[str, Engine] = {}
        self._code = code_digest()

    def window(self, w: dict[str, Any]) -> dict[str, Any]:
        """The verdict on one window: equal, differs, environment (not run), unequal (forced elsewhere) or missing."""
        page = _read_page(self._pages)
        started_ns = time.monotonic_ns()
        row: dict[str, Any] = {"seq": w["seq"], "window": w["window"], "recorded": w["result"], "here": ""}
        try:
            differences = self._environment(w)
            row["differences"] = differences
            if differences and not self._plan["force"]:
                raise Wrong("environment", "; ".join(differences), "environment")
            row["here"], after = self._run(w, page)
            if row["here"] != w["result"]:
                raise Wrong("snapshot", self._compare(w, after), "unequal" if differences else "differs")
            row |= {"verdict": "equal", "findings": []}
        except Wrong as wrong:
            row |= {"verdict": wrong.verdict, "findings": [{"what": wrong.what, "detail": str(wrong)}]}
        except RecurosError as error:
            verdict = {"E4-NOENT": "missing", "E75-AGAIN": "missing"}.get(error.code, "differs")
            row |= {"verdict": verdict, "findings": [{"what": "window", "detail": error.message}]}
        row["seconds"] = (time.monotonic_ns() - started_ns) / 1e9
        return row

    # --- what must agree before anything runs ----------------------------------------------------------------------------

    def _papers(self, w: Mapping[str, Any]) -> dict[str, Any]:
        papers: dict[str, Any] | None = self._plan["configs"].get(w["config"])
        if papers is None:
            raise Wrong(
                "papers", "the record names no papers of its run: it was written by an older version", "missing"
            )
        return papers

    def _environment(self, w: Mapping[str, Any]) -> list[str]:
        """What differs between the recorded code and environment and the ones here, a sentence each."""
        papers = self._papers(w)
        env, code = papers["env"], papers["code"]
        if environment_digest(env) != w["env_id"] or code["digest"] != w["code_id"]:
            raise Wrong(
                "papers",
                f"papers {w['config']} are not of the environment {w['env_id']} and code {w['code_id']} it names",
            )
        deterministic(int(papers["model"].get("threads", 1)))
        here = environment()
        found = [
            f"{key}: recorded {env.get(key, '-')}, here {here.get(key, '-')}"
            for key in sorted({*env, *here})
            if env.get(key) != here.get(key)
        ]
        device = str(papers["model"].get("device", "cpu"))
        if not _there(device):
            found.append(f"device: recorded {device}, which this host does not have")
        if w.get("replayed_steps"):
            found.append(
                f"path: {w['replayed_steps']} steps came from a CUDA graph, whose last bits differ from those made here"
            )
        if code["digest"] != self._code:
            files, mine = code["files"], code_files()
            changed = sorted(name for name in {*files, *mine} if files.get(name) != mine.get(name))
            more = f" and {len(changed) - NAMED_MAX} more" if len(changed) > NAMED_MAX else ""
            found.append(f"code: {len(changed)} files differ: {', '.join(changed[:NAMED_MAX])}{more}")
        return found

    def _base(self, w: Mapping[str, Any]) -> tuple[Engine, Mapping[str, Leaf]]:
        """The engine in the recorded base state. With a stored base the directories of the models need not exist."""
        papers = self._papers(w)
        spec, seed = dict(papers["model"]), int(papers["seed"])
        if not _there(str(spec.get("device", "cpu"))):
            del spec["device"]
        if w["base"] in self._store:
            leaves = _leaves(self._store, w["base"], "base")
            if w["config"] not in self._engines:
                self._engines[w["config"]] = Engine(spec | value_of(leaves, "policy/roles/state"), seed)
            engine = self._engines[w["config"]]
            engine.restore(leaves)
            return engine, leaves
        engine = Engine(spec, seed)
        built = engine.capture()
        if (root := engine.root_of(built)) != w["base"]:
            raise Wrong("snapshot", f"base {w['base']} is not stored, and the state as built here is {root}")
        return engine, built

    def _batches(self, w: Mapping[str, Any], page: memoryview) -> list[Batch]:
        arrays, meta = unpack_arrays(page)
        if "error" in meta:
            error = RecurosError.from_wire(meta["error"])
            raise Wrong(
                "batch", error.message, "missing" if error.code in ("E2-DATA", "E4-NOENT", "E2-MODEL") else "differs"
            )
        if w["data"] and meta["data"] != w["data"]:
            raise Wrong("data", f"the data set hashes to {meta['data']}; the run learned from {w['data']}")
        if meta["batch"] != w["batch"]:
            raise Wrong("batch", f"the batches hash to {meta['batch']}; {w['batch']} is recorded")
        arrays.clear()
        return [{k: tensor_of(a) for k, a in columns.items()} for columns in batches_of(page, w["steps"])]

    # --- the window itself -------------------------------------------------------------------------------------------------

    def _run(self, w: dict[str, Any], page: memoryview) -> tuple[str, Mapping[str, Leaf]]:
        """The window again: its root id, and its leaves."""
        batches = self._batches(w, page)
        engine, leaves = self._base(w)
        if w["rng_before"] and leaves["rng/engine/state"].id != w["rng_before"]:
            raise Wrong(
                "rng", f"the base holds generator {leaves['rng/engine/state'].id}; {w['rng_before']} is recorded"
            )
        enter(
            engine, w["window"], self._phase(w), w["step0"], w["policy"], w["directives"], lambda: None, self._snapshot
        )
        for batch in batches[: w["steps_done"]]:
            engine.micro_step(batch)
        engine.skip(w["steps"] - w["steps_done"])  # a window that was cut short for its budget
        after = engine.capture()
        return engine.root_of(after), after

    def _snapshot(self, root: str) -> dict[str, Leaf]:
        return _leaves(self._store, root, "restored snapshot")

    def _phase(self, w: Mapping[str, Any]) -> dict[str, Any]:
        """The phase as it was granted: the manifest's table and its place."""
        index, phases = w["phase"]["index"], self._papers(w)["phases"]
        if not 0 <= index < len(phases) or phases[index]["name"] != w["phase"]["name"]:
            raise Wrong("phase", f"the papers have no phase {w['phase']['name']!r} at place {index}")
        return {**phases[index], "index": index}

    def _compare(self, w: Mapping[str, Any], after: Mapping[str, Leaf]) -> str:
        """Which tensors differ from the recorded snapshot."""
        try:
            recorded = self._store.snapshot(w["result"])
        except RecurosError as error:
            return f"recorded snapshot {w['result']}: {error.message}"
        here = {path: leaf.id for path, leaf in after.items()}
        differing = sorted(path for path in {*recorded, *here} if recorded.get(path) != here.get(path))
        more = f" and {len(differing) - NAMED_MAX} more" if len(differing) > NAMED_MAX else ""
        return f"{len(differing)} of {len(here)} tensors differ: {', '.join(differing[:NAMED_MAX])}{more}"


def _there(device: str) -> bool:
    return device == "cpu" or torch.cuda.is_available()


def _leaves(store: Store, root: str, what: str) -> dict[str, Leaf]:
    """A snapshot's leaves, each checked against its id."""
    try:
        return {
            path: Leaf(stored.dtype, stored.shape, stored.data)
            for path, name in store.snapshot(root).items()
            for stored in (store.get(name),)
        }
    except RecurosError as error:
        verdict = "missing" if error.code in ("E4-NOENT", "E75-AGAIN") else "differs"
        raise Wrong("snapshot", f"{what} {root}: {error.message}", verdict) from error


def _read_page(source: BinaryIO) -> memoryview:
    """The next window's page; E3-GONE when whoever makes the batches has gone."""
    head = source.read(8)
    size = int.from_bytes(head, "little")
    if len(head) < 8 or size > limits.PAGE_BYTES_MAX:
        raise RecurosError("E3-GONE", "the process that makes the batches ended early", hint="see its messages above")
    data = source.read(size)
    if len(data) < size:
        raise RecurosError("E3-GONE", "the process that makes the batches ended in the middle of a window")
    return memoryview(data)


def main() -> int:
    """Answer for every window of the plan on stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, required=True, help="descriptor that the batches come through")
    options = parser.parse_args()
    plan = msgpack.unpackb(sys.stdin.buffer.read(), strict_map_key=False)
    with os.fdopen(options.batches, "rb") as batches:
        replay = Replay(plan, batches)
        for w in plan["windows"]:
            print(json.dumps(replay.window(w)), flush=True)  # noqa: T201 - the answer
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
