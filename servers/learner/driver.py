"""The learner's side of the device server: memory leased before a window, the path of its steps, and how they did run.

Responsible for: one call at a window's first batch and one message at its end. Host memory is leased when it changes, a device's at
every window, so that a device server that was restarted knows of it. Refuses: to decide; a capture happens when the driver says so.
"""

from __future__ import annotations

from typing import Any, Final

from servers.learner.engine import Engine
from servers.models.model import Batch
from syscalls.errors import RecurosError
from syscalls.serve import Kernel

SERVER: Final = "gpu"
BACK_SOON: Final = ("E75-AGAIN", "E3-GONE")
"""The device server is being restarted. On the CPU a window needs nothing of it, so it does not wait."""


class Driver:
    """Talks to the device server, if the manifest lets the learner call one."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._leased = -1
        self._key = ""

    def before(self, engine: Engine, batch: Batch) -> None:
        """Lease the memory of this window's state (E6-ADMIT when there is none), and capture its step if the driver wants it."""
        engine.path.take()
        wanted, on_host = engine.state_bytes, engine.device.type == "cpu"
        if SERVER not in self._kernel.caps or (on_host and wanted == self._leased):
            return
        self._key = "" if on_host else engine.graph_key(batch)
        try:
            answer = self._kernel.call(f"{SERVER}.lease", bytes=wanted, key=self._key)
        except RecurosError as error:
            if on_host and error.code in BACK_SOON:
                return  # asked again at the next window
            raise
        self._leased = wanted
        if answer["path"] == "dynamic":
            engine.path.drop()
        elif answer["path"] == "capture" or engine.path.graph is None:
            try:
                engine.capture_step(batch)
            except RecurosError as error:
                self._kernel.call(f"{SERVER}.ran", key=self._key, facts={"failed": error.message})

    def after(self, engine: Engine) -> dict[str, Any]:
        """Tell the driver what ran; for the window's record the number of steps that came from a graph, when any did."""
        told = engine.path.take()
        if engine.device.type != "cpu" and SERVER in self._kernel.caps:
            self._kernel.call(f"{SERVER}.ran", key=self._key, facts=told)
        return {"replayed_steps": told["replayed"]} if told["replayed"] else {}
