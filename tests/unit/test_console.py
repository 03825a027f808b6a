"""The command line without a runtime: usage, suggestions, exit statuses, help pages, and what is imported for what."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import recuros
from console import main as console
from console.context import Context, Table, format_rows, plain
from console.report import figures_of
from console.verb import EXITS, Verb
from console.verbs.runtime import holds, look
from syscalls.errors import RecurosError

RECUROS = [sys.executable, "-m", "console.main"]


@pytest.fixture(autouse=True)
def _run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECUROS_RUN", str(tmp_path / "run"))


def verbs() -> Iterator[tuple[list[str], click.Command]]:
    """Every verb with its path, nouns opened."""
    root = click.Context(console.cli, info_name="recuros")
    for name in console.VERBS:
        command = console.cli.get_command(root, name)
        assert command is not None, name
        yield from below(command, [name])


def below(command: click.Command, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    """A verb, or those under a noun, however deep."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from below(inner, [*path, name])
    else:
        yield path, command


def parse(words: list[str]) -> None:
    """Parse a command line as far as a verb's own arguments, without running it."""
    context = console.cli.make_context("recuros", words, obj=Context())
    command: click.Command = console.cli
    rest = [*context._protected_args, *context.args]
    while isinstance(command, click.Group):
        name, inner, rest = command.resolve_command(context, rest)
        assert inner is not None
        context = inner.make_context(name, rest, parent=context)
        rest = [*context._protected_args, *context.args]
        command = inner


@pytest.mark.parametrize(("path", "command"), list(verbs()), ids=[" ".join(path) for path, _ in verbs()])
def test_a_help_page_is_complete(path: list[str], command: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(command, Verb)
    assert len(command.examples) == 3
    for example in command.examples:
        words = shlex.split(re.split(" [<>|] ", example)[0])
        assert words[0] == "recuros"
        parse(words[1:])
        assert command.name in words
        assert command.name != path[-1] or all(part in words for part in path), "else it is an alias of another verb"
    assert set(command.exits) <= set(EXITS)
    assert console.run([*path, "--help"]) == 0
    page = capsys.readouterr().out
    for section in ("Usage:", "Examples:", "Right needed:", "Exit codes:"):
        assert section in page


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("statsu", "did you mean: status"),
        ("probe atach", "did you mean: attach"),
        ("nonsense", "no command is called 'nonsense'"),
        ("ps --nope", "No such option"),
        ("wait windows", "Missing option '--for'"),
        ("learner prune 1.5", "1.5 is not in the range"),
        ("learner prune", "needs a target"),
        ("-o yaml ps", "'yaml' is not one of"),
        ("sched admit --dry-run --budget-ms 1", "Missing option '--period-ms'"),
        ("syscall", "no syscall was named"),
        ("syscall rl_set_kd temperature=hot", "temperature='hot' is not of type float"),
        ("syscall rl_set_kd heat=1", "takes no argument 'heat=1'"),
        ("syscall rl_detach_probe", "missing argument 'id'"),
        ("learner kd", "nothing to change was given"),
        ("learner gate --open --drop-low 0.1", "give shares to leave out, or --open"),
        ("boot digits -c my.toml", "both given"),
    ],
)
def test_wrong_usage_exits_2_with_the_way_out(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(shlex.split(line)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error[E2-USAGE]" in captured.err
    assert says in captured.err
    assert "try: " in captured.err


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "ps",
        "halt",
        "wait windows --for 'committed>=1'",
        "learner pause",
        "learner resume",
        "learner kd --mix 0.5",
        "learner gate --open",
        "learner prune 0.5",
        "learner calibrate",
        "swap",
        "snapshot create",
        "sched show",
        "sched set --budget-ms 1 --period-ms 2",
        "sched admit --dry-run --budget-ms 1 --period-ms 2",
        "probe ls",
        "probe attach builtin:cka on_kd_step",
        "probe detach 1",
        "probe stats 1",
        "cap ls",
        "syscall status",
    ],
)
def test_a_verb_that_needs_a_runtime_says_that_there_is_none(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(shlex.split(line)) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error[E3-DOWN]" in captured.err
    assert "recuros boot" in captured.err


@pytest.mark.parametrize("line", ["report", "snapshot ls", "kfs log", "logs"])
def test_a_verb_that_reads_the_run_directory_says_that_it_is_empty(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.run(shlex.split(line)) == 4
    assert "error[E4-NOENT]" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--run {0} ps", "ps --run {0}", "probe --run {0} ls", "probe ls --run {0}"])
def test_global_options_go_before_and_after_the_verb(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "elsewhere"
    assert console.run(shlex.split(line.format(there))) == 3
    assert str(there) in capsys.readouterr().err


def test_the_help_of_a_noun_has_the_first_sentence_of_each_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["learner", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "Fit a scaling temperature to the last committed student on validation data." in page


def test_the_syscall_table_is_printed_in_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["syscall", "--list"]) == 0
    assert "rl_set_kd [temperature=" in capsys.readouterr().out
    assert console.run(["syscall", "--list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "recuros.syscall.list/v1"
    assert console.run(["-o", "jsonl", "syscall", "--list"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == document["syscalls"]
    assert console.run(["syscall", "--list", "-o", "name"]) == 0
    assert capsys.readouterr().out.splitlines() == [row["name"] for row in document["syscalls"]]


def test_an_unknown_syscall_exits_4_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["syscall", "rl_snapshoot"]) == 4
    assert "rl_snapshot" in capsys.readouterr().err


def test_doctor_needs_no_gpu_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert {row["verdict"] for row in document["checks"]} <= {"ok", "info"}
    assert {"python", "packages", "memfd seals", "SO_PEERCRED", "gpu"} <= {row["check"] for row in document["checks"]}
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_is_missing_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert console.run(["doctor", "--run", str(tmp_path / "file" / "run")]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path / 'file'} is not a directory" in out
    assert "try: name another run directory" in out


def test_a_pipe_that_closes_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "RECUROS_RUN": str(tmp_path)}
    done = subprocess.run(
        ["/bin/sh", "-c", f"{shlex.join([*RECUROS, 'syscall', '--list', '-o', 'wide'])} | true"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (
            ["ps"],
            (
                "torch",
                "transformers",
                "numpy",
                "sklearn",
                "pydantic",
                "rich",
                "kfs",
                "probes",
                "kernel",
                "prompt_toolkit",
            ),
        ),
        (["status", "--json"], ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich", "kfs", "kernel")),
        (["probe", "ls"], ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich", "kernel")),
        (["report"], ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich", "kernel")),
        (["top"], ("torch", "transformers", "numpy", "sklearn", "pydantic", "kfs", "kernel")),
        (["dash"], ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich", "kernel")),
        (["doctor"], ("torch", "transformers", "sklearn", "pydantic", "rich", "kernel")),
        (["boot", "nothing"], ("torch", "transformers", "numpy", "sklearn", "kernel")),
    ],
)
def test_a_verb_imports_only_what_it_needs(arguments: list[str], banned: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; from console.main import run; run(sys.argv[1:]);"
        "print('\\n' + ' '.join(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    environment = {**os.environ, "RECUROS_RUN": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    assert not set(done.stdout.splitlines()[-1].split()) & set(banned)


def test_a_script_stops_at_its_first_error(tmp_path: Path) -> None:
    script = "# nothing yet\n\nsyscall --list -o name\nrecuros ps\nsyscall --list -o name\n"
    done = subprocess.run(
        [*RECUROS, "shell", "--run", str(tmp_path)], input=script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout.splitlines().count("rl_set_kd") == 1
    assert "error[E3-DOWN]" in done.stderr
    assert "stopped at: recuros ps" in done.stderr


def test_a_script_without_errors_exits_0_and_may_leave(tmp_path: Path) -> None:
    done = subprocess.run(
        [*RECUROS, "shell", "--run", str(tmp_path)],
        input="syscall --list -o name\nexit\nps\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_boot_refuses_a_manifest_before_it_makes_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "my.toml"
    bad.write_text('[app]\nnaem = "x"\n', encoding="utf-8")
    assert console.run(["boot", "-c", str(bad), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error[E2-MANIFEST]" in captured.err
    assert "did you mean name?" in captured.err
    assert not (tmp_path / "run").exists()


def test_boot_names_the_process_that_holds_the_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with (run / recuros.LOCK_FILE).open("w+") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert recuros.holder(run) == 4711
        assert console.run(["boot", "digits"]) == 3
        assert "process 4711 holds run directory" in capsys.readouterr().err
        with pytest.raises(RecurosError, match="4711 still holds"):
            recuros.wait_gone(run, 0.0)
    assert recuros.holder(run) is None
    recuros.wait_gone(run, 0.0)


def test_a_socket_that_nobody_listens_on_is_no_runtime(tmp_path: Path) -> None:
    import socket

    from syscalls.rundir import make_socket_dir

    run = tmp_path / "run"
    directory = make_socket_dir(run)
    left_behind = directory / "operator.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left_behind))
    with pytest.raises(RecurosError) as caught:
        recuros.connect(run)
    assert caught.value.code == "E3-DOWN"
    left_behind.unlink()
    directory.rmdir()


def test_a_condition_is_a_state_or_a_comparison() -> None:
    status = {
        "state": "running",
        "done_windows": 4,
        "windows": {"committed": 3, "missed": 0},
        "servers": [{"name": "learner", "state": "ready", "pid": 7}],
    }
    windows = look(status, "windows")
    assert holds(windows, "committed>=3")
    assert not holds(windows, "committed>3")
    assert holds(windows, "missed=0")
    assert holds(windows, "done<5")
    assert holds(look(status, "runtime"), "running")
    assert holds(look(status, "server/learner"), "ready")
    with pytest.raises(RecurosError, match="no number 'comitted'") as caught:
        holds(windows, "comitted>=1")
    assert "committed" in caught.value.hint
    with pytest.raises(RecurosError, match="no server is called 'lerner'"):
        look(status, "server/lerner")
    with pytest.raises(RecurosError, match="no object is called 'window'"):
        look(status, "window")
    with pytest.raises(RecurosError, match="neither a state nor"):
        holds(windows, "committed=>3")


def test_a_table_aligns_and_hides_wide_columns() -> None:
    table = Table(
        [{"a": "x", "n": 5, "w": [1, 2]}, {"a": None, "n": 10.5, "w": []}], {"a": "A", "n": "N", "w": "W"}, wide=("w",)
    )
    assert format_rows(table, wide=False) == ["A     N", "x     5", "-  10.5"]
    assert format_rows(table, wide=True)[1] == "x     5  1,2"
    assert format_rows(Table([], {"a": "A"}, empty="none"), wide=False) == ["none"]


def test_documents_hold_json_only() -> None:
    assert plain({"a": float("nan"), "b": b"\x01", 3: (1, 2)}) == {"a": None, "b": "01", "3": [1, 2]}
    assert figures_of({"x": {"n": 1, "rows": [1, 2]}, "t": "s"}) == {"x": {"n": 1}, "t": "s"}
