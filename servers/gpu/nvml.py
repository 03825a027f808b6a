"""NVIDIA devices through NVML: what is there, what each gauge reads, and whether a device was lost.

Responsible for: one call a gauge, at the library's boundary. Refuses: to guess. A gauge that a device does not have, or does not
answer, is None and never an error; a device that has fallen off the bus is `lost`, with every other gauge None.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

THROTTLE: Final[dict[int, str]] = {
    0x2: "clocks set by a person",
    0x4: "power cap in software",
    0x8: "slowdown in hardware",
    0x20: "thermal limit in software",
    0x40: "thermal limit in hardware",
    0x80: "power brake in hardware",
}
"""Bits of NVML's throttle reasons that slow a busy device; idleness (0x1) and syncing with other devices are not among them."""
HARMFUL: Final = (
    "slowdown in hardware",
    "thermal limit in software",
    "thermal limit in hardware",
    "power brake in hardware",
)
"""Reasons that say the device protects itself: a guard treats them as too hot."""


class Nvml:
    """The NVIDIA devices of this host. `reason` says why there are none.

    `library` is the pynvml module; it is a parameter because that is the boundary at which a host with other devices, or a
    driver that misbehaves, can stand in.
    """

    def __init__(self, library: Any = None) -> None:
        self.reason = ""
        self._library: Any = library
        self._handles: list[Any] = []
        self._lost: set[int] = set()
        self._asked = -1
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
        except self._library.NVMLError as error:
            gone = getattr(self._library, "NVMLError_GpuIsLost", None)
            if gone is not None and isinstance(error, gone):
                self._lost.add(self._asked)
            return None
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def inventory(self) -> list[dict[str, Any]]:
        """One map a device: what does not change while the host is up."""
        found = []
        slowdown = getattr(self._library, "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN", None)
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
                    "slowdown_c": self._ask("nvmlDeviceGetTemperatureThreshold", handle, slowdown),
                }
            )
        return found

    def telemetry(self) -> list[dict[str, Any]]:
        """One map a device: what its gauges read now."""
        sensor = getattr(self._library, "NVML_TEMPERATURE_GPU", None)
        clock = getattr(self._library, "NVML_CLOCK_SM", None)
        uncorrected = getattr(self._library, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", None)
        since_boot = getattr(self._library, "NVML_VOLATILE_ECC", None)
        found = []
        for index, handle in enumerate(self._handles):
            self._asked = index
            use = self._ask("nvmlDeviceGetUtilizationRates", handle)
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
            throttle = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
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
                    "throttle_reasons": throttle,
                    "throttled": throttle_names(throttle),
                    "ecc_uncorrected": self._ask("nvmlDeviceGetTotalEccErrors", handle, uncorrected, since_boot),
                    "energy_mj": self._ask("nvmlDeviceGetTotalEnergyConsumption", handle),
                    "lost": index in self._lost,
                }
            )
        return found

    def close(self) -> None:
        """Let the driver go."""
        if self._handles:
            self._ask("nvmlShutdown")
            self._handles = []


def throttle_names(bits: int | None) -> list[str] | None:
    """The reasons in words; None where the device does not say."""
    return None if bits is None else [name for bit, name in THROTTLE.items() if bits & bit]


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _cuda_version(number: int | None) -> str | None:
    """12040 -> "12.4"."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"
