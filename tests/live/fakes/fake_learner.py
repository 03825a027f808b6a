"""A learner whose state is 64 bytes: every window hashes them once more. Everything else it does as the real one does."""

from __future__ import annotations

from syscalls.harden import harden

harden()

# ruff: noqa: E402 - hardened before anything else is imported, as every server
import hashlib
import time
from pathlib import Path
from typing import Any

from kfs import snapshot
from kfs.objects import object_id
from kfs.store import Store
from probes import isa
from probes.cells import Cells, layout, read
from probes.certificate import Certificate
from syscalls.errors import RecurosError
from syscalls.pages import WritePage
from syscalls.serve import Kernel, serve

PATH = "student/blocks.0/w"


class FakeLearner:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.hung = Path(kernel.config["run"]) / "hung"
        self.queue: list[dict[str, Any]] = []
        self.state = b"\0" * 64
        self.bases: dict[int, bytes] = {}
        self.shortened: set[int] = set()
        self.moved: dict[int, int] = {}
        self.info = {"base": self.root(), "code": "sha256:" + "0" * 64}
        self.handlers = {
            "grant": lambda **grant: self.queue.append(grant),
            "abort": self.abort,
            "committed": lambda window: self.bases.pop(window, None) and None,
            "restore": self.restore,
            "shorten": self.shorten,
            "deadline": lambda window, deadline_ns: self.moved.update({window: deadline_ns}),
            "match": self.match,
            "attach": self.attach,
            "detach": self.detach,
            "probes": self.probes,
        }
        self.cells: dict[int, Cells] = {}

    def refs(self) -> dict[str, str]:
        return {PATH: object_id("U8", (64,), self.state)}

    def root(self) -> str:
        root: str = snapshot.build_tree(self.refs())[0]
        return root

    def restore(self, snapshot: str) -> dict[str, Any]:
        with Store.open_reader(self.kernel.config["store"]) as store:
            self.state = bytes(store.get(store.snapshot(snapshot)[PATH]).data)
        self.bases.clear()
        return {"restored": self.root()}

    def abort(self, window: int, reason: str) -> None:
        dropped = [g for g in self.queue if g["window"] >= window]
        self.queue = [g for g in self.queue if g["window"] < window]
        for grant in dropped:
            self.kernel.release(grant["page"])
            self.bases.setdefault(grant["window"], self.state)
        if window in self.bases:
            self.roll_back(window, "E7-MISSED", reason)

    def match(self, hook: str, prog: str) -> dict[str, Any]:
        if "nowhere" in hook:
            raise RecurosError("E4-HOOK", f"{hook} matches nothing", hint="on_kd_step")
        return {"sites": [hook], "dims": {"rows": 64}, "extra": 0, "pairs": 1, "backend": "vm"}

    def attach(self, id: int, hook: str, prog: str, every: int, admitted: dict[str, Any]) -> dict[str, Any]:
        with Store.open_reader(self.kernel.config["store"]) as store:
            data = bytes(store.get(admitted["object"]).data)
        contract = isa.Contract(hook.partition(":")[0], admitted["dims"])
        Certificate.decode(admitted["certificate"]).check(data, contract, admitted["rights"])
        program = isa.decode(data)
        page = WritePage(layout(program.maps, isa.digest(data), [hook]).total)
        self.cells[id] = Cells(program.maps, page.view, program=isa.digest(data), sites=[hook])
        handle = self.kernel.offer(page)
        page.close_descriptor()
        return {"sites": [hook], "step": 0, "page": handle}

    def detach(self, id: int) -> dict[str, Any]:
        del self.cells[id]
        return {"step": 0}

    def probes(self, id: int) -> dict[str, Any]:
        rows = [{"id": number, "hook": "on_kd_step", "program": "count"} for number in self.cells]
        maps = read(self.cells[id].buffer) if id else {}
        if id:
            for number, spec in enumerate(self.cells[id].maps):
                if spec.kind == "ring":
                    self.cells[id].take(number)
        return {"probes": rows, "sites": ["on_kd_step"], "maps": maps}

    def fire(self) -> None:
        """Every program counts the window in its first map, and notes it in a second one, if it is a ring."""
        for cells in self.cells.values():
            cells.begin(range(len(cells.maps)))
            cells.add(0, 0, 1.0, 0)
            if len(cells.maps) > 1:
                cells.emit(1, 7, 0.5, 0, 0)
            cells.end(range(len(cells.maps)))

    def roll_back(self, window: int, code: str, reason: str) -> None:
        self.state = self.bases.pop(window)
        self.kernel.syscall("window_rolled_back", window=window, code=code, reason=reason, restored=self.root())

    def idle(self) -> bool:
        if not self.queue:
            return False
        grant = self.queue.pop(0)
        assert grant["base"] == self.root()
        self.bases[grant["window"]] = self.state
        try:
            self.window(grant)
        except RecurosError as error:
            self.roll_back(grant["window"], error.code, error.message)
        return True

    def shorten(self, window: int) -> None:
        self.shortened.add(window)

    def train(self, grant: dict[str, Any]) -> int:
        """Micro-steps that burn `burn_ms` of CPU time each, where the configuration says so; as the real one looks and reports."""
        burn_ns = int(self.kernel.config.get("burn_ms", 0)) * 1_000_000
        done = 0
        while burn_ns and done < grant["steps"] and grant["window"] not in self.shortened:
            self.kernel.pump()
            if time.monotonic_ns() > self.moved.get(grant["window"], grant["deadline_ns"]):
                raise RecurosError("E7-MISSED", "past the deadline")
            end_ns = time.process_time_ns() + burn_ns
            while time.process_time_ns() < end_ns:
                pass
            done += 1
            self.kernel.syscall("progress", window=grant["window"], step=done, metrics={})
            self.kernel.syscall("status")  # the kernel has seen it, and what it says to that is read at the next step
        return done or int(grant["steps"])

    def hang_in_an_operation(self) -> None:
        time.sleep(3_600)

    def window(self, grant: dict[str, Any]) -> None:
        if grant["window"] == self.kernel.config.get("hang_at") and not self.hung.exists():
            self.hung.touch()
            self.hang_in_an_operation()
        self.kernel.map(grant["page"]).close()
        self.kernel.release(grant["page"])
        steps = self.train(grant)
        self.state = hashlib.sha512(self.state).digest()
        self.fire()
        page = WritePage(64)
        page.view[:] = self.state
        handle = self.kernel.offer(page)
        refs = self.refs()
        index = [[refs[PATH], "U8", [64], 0, 64]]
        done = self.kernel.call("archivist.stage", window=grant["window"], refs=refs, index=index, page=handle)
        self.kernel.release(handle)
        assert done["snapshot"] == self.root()
        trace = self.kernel.offer(page)
        page.close()
        self.kernel.syscall(
            "window_staged",
            window=grant["window"],
            snapshot=done["snapshot"],
            metrics={"loss": 1.0, "steps": steps, "probe_ns": {str(number): 1_000 for number in self.cells}},
            maps={},
            trace=trace,
        )

    def drain(self) -> None:
        """Nothing to finish."""


if __name__ == "__main__":
    raise SystemExit(serve("learner", FakeLearner))
