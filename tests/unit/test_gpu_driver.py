"""Guard, leases and the decision about CUDA graphs: what the device server decides, without a device."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_gpu_server import FakeNvml

from servers.gpu.graphs import CAPTURE, DYNAMIC, REPLAY, GraphDriver
from servers.gpu.guard import Guard, Limits
from servers.gpu.leases import Leases
from servers.gpu.nvml import Nvml
from servers.gpu.server import SAMPLE_AGE_NS_MAX, GpuService
from syscalls.errors import RecurosError

MIB = 1 << 20
HOT = Limits(temperature_soft_c=80, temperature_hard_c=90, power_soft_w=300, power_hard_w=350, cool_down_c=5)


# --- the guard


@pytest.mark.parametrize(
    ("samples", "verdicts"),
    [
        ([70, 79.9, 80, 76, 75.1, 74.9, 79], ["ok", "ok", "soft", "soft", "soft", "ok", "ok"]),
        ([70, 90, 85, 76, 74], ["ok", "hard", "soft", "soft", "ok"]),
        ([None, None], ["ok", "ok"]),
    ],
)
def test_a_hot_device_rests_until_it_is_well_below_the_soft_limit(samples: list[Any], verdicts: list[str]) -> None:
    guard = Guard(HOT)
    assert [guard.judge({"temperature_c": t}) for t in samples] == verdicts


def test_power_throttling_and_a_lost_device_are_judged_with_their_reason() -> None:
    guard = Guard(HOT)
    assert guard.judge({"power_w": 310}) == "soft"
    assert guard.judge({"power_w": 280}) == "soft"
    assert "270 W to go on" in guard.reason
    assert guard.judge({"power_w": 260}) == "ok"
    assert guard.judge({"power_w": 400}) == "hard"
    assert guard.reason == "400 W, the hard limit is 350 W"
    assert guard.judge({"throttled": ["thermal limit in hardware"]}) == "soft"
    assert "slows itself down" in guard.reason
    assert guard.judge({"throttled": ["power cap in software"]}) == "ok"
    assert guard.judge({"lost": True}) == "lost"


def test_without_limits_nothing_but_the_device_itself_is_guarded() -> None:
    guard = Guard(Limits.of({"kind": "cuda", "index": 0}))
    assert guard.judge({"temperature_c": 200, "power_w": 10_000}) == "ok"
    assert guard.judge({"throttled": ["power brake in hardware"]}) == "soft"


def test_the_guard_is_in_the_telemetry_and_a_lost_device_is_found() -> None:
    library = FakeNvml()
    library.gauges["nvmlDeviceGetTemperature"] = 85
    now = [SAMPLE_AGE_NS_MAX]
    device = {"kind": "cuda", "index": 1, "temperature_soft_c": 80.0}
    service = GpuService(Nvml(library), cores=1, clock_ns=lambda: now[0], device=device)
    found = service.telemetry()
    assert found["guard"]["verdict"] == "soft"
    assert found["driver"]["index"] == 1
    library.lost = True
    now[0] += SAMPLE_AGE_NS_MAX
    found = service.telemetry()
    assert found["devices"][1]["lost"]
    assert found["guard"]["verdict"] == "lost"


# --- leases


HOLDER = """
import sys
from pathlib import Path
from servers.gpu.leases import Leases
leases = Leases(Path(sys.argv[1]), "GPU-1", 100 << 20, 0, "runs/other")
leases.take(60 << 20)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runtimes_share_a_device_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    mine = Leases(tmp_path, "GPU-1", 100 * MIB, 0, "runs/mine")
    assert mine.take(40 * MIB)["others"] == 60 * MIB
    with pytest.raises(
        RecurosError, match=r"41.0 MiB of GPU-1 were asked for; 40.0 MiB of 100.0 MiB are free"
    ) as caught:
        mine.take(41 * MIB)
    assert f"pid {other.pid} (runs/other) has 60.0 MiB" in caught.value.message
    assert caught.value.code == "E6-ADMIT"
    assert mine.held_bytes == 40 * MIB
    other.kill()
    other.communicate()
    assert mine.take(100 * MIB)["others"] == 0
    mine.give_back()
    assert [p.name for p in (tmp_path / "GPU-1").iterdir()] == ["lock"]


def test_a_runtime_that_hangs_while_it_decides_holds_up_another_one_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servers.gpu.leases.LOCK_S", 0.05)
    mine = Leases(tmp_path, "GPU-1", 100 * MIB, 0, "runs/mine")
    mine.take(MIB)
    with (tmp_path / "GPU-1" / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RecurosError, match="another runtime has held") as caught:
            mine.take(2 * MIB)
        assert caught.value.code == "E124-TIMEOUT"
        assert mine.held_bytes == MIB
    assert mine.take(2 * MIB)["granted"] == 2 * MIB
    mine.give_back()


def test_a_lease_over_the_budget_is_refused_with_the_numbers(tmp_path: Path) -> None:
    leases = Leases(tmp_path, "GPU-1", 1000 * MIB, 64 * MIB, "runs/mine")
    with pytest.raises(RecurosError, match=r"65.0 MiB of GPU-1 were asked for; the budget of this runtime is 64.0 MiB"):
        leases.take(65 * MIB)
    with pytest.raises(RecurosError, match="-1 bytes"):
        leases.take(-1)
    assert leases.held_bytes == 0


def test_a_file_that_is_no_lease_holds_nothing_up(tmp_path: Path) -> None:
    folder = tmp_path / "GPU-1"
    folder.mkdir()
    (folder / "77.lease").write_text("{}")
    (folder / "78.lease").write_text(json.dumps({"pid": 78, "bytes": 1 << 60, "run": "gone"}))
    assert Leases(tmp_path, "GPU-1", 10 * MIB, 0, "x").take(MIB)["others"] == 0


def test_the_service_leases_from_the_device_that_the_manifest_names(tmp_path: Path) -> None:
    device = {"kind": "cuda", "index": 0, "memory_mb": 16, "steady_windows": 1}
    service = GpuService(Nvml(FakeNvml()), cores=1, device=device, leases=tmp_path, run="r")
    assert service.lease(bytes=8 * MIB, key="a") == {
        "granted": 8 * MIB,
        "path": DYNAMIC,
        "reason": "steady for 0 of 1 windows",
    }
    with pytest.raises(RecurosError, match=r"17\.0 MiB"):
        service.lease(bytes=17 * MIB, key="a")
    assert service.telemetry()["driver"]["leased_bytes"] == 8 * MIB
    service.drain()
    assert not list((tmp_path / "GPU-1").glob("*.lease"))


# --- graphs


def paths(driver: GraphDriver, *keys: str) -> list[str]:
    found = []
    for key in keys:
        path = driver.plan(key)["path"]
        driver.report(key, {"captured": path == CAPTURE, "replayed": 25 if path != DYNAMIC else 0, "dynamic": 25})
        found.append(path)
    return found


def test_a_steady_step_is_captured_replayed_and_dropped_when_it_changes() -> None:
    driver = GraphDriver(steady=2)
    assert paths(driver, "a", "a", "a", "a", "a") == [DYNAMIC, DYNAMIC, CAPTURE, REPLAY, REPLAY]
    assert paths(driver, "b", "b", "b") == [DYNAMIC, DYNAMIC, CAPTURE]
    assert paths(driver, "a") == [DYNAMIC]  # the first graph is gone
    assert driver.counts["captures"] == 2
    assert driver.counts["fallbacks"] == 2


def test_a_step_that_never_settles_is_never_captured() -> None:
    assert set(paths(GraphDriver(steady=1), *"abababab")) == {DYNAMIC}


def test_a_failed_capture_is_not_tried_again_and_says_why() -> None:
    driver = GraphDriver(steady=1)
    assert driver.plan("a")["path"] == DYNAMIC
    assert driver.plan("a")["path"] == CAPTURE
    driver.report("a", {"failed": "operation not permitted when stream is capturing", "dynamic": 25})
    answer = driver.plan("a")
    assert answer["path"] == DYNAMIC
    assert "not permitted" in answer["reason"]


def test_a_fallback_inside_a_window_is_counted_and_starts_anew() -> None:
    driver = GraphDriver(steady=1)
    assert paths(driver, "a", "a", "a") == [DYNAMIC, CAPTURE, REPLAY]
    driver.plan("a")
    driver.report("a", {"fallback": "probe 3 was attached at a captured site", "replayed": 10, "dynamic": 15})
    assert driver.to_map()["fallbacks"] == 1
    assert driver.to_map()["reason"] == "probe 3 was attached at a captured site"
    assert driver.plan("a")["path"] == CAPTURE  # still steady


def test_the_cpu_and_a_manifest_without_graphs_take_the_dynamic_path_and_say_so() -> None:
    for device, reason in [({}, "CPU"), ({"kind": "cuda", "graphs": "off"}, "graphs = off")]:
        service = GpuService(Nvml(FakeNvml()), cores=1, device=device)
        for _ in range(5):
            answer = service.lease(bytes=0, key="a")
        assert answer["path"] == DYNAMIC
        assert reason in answer["reason"]
