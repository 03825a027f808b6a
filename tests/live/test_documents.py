"""JSON documents are ABI: the shape of each, from a real kernel, against the golden file; and what bad moments do to a verb."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Live, live

import recuros
from console import main as console
from console.programs import compile_name
from probes import isa
from syscalls import html
from syscalls.rundir import make_socket_dir

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "documents.json"
RECUROS = [sys.executable, "-P", "-m", "console.start"]
LIMIT_S = 60.0
ONE_LINER = "on_forward:student/blocks.* { @rms[layer] = hist(rms(x)) }"
LINES = {
    "status": 0,
    "ps": 0,
    "top --once": 0,
    "wait windows --for 'committed>=1'": 0,
    "wait window/1 --for committed": 0,
    "wait probe/77 --for gone": 0,
    "doctor": 0,
    "config show": 0,
    "config show digits": 0,
    "config check digits": 0,
    "explain E6-ADMIT": 0,
    "explain window/1": 0,
    "completion bash": 0,
    "bench wire --seconds 0.05": 0,
    "learner pause --reason golden": 0,
    "learner resume --dry-run": 0,
    "learner resume": 0,
    "learner interrupt pause --dry-run": 0,
    "learner kd --temperature 2 --dry-run": 0,
    "learner kd --temperature 2 --reason golden": 0,
    "learner gate --open": 0,
    "swap --dry-run": 0,
    "snapshot create golden": 0,
    "snapshot ls": 0,
    "snapshot show golden": 0,
    "sched show": 0,
    "sched admit --dry-run --budget-ms 1 --period-ms 1000": 0,
    "sched set --budget-ms 9000 --period-ms 20000 --dry-run": 0,
    "sched set --budget-ms 9000 --period-ms 20000 --reason golden": 0,
    "cap grant observer --rights steer --reason golden": 0,
    "probe detach 1 --dry-run": 0,
    f"probe load {shlex.quote(ONE_LINER)} --dry-run": 0,
    "learner calibrate --dry-run": 0,
    "halt --dry-run": 0,
    "probe ls --programs": 0,
    "probe ls --loaded": 0,
    f"probe check {shlex.quote(ONE_LINER)}": 0,
    "cap ls": 0,
    "cap grant observer --rights steer --dry-run": 0,
    "kfs log --limit 1": 0,
    "kfs show 0": 0,
    "kfs at -1": 0,
    "kfs ls last": 0,
    "kfs diff w1 last": 1,
    "kfs gc --plan": 0,
    "syscall --list": 0,
    "syscall cap_list": 0,
}
AFTER_HALT = {"kfs verify": 0, "kfs verify --fast": 0, "kfs fsck": 0, "report": 0}
"""Of a store that nobody writes to meanwhile."""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("documents") / "run") as running:
        program = compile_name(ONE_LINER)[0]
        digest = running.client.rl_load_probe(program=isa.encode(program))["digest"]
        running.client.rl_attach_probe(hook="", prog=digest)
        running.goes_on(3)
        yield running


def shape(value: Any) -> Any:
    """Types by key; rows of a list as one, what stands for an open set of names as `*`."""
    if isinstance(value, dict):
        return {key: shape(below) for key, below in sorted(value.items())}
    if isinstance(value, list):
        merged: Any = None
        for item in value:
            merged = _merge(merged, shape(item))
        return [merged] if value else []
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__
    return "number"


def _merge(one: Any, other: Any) -> Any:
    if one is None or one == other:
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _merge(one.get(key), other[key]) if key in other else one[key] for key in sorted({*one, *other})}
    if isinstance(one, list) and isinstance(other, list):
        return [_merge(one[0], other[0])] if one and other else one or other
    return "|".join(sorted({*str(one).split("|"), *str(other).split("|")}))


OPEN = {
    "recuros.runtime.status/v1": ("metrics", "scores", "reference", "policy", "kd", "gate", "device", "refused", "charged", "window"),
    "recuros.kfs.at/v1": ("kd", "policy", "scores", "calibration", "metrics", "open", "schedule", "windows", "pins", "refused"),
    "recuros.sched.show/v1": ("sched",),
    "recuros.kfs.gc/v1": ("pins", "collect"),
    "recuros.runtime.top/v1": ("status", "sched", "denied", "counts", "probes"),
    "recuros.kfs.log/v1": ("args",),
    "recuros.kfs.show/v1": ("args",),
    "recuros.snapshot.show/v1": ("metrics",),
}  # fmt: skip
"""Maps whose keys depend on the moment."""


def closed(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: "*" if key in names else closed(below, names) for key, below in value.items()}
    return [closed(item, names) for item in value] if isinstance(value, list) else value


def document(line: str, run: Path, status: int, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert console.run([*shlex.split(line), "--run", str(run), "--json"]) == status, line
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["schema"].startswith("recuros."), line
    assert found["schema"].endswith("/v1"), line
    return found


def test_documents_keep_the_shape_that_scripts_rely_on(runtime: Live, capsys: pytest.CaptureFixture[str]) -> None:
    """New keys may be added; a key that goes or changes its type needs /v2. UPDATE_GOLDEN=1 writes the file."""
    found: dict[str, Any] = {}
    for line, status in LINES.items():
        document_ = document(line, runtime.run, status, capsys)
        name = document_["schema"]
        found[name] = _merge(found.get(name), shape(closed(document_, OPEN.get(name, ()))))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert set(golden) <= set(found) | {"recuros.kfs.verify/v1", "recuros.kfs.fsck/v1", "recuros.boot.report/v1"}
    for name, wanted in golden.items():
        if name in found:
            assert not list(missing(wanted, found[name], name))


def missing(wanted: Any, got: Any, where: str) -> Iterator[str]:
    """What the golden shape has and the document has not."""
    if "NoneType" in (wanted, got):
        return
    if isinstance(wanted, dict):
        if not isinstance(got, dict):
            yield f"{where}: is {got}, was a map"
            return
        for key, below in wanted.items():
            if key not in got:
                yield f"{where}.{key}: gone"
            else:
                yield from missing(below, got[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        if not isinstance(got, list):
            yield f"{where}: is {got}, was a list"
        elif wanted and got:
            yield from missing(wanted[0], got[0], f"{where}[]")
    elif wanted != "*" and not _compatible(str(wanted).split("|"), str(got).split("|")):
        yield f"{where}: is {got}, was {wanted}"


def _compatible(wanted: list[str], got: list[str]) -> bool:
    """Whether they share a type; nothing at all goes with everything, since what is absent depends on the moment."""
    return "NoneType" in (*wanted, *got) or bool(set(wanted) & set(got))


@pytest.mark.parametrize("output", ["table", "wide", "jsonl", "name"])
def test_every_verb_prints_in_every_form(runtime: Live, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line, status in LINES.items():
        if line.startswith(("learner pause", "snapshot create")):
            continue  # once is enough
        assert console.run([*shlex.split(line), "--run", str(runtime.run), "-o", output]) == status, line
        captured = capsys.readouterr()
        assert captured.out.strip() or output in ("jsonl", "name"), line  # no rows, no lines
        assert "\x1b" not in captured.out, "colour off a terminal"


def test_no_client_verb_imports_torch(runtime: Live) -> None:
    code = (
        "import json, sys; from console.main import run\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    run([*line, '--run', sys.argv[2], '-o', 'name'])\n"
        "    heavy = {'torch', 'transformers', 'sklearn'} & set(sys.modules)\n"
        "    assert not heavy, (line, heavy)\n"
    )
    lines = [shlex.split(line) for line in LINES if not line.startswith(("learner", "snapshot create"))]
    words = [sys.executable, "-P", "-c", code, json.dumps(lines), str(runtime.run)]
    env = {**os.environ, "PYTHONPATH": str(GOLDEN.parents[2])}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=4 * LIMIT_S)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_notebook_sees_the_runtime(runtime: Live) -> None:
    with recuros.connect(runtime.run) as client:
        assert isinstance(client, recuros.Client)
        page = client._repr_html_()
    assert "learner" in page
    assert "ready" in page
    hostile = html.status({"app": "<script>alert(1)</script>", "state": "running", "servers": []})
    assert "<script>" not in hostile
    assert html.status({}) == "<p>RecurOS: no status yet</p>"


# --- bad moments --------------------------------------------------------------------------------------------------------


def test_a_reader_that_closes_its_pipe_gets_no_complaint(runtime: Live) -> None:
    line = f"{shlex.join(RECUROS)} --run {shlex.quote(str(runtime.run))} kfs log -o jsonl | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seq"] == 0
    assert done.stderr == ""


@pytest.mark.parametrize("line", ["wait runtime --for done", "logs -f", "probe trace 1", "kfs log"])
def test_ctrl_c_at_any_moment_exits_130(runtime: Live, line: str) -> None:
    words = [*RECUROS, *shlex.split(line), "--run", str(runtime.run)]
    for pause_s in (0.0, 0.05, 0.12, 0.4):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(pause_s)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=LIMIT_S)
        if line == "kfs log" and process.returncode == 0:
            continue  # it was done before
        if process.returncode != 130:  # the interpreter was still starting, and has its own words for it
            assert "console/" not in error, (pause_s, error)
            continue
        assert error.endswith("interrupted\n"), (pause_s, error)
        # A signal inside a callback of the import machinery is printed by the interpreter, and comes again.
        assert "Traceback" not in error or "Exception ignored" in error, (pause_s, error)


def test_a_second_boot_in_one_run_directory_is_refused_and_names_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with (run / recuros.LOCK_FILE).open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for line in ("boot digits", "boot digits --detach", "--json boot"):
            assert console.run([*line.split(), "--run", str(run)]) == 3
            captured = capsys.readouterr()
            assert captured.out == ""
            assert f"process {os.getpid()} holds" in captured.err
            assert "recuros halt" in captured.err


def test_a_runtime_that_does_not_answer_is_busy_not_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    run = tmp_path / "run"
    directory = make_socket_dir(run)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(directory / "operator.sock"))
        deaf.listen()
        began = time.monotonic()
        assert console.run(["status", "--run", str(run), "--timeout", "0.3"]) == 124
        assert time.monotonic() - began < LIMIT_S
    assert "no answer in 0.3 s" in capsys.readouterr().err
    (directory / "operator.sock").unlink()
    directory.rmdir()


@pytest.mark.parametrize("version", [b"recuros-kfs 99\n", b"nonsense", b""])
def test_a_stale_run_directory_is_refused_with_both_versions(
    tmp_path: Path, version: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "run" / "store"
    store.mkdir(parents=True)
    (store / "FORMAT").write_bytes(version)
    for line in ("kfs log", "report", "snapshot ls", "explain window/1"):
        assert console.run([*line.split(), "--run", str(tmp_path / "run")]) == 9, line
        captured = capsys.readouterr()
        assert "error[E9-" in captured.err, line
        assert "FORMAT" in captured.err, line


def on_terminal(words: list[str], columns: int, **env: str) -> str:
    """What a verb prints on a terminal of some width."""
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    with subprocess.Popen(
        [*RECUROS, *words], stdin=slave, stdout=slave, stderr=slave, env={**kept, "TERM": "xterm", **env}
    ) as process:
        os.close(slave)
        text = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while select.select([master], [], [], LIMIT_S)[0]:
                data = os.read(master, 65_536)
                if not data:
                    break
                text += data
        assert process.wait(LIMIT_S) == 0
    os.close(master)
    return text.decode().replace("\r", "")


def test_a_terminal_that_is_narrow_or_without_colour(runtime: Live) -> None:
    words = ["kfs", "log", "--limit", "5", "--run", str(runtime.run)]
    assert "\x1b[1m" in on_terminal(words, 100)
    plain = on_terminal(words, 40, NO_COLOR="1")
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 40
    assert "\x1b" not in on_terminal([*words, "--no-color"], 80)
    assert "\x1b" not in on_terminal(words, 80, TERM="dumb")


def test_what_is_read_after_the_halt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live(tmp_path / "run") as running:
        running.goes_on(2)
        running.halt()
    for line, status in AFTER_HALT.items():
        document(line, tmp_path / "run", status, capsys)
