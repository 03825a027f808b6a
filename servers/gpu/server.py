"""The device server: inventory, telemetry, the guard, memory leases, and the decision when a learner's step is captured.

Responsible for: what the kernel and the learner ask of the device; a host without an NVIDIA GPU is described by its CPU, and `note`
says so with the reason. Refuses: to let sampling cost; a sample younger than a second is served again, so a second caller is free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from servers.gpu.graphs import GraphDriver
from servers.gpu.guard import Guard, Limits
from servers.gpu.host import host_inventory, host_telemetry, note_of
from servers.gpu.leases import Leases
from servers.gpu.nvml import Nvml
from syscalls.rundir import user_dir
from syscalls.serve import Handler, Kernel, serve

SAMPLE_AGE_NS_MAX: Final = 1_000_000_000
"""A sample takes well under a millisecond of CPU, so one a second is below 0.1 % of a core."""


class GpuService:
    """Answers the methods of `gpu`. `device` is the manifest's table, `clock_ns` tells how old a sample is."""

    def __init__(
        self,
        nvml: Nvml,
        cores: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        *,
        device: Mapping[str, Any] | None = None,
        leases: Path | None = None,
        run: str = "",
    ) -> None:
        device = device or {}
        self._nvml = nvml
        self._clock_ns = clock_ns
        self._host = host_inventory(cores)
        self._note = note_of(nvml, self._host)
        self._sample: dict[str, Any] = {}
        self._sampled_ns = 0
        psutil.cpu_percent(interval=None)  # the first call only sets the mark that the next one measures from
        devices = nvml.inventory()
        self._index = self._which(device, devices)
        self._guard = Guard(Limits.of(device))
        self._graphs = GraphDriver(int(device.get("steady_windows", 2)), self._no_graphs(device))
        budget = int(device.get("memory_mb") or 0) << 20
        self._leases: Leases | None = None
        if leases is not None:
            mine = devices[self._index] if self._index >= 0 else {}
            capacity = mine.get("memory_bytes") or self._host["memory_bytes"]
            self._leases = Leases(leases, str(mine.get("uuid") or "cpu"), int(capacity), budget, run)
        self.handlers: Mapping[str, Handler] = {
            "inventory": self.inventory,
            "telemetry": self.telemetry,
            "lease": self.lease,
            "ran": self.ran,
        }
        self.info: dict[str, Any] = {"devices": devices, "note": self._note}

    @staticmethod
    def _which(device: Mapping[str, Any], devices: list[dict[str, Any]]) -> int:
        """The index of the learner's device, -1 for the CPU."""
        index = int(device.get("index", 0))
        return index if device.get("kind", "cpu") != "cpu" and index < len(devices) else -1

    def _no_graphs(self, device: Mapping[str, Any]) -> str:
        if self._index < 0:
            return "the learner computes on the CPU, which has no CUDA graphs"
        return "" if device.get("graphs", "auto") == "auto" else "the manifest says graphs = off"

    def idle(self) -> bool:
        """Samples are taken when asked for."""
        return False

    def drain(self) -> None:
        """Let the driver and the lease go."""
        if self._leases is not None:
            self._leases.give_back()
        self._nvml.close()

    def inventory(self) -> dict[str, Any]:
        """Devices, host, and the note."""
        return {"devices": self._nvml.inventory(), "host": self._host, "note": self._note}

    def telemetry(self) -> dict[str, Any]:
        """Every gauge, from a sample that is at most a second old; `host.sampled_ns` is its CLOCK_MONOTONIC time."""
        now_ns = self._clock_ns()
        if not self._sample or now_ns - self._sampled_ns >= SAMPLE_AGE_NS_MAX:
            self._sampled_ns = now_ns
            devices, host = self._nvml.telemetry(), {**host_telemetry(), "sampled_ns": now_ns}
            gauges = devices[self._index] if self._index >= 0 else {"temperature_c": host["cpu_temperature_c"]}
            self._guard.judge(gauges)
            self._sample = {"devices": devices, "host": host, "guard": self._guard.to_map()}
        held = 0 if self._leases is None else self._leases.held_bytes
        return {**self._sample, "driver": {"index": self._index, "leased_bytes": held, **self._graphs.to_map()}}

    def lease(self, bytes: int, key: str) -> dict[str, Any]:
        """Memory for the next window and the path of its step; E6-ADMIT with the numbers."""
        if self._leases is not None and bytes != self._leases.held_bytes:
            self._leases.take(bytes)
        return {"granted": bytes, **self._graphs.plan(key)}

    def ran(self, key: str, facts: dict[str, Any]) -> None:
        """How a window's steps did run."""
        self._graphs.report(key, facts)


def _build(kernel: Kernel) -> GpuService:
    # This process is confined to the background cores, so its own affinity would hide the learner's lane.
    cpus = {*kernel.config.get("lane_cpus", ()), *kernel.config.get("background_cpus", ())}
    return GpuService(
        Nvml(),
        len(cpus or os.sched_getaffinity(0)),
        device=dict(kernel.config.get("device") or {}),
        leases=user_dir() / "devices",
        run=str(kernel.config.get("run", "")),
    )


def main() -> int:
    """Serve until drained."""
    return serve("gpu", _build)
