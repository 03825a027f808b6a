"""What the host says of processes: descent, files that they keep, and what a silent one is doing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kernel import procs
from syscalls.pages import ReadPage, WritePage


def test_the_line_of_a_process_begins_with_itself_and_its_parent() -> None:
    line = procs.ancestors(os.getpid())
    assert line is not None
    assert line[:2] == [os.getpid(), os.getppid()]
    assert line[-1] <= 1 or procs.parent_pid(line[-1]) is None


def test_nobody_can_tell_the_line_of_a_process_that_has_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert procs.ancestors(child.pid) is None
    assert procs.parent_pid(child.pid) is None
    assert procs.describe(child.pid) == "gone"
    assert procs.cpu_ns(child.pid) == procs.rss_bytes(child.pid) == 0
    assert procs.has_file(child.pid, 1, 1) is False


def test_a_line_that_is_cut_in_the_middle_is_walked_again_and_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, above = os.getpid(), os.getppid()
    true = procs.parent_pid
    seen: list[int] = []

    def once(pid: int) -> int | None:
        seen.append(pid)
        return None if pid == above and seen.count(above) == 1 else true(pid)

    monkeypatch.setattr(procs, "parent_pid", once)
    line = procs.ancestors(here)
    assert line is not None
    assert line[:2] == [here, above]
    monkeypatch.setattr(procs, "parent_pid", lambda pid: None if pid == above else true(pid))
    assert procs.ancestors(here) is None
    monkeypatch.setattr(procs, "_is_anothers", lambda pid: pid == above)
    assert procs.ancestors(here) == [here, above], "another user's process, which the host hides"


def test_a_page_is_found_while_it_is_mapped_or_open() -> None:
    page = WritePage(4096)
    file = os.fstat(page.fd)
    has = lambda: procs.has_file(os.getpid(), file.st_dev, file.st_ino)  # noqa: E731
    assert has() is True
    reader = ReadPage(os.dup(page.fd), 4096)
    page.close()
    assert has() is True, "mapped, and no descriptor is left"
    reader.close()
    assert has() is False


def test_a_silent_process_is_described_by_its_state() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        assert procs.describe(child.pid).startswith("state ")
        assert "s of CPU time" in procs.describe(child.pid)
    finally:
        child.communicate()
