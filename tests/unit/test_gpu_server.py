"""The device server: a fake driver at the library boundary, and this host as it is."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from servers.gpu.nvml import Nvml
from servers.gpu.server import SAMPLE_AGE_NS_MAX, GpuService

GIB = 1 << 30


class FakeNvmlError(Exception):
    """What NVML raises."""


class FakeGpuIsLostError(FakeNvmlError):
    """The error of a device that has fallen off the bus."""


class FakeNvml:
    """Devices; `broken` names the functions that raise, `absent` the ones this version does not have, `gauges` other answers."""

    NVMLError = FakeNvmlError
    NVMLError_GpuIsLost = FakeGpuIsLostError
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1

    def __init__(self, devices: int = 2, broken: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> None:
        self.devices, self.broken, self.absent, self.calls = devices, broken, absent, 0
        self.gauges: dict[str, Any] = {}
        self.lost = False

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetCount": self.devices,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetName": b"Fake 1000",
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB, used=3 * GIB, free=77 * GIB),
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlSystemGetDriverVersion": "550.1",
            "nvmlSystemGetCudaDriverVersion_v2": 12040,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=12),
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetPowerUsage": 312_500,
            "nvmlDeviceGetClockInfo": 1_980,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0,
            "nvmlDeviceGetTemperatureThreshold": 89,
            "nvmlDeviceGetTotalEccErrors": 0,
            "nvmlDeviceGetTotalEnergyConsumption": 5_000,
        } | self.gauges
        if name not in answers or name in self.absent:
            raise AttributeError(name)

        def function(*_: Any) -> Any:
            self.calls += 1
            if self.lost and name.startswith("nvmlDevice"):
                raise FakeGpuIsLostError("GPU is lost")
            if name in self.broken:
                raise FakeNvmlError(f"{name} failed")
            return answers[name]

        return function


def test_devices_are_described_and_sampled() -> None:
    service = GpuService(Nvml(FakeNvml()), cores=2)
    answer = service.inventory()
    assert answer["note"] == ""
    assert [d["index"] for d in answer["devices"]] == [0, 1]
    assert answer["devices"][0] == {
        "index": 0,
        "name": "Fake 1000",
        "uuid": "GPU-1",
        "memory_bytes": 80 * GIB,
        "capability": "9.0",
        "driver": "550.1",
        "cuda": "12.4",
        "power_limit_w": 700.0,
        "slowdown_c": 89,
    }
    assert service.telemetry()["devices"][1] == {
        "index": 1,
        "busy_percent": 37,
        "memory_busy_percent": 12,
        "memory_used_bytes": 3 * GIB,
        "memory_bytes": 80 * GIB,
        "temperature_c": 61,
        "power_w": 312.5,
        "clock_mhz": 1980,
        "throttle_reasons": 0,
        "throttled": [],
        "ecc_uncorrected": 0,
        "energy_mj": 5_000,
        "lost": False,
    }
    service.drain()


GAUGES = [
    ("nvmlDeviceGetUtilizationRates", {"busy_percent", "memory_busy_percent"}),
    ("nvmlDeviceGetMemoryInfo", {"memory_used_bytes", "memory_bytes"}),
    ("nvmlDeviceGetTemperature", {"temperature_c"}),
    ("nvmlDeviceGetPowerUsage", {"power_w"}),
    ("nvmlDeviceGetClockInfo", {"clock_mhz"}),
    ("nvmlDeviceGetCurrentClocksThrottleReasons", {"throttle_reasons", "throttled"}),
    ("nvmlDeviceGetTotalEccErrors", {"ecc_uncorrected"}),
    ("nvmlDeviceGetTotalEnergyConsumption", {"energy_mj"}),
    ("nvmlDeviceGetHandleByIndex", None),
]


@pytest.mark.parametrize("way", ["broken", "absent"])
@pytest.mark.parametrize(("function", "keys"), GAUGES)
def test_a_missing_gauge_is_none_and_the_others_still_read(way: str, function: str, keys: set[str] | None) -> None:
    library = FakeNvml(**{way: (function,)})  # type: ignore[arg-type]
    sample = GpuService(Nvml(library), cores=1).telemetry()["devices"][0]
    assert {name for name, value in sample.items() if value is None} == (keys or set(sample) - {"index", "lost"})


def test_no_device_no_driver_and_no_module_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, reason in [
        (FakeNvml(broken=("nvmlInit",)), "NVML: nvmlInit failed"),
        (FakeNvml(devices=0), "the driver reports no device"),
    ]:
        answer = GpuService(Nvml(library), cores=1).inventory()
        assert answer["devices"] == []
        assert answer["note"].startswith(f"no NVIDIA GPU: {reason}; running on CPU (")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pynvml module is not installed" in Nvml().reason


def test_a_fresh_sample_is_served_again_and_an_old_one_is_not() -> None:
    library = FakeNvml()
    now = [10 * SAMPLE_AGE_NS_MAX]
    service = GpuService(Nvml(library), cores=1, clock_ns=lambda: now[0])
    first = service.telemetry()
    calls = library.calls
    now[0] += SAMPLE_AGE_NS_MAX - 1
    assert service.telemetry() == first
    assert library.calls == calls
    now[0] += 1
    assert service.telemetry()["host"]["sampled_ns"] == now[0]
    assert library.calls > calls


def test_this_host_is_described_with_or_without_a_gpu() -> None:
    service = GpuService(Nvml(), cores=len(os.sched_getaffinity(0)))
    answer = service.inventory()
    assert bool(answer["devices"]) != answer["note"].startswith("no NVIDIA GPU: ")
    assert answer["host"]["cpu"]
    assert answer["host"]["memory_bytes"] == psutil.virtual_memory().total
    host = service.telemetry()["host"]
    assert 0 < host["memory_available_bytes"] <= host["memory_bytes"]
    assert host["load_1m"] >= 0
    assert service.idle() is False
    service.drain()


@pytest.mark.gpu
def test_a_real_gpu_has_a_name_memory_and_gauges() -> None:
    service = GpuService(Nvml(), cores=len(os.sched_getaffinity(0)))
    devices = service.inventory()["devices"]
    if not devices:
        pytest.skip(f"needs an NVIDIA GPU: {service.inventory()['note']}")
    assert devices[0]["name"]
    assert len(service.telemetry()["devices"]) == len(devices)
