"""Kill -9 of anybody: no process stays, no commit is lost, and the next boot of the same run directory goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from harness import Live, document, live

from kfs.records import RecordKind
from kfs.store import Store


def commits(run: Path) -> list[int]:
    """Windows that the ledger holds as committed, checked to be a chain."""
    with Store.open_reader(run / "store") as store:
        found = [r for i in range(store.size) if (r := store.record(i)).kind is RecordKind.WINDOW_COMMIT]
    assert [r.parent_snap for r in found[1:]] == [r.result_snap for r in found[:-1]]
    return [r.args["window"] for r in found]


def test_any_server_may_die_and_the_windows_go_on(tmp_path: Path) -> None:
    with live(tmp_path / "run") as runtime:
        for name in ("gpu", "dataset", "observer", "learner", "archivist"):
            runtime.goes_on(1)
            pid = runtime.server(name)["pid"]
            os.kill(pid, signal.SIGKILL)
            runtime.until(
                lambda n=name, p=pid: (s := runtime.server(n))["pid"] != p and s["state"] == "ready", f"{name} is back"
            )
            runtime.watch()
            runtime.goes_on(2)
        status = runtime.halt()
        assert {s["name"]: s["restarts"] for s in status["servers"]} == dict.fromkeys(
            ("archivist", "gpu", "dataset", "learner", "observer"), 1
        ), runtime.logs()
        done = commits(runtime.run)
        assert done == list(range(1, len(done) + 1))
        assert not runtime.sockets.exists()


def boot_again(before: list[int], run: Path) -> None:
    with live(run) as runtime:
        assert runtime.status()["resumed_from"] >= 0
        assert runtime.status()["done_windows"] >= before[-1]
        runtime.goes_on(2)
        runtime.halt()
    after = commits(run)
    assert after[: len(before)] == before
    assert after == list(range(1, len(after) + 1))


def kill(runtime: Live, pid: int) -> list[int]:
    runtime.goes_on(2)
    runtime.watch()
    runtime.close_client()
    os.kill(pid, signal.SIGKILL)
    runtime.ended()
    return commits(runtime.run)


def test_the_death_of_the_kernel_takes_everybody_down_and_the_next_boot_resumes(tmp_path: Path) -> None:
    with live(tmp_path / "run") as runtime:
        before = kill(runtime, runtime.status()["pid"])
        assert runtime.events[-1]["event"] == "failed"
        assert runtime.events[-1]["error"][0] == "E3-GONE"
        assert not runtime.sockets.exists()
        boot_again(before, runtime.run)


def test_the_death_of_the_supervisor_takes_everybody_down_and_the_next_boot_takes_over_its_sockets(
    tmp_path: Path,
) -> None:
    with live(tmp_path / "run") as runtime:
        before = kill(runtime, runtime.supervisor.pid)
        assert runtime.sockets.exists(), "nobody was left to remove it"
        boot_again(before, runtime.run)


def test_a_launcher_that_goes_away_drains_its_runtime(tmp_path: Path) -> None:
    with live(tmp_path / "run") as runtime:
        runtime.goes_on(1)
        runtime.watch()
        runtime.close_client()
        assert runtime.supervisor.stdin is not None
        runtime.supervisor.stdin.close()
        assert runtime.ended()[-1]["event"] == "halted"
        assert not runtime.sockets.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    with live(tmp_path / "run") as runtime:
        runtime.goes_on(1)
        runtime.watch()
        runtime.close_client()
        runtime.supervisor.send_signal(number)
        assert runtime.ended()[-1]["event"] == "halted"
        with Store.open_reader(runtime.run / "store") as store:
            kinds = [store.record(i).kind for i in range(store.size)]
        assert RecordKind.HALT in kinds


def test_a_server_that_dies_while_booting_fails_the_boot_with_its_reason(tmp_path: Path) -> None:
    doc = document(tmp_path / "run")
    doc["servers"][2]["entry"] = "no_such_module"
    runtime = Live(tmp_path / "run", doc)
    try:
        last = runtime.ended()[-1]
        assert last["event"] == "failed"
        assert last["error"][:2] == ["E3-BOOT", "dataset exited with status 1 while starting"]
        assert not runtime.sockets.exists()
    finally:
        runtime.clean()


def test_the_death_of_a_server_that_must_not_be_restarted_takes_everybody_down_with_the_reason(tmp_path: Path) -> None:
    doc = document(tmp_path / "run")
    doc["servers"][1]["restart"] = "never"
    runtime = Live(tmp_path / "run", doc)
    try:
        runtime.up()
        runtime.goes_on(1)
        pid = runtime.server("gpu")["pid"]
        runtime.watch()
        runtime.close_client()
        os.kill(pid, signal.SIGKILL)
        last = runtime.ended()[-1]
        assert last["event"] == "failed"
        assert last["error"][:2] == ["E3-GONE", "gpu died 1 times in a minute: exited with status -9"]
        assert not runtime.sockets.exists()
    finally:
        runtime.clean()


def test_a_learner_that_is_stopped_is_caught_by_its_deadline_and_its_window_comes_again(tmp_path: Path) -> None:
    doc = document(tmp_path / "run")
    doc["window"] = {"steps": 1, "budget_ms": 1_500, "period_ms": 3_000, "deadline_ms": 3_000}
    runtime = Live(tmp_path / "run", doc)
    try:
        runtime.up()
        runtime.goes_on(1)
        pid = runtime.server("learner")["pid"]
        os.kill(pid, signal.SIGSTOP)
        runtime.until(
            lambda: (s := runtime.server("learner"))["pid"] != pid and s["state"] == "ready", "another learner is there"
        )
        runtime.watch()
        runtime.goes_on(2)
        assert "is killed: state T" in (runtime.run / "log" / "learner.log").read_text()
        counts = runtime.halt()["windows"]
        assert counts["granted"] == counts["committed"] + counts["rolled_back"]
        done = commits(runtime.run)
        assert done == list(range(1, len(done) + 1))
    finally:
        runtime.clean()


def test_a_learner_that_hangs_is_killed_and_its_log_says_where_it_was(tmp_path: Path) -> None:
    doc = document(tmp_path / "run")
    doc["window"] = {"steps": 1, "budget_ms": 200, "period_ms": 500, "deadline_ms": 500}
    doc["servers"][3]["config"] = {**doc["servers"][3]["config"], "hang_at": 3}
    runtime = Live(tmp_path / "run", doc)
    try:
        runtime.up()
        runtime.until(
            lambda: (s := runtime.server("learner"))["incarnation"] == 2 and s["state"] == "ready", "another learner"
        )
        runtime.watch()
        runtime.goes_on(1)
        log = (runtime.run / "log" / "learner.log").read_text()
        assert "incarnation 1) does not answer and is killed: state S" in log
        assert "in hang_in_an_operation" in log, "the stacks of its threads"
        runtime.halt()
    finally:
        runtime.clean()


def test_a_server_whose_process_cannot_be_made_fails_the_boot_with_its_reason(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "log" / "gpu.log").mkdir(
        parents=True
    )  # its log cannot be opened, as its process could not be made without memory
    runtime = Live(run, document(run))
    try:
        last = runtime.ended()[-1]
        assert last["event"] == "failed"
        assert last["error"][:2] == ["E3-BOOT", "gpu exited with status 127 while starting"]
        assert "spawn of gpu" in (run / "log" / "supervisor.log").read_text()
        assert not runtime.sockets.exists()
    finally:
        runtime.clean()
