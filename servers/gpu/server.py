"""Inventory and telemetry of the host's devices, through NVML and psutil.

Responsible for: saying what is there and what each gauge reads; a host without an NVIDIA GPU is described by its CPU, and
`note` says so with the reason. Refuses: to guess. A gauge that a device does not have, or does not answer, is None and
never an error; a sample younger than a second is served again, so no caller can make sampling cost.
"""

from __future__ import annotations

import importlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from syscalls.serve import Handler, Kernel, serve

SAMPLE_AGE_NS_MAX: Final = 1_000_000_000
"""A sample takes well under a millisecond of CPU, so one a second is below 0.1 % of a core."""
MIB: Final = 1 << 20


class Nvml:
    """The NVIDIA devices of this host. `reason` says why there are none.

    `library` is the pynvml module; it is a parameter because that is the boundary at which a host with other devices, or a
    driver that misbehaves, can stand in.
    """

    def __init__(self, library: Any = None) -> None:
        self.reason = ""
        self._library: Any = library
        self._handles: list[Any] = []
        if library is None:
            try:
                library = self._library = importlib.import_module("pynvml")
            except ImportError as error:
                self.reason = f"the pynvml module is not installed ({error})"
                return
        try:
            library.nvmlInit()
            count = int(library.nvmlDeviceGetCount())
        except library.NVMLError as error:
            self.reason = f"NVML: {error}"
            return
        if not count:
            self.reason = "the driver reports no device"
        self._handles = [self._ask("nvmlDeviceGetHandleByIndex", index) for index in range(count)]

    def _ask(self, gauge: str, *args: Any) -> Any:
        """What a function of the library answers; None where the device or the library does not have the gauge."""
        function = getattr(self._library, gauge, None)
        if function is None or None in args:  # an argument that is itself a gauge nobody has: a lost device's handle
            return None
        try:
            value = function(*args)
        except self._library.NVMLError:
            return None
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def inventory(self) -> list[dict[str, Any]]:
        """One map a device: what does not change while the host is up."""
        found = []
        for index, handle in enumerate(self._handles):
            capability = self._ask("nvmlDeviceGetCudaComputeCapability", handle)
            found.append(
                {
                    "index": index,
                    "name": self._ask("nvmlDeviceGetName", handle),
                    "uuid": self._ask("nvmlDeviceGetUUID", handle),
                    "memory_bytes": getattr(self._ask("nvmlDeviceGetMemoryInfo", handle), "total", None),
                    "capability": None if capability is None else ".".join(map(str, capability)),
                    "driver": self._ask("nvmlSystemGetDriverVersion"),
                    "cuda": _cuda_version(self._ask("nvmlSystemGetCudaDriverVersion_v2")),
                    "power_limit_w": _watts(self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)),
                }
            )
        return found

    def telemetry(self) -> list[dict[str, Any]]:
        """One map a device: what its gauges read now."""
        sensor = getattr(self._library, "NVML_TEMPERATURE_GPU", None)
        clock = getattr(self._library, "NVML_CLOCK_SM", None)
        found = []
        for index, handle in enumerate(self._handles):
            use = self._ask("nvmlDeviceGetUtilizationRates", handle)
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
            found.append(
                {
                    "index": index,
                    "busy_percent": getattr(use, "gpu", None),
                    "memory_busy_percent": getattr(use, "memory", None),
                    "memory_used_bytes": getattr(memory, "used", None),
                    "memory_bytes": getattr(memory, "total", None),
                    "temperature_c": self._ask("nvmlDeviceGetTemperature", handle, sensor),
                    "power_w": _watts(self._ask("nvmlDeviceGetPowerUsage", handle)),
                    "clock_mhz": self._ask("nvmlDeviceGetClockInfo", handle, clock),
                    "throttle_reasons": self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle),
                }
            )
        return found

    def close(self) -> None:
        """Let the driver go."""
        if self._handles:
            self._ask("nvmlShutdown")
            self._handles = []


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _cuda_version(number: int | None) -> str | None:
    """12040 -> "12.4"."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def cpu_model() -> str:
    """The processor's name as the kernel has it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def host_inventory(cores: int) -> dict[str, Any]:
    """The host; `cores` are the ones the runtime may use."""
    return {
        "cpu": cpu_model(),
        "cores": cores,
        "cores_online": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }


def host_telemetry() -> dict[str, Any]:
    """The host's gauges: CPU use since the last sample, load, memory."""
    memory = psutil.virtual_memory()
    return {
        "cpu_percent": psutil.cpu_percent(interval=None),
        "load_1m": os.getloadavg()[0],
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "cpu_temperature_c": _cpu_temperature(),
    }


def _cpu_temperature() -> float | None:
    """The hottest sensor of the processor; None on hosts without one (virtual machines, containers)."""
    try:
        sensors = psutil.sensors_temperatures()
    except (OSError, AttributeError):
        return None
    values = [s.current for name in ("coretemp", "k10temp", "cpu_thermal") for s in sensors.get(name, ())]
    return max(values, default=None)


def note_of(nvml: Nvml, host: dict[str, Any]) -> str:
    """The sentence a person reads when there is no GPU; empty when there is one."""
    if not nvml.reason:
        return ""
    gib = host["memory_bytes"] / (1 << 30)
    return (
        f"no NVIDIA GPU: {nvml.reason}; running on CPU ({host['cpu']}, {host['cores']} of {host['cores_online']} cores, "
        f"{gib:.1f} GiB memory)"
    )


class GpuService:
    """Answers `inventory` and `telemetry`. `clock_ns` tells how old a sample is."""

    def __init__(self, nvml: Nvml, cores: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._nvml = nvml
        self._clock_ns = clock_ns
        self._host = host_inventory(cores)
        self._note = note_of(nvml, self._host)
        self._sample: dict[str, Any] = {}
        self._sampled_ns = 0
        psutil.cpu_percent(interval=None)  # the first call only sets the mark that the next one measures from
        self.handlers: Mapping[str, Handler] = {"inventory": self.inventory, "telemetry": self.telemetry}
        self.info: dict[str, Any] = {"devices": nvml.inventory(), "note": self._note}

    def idle(self) -> bool:
        """Samples are taken when asked for."""
        return False

    def drain(self) -> None:
        """Let the driver go."""
        self._nvml.close()

    def inventory(self) -> dict[str, Any]:
        """Devices, host, and the note."""
        return {"devices": self._nvml.inventory(), "host": self._host, "note": self._note}

    def telemetry(self) -> dict[str, Any]:
        """Every gauge, from a sample that is at most a second old; `host.sampled_ns` is its CLOCK_MONOTONIC time."""
        now_ns = self._clock_ns()
        if not self._sample or now_ns - self._sampled_ns >= SAMPLE_AGE_NS_MAX:
            self._sampled_ns = now_ns
            self._sample = {
                "devices": self._nvml.telemetry(),
                "host": {**host_telemetry(), "sampled_ns": now_ns},
            }
        return self._sample


def _build(kernel: Kernel) -> GpuService:
    # This process is confined to the background cores, so its own affinity would hide the learner's lane.
    cpus = {*kernel.config.get("lane_cpus", ()), *kernel.config.get("background_cpus", ())}
    return GpuService(Nvml(), len(cpus or os.sched_getaffinity(0)))


def main() -> int:
    """Serve until drained."""
    return serve("gpu", _build)
