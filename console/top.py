"""The screen of `recuros top`.

Responsible for: one picture of a runtime (servers, lanes, windows, utilisation, mailboxes, probes, memory) for any width, with
and without colour, from what `status`, `sched_show`, `channel_list` and `probe_list` answer. Refuses: figures that none of these
gave; what is not known is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from syscalls.client import Client

WIDE: Final = 100
MEDIUM: Final = 64
GOOD: Final = frozenset({"ready", "running", "committed", "done"})
BAD: Final = frozenset({"dead", "failed", "missed", "rolled back", "rolled_back"})
BAR_CHARS: Final = 20
SECOND_NS: Final = 1_000_000_000


@dataclass
class Sample:
    """One look at a runtime. `denied` says what this operator may not see, by the name of the syscall."""

    status: dict[str, Any]
    sched: dict[str, Any] = field(default_factory=dict)
    channels: list[dict[str, Any]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    denied: dict[str, str] = field(default_factory=dict)


def look(client: Client, timeout_s: float) -> Sample:
    """Ask everything once. The learner answers for its probes between steps; when it does not in time, the screen says so."""
    sample = Sample(client.syscall("status", timeout_s=timeout_s)["status"])
    asked = (("sched_show", "sched"), ("channel_list", "channels"), ("probe_list", "probes"))
    for name, column in asked:
        try:
            setattr(sample, column, client.syscall(name, timeout_s=timeout_s)[column])
        except RecurosError as error:
            if error.code.startswith("E3-"):
                raise
            sample.denied[column] = error.code
    return sample


def document(sample: Sample) -> dict[str, Any]:
    """The sample as `recuros top --json` prints it."""
    return {
        "schema": "recuros.runtime.top/v1",
        "status": sample.status,
        "sched": sample.sched,
        "channels": sample.channels,
        "probes": sample.probes,
        "denied": sample.denied,
    }


def rates(before: Sample | None, now: Sample) -> dict[str, float]:
    """The CPU share of each process between two looks, by name; empty for the first."""
    if before is None or before.status.get("boot") != now.status.get("boot"):
        return {}
    span_ns = now.status["uptime_ns"] - before.status["uptime_ns"]
    if span_ns <= 0:
        return {}
    old = {(name, pid): cpu_ns for name, pid, cpu_ns in _processes(before.status)}
    return {
        name: (cpu_ns - old[name, pid]) / span_ns
        for name, pid, cpu_ns in _processes(now.status)
        if (name, pid) in old and cpu_ns >= old[name, pid]
    }


def _processes(status: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    kernel = status.get("kernel", {})
    rows = [("kernel", kernel.get("pid", 0), kernel.get("cpu_ns", 0))]
    return rows + [(s["name"], s["pid"], s["cpu_ns"]) for s in status.get("servers", [])]


def screen(sample: Sample, width: int, shares: Mapping[str, float], note: str = "") -> RenderableType:
    """Everything, top to bottom; narrow terminals get fewer columns, not broken lines."""
    parts: list[RenderableType] = [
        _head(sample.status, width),
        _window(sample.status, width),
        _servers(sample.status, shares, width),
        _lanes(sample, width),
        _mailboxes(sample, width),
        _probes(sample, width),
        _memory(sample.status),
    ]
    if note:
        parts.append(Text(note, style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _head(s: Mapping[str, Any], width: int) -> Text:
    state = str(s.get("state", "-"))
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{s.get('app', '')} ", style="bold").append(state, style=_style(state))
    text.append(f"  up {_seconds(s.get('uptime_ns', 0) / SECOND_NS)}  gen {s.get('generation', 0)}")
    if width >= MEDIUM:
        text.append(f"  boot {s.get('boot', '')}  ledger {s.get('ledger', {}).get('size', 0)}")
    return text


def _window(s: Mapping[str, Any], width: int) -> RenderableType:
    window, counts, phase = s.get("window", {}), s.get("windows", {}), s.get("phase", {})
    grid = Table.grid(padding=(0, 1))
    step, steps = window.get("step", 0), window.get("steps", 0)
    chars = BAR_CHARS if width >= MEDIUM else 8
    done, planned = s.get("done_windows", 0), s.get("planned", 0)
    plan = f"{done} windows, repeating" if done > planned > 0 else f"{done} of {planned}"
    what = f"{phase.get('name') or '-'}  {plan}"
    grid.add_row(_label("plan"), _bar(done, planned, chars), Text(what, no_wrap=True, overflow="ellipsis"))
    left = f"{window['left_ns'] / 1e6:.0f} ms left" if window else "between windows"
    what = f"{window.get('id', '-')}  step {step}/{steps}  {left}"
    grid.add_row(_label("window"), _bar(step, steps, chars), Text(what, no_wrap=True, overflow="ellipsis"))
    text = Text(no_wrap=True, overflow="ellipsis")
    for name in ("committed", "missed", "rolled_back"):
        count = counts.get(name, 0)
        style = "red" if name != "committed" and count else ""
        text.append(f"{count} {name.replace('_', ' ')}  ", style=style)
    figures = s.get("metrics", {})
    text.append("".join(f"{k} {figures[k]:.4g}  " for k in ("loss", "cka") if isinstance(figures.get(k), int | float)))
    return Group(grid, text)


def _servers(s: Mapping[str, Any], shares: Mapping[str, float], width: int) -> Table:
    table = _table(width, ["SERVER", "STATE"], ["CPU %", "RSS MB"])
    if width >= MEDIUM:
        _add(table, ["CLASS"], ["PID", "CPU S", "QUEUED", "RESTARTS"])
    kernel = {"name": "kernel", "class": "kernel", "state": "running", **s.get("kernel", {})}
    for row in [kernel, *s.get("servers", [])]:
        state = str(row.get("state", "-"))
        share = shares.get(row["name"])
        cells: list[RenderableType] = [
            Text(row["name"]),
            Text(state, style=_style(state)),
            Text("-" if share is None else f"{share:.0%}".rstrip("%")),
            Text(f"{row.get('rss_bytes', 0) / 1e6:.0f}"),
        ]
        if width >= MEDIUM:
            cells += [
                Text(str(row.get("class", "-"))),
                Text(str(row.get("pid", "-"))),
                Text(f"{row.get('cpu_ns', 0) / 1e9:.1f}"),
                Text(str(row.get("queued", "-"))),
                Text(str(row.get("restarts", "-")), style="yellow" if row.get("restarts") else ""),
            ]
        table.add_row(*cells)
    return table


def _lanes(sample: Sample, width: int) -> RenderableType:
    if "sched" in sample.denied:
        return _denied("lanes", sample.denied["sched"])
    table = _table(width, ["LANE"], ["UTIL %", "BUDGET MS", "PERIOD MS"])
    if width >= MEDIUM:
        _add(table, ["OF"], ["DEADLINE MS", "USED S", "OVERRUNS"])
    for r in sample.sched.get("reservations", []):
        over = r.get("overruns", 0)
        cells = [
            Text(str(r.get("lane", "-"))),
            Text(f"{r.get('utilisation', 0) * 100:.0f}"),
            Text(f"{r.get('budget_ms', 0):g}"),
            Text(f"{r.get('period_ms', 0):g}"),
        ]
        if width >= MEDIUM:
            cells += [
                Text(str(r.get("name", "-"))),
                Text(f"{r.get('deadline_ms', 0):g}"),
                Text(f"{r.get('used_ns', 0) / 1e9:.1f}"),
                Text(str(over), style="yellow" if over else ""),
            ]
        table.add_row(*cells)
    fair = sample.sched.get("fair", [])
    served = sum(f.get("served_ns", 0) for f in fair)
    shares = [f"{f['name']} {f['served_ns'] / served:.0%}" for f in fair if served]
    line = Text("background  " + ("  ".join(shares) or "nothing yet"), no_wrap=True, overflow="ellipsis")
    return Group(table, line)


def _mailboxes(sample: Sample, width: int) -> RenderableType:
    if "channels" in sample.denied:
        return _denied("mailboxes", sample.denied["channels"])
    table = _table(width, ["MAILBOX"], ["WAITING", "REFUSED", "DROPPED"])
    if width >= MEDIUM:
        _add(table, [], ["BYTES", "IN FLIGHT", "ACCEPTED"])
    for c in sample.channels:
        lost = [Text(str(c.get(k, 0)), style="red" if c.get(k) else "") for k in ("refused", "dropped")]
        cells = [Text(c["server"]), Text(f"{c.get('messages', 0)}/{c.get('messages_max', 0)}"), *lost]
        if width >= MEDIUM:
            cells += [Text(str(c.get(k, 0))) for k in ("bytes", "in_flight", "accepted")]
        table.add_row(*cells)
    return table


def _probes(sample: Sample, width: int) -> RenderableType:
    if "probes" in sample.denied:
        return _denied("probes", sample.denied["probes"])
    if not sample.probes:
        return Text("probes      none attached", style="dim")
    table = _table(width, ["PROBE"], ["FIRED", "COST US", "DROPS"])
    if width >= MEDIUM:
        _add(table, ["HOOK"], [])
    if width >= WIDE:
        _add(table, ["OWNER"], ["TOTAL MS"])
    for p in sample.probes:
        dead = bool(p.get("evicted"))
        cells = [
            Text(f"{p['id']} {p.get('program', '')}", style="red" if dead else "", no_wrap=True, overflow="ellipsis"),
            Text(str(p.get("fired", 0))),
            Text(f"{p.get('cost_ns', 0) / 1e3:.1f}"),
            Text(str(p.get("drops", 0)), style="red" if p.get("drops") else ""),
        ]
        if width >= MEDIUM:
            cells.append(Text(str(p.get("hook", "-")), no_wrap=True, overflow="ellipsis"))
        if width >= WIDE:
            cells += [Text(str(p.get("owner", "-"))), Text(f"{p.get('total_ns', 0) / 1e6:.1f}")]
        table.add_row(*cells)
    return table


def _memory(s: Mapping[str, Any]) -> Text:
    own = s.get("kernel", {}).get("rss_bytes", 0) + sum(x.get("rss_bytes", 0) for x in s.get("servers", []))
    host = (s.get("device") or {}).get("host", {})
    text = Text(f"memory      {own / 1e6:.0f} MB of this runtime", no_wrap=True, overflow="ellipsis")
    if host.get("memory_available_bytes"):
        text.append(f", {host['memory_available_bytes'] / 1e9:.1f} of {host['memory_bytes'] / 1e9:.1f} GB free")
    if host.get("cpu_percent") is not None:
        text.append(f"; host CPU {host['cpu_percent']:.0f} %")
    return text


def _table(width: int, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", expand=False, width=None)
    _add(table, left, right)
    return table


def _add(table: Table, left: Sequence[str], right: Sequence[str]) -> None:
    for name in left:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)


def _bar(done: float, total: float, chars: int) -> Text:
    full = 0 if total <= 0 else min(chars, int(chars * done / total))
    return Text("#" * full, style="green") + Text("." * (chars - full), style="dim")


def _label(name: str) -> Text:
    return Text(f"{name:<7}", style="dim")


def _denied(what: str, code: str) -> Text:
    return Text(f"{what:<11} not shown: {code}", style="yellow")


def _style(state: str) -> str:
    return "green" if state in GOOD else "red" if state in BAD else "yellow"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"
