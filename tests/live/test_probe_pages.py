"""Probe programs through the real kernel, archivist and page socket; the learner is a fake that counts windows in their maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import OPERATOR, Live, document, live

import console.main as console
from kfs.records import RecordKind
from kfs.store import Store
from probes import isa, lang
from probes.cells import read
from syscalls.client import Client
from syscalls.errors import RecurosError

COUNT = """hook("on_kd_step")
count = map.array(1)
notes = map.ring(8)


def probe():
    count[0] += 1.0
    notes.emit(7, 0.5)
"""


def compiled() -> bytes:
    return isa.encode(lang.compile_source(COUNT, "count.py"))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("pages") / "run") as running:
        yield running
        running.halt()


@pytest.fixture(scope="module")
def probe(runtime: Live) -> int:
    digest = runtime.client.rl_load_probe(program=compiled())["digest"]
    number: int = runtime.client.rl_attach_probe(hook="", prog=digest)["id"]
    return number


def test_maps_are_read_from_the_page_while_the_learner_writes(runtime: Live, probe: int) -> None:
    page = runtime.client.map(runtime.client.probe_page(id=probe)["page"])
    counted = lambda: read(page.view)["maps"]["count"]["values"][0]  # noqa: E731
    first = counted()
    runtime.goes_on(3)
    assert counted() >= first + 3
    assert page.view.readonly
    page.close()


def test_a_handle_is_given_once_a_session_and_dies_with_the_probe(runtime: Live) -> None:
    attached = runtime.client.rl_attach_probe(hook="", prog="sha256:" + isa.digest(compiled())[:8])["id"]
    first, second = (runtime.client.probe_page(id=attached)["page"] for _ in range(2))
    assert first == second > 0
    held = runtime.client.map(first)
    with Client(runtime.run) as other, pytest.raises(RecurosError) as refused:
        other.map(first)
    assert refused.value.code == "E5-DENIED", "a handle means nothing in another session"
    runtime.client.rl_detach_probe(id=attached)
    with pytest.raises(RecurosError) as refused:
        runtime.client.map(first)
    assert refused.value.code == "E5-DENIED"
    assert read(held.view)["maps"]["count"]["kind"] == "array", "what was mapped stays mapped"
    held.close()


def run(capsys: pytest.CaptureFixture[str], runtime: Live, *words: str) -> list[dict[str, Any]]:
    assert console.run(["probe", *words, "--run", str(runtime.run), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_console_reads_follows_shows_and_dumps(
    runtime: Live, probe: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (stats,) = run(capsys, runtime, "stats", str(probe))
    assert stats["read"] == "page"
    assert stats["maps"]["maps"]["count"]["values"][0] > 0
    entries = run(capsys, runtime, "trace", str(probe), "--count", "3", "--period", "0.05")
    assert [(e["map"], e["tag"], e["value"]) for e in entries] == [("notes", 7, 0.5)] * 3
    (shown,) = run(capsys, runtime, "show", str(probe))
    assert shown["program"]["source"].rstrip() == COUNT.rstrip()
    assert shown["probe"]["owner"].startswith("operator:")
    (by_digest,) = run(capsys, runtime, "show", "sha256:" + isa.digest(compiled())[:10])
    assert by_digest["program"] == shown["program"]
    (dumped,) = run(capsys, runtime, "dump", str(probe))
    assert lang.assemble(dumped["assembly"]) == isa.decode(compiled())
    (listed,) = run(capsys, runtime, "ls")
    assert probe in [row["id"] for row in listed["probes"]]
    (loaded,) = run(capsys, runtime, "ls", "--loaded")
    assert [p["name"] for p in loaded["programs"]] == ["count"]
    assert console.run(["probe", "stats", str(probe), "--run", str(runtime.run)]) == 0
    assert "@count  array" in capsys.readouterr().out


def test_a_file_and_a_one_liner_are_attached_by_name(
    runtime: Live, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = tmp_path / "count.py"
    source.write_text(COUNT)
    for program in (str(source), "on_kd_step { @n = count() }"):
        (attached,) = run(capsys, runtime, "attach", program, "--every", "2")
        assert attached["id"] > 0
        run(capsys, runtime, "detach", str(attached["id"]))
    assert console.run(["probe", "attach", str(source), "on_kd_step:x", "--run", str(runtime.run)]) == 4
    assert "takes no glob" in capsys.readouterr().err
    assert console.run(["probe", "show", "9999", "--run", str(runtime.run)]) == 4
    assert console.run(["probe", "dump", "sha256:00000000", "--run", str(runtime.run)]) == 4
    assert "count" in capsys.readouterr().err


def test_probe_time_is_charged_to_whoever_attached(runtime: Live, probe: int) -> None:
    owner = runtime.client.principal
    runtime.until(lambda: runtime.status()["charged"].get(owner, 0) >= 2_000, "windows are charged")
    row = next(row for row in runtime.client.probe_list()["probes"] if row["id"] == probe)
    assert row["owner"] == owner
    assert 0 < row["charged_ns"] <= runtime.status()["charged"][owner]


def test_an_operator_without_read_trace_gets_no_page_and_attaches_nothing(tmp_path: Path) -> None:
    doc = document(tmp_path / "run")
    doc["operator_rights"] = [right for right in OPERATOR if right != "read-trace"]
    runtime = Live(tmp_path / "run", doc)
    try:
        runtime.up()
        digest = runtime.client.rl_load_probe(program=compiled())["digest"]
        for name, args in (("probe_page", {"id": 1}), ("rl_attach_probe", {"hook": "", "prog": digest})):
            with pytest.raises(RecurosError, match="read-trace") as refused:
                runtime.client.syscall(name, **args)
            assert refused.value.exit_status == 5
        runtime.halt()
    finally:
        runtime.clean()


def test_an_attached_program_is_there_again_after_a_kill_and_after_a_boot(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with live(path) as runtime:
        runtime.goes_on(1)
        digest = runtime.client.rl_load_probe(program=compiled())["digest"]
        number = runtime.client.rl_attach_probe(hook="", prog=digest, every=3)["id"]
        before = runtime.client.probe_page(id=number)["page"]
        pid = runtime.server("learner")["pid"]
        import os
        import signal

        os.kill(pid, signal.SIGKILL)
        runtime.until(lambda: runtime.server("learner")["pid"] not in (0, pid), "a new learner")
        runtime.until(lambda: page_of(runtime, number) not in (0, before), "its maps have a new page")
        runtime.goes_on(2)
        runtime.halt()
    with live(path) as runtime:
        runtime.until(lambda: page_of(runtime, number), "the program is attached again")
        (row,) = runtime.status()["probes"]
        assert (row["id"], row["prog"]) == (number, f"{digest},every=3")
        assert runtime.client.probe_programs()["programs"] == [], "loaded programs end with their boot"
        runtime.goes_on(2)
        runtime.halt()
    with Store.open_reader(path / "store") as store:
        kinds = [r.kind for r in store.records()]
        (load,) = (r for r in store.records() if r.kind is RecordKind.PROBE_LOAD)
        assert bytes(store.get(load.input_ids[0]).data) == compiled()
    assert kinds.count(RecordKind.PROBE_ATTACH) == 1


def page_of(runtime: Live, number: int) -> int:
    try:
        page: int = runtime.client.probe_page(id=number)["page"]
    except RecurosError:
        return 0
    return page
