"""The shell on a real pseudo-terminal, against a real kernel."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Live, live

from console.programs import compile_name
from probes import isa
from recuros import connect

LIMIT_S = 30.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07|\r")
PROMPT = r"L0@\d+ gen\d+ \[rstx\]>"
UP, TAB, CTRL_C, CTRL_D = "\x1b[A", "\t", "\x03", "\x04"


class Terminal:
    """A process on a pseudo-terminal of 120 columns."""

    def __init__(self, *words: str, env: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.text = ""
        kept = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "console.start", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal  # noqa: PLW1509
            env={**kept, "TERM": "xterm", "COLUMNS": "120", "LINES": "40", "PROMPT_TOOLKIT_NO_CPR": "1", **env},
        )
        os.close(slave)

    def expect(self, wanted: str) -> str:
        """Read until the pattern was printed; what came up to its end is taken."""
        deadline = time.monotonic() + LIMIT_S
        while not (found := re.search(wanted, self.text)):
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} did not come in {LIMIT_S:g} s; on the screen:\n{self.text[-3000:]}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    data = os.read(self.master, 65_536)
                except OSError:  # the other side is closed
                    data = b""
                assert data, f"the shell ended before {wanted!r}; on the screen:\n{self.text[-3000:]}"
                self.text = ESCAPES.sub("", self.text + data.decode("utf-8", "replace"))
        taken, self.text = self.text[: found.end()], self.text[found.end() :]
        return taken

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("shell") / "run") as running:
        running.goes_on(2)
        yield running


@pytest.fixture
def terminal(runtime: Live, tmp_path: Path) -> Iterator[Terminal]:
    env = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    found = Terminal("shell", "--run", str(runtime.run), "--record", str(tmp_path / "tape"), env=env)
    yield found
    found.close()


def test_a_session_on_a_terminal(terminal: Terminal, runtime: Live, tmp_path: Path) -> None:
    terminal.expect(PROMPT)
    terminal.type("ps -o name\r")
    assert "archivist" in terminal.expect(r"observer\n")

    terminal.expect(PROMPT)
    terminal.type(f"wait server/le{TAB}")
    terminal.expect(r"wait server/learner|arner")
    terminal.type(" --for ready\r")
    terminal.expect(PROMPT)

    terminal.type("nonsense\r")
    terminal.expect(r"error\[E2-USAGE\]: no command is called 'nonsense'")
    terminal.expect(PROMPT)

    terminal.type("shell\r")
    terminal.expect("this is the shell already")
    terminal.expect(PROMPT)

    terminal.type("watch -n 0.01 -c 3 syscall status --json\r")
    for _ in range(3):
        terminal.expect(r"every 0\.01 s: syscall status --json")
    terminal.expect(PROMPT)

    terminal.type("watch -n 0.05 status\r")
    terminal.expect(r"every 0\.05 s: status")
    terminal.type(CTRL_C)
    terminal.expect(PROMPT)

    terminal.type("learner pause --reason 'a look'\r")
    terminal.expect(r"pause: ledger seq \d+, effective at step \d+")
    terminal.expect(PROMPT)
    terminal.type(f"{UP}{CTRL_C}")  # what was typed last, given up
    terminal.expect(r"learner pause --reason 'a look'")
    terminal.expect(PROMPT)
    terminal.type("learner resume\r")
    terminal.expect(r"resume: ledger seq \d+")
    terminal.expect(PROMPT)

    terminal.type("wait runtime --for done\r")
    time.sleep(0.3)  # it waits for what never comes: there is nothing to see that could be awaited
    terminal.type(CTRL_C)
    terminal.expect("interrupted")
    terminal.expect(PROMPT)
    terminal.type(CTRL_D)
    assert terminal.process.wait(LIMIT_S) == 0

    tape = (tmp_path / "tape").read_text(encoding="utf-8").splitlines()
    assert tape[0] == "ps -o name"
    assert "# exit 2: nonsense" in tape
    assert "learner pause --reason 'a look'" in tape
    assert "# exit 130: wait runtime --for done" in tape
    history = (tmp_path / "state" / "recuros" / "history").read_text(encoding="utf-8")
    assert "learner resume" in history


def test_ids_that_are_live_are_completed(terminal: Terminal, runtime: Live) -> None:
    with connect(runtime.run) as client:
        program = compile_name("on_forward:student/blocks.* { @rms[layer] = hist(rms(x)) }")[0]
        digest = client.rl_load_probe(program=isa.encode(program))["digest"]
        probe = client.rl_attach_probe(hook="", prog=digest)["id"]
        name = f"mark-{probe}"
        client.syscall("rl_snapshot", name=name)
    terminal.expect(PROMPT)
    terminal.type("probe detach ")
    terminal.type(TAB)
    terminal.expect(rf"detach ?{probe}")
    terminal.type("\r")
    terminal.expect(r"ledger seq \d+")
    terminal.expect(PROMPT)
    terminal.type(f"snapshot show mar{TAB}")
    terminal.expect(rf"k-{probe}")
    terminal.type("\r")
    terminal.expect(rf"names +{name}")
    terminal.expect(PROMPT)


def test_a_recorded_session_is_a_script(runtime: Live, tmp_path: Path) -> None:
    tape = tmp_path / "tape"
    first = "ps -o name\nnot a verb\n"
    words = [sys.executable, "-P", "-m", "console.start", "shell", "--run", str(runtime.run)]
    done = subprocess.run(
        [*words, "--record", str(tape)], input=first, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 2
    assert tape.read_text(encoding="utf-8").splitlines() == ["ps -o name", "# exit 2: not a verb"]
    again = subprocess.run(
        words, input=tape.read_text(encoding="utf-8"), capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert again.returncode == 0
    assert again.stdout == done.stdout


def test_the_prompt_says_when_there_is_no_runtime(tmp_path: Path) -> None:
    terminal = Terminal("shell", "--run", str(tmp_path / "nothing"), env={"XDG_STATE_HOME": str(tmp_path)})
    try:
        terminal.expect(r"down>")
        terminal.type("ps\r")
        terminal.expect(r"error\[E3-DOWN\]")
        terminal.type("exit\r")
        assert terminal.process.wait(LIMIT_S) == 0
    finally:
        terminal.close()
