"""Settings, manifests, explanations, completion and progress: what the command line says without a runtime."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from console import complete, settings
from console import main as console
from console.context import Context, Table, format_rows
from console.progress import progress
from syscalls.errors import CODES, RecurosError

RECUROS = [sys.executable, "-m", "console.start"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("RECUROS_") or name == "NO_COLOR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "project" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "deep")
    return tmp_path


def write_user(place: Path, text: str) -> None:
    (place / "config" / "recuros").mkdir(parents=True, exist_ok=True)
    (place / "config" / "recuros" / "config.toml").write_text(text, encoding="utf-8")


def shown(capsys: pytest.CaptureFixture[str], *before: str) -> dict[str, tuple[object, str]]:
    assert console.run([*before, "config", "show", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["settings"]
    return {row["name"]: (row["value"], row["origin"]) for row in rows}


def test_flag_beats_environment_beats_project_beats_user_beats_default(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys)["timeout"] == (30.0, "default")
    write_user(place, "timeout = 1\nrun = 'mine'\n")
    user = str(place / "config" / "recuros" / "config.toml")
    assert shown(capsys)["timeout"] == (1.0, user)
    assert shown(capsys)["run"] == (str(place / "config" / "recuros" / "mine"), user)
    project = place / "project" / "recuros.toml"
    project.write_text('timeout = 2\nrun = "runs/a"\n', encoding="utf-8")
    assert shown(capsys)["timeout"] == (2.0, str(project))
    assert shown(capsys)["run"] == (str(place / "project" / "runs" / "a"), str(project))
    monkeypatch.setenv("RECUROS_TIMEOUT", "3")
    assert shown(capsys)["timeout"] == (3.0, "environment RECUROS_TIMEOUT")
    assert shown(capsys, "--timeout", "4")["timeout"] == (4.0, "flag --timeout")


def test_a_setting_is_what_verbs_use(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "project" / "recuros.toml").write_text('run = "runs/a"\noutput = "name"\n', encoding="utf-8")
    assert console.run(["ps"]) == 3
    assert str(place / "project" / "runs" / "a") in capsys.readouterr().err
    assert console.run(["syscall", "--list"]) == 0
    assert "rl_set_kd" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tiemout = 3", "there is no setting 'tiemout'; did you mean timeout?"),
        ("timeout = -1", "timeout = -1 must be a number of seconds above 0"),
        ("output = 'yaml'", "output = 'yaml' must be one of table"),
        ("color = 7", "color = 7 must be true or false"),
        ("= 3", "is not TOML"),
    ],
)
def test_a_wrong_file_is_named(place: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_user(place, text)
    assert console.run(["config", "check"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "config.toml" in error


def test_no_color_in_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("RECUROS_COLOR", "true")
    assert settings.load()["color"].value is False
    assert not Context.configured().color


def test_every_value_of_a_manifest_has_an_origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["config", "show", "digits", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)["values"]}
    assert rows["app.seed"]["origin"].endswith("digits.toml")
    assert rows["app.deterministic"]["origin"] == "default"
    assert rows["server.learner.class"]["origin"] == "base.toml"
    assert rows["phase[distil].windows"]["value"] == 20


def test_a_manifest_is_checked_without_booting(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["config", "check", "digits"]) == 0
    assert "manifest of digits: 3 phases, 44 windows, 5 servers" in capsys.readouterr().out
    bad = place / "bad.toml"
    bad.write_text('[app]\nnaem = "x"\n', encoding="utf-8")
    assert console.run(["config", "check", str(bad)]) == 2
    assert "did you mean name?" in capsys.readouterr().err


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["explain", code, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["codes"]
    assert (row["code"], row["means"]) == (code, CODES[code])
    assert row["exit"] == RecurosError(code, "").exit_status


def test_an_exit_status_is_explained_by_its_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["explain", "3"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("exit status 3: not running\n")
    assert "E3-DOWN" in page
    assert console.run(["explain", "E6-ADMT"]) == 4
    assert "E6-ADMIT" in capsys.readouterr().err
    assert console.run(["explain", "nonsense"]) == 2
    assert console.run(["explain", "window/x", "--run", "/nonexistent"]) == 4


def words(text: str, context: Context | None = None) -> list[str]:
    return [word for word, _ in complete.line(console.cli, text, context or Context())]


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("recuros ", "boot"),
        ("recuros pro", "probe"),
        ("recuros probe ", "attach"),
        ("recuros --run /tmp/x probe de", "detach"),
        ("recuros -o ", "jsonl"),
        ("recuros ps -o js", "json"),
        ("recuros swap --dry", "--dry-run"),
        ("recuros swap --mode ", "ema"),
        ("recuros probe attach builtin:ck", "builtin:cka"),
        ("recuros kfs log --kind window.c", "window.commit"),
        ("recuros cap grant observer --rights steer,inter", "steer,interrupt"),
        ("recuros syscall rl_set", "rl_set_kd"),
        ("recuros boot ", "digits"),
        ("recuros learner interrupt ", "pause"),
        ("recuros explain E6", "E6-ADMIT"),
        ("recuros kfs 'lo", "log"),
    ],
)
def test_what_can_come_next_is_offered(text: str, has: str) -> None:
    assert has in words(text)


def test_completion_without_a_runtime_or_a_store_gives_nothing_and_no_error() -> None:
    nowhere = Context(run_option="/nonexistent")
    for text in ("recuros probe detach ", "recuros snapshot show ", "recuros wait --for x ser", "recuros logs "):
        assert words(text, nowhere) == []
    assert words("recuros no such thing ", nowhere) == []
    assert words("recuros ps ", nowhere) == []


BASH_TEST = """
source <(recuros completion bash)
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
ask() { COMP_LINE="$1"; COMP_POINT=${#1}; COMPREPLY=(); _recuros; printf '%s\\n' "${COMPREPLY[@]}"; echo --; }
ask 'recuros pr'
ask 'recuros probe attach builtin:ck'
complete -p recuros
"""


@pytest.fixture
def with_recuros(place: Path) -> dict[str, str]:
    """An environment whose PATH has the command of this tree."""
    tools = place / "tools"
    tools.mkdir()
    (tools / "recuros").write_text(f'#!/bin/sh\nexec {" ".join(RECUROS)} "$@"\n', encoding="utf-8")
    (tools / "recuros").chmod(0o755)
    root = Path(console.__file__).resolve().parents[1]
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(root), "HOME": str(place)}


def shell(name: str) -> str:
    """The shell's path; the test is skipped by name where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_bash_completes_and_takes_up_after_a_colon(with_recuros: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH_TEST], capture_output=True, text=True, check=True, env=with_recuros
    )
    assert done.stdout.split("--\n")[:2] == ["probe\n", "cka\n"]
    assert "-F _recuros recuros" in done.stdout


def test_fish_completes_with_what_a_word_is(with_recuros: dict[str, str], place: Path) -> None:
    fish = shell("fish")
    (place / "recuros.fish").write_text(complete.FISH, encoding="utf-8")
    script = "source recuros.fish; complete -C 'recuros prob'; complete -C 'recuros probe attach builtin:ck'"
    env = {**with_recuros, "XDG_CONFIG_HOME": str(place / "fish"), "XDG_DATA_HOME": str(place / "fish")}
    done = subprocess.run(
        [fish, "-N", "-c", script], check=True, capture_output=True, text=True, env=env, cwd=place, timeout=120
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"probe\t{console.VERBS['probe'][2]}", done.stderr
    assert lines[1].startswith("builtin:cka\t")


class Typed:
    """A shell at a pseudo-terminal: keys in, screen out."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, env)
        self.screen = ""

    def keys(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, wanted: str) -> None:
        deadline = time.monotonic() + 120
        while wanted not in self.screen:
            assert time.monotonic() < deadline, f"no {wanted!r} on the screen: {self.screen!r}"
            if select.select([self.fd], [], [], 1)[0]:
                self.screen += os.read(self.fd, 65_536).decode(errors="replace")

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def test_zsh_completes_at_its_prompt(with_recuros: dict[str, str], place: Path) -> None:
    zsh = shell("zsh")
    (place / "rc.zsh").write_text(f"autoload -Uz compinit; compinit -u -D\n{complete.ZSH}\necho re''ady\n", "utf-8")
    typed = Typed([zsh, "-f", "-i"], {**with_recuros, "TERM": "dumb", "PS1": "% "})
    try:
        typed.keys(f"source {place / 'rc.zsh'}\n")
        typed.until("ready")
        typed.keys("recuros prob\t")
        typed.until("recuros probe ")
        typed.keys("attach builtin:ck\t")
        typed.until("builtin:cka ")
        typed.keys("\x15recuros s\t")  # several: they are listed with what they are
        typed.until(console.VERBS["snapshot"][2][:20])
    finally:
        typed.end()


def test_a_narrow_terminal_gets_shortened_texts_and_whole_numbers() -> None:
    table = Table(
        [{"name": "observer", "pid": 123456, "what": "x" * 80, "why": "y" * 30}],
        {"name": "NAME", "pid": "PID", "what": "WHAT", "why": "WHY"},
    )
    lines = format_rows(table, wide=False, chars_max=50)
    assert max(map(len, lines)) <= 50
    assert "123456" in lines[1]
    assert "observer" in lines[1]
    assert lines[1].count("\N{HORIZONTAL ELLIPSIS}") == 2
    assert max(map(len, format_rows(table, wide=False, chars_max=20))) <= 20
    assert format_rows(table, wide=False)[1].count("x") == 80, "a pipe gets everything"


def test_progress_is_silent_when_quick_and_speaks_on_stderr_when_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("console.progress.time.monotonic", lambda: now[0])
    with progress("verify", moving=False, quiet=False) as tell:
        tell("records", 9, 9)  # quick: not a word
        tell("packs", 1, 4)
        now[0] = 6.0
        tell("packs", 2, 4)
        now[0] = 7.0
        tell("packs", 3, 4)  # too soon after the last line
        now[0] = 9.0
        tell("packs", 4, 4)  # the end of a part that took long
        tell("packs", 4, 4)
        now[0] = 20.0
        tell("steps", 500, 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "verify: packs 2 of 4\nverify: packs 4 of 4\nverify: steps 500\n"


def test_progress_is_json_where_the_data_is_and_nothing_when_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("console.progress.time.monotonic", lambda: now[0])
    for quiet in (True, False):
        now[0] = 0.0
        with progress("gc", moving=False, quiet=quiet, as_json=True) as tell:
            now[0] = 12.0
            tell("collection, in steps", 500, 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line) == {
        "schema": "recuros.progress/v1", "verb": "gc", "what": "collection, in steps", "done": 500, "total": None, "elapsed_s": 12.0
    }  # fmt: skip


def test_progress_on_a_terminal_is_a_bar_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("console.progress.time.monotonic", lambda: now[0])
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")  # whoever runs the tests may sit at a dumb one, which gets lines
    with progress("export", moving=True, quiet=False) as tell:
        now[0] = 3.0
        tell("proofs", 3, 7)
        tell("objects", 12, 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "export: proofs" in captured.err
    assert "3 of 7" in captured.err


def test_every_long_verb_of_the_store_tells_how_far_it_is(tmp_path: Path) -> None:
    from kfs.compactor import Compactor
    from kfs.fsck import fsck
    from kfs.gc import collect, plan
    from kfs.objects import blob
    from kfs.records import Record, RecordKind
    from kfs.store import Store
    from kfs.verify import verify

    told: list[tuple[str, int, int]] = []
    tell = lambda *args: told.append(args)  # noqa: E731
    with Store.open_writer(tmp_path / "store") as store:
        (kept,) = store.put([blob(b"evidence", "report")])
        args = {"window": 1, "applies_at": 3, "settings": {}, "pack": "starter"}
        store.append([Record("observer", RecordKind.POLICY, args, t_mono=1, input_ids=(kept,))])
        collect(store, plan(store, tell=tell), tell=tell)
        Compactor(store).run(tell=tell)
    assert {what for what, _, _ in told} >= {"records", "collection, in steps", "compaction, in steps"}
    told.clear()
    assert verify(tmp_path / "store", tell=tell).ok
    assert [row for row in told if row[1] == row[2]] == [("records", 1, 1), ("packs", 1, 1), ("references", 1, 1)]
    told.clear()
    assert fsck(tmp_path / "store", tell=tell).status == 0
    assert ("records", 1, 1) in told


def test_ctrl_c_while_modules_are_imported_exits_130_without_a_traceback() -> None:
    code = """
import sys, console.start
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
console.start.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
