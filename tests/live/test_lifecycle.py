"""The main job with real processes: boot, distil, steer, kill, resume, halt. One short digits plan serves all of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import recuros
from kfs.records import Record, RecordKind
from kfs.store import Store
from kfs.verify import verify
from syscalls.errors import RecurosError
from syscalls.rundir import socket_dir

RECUROS = [sys.executable, "-P", "-m", "console.main"]
STARTER = {f"builtin:{name}" for name in ("cka", "rkd", "ece", "attn-kl", "ewc", "jacobian")}
APPS = Path(__file__).resolve().parents[2] / "servers" / "apps"
WAIT_S = 120.0


def short_manifest(path: Path, **changes: str) -> Path:
    """The digits app with 3 + 5 + 3 windows of 10 steps; `changes` replaces whole `key = value` lines."""
    text = (APPS / "digits.toml").read_text(encoding="utf-8")
    plan = {"windows = 16": "windows = 3", "windows = 20": "windows = 5", "windows = 8": "windows = 3"}
    plan |= {"warmup-steps = 25": "warmup-steps = 5", "steps = 25": "steps = 10", "eval-every = 10": "eval-every = 2"}
    for old, new in (plan | changes).items():
        assert old in text, f"digits.toml no longer says {old!r}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def records(run: Path) -> list[Record]:
    with Store.open_reader(run / "store") as store:
        return list(store.records())


def of_kind(run: Path, kind: RecordKind) -> list[Record]:
    return [r for r in records(run) if r.kind is kind]


def weights(run: Path) -> dict[str, str]:
    """Object ids of everything that learning changed, in the last committed snapshot."""
    last = of_kind(run, RecordKind.WINDOW_COMMIT)[-1].result_snap
    assert last is not None
    with Store.open_reader(run / "store") as store:
        return {
            p: i
            for p, i in store.snapshot(last).items()
            if p.split("/")[0] in ("student", "teacher", "ema", "optimizer", "rng")
        }


def until(condition: Any, what: str) -> Any:
    """Poll a runtime until `condition()` is true."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)  # the poll's period; the wait ends with the condition
    raise AssertionError(f"not within {WAIT_S} s: {what}")


def status_when(runtime: recuros.Runtime, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """The first status that fulfils `condition`."""

    def look() -> dict[str, Any] | None:
        status = runtime.status()
        return status if condition(status) else None

    found: dict[str, Any] = until(look, what)
    return found


def gone(pids: list[int]) -> bool:
    """Whether every process has ended; a zombie that only its parent (this test) could collect has."""
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                return False
    return True


def pids_of(status: dict[str, Any]) -> list[int]:
    return [status["pid"], *(s["pid"] for s in status["servers"])]


def server(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in status["servers"] if s["name"] == name)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run, started as a script would: the run directory and the report."""
    base = tmp_path_factory.mktemp("finished")
    manifest = short_manifest(base / "short.toml")
    done = subprocess.run(
        [*RECUROS, "--run", str(base / "run"), "boot", "-c", str(manifest), "--json"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return base / "run", json.loads(done.stdout.strip().splitlines()[-1])


def test_the_boot_report_keeps_its_contract(finished: tuple[Path, dict[str, Any]]) -> None:
    run, report = finished
    assert report["schema"] == "recuros.boot.report/v1"
    assert report["app"] == "digits"
    assert report["windows"] == {"granted": 11, "committed": 11, "missed": 0, "rolled_back": 0}
    assert report["teacher"]["params"] >= 10 * report["student"]["params"]
    assert report["retention"] == pytest.approx(report["student"]["score"] / report["teacher"]["score"])
    assert report["policies"] > 0
    assert {p["prog"].split(",")[0] for p in report["probes"]} == STARTER
    assert report["ledger"]["verified"] is True
    assert report["ledger"]["size"] == len(records(run))
    assert "no NVIDIA GPU" in report["device"] or "NVIDIA" in report["device"]
    assert report["seconds"] > 0


def test_the_ledger_tells_the_whole_lifecycle_in_order(finished: tuple[Path, dict[str, Any]]) -> None:
    run, _ = finished
    kinds = [str(r.kind) for r in records(run)]
    for earlier, later in [
        ("boot", "probe.attach"),
        ("probe.attach", "window.grant"),
        ("window.grant", "window.commit"),
        ("policy", "swap"),
        ("swap", "generation"),
    ]:
        assert kinds.index(earlier) < kinds.index(later), f"{earlier} comes before {later}"
    assert "halt" in kinds
    commits = of_kind(run, RecordKind.WINDOW_COMMIT)
    for before, after in pairwise(commits):
        assert after.parent_snap == before.result_snap
    for policy in of_kind(run, RecordKind.POLICY):
        assert policy.args["applies_at"] == policy.args["window"] + 2
    in_force = {r.args["window"]: r.args["policy_seq"] for r in of_kind(run, RecordKind.WINDOW_GRANT)}
    for policy in of_kind(run, RecordKind.POLICY):
        if policy.args["settings"] and policy.args["applies_at"] in in_force:
            assert in_force[policy.args["applies_at"]] == policy.seq


def test_a_finished_run_leaves_no_socket_and_boots_to_done_at_once(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, report = finished
    assert not socket_dir(run).exists()
    again = tmp_path / "again"
    shutil.copytree(run, again)
    with recuros.boot(run=again) as runtime:
        status = runtime.wait_for("done", WAIT_S)
        assert status["done_windows"] == 11
        assert status["windows"]["granted"] == 0
        assert status["scores"]["test"]["student"]["accuracy"] == report["student"]["score"]


def test_one_flipped_byte_is_named_and_exits_9(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    pack = max((copy / "store" / "packs").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    done = subprocess.run(
        [*RECUROS, "--run", str(copy), "kfs", "verify", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    document = json.loads(done.stdout)
    assert done.returncode == 9
    assert document["schema"] == "recuros.kfs.verify/v1"
    assert document["ok"] is False
    assert any(pack.name in problem["where"] for problem in document["problems"]), document["problems"]


def test_a_learner_killed_in_mid_window_comes_back_to_the_same_bits(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with recuros.boot(config=short_manifest(tmp_path / "m.toml"), run=run) as runtime:
        for _ in range(2):
            committed = runtime.status()["windows"]["committed"]
            status = status_when(
                runtime,
                lambda s, now=committed: s["windows"]["committed"] > now and s["window"].get("step", 0) >= 2,
                "a window in mid-flight",
            )
            learner = server(status, "learner")
            os.kill(learner["pid"], signal.SIGKILL)
            until(
                lambda old=learner: server(runtime.status(), "learner")["incarnation"] > old["incarnation"],
                "the next incarnation",
            )
            until(lambda: server(runtime.status(), "learner")["state"] == "ready", "the learner is ready")
        runtime.wait_for("done", WAIT_S)
    rollbacks = of_kind(run, RecordKind.WINDOW_ROLLBACK)
    assert rollbacks
    assert all(r.args["exact"] and r.args["restored"] == r.args["base"] for r in rollbacks)
    assert weights(run) == weights(finished[0])
    assert verify(run / "store").ok


def test_a_runtime_killed_outright_resumes_to_the_same_bits(tmp_path: Path) -> None:
    manifest = short_manifest(tmp_path / "m.toml", **{'pack = "starter"': 'pack = "static"'})
    with recuros.boot(config=manifest, run=tmp_path / "whole") as runtime:
        runtime.wait_for("done", WAIT_S)
    run = tmp_path / "cut"
    killed = recuros.boot(config=manifest, run=run)
    status = status_when(killed, lambda s: s["windows"]["committed"] >= 5, "five commits")
    killed.kill()  # SIGKILL to the supervisor, which takes everybody with it
    until(lambda: gone(pids_of(status)), "every process gone")
    with recuros.boot(run=run) as runtime:
        status = runtime.wait_for("done", WAIT_S)
        assert status["resumed_from"] >= 0
    commits = [r.args["window"] for r in of_kind(run, RecordKind.WINDOW_COMMIT)]
    assert commits == list(range(1, 12))
    assert weights(run) == weights(tmp_path / "whole")


def test_an_operator_steers_a_detached_runtime(tmp_path: Path) -> None:
    run = tmp_path / "run"
    manifest = short_manifest(tmp_path / "m.toml", **{'end = "swap:ema"': "", "windows = 8": "windows = 3"})
    runtime = recuros.boot(config=manifest, run=run, detach=True)
    with contextlib.ExitStack() as stack:
        stack.callback(runtime.kill)
        client = stack.enter_context(recuros.connect(run))

        def now() -> dict[str, Any]:
            status: dict[str, Any] = client.status()["status"]
            return status

        until(lambda: now()["phase"].get("train") == "student" and now()["windows"]["committed"] >= 4, "distillation")
        probe = client.rl_attach_probe(hook="on_forward:blocks.*", prog="builtin:rms", every=1)
        assert probe["sites"] == ["on_forward:student/blocks.0", "on_forward:student/blocks.1"]
        assert probe["seq"] >= 0
        until(lambda: client.probe_read(id=probe["id"])["maps"]["fired"] > 4, "the probe's maps fill")
        named = client.rl_snapshot(name="before")
        assert named["snapshot"].startswith("b3:")
        kd = client.rl_set_kd(temperature=3.0)
        swap = client.rl_swap_roles(mode="ema")
        assert kd["seq"] < swap["seq"]
        until(lambda: now()["generation"] == 1, "the swap is committed")
        until(
            lambda: now()["metrics"].get("temperature") == 3.0, "the operator's temperature stands against the policy"
        )
        assert client.rl_detach_probe(id=probe["id"])["seq"] > swap["seq"]
        client.interrupt(kind="pause", reason="look")
        until(lambda: now()["state"] == "paused" and not now()["window"], "paused between windows")
        client.interrupt(kind="resume")
        committed = now()["windows"]["committed"]
        until(lambda: now()["windows"]["committed"] > committed, "windows go on")
        with pytest.raises(RecurosError, match="outside"):
            client.rl_set_kd(temperature=9.0)
        with pytest.raises(RecurosError, match="E6-ADMIT"):
            client.rl_schedule(window={"budget_ms": 5000, "period_ms": 1000}, deadline=1000)
        with pytest.raises(RecurosError, match="process"):
            recuros.boot(run=run)  # a second boot on the same run directory
        status = now()
        client.shutdown()
        until(lambda: gone([*pids_of(status), runtime.pid]), "everything ended")
    assert not socket_dir(run).exists()
    assert not [name for name in os.listdir("/dev/shm") if "recuros" in name]
    kinds = {r.kind for r in records(run)}
    assert {
        RecordKind.SNAPSHOT,
        RecordKind.KD_SET,
        RecordKind.SWAP,
        RecordKind.PROBE_DETACH,
        RecordKind.INTERRUPT,
        RecordKind.SCHED_REFUSE,
    } <= kinds
    assert verify(run / "store").ok


def test_windows_that_cannot_meet_their_deadline_roll_back_exactly_and_stop_with_the_reason(tmp_path: Path) -> None:
    changes = {
        "budget-ms = 3000": "budget-ms = 60",
        "period-ms = 4000": "period-ms = 100",
        "deadline-ms = 4000": "deadline-ms = 60",
    }
    run = tmp_path / "run"
    with (
        recuros.boot(config=short_manifest(tmp_path / "m.toml", **changes), run=run) as runtime,
        pytest.raises(RecurosError) as stopped,
    ):
        runtime.wait_for("done", WAIT_S)
    assert stopped.value.code == "E7-MISSED"
    assert stopped.value.exit_status == 7
    misses, rollbacks = of_kind(run, RecordKind.WINDOW_MISS), of_kind(run, RecordKind.WINDOW_ROLLBACK)
    assert len(misses) == len(rollbacks) == 5
    assert all(r.args["exact"] and r.args["restored"] == r.args["base"] for r in rollbacks)
    assert not of_kind(run, RecordKind.WINDOW_COMMIT)


def test_a_loss_that_is_not_finite_rolls_back_and_stops_with_the_reason(tmp_path: Path) -> None:
    run = tmp_path / "run"
    manifest = short_manifest(tmp_path / "m.toml", **{"lr = 1.5e-3": "lr = 1e30"})
    with recuros.boot(config=manifest, run=run) as runtime, pytest.raises(RecurosError) as stopped:
        runtime.wait_for("done", WAIT_S)
    assert stopped.value.code == "E7-LOSS"
    assert all(r.args["exact"] for r in of_kind(run, RecordKind.WINDOW_ROLLBACK))


def test_a_full_disk_loses_nothing_and_the_run_goes_on_after_space_is_made(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    run = disk / "run"
    try:
        with (
            pytest.raises(RecurosError) as stopped,
            recuros.boot(config=short_manifest(tmp_path / "m.toml"), run=run) as runtime,
        ):
            runtime.wait_for("done", WAIT_S)
        assert stopped.value.code == "E9-NOSPACE"
        committed = [r.args["window"] for r in of_kind(run, RecordKind.WINDOW_COMMIT)]
        assert verify(run / "store").ok
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        with recuros.boot(run=run) as runtime:
            runtime.wait_for("done", WAIT_S)
        assert [r.args["window"] for r in of_kind(run, RecordKind.WINDOW_COMMIT)] == list(range(1, 12))
        assert committed == list(range(1, len(committed) + 1))
        assert verify(run / "store").ok
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_the_kernel_process_stays_small_and_knows_no_tensor(tmp_path: Path) -> None:
    with recuros.boot(config=short_manifest(tmp_path / "m.toml"), run=tmp_path / "run") as runtime:
        status = status_when(runtime, lambda s: s["windows"]["committed"] >= 4, "four commits")
        maps = Path(f"/proc/{status['pid']}/maps").read_text() if os.getuid() == 0 else ""
        assert "torch" not in maps
        assert "numpy" not in maps
        assert status["kernel"]["rss_bytes"] <= 40 * 1024 * 1024
