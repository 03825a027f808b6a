"""The screen of `recuros top`: any width, with and without colour, and what it says of what it may not see."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from console.top import Sample, rates, screen

STATUS: dict[str, Any] = {
    "state": "running",
    "app": "digits",
    "boot": "76ad249f0b4d562e",
    "uptime_ns": 10_000_000_000,
    "generation": 3,
    "planned": 44,
    "done_windows": 11,
    "phase": {"name": "distil"},
    "window": {"id": 12, "step": 5, "steps": 25, "left_ns": 2_500_000_000, "state": "running"},
    "windows": {"granted": 12, "committed": 11, "missed": 1, "rolled_back": 1},
    "metrics": {"loss": 0.53274, "cka": None},
    "ledger": {"size": 55},
    "kernel": {"pid": 9, "rss_bytes": 30_000_000, "cpu_ns": 1_000_000_000},
    "servers": [
        {
            "name": "learner",
            "class": "edf",
            "pid": 10,
            "state": "ready",
            "rss_bytes": 360_000_000,
            "cpu_ns": 8_000_000_000,
            "queued": 2,
            "restarts": 1,
        }
    ],
    "device": {"host": {"memory_bytes": 25e9, "memory_available_bytes": 23e9, "cpu_percent": 91.0}},
}
SCHED = {
    "reservations": [
        {"name": "replay", "lane": "learner", "budget_ms": 3000.0, "deadline_ms": 4000.0, "period_ms": 4000.0}
        | {"utilisation": 0.75, "used_ns": 5_720_275_783, "overruns": 1}
    ],
    "fair": [{"name": "gpu", "served_ns": 1}, {"name": "observer", "served_ns": 3}],
}
CHANNELS = [{"server": "learner", "messages": 3, "messages_max": 64, "bytes": 99, "refused": 2, "dropped": 0}]
PROBES = [
    {"id": 1, "program": "builtin:cka", "hook": "on_kd_step", "owner": "me", "fired": 7, "cost_ns": 1500, "drops": 4}
]


def sample(**denied: str) -> Sample:
    return Sample(STATUS, SCHED, CHANNELS, PROBES, denied)


def drawn(shown: Sample, width: int, *, colour: bool = False, shares: dict[str, float] | None = None) -> str:
    out = io.StringIO()
    system = "standard" if colour else None
    console = Console(file=out, width=width, color_system=system, force_terminal=colour, highlight=False)
    console.print(screen(shown, width, shares or {}))
    return out.getvalue()


@pytest.mark.parametrize("width", [36, 40, 63, 64, 80, 99, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_what_matters_is_there(width: int) -> None:
    text = drawn(sample(), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(word in text for word in ("digits running", "learner", "SERVER", "LANE", "MAILBOX", "PROBE", "memory"))
    assert "11 of 44" in text
    assert "75" in text
    assert ("HOOK" in text) == (width >= 64)
    assert ("OWNER" in text) == (width >= 100)


def test_colour_is_only_added_to_the_same_text() -> None:
    plain, coloured = drawn(sample(), 100), drawn(sample(), 100, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[31m" in coloured  # a miss is red
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_what_an_operator_may_not_see_is_said_and_not_shown_as_empty() -> None:
    text = drawn(sample(sched="E5-DENIED", channels="E5-DENIED", probes="E124-TIMEOUT"), 100)
    assert "lanes       not shown: E5-DENIED" in text
    assert "mailboxes   not shown: E5-DENIED" in text
    assert "probes      not shown: E124-TIMEOUT" in text


def test_a_runtime_between_windows_and_without_probes_is_drawn() -> None:
    bare = Sample({**STATUS, "window": {}, "metrics": {}, "device": {}})
    assert "between windows" in drawn(bare, 80)
    assert "none attached" in drawn(bare, 80)


def test_a_share_of_the_cpu_is_time_used_over_time_gone_and_starts_anew_with_a_process() -> None:
    later = {**STATUS, "uptime_ns": 12_000_000_000}
    servers = [{**STATUS["servers"][0], "cpu_ns": 9_000_000_000}]
    assert rates(None, sample()) == {}
    assert rates(sample(), Sample({**later, "servers": servers})) == {"kernel": 0.0, "learner": 0.5}
    assert "50" in drawn(sample(), 80, shares={"learner": 0.5})
    reborn = [{**servers[0], "pid": 11}]
    assert rates(sample(), Sample({**later, "servers": reborn})) == {"kernel": 0.0}
    assert rates(sample(), Sample({**later, "boot": "another"})) == {}
