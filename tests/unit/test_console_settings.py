"""Settings, manifests, explanations, completion and progress: what the command line says without a runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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


def test_bash_completes_and_takes_up_after_a_colon(place: Path) -> None:
    tools = place / "tools"
    tools.mkdir()
    (tools / "recuros").write_text(f'#!/bin/sh\nexec {" ".join(RECUROS)} "$@"\n', encoding="utf-8")
    (tools / "recuros").chmod(0o755)
    root = Path(console.__file__).resolve().parents[1]
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "--norc", "-c", BASH_TEST], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split("--\n")[:2] == ["probe\n", "cka\n"]
    assert "-F _recuros recuros" in done.stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_accept_their_scripts(shell: str, place: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = place / f"recuros.{shell}"
    script.write_text(complete.SCRIPTS[shell], encoding="utf-8")
    subprocess.run([shell, "-n", str(script)], check=True)


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
    with progress("reading", 4, moving=False, quiet=False) as advance:
        advance("a")
        now[0] = 3.0
        advance("b")
        now[0] = 4.0
        advance("c")
        now[0] = 9.0
        advance("d")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "reading: 2 of 4 (b)\n"


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
