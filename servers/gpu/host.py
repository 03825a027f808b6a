"""The host as psutil sees it: processor, memory, load, temperature; what a machine without a GPU is described by.

Responsible for: gauges that cost microseconds. Refuses: to call a host without a temperature sensor cool; the gauge is None.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from servers.gpu.nvml import Nvml


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
