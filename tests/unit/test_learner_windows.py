"""A window is a transaction: whatever stops it, all of the state is back bit for bit, and the next try gives the same bits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from servers.archivist.server import ArchivistService
from servers.learner import server
from servers.learner.server import LearnerService
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage, pack_arrays

STEPS = 5
SPEC: dict[str, Any] = {
    "teacher": {"kind": "patch", "layers": 2, "width": 16, "heads": 2},
    "student": {"kind": "patch", "layers": 1, "width": 8, "heads": 2},
    "optimizer": {"weight_decay": 0.05},
    "ema": 0.9,
    "kd": {"temperature": 2.0, "mix": 0.7, "alpha": 0.5},
}
PHASE = {"name": "distil", "index": 0, "train": "student", "windows": 4, "steps": STEPS, "lr": 3e-3}
PARTS = ("student", "ema", "optimizer", "rng", "cursor", "policy")
LATE_NS = 1 << 60


class Session:
    """A kernel session: a real archivist behind it, real sealed pages, every syscall kept; something may happen at any pump."""

    direct_caller = ""

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {
            "store": str(path),
            "run": str(path.parent),
            "seed": 7,
            "model": SPEC,
            "data": {},
        }
        self.caps = {"archivist": 2}
        self.pages: dict[int, tuple[int, int]] = {}
        self.handles = 0
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.pumps = 0
        self.at_pump: Callable[[int], None] = lambda number: None
        self.fails = ""
        self.archivist = ArchivistService(self)  # type: ignore[arg-type]  # the handlers use no more than this

    def offer(self, page: WritePage) -> int:
        self.handles += 1
        self.pages[self.handles] = (os.dup(page.fd), page.size)
        return self.handles

    def map(self, handle: int) -> ReadPage:
        fd, size = self.pages[handle]
        return ReadPage(os.dup(fd), size, handle)

    def release(self, handle: int) -> None:
        os.close(self.pages.pop(handle)[0])

    def pump(self) -> None:
        self.pumps += 1
        self.at_pump(self.pumps)

    def syscall(self, name: str, **columns: Any) -> dict[str, Any]:
        self.said.append((name, columns))
        if name == "window_staged" and columns["trace"]:
            self.release(columns["trace"])
        return {}

    def begin(self, method: str, **columns: Any) -> dict[str, Any]:
        assert method == "archivist.stage"
        return columns

    def finish(self, begun: dict[str, Any]) -> dict[str, Any]:
        if self.fails:
            raise RecurosError(self.fails, "the test says so")
        return self.archivist.stage(**begun)

    def last(self, name: str) -> dict[str, Any]:
        return next(columns for said, columns in reversed(self.said) if said == name)

    def batches(self, window: int) -> int:
        generator = torch.Generator().manual_seed(window)
        rows = []
        for step in range(STEPS):
            columns = {
                "ids": ("I64", torch.arange(8)),
                "labels": ("I64", torch.randint(0, 10, (8,), generator=generator)),
                "x": ("F32", torch.rand(8, 8, 8, generator=generator)),
                "weight": ("F32", torch.ones(8)),
            }
            for name, (dtype, tensor) in columns.items():
                rows.append((f"b{step}/{name}", dtype, tuple(tensor.shape), tensor.numpy().tobytes()))
        page = pack_arrays(rows, {"window": window})
        handle = self.offer(page)
        page.close()
        return handle


class Learner:
    """The real service on such a session."""

    def __init__(self, path: Path) -> None:
        self.kernel = Session(path)
        self.service = LearnerService(self.kernel)  # type: ignore[arg-type]

    def grant(
        self, window: int, *, deadline_ns: int = 0, base: str | None = None, directives: list[Any] | None = None
    ) -> None:
        self.service.grant(
            window=window,
            deadline_ns=deadline_ns or time.monotonic_ns() + LATE_NS,
            budget_ns=1,
            base=self.root() if base is None else base,
            phase=PHASE,
            step0=(window - 1) * STEPS,
            steps=STEPS,
            policy={"temperature": 2.0 + window / 10},
            directives=directives or ([["kd", {"mix": 0.5}]] if window == 2 else []),
            page=self.kernel.batches(window),
        )

    def run(self, window: int) -> str:
        self.grant(window)
        self.service.idle()
        name, columns = self.kernel.said[-1]
        assert (name, columns["window"]) == ("window_staged", window)
        return str(columns["snapshot"])

    def root(self) -> str:
        return self.service._engine.digest()

    def parts(self) -> dict[str, tuple[tuple[str, str], ...]]:
        leaves = self.service._engine.capture()
        found = {
            part: tuple(sorted((path, leaf.id) for path, leaf in leaves.items() if path.startswith(part + "/")))
            for part in PARTS
        }
        assert all(found.values()), "a part of the state is empty"
        return found


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[Learner]:
    learner = Learner(tmp_path / "store")
    yield learner
    assert not learner.kernel.pages, "a page was left behind"
    learner.service.drain()
    learner.kernel.archivist.drain()


def give_up(learner: Learner, step: int, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Arrange that the running window fails at its `step`-th pause point; the one after the last micro-step comes after staging."""
    first = learner.kernel.pumps

    def at(number: int) -> None:
        if number != first + step + 1:
            return
        if how == "abort":
            learner.service.abort(window=2, reason="still running at its deadline")
        else:
            monkeypatch.setattr(server.time, "monotonic_ns", lambda: LATE_NS << 2)

    learner.kernel.at_pump = at


@pytest.mark.parametrize("how", ["abort", "late"])
@pytest.mark.parametrize("step", range(STEPS))
def test_a_miss_at_any_micro_step_brings_every_part_of_the_state_back(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, step: int, how: str
) -> None:
    learner.run(1)
    base, before = learner.root(), learner.parts()
    learner.grant(2)
    with monkeypatch.context() as patch:
        give_up(learner, step, patch, how)
        learner.service.idle()
    said = learner.kernel.last("window_rolled_back")
    assert (said["window"], said["code"], said["restored"]) == (2, "E7-MISSED", base)
    assert said["step"] == step
    assert learner.parts() == before
    assert learner.root() == base


def test_every_part_of_the_state_is_changed_by_a_window(learner: Learner) -> None:
    learner.run(1)
    before = learner.parts()
    learner.run(2)
    after = learner.parts()
    assert {part for part in PARTS if before[part] != after[part]} == {*PARTS} - {"rng"}, (
        "else a miss would prove nothing"
    )


def test_after_misses_at_every_point_the_next_try_stages_the_very_same_snapshot(
    tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Learner(tmp_path / "quiet")
    want = [quiet.run(1), quiet.run(2)]
    quiet.kernel.archivist.drain()
    got = [learner.run(1)]
    for step in range(STEPS + 1):
        learner.grant(2)
        with monkeypatch.context() as patch:
            give_up(learner, step, patch, "abort")
            learner.service.idle()
        assert learner.kernel.last("window_rolled_back")["restored"] == got[0]
    learner.kernel.at_pump = lambda number: None
    got.append(learner.run(2))
    assert got == want


def test_a_window_that_cannot_be_stored_rolls_back(learner: Learner) -> None:
    learner.run(1)
    base, before = learner.root(), learner.parts()
    learner.kernel.fails = "E9-NOSPACE"
    learner.grant(2)
    learner.service.idle()
    said = learner.kernel.last("window_rolled_back")
    assert (said["code"], said["restored"]) == ("E9-NOSPACE", base)
    assert learner.parts() == before


def test_an_abort_that_overtakes_its_grant_is_answered_with_the_root_and_the_page_is_released(learner: Learner) -> None:
    root = learner.run(1)
    learner.grant(2)
    assert learner.kernel.pages
    learner.service.abort(window=2, reason="still running at its deadline")
    assert learner.kernel.said[-1] == (
        "window_rolled_back",
        {"window": 2, "code": "E7-MISSED", "reason": "still running at its deadline", "restored": root},
    )
    assert not learner.kernel.pages
    assert not learner.service.idle()
    assert learner.kernel.said[-1][0] == "window_rolled_back", "it was not begun afterwards"


def test_an_abort_of_a_window_that_is_not_held_says_nothing(learner: Learner) -> None:
    learner.run(1)
    learner.service.committed(window=1)
    said = len(learner.kernel.said)
    learner.service.abort(window=1, reason="too late")
    assert len(learner.kernel.said) == said


def test_a_staged_window_can_be_taken_back_until_it_is_committed(learner: Learner) -> None:
    built = learner.root()
    staged = learner.run(1)
    assert learner.root() == staged != built
    learner.service.abort(window=1, reason="its record was refused")
    assert learner.kernel.last("window_rolled_back")["restored"] == built
    assert learner.run(1) == staged


def test_a_grant_on_another_base_is_refused_with_the_root_that_is_held(learner: Learner) -> None:
    root = learner.run(1)
    learner.grant(2, base="b3:" + "0" * 64)
    learner.service.idle()
    said = learner.kernel.last("window_rolled_back")
    assert (said["window"], said["code"], said["restored"]) == (2, "E9-INTEGRITY", root)


def test_going_back_takes_the_state_of_the_snapshot_and_leaves_the_plan(learner: Learner) -> None:
    first = learner.run(1)
    before = learner.parts()
    learner.run(2)
    seen: list[dict[str, tuple[tuple[str, str], ...]]] = []
    learner.grant(3, directives=[["restore", {"snapshot": first}]])
    start = learner.kernel.pumps
    learner.kernel.at_pump = lambda number: seen.append(learner.parts()) if number == start + 1 else None
    learner.service.idle()
    assert learner.kernel.said[-1][0] == "window_staged"
    for part in ("student", "ema", "rng"):
        assert seen[0][part] == before[part], part
    assert seen[0]["cursor"] != before["cursor"]
    assert learner.kernel.last("window_staged")["metrics"]["step"] == 3 * STEPS
    assert learner.kernel.last("window_staged")["metrics"]["mix"] == 0.5, "what an operator set since stays"


def test_going_back_to_what_is_not_there_rolls_the_window_back(learner: Learner) -> None:
    root = learner.run(1)
    before = learner.parts()
    learner.grant(2, directives=[["restore", {"snapshot": "b3:" + "0" * 64}]])
    learner.service.idle()
    said = learner.kernel.last("window_rolled_back")
    assert (said["code"], said["restored"]) == ("E2-USAGE", root)
    assert "cannot go back to b3:000" in said["reason"]
    assert learner.parts() == before


def test_a_window_that_is_cut_short_is_staged_with_its_steps_and_the_plan_goes_on_behind_it(learner: Learner) -> None:
    """The schedule stands where it would after the whole window; the next one begins there and is whole again."""
    first = learner.kernel.pumps

    def at(number: int) -> None:
        if number == first + 2:
            learner.service.shorten(window=1)

    learner.kernel.at_pump = at
    learner.run(1)
    assert learner.kernel.said[-1][1]["metrics"]["steps"] == 1
    engine = learner.service._engine
    assert (engine.step, engine.phase_step) == (1, STEPS)
    learner.run(2)
    assert learner.kernel.said[-1][1]["metrics"]["steps"] == STEPS
    assert (engine.step, engine.phase_step) == (1 + STEPS, 2 * STEPS)
    learner.service.committed(1)
    learner.service.committed(2)


def test_a_deadline_that_was_moved_is_the_one_that_counts_for_that_attempt_only(learner: Learner) -> None:
    learner.grant(1, deadline_ns=1)
    learner.service.deadline(window=1, deadline_ns=time.monotonic_ns() + LATE_NS)
    learner.service.idle()
    assert learner.kernel.said[-1][0] == "window_staged"
    learner.service.abort(window=1, reason="its record was refused")
    learner.grant(1, deadline_ns=1)
    learner.service.idle()
    name, columns = learner.kernel.said[-1]
    assert (name, columns["code"]) == ("window_rolled_back", "E7-MISSED")
