"""`recuros top` through a real pseudo-terminal, against a running runtime of small servers."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
from harness import PATIENCE_S, Live, live

COMMAND = [sys.executable, "-m", "console.main"]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("top") / "run") as running:
        yield running


class Terminal:
    """A command on a pseudo-terminal of a given size."""

    def __init__(self, words: list[str], width: int, **env: str) -> None:
        self.main, side = pty.openpty()
        ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 60, width, 0, 0))
        self.before = termios.tcgetattr(side)
        self.text = ""
        self.side = side
        size = {"COLUMNS": "", "LINES": "", "TERM": "xterm", "NO_COLOR": "", **env}
        given = {k: v for k, v in {**os.environ, **size}.items() if v}
        self.process = subprocess.Popen(
            [*COMMAND, *words], stdin=side, stdout=side, stderr=side, env=given, start_new_session=True
        )

    def until(self, said: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while said not in self.text:
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self.main], [], [], 0.2)[0]:
                self.text += os.read(self.main, 1 << 16).decode()

    def press(self, key: bytes) -> None:
        os.write(self.main, key)

    def ends(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self.main], [], [], 0.05)[0]:
                self.text += os.read(self.main, 1 << 16).decode()
        while select.select([self.main], [], [], 0)[0]:
            self.text += os.read(self.main, 1 << 16).decode()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.main)
        os.close(self.side)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_it_moves_until_q_and_leaves_the_terminal_as_it_was(runtime: Live, terminals: list[Terminal]) -> None:
    terminal = Terminal(["--run", str(runtime.run), "top", "--period", "0.1"], 100)
    terminals.append(terminal)
    terminal.until("MAILBOX")
    seen = len(terminal.text)
    terminal.until("q quits")
    terminal.press(b"x")  # any other key is nothing
    while terminal.text[seen:].count("MAILBOX") < 2:
        terminal.text += os.read(terminal.main, 1 << 16).decode()
    assert "\x1b[32m" in terminal.text
    terminal.press(b"q")
    assert terminal.ends() == 0
    assert termios.tcgetattr(terminal.side)[3] == terminal.before[3]
    assert "\x1b[?1049l" in terminal.text  # the alternate screen was left


def test_a_narrow_terminal_without_colour_gets_neither_broken_lines_nor_colour(
    runtime: Live, terminals: list[Terminal]
) -> None:
    terminal = Terminal(["--run", str(runtime.run), "top", "--once"], 40, NO_COLOR="1")
    terminals.append(terminal)
    assert terminal.ends() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.text)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.text)
    assert "learner" in plain
    assert max(map(len, plain.splitlines())) <= 40


def test_ctrl_c_ends_it_as_an_interrupt(runtime: Live, terminals: list[Terminal]) -> None:
    terminal = Terminal(["--run", str(runtime.run), "top", "--period", "0.1"], 100)
    terminals.append(terminal)
    terminal.until("q quits")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ends() == 130
    assert termios.tcgetattr(terminal.side)[3] == terminal.before[3]


def test_off_a_terminal_it_prints_once_and_as_json_everything(runtime: Live) -> None:
    command = [*COMMAND, "--run", str(runtime.run), "top"]
    once = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert once.stdout.count("MAILBOX") == 1
    assert "\x1b" not in once.stdout
    found = json.loads(
        subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    )
    assert found["schema"] == "recuros.runtime.top/v1"
    assert {row["server"] for row in found["channels"]} == {s["name"] for s in found["status"]["servers"]}
    assert found["denied"] == {}


def test_a_runtime_that_goes_away_ends_it_with_3(tmp_path: Path, terminals: list[Terminal]) -> None:
    with live(tmp_path / "run") as running:
        terminal = Terminal(["--run", str(running.run), "top", "--period", "0.1"], 100)
        terminals.append(terminal)
        terminal.until("q quits")
        running.halt()
        assert terminal.ends() == 3
        assert "error[E3-" in terminal.text
