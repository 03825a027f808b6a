"""The tutorials, as typed: every command of a page in one shell, against a real runtime, with the lines that it promises.

The first page takes the tour, so this is the tour's test too. The clone it speaks of is a scratch directory with the packaged app
cut short, a Makefile whose `boot` is the real one less the set-up, and a `.venv/bin/activate` that leads to the environment of
these tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import recuros

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "tutorial"
LIMIT_S = 280
SHORTER = {"windows = 16": "windows = 2", "windows = 20": "windows = 4", "windows = 8": "windows = 2"} | {
    "steps = 25": "steps = 5",
    "eval-every = 10": "eval-every = 4",
}


@dataclass
class Command:
    """A command of the page, the lines promised, and what running it gave."""

    text: str
    expected: list[str] = field(default_factory=list)
    status: int = 0
    output: str = ""


def commands(page: str) -> list[Command]:
    """The page's console blocks: `$ ` begins a command, `> ` continues it, everything else is promised output.

    All of a text block is output of the command before it, also what begins with `$ `.
    """
    found: list[Command] = []
    text = (PAGES / page).read_text(encoding="utf-8")
    for kind, block in re.findall(r"```(console|text)\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ ") and kind == "console":
                found.append(Command(line[2:]))
            elif re.match(r">( |$)", line) and not found[-1].expected:
                found[-1].text += "\n" + line[2:]
            elif line.strip():
                found[-1].expected.append(line)
    return found


def pattern(line: str) -> re.Pattern[str]:
    """`...` stands for anything, runs of spaces for each other."""
    words = [".*".join(map(re.escape, word.split("..."))) for word in line.split()]
    return re.compile(r"\s+".join(words).replace(r".*\s+", r".*\s*").replace(r"\s+.*", r"\s*.*"))


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "clone"
    (place / "servers" / "apps").mkdir(parents=True)
    text = (ROOT / "servers" / "apps" / "digits.toml").read_text(encoding="utf-8")
    for old, new in SHORTER.items():
        assert old in text, f"digits.toml no longer says {old!r}"
        text = text.replace(old, new)
    (place / "servers" / "apps" / "digits.toml").write_text(text, encoding="utf-8")
    (place / "Makefile").write_text("boot:\n\trecuros doctor\n\trecuros boot -c servers/apps/digits.toml\n")
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    yield place
    for run in (place / ".recuros", place / "runs" / "tour", place / "runs" / "hand"):
        if run.is_dir() and (pid := recuros.holder(run)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # a failed page leaves its runtime; the supervisor takes everything along
            recuros.wait_gone(run, 30.0)


def run(steps: list[Command], place: Path) -> None:
    """All commands in one bash; a line after each carries its number and its exit status, and keeps `$?` as it was."""
    mark = "@@end"
    script = "".join(
        f"{step.text}\n_s=$?; printf '\\n{mark} {i} %d\\n' $_s; (exit $_s)\n" for i, step in enumerate(steps)
    )
    (place / "page.sh").write_text(script, encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RECUROS_")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        ["bash", "page.sh"],
        stdin=subprocess.DEVNULL,
        cwd=place,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    rest = done.stdout
    for i, step in enumerate(steps):
        found = re.search(rf"^{mark} {i} (\d+)\n", rest, re.MULTILINE)
        assert found, f"`{step.text}` did not end; so far:\n{rest}"
        step.output, step.status = rest[: found.start()], int(found[1])
        rest = rest[found.end() :]


def check(step: Command, following: Command | None) -> None:
    """The exit status is 0, or the one that the page prints next; the promised lines come in their order."""
    promised = 0
    if following is not None and following.text == "echo $?":
        promised = int(following.expected[0])
    assert step.status == promised, f"`{step.text}` exited {step.status}:\n{step.output}"
    lines = iter(step.output.splitlines())
    for line in step.expected:
        wanted = pattern(line)
        assert any(wanted.search(" ".join(seen.split())) for seen in lines), (
            f"`{step.text}` did not print {line!r} where the page has it, but:\n{step.output}"
        )


def walk(page: str, place: Path) -> list[Command]:
    steps = commands(page)
    run(steps, place)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        check(step, following)
    return steps


@pytest.mark.skipif(shutil.which("make") is None, reason="the page needs make")
def test_the_first_boot_and_the_tour_do_what_the_page_says(clone: Path) -> None:
    steps = walk("first-boot.md", clone)
    assert len(next(s for s in steps if "tour" in s.text).expected) > 30
    assert not list((clone / "runs").glob("*-damaged"))


def test_by_hand_does_what_it_says(clone: Path) -> None:
    steps = walk("by-hand.md", clone)
    assert len(steps) > 25
    counted = [
        float(re.search(r"^ +count +([\d.e+]+)", s.output, re.MULTILINE)[1])  # type: ignore[index]
        for s in steps
        if s.text == "recuros probe stats 7"
    ]
    assert counted == sorted(set(counted))
    assert len(counted) == 2
    resumed = re.findall(r"resumed_from=(-?\d+)", next(s for s in steps if "--kind boot" in s.text).output)
    assert resumed[0] == "-1"
    assert int(resumed[1]) > 0
