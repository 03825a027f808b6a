"""A replay window as a transaction: its states and the one table of legal transitions.

    ADMITTED -> RUNNING -> STAGED -> COMMITTED
                   \\-> MISSED <-/        (late, silent, failed, or its base went away)
                          \\-> ROLLED_BACK

A window is MISSED when its deadline passed before STAGED was received, or when it failed for another reason (which is
recorded). It is ROLLED_BACK when the learner has proved by digest that it is back at the base. Only a durable ledger
record makes it COMMITTED. After STAGED no timer touches it: the one way back from STAGED is that its predecessor,
whose state it stands on, did not commit, or that the store refused its record.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class WindowState(enum.StrEnum):
    """See the module docstring."""

    ADMITTED = "admitted"
    RUNNING = "running"
    STAGED = "staged"
    COMMITTED = "committed"
    MISSED = "missed"
    ROLLED_BACK = "rolled_back"


TRANSITIONS: dict[WindowState, frozenset[WindowState]] = {
    WindowState.ADMITTED: frozenset({WindowState.RUNNING}),
    WindowState.RUNNING: frozenset({WindowState.STAGED, WindowState.MISSED}),
    WindowState.STAGED: frozenset({WindowState.COMMITTED, WindowState.MISSED}),
    WindowState.MISSED: frozenset({WindowState.ROLLED_BACK}),
    WindowState.COMMITTED: frozenset(),
    WindowState.ROLLED_BACK: frozenset(),
}


@dataclass
class Window:
    """One attempt at one window. `base` and `snapshot` are root ids; times are CLOCK_MONOTONIC ns."""

    id: int
    attempt: int
    cursor: tuple[int, int, int]
    phase: dict[str, Any]
    step0: int
    steps: int
    base: str
    batch: str
    page_slot: int
    directives: list[list[Any]]
    policy: dict[str, Any]
    policy_seq: int
    state: WindowState = WindowState.ADMITTED
    granted_ns: int = 0
    deadline_ns: int = 0
    budget_ns: int = 0
    staged_ns: int = 0
    cpu_start_ns: int = 0
    periods: int = 1  # budgets it has had, each a period after the one before
    overran: bool = False  # its budget is used up, and the reservation's policy was told
    used_ns: int = 0
    step: int = 0
    live: dict[str, Any] = field(default_factory=dict)
    snapshot: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)  # weights and gate that its batches were made with
    evidence: str = ""  # object id of its trace and probe maps
    generation: int = 0
    swaps: int = 0
    rng_base: str = ""
    energy_mj: float | None = None  # the device's counter at the grant
    grant_seq: int = -1
    miss_code: str = ""
    miss_reason: str = ""

    def to(self, state: WindowState) -> None:
        """Move along the table; anything else is a bug in the kernel and stops it."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"window {self.id}: {self.state} -> {state} is not in the table")
        self.state = state
