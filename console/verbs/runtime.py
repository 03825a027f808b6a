"""Verbs about the runtime as a whole: status, ps, wait, halt."""

from __future__ import annotations

import re
import time
from typing import Any, Final

import click

from console.context import Context, Table, cell, no_such
from console.verb import changes, verb
from syscalls.errors import RecurosError

POLL_S: Final = 0.2
HALT_TIMEOUT_S: Final = 90.0
FINAL: Final = ("done", "failed")
_CONDITION: Final = re.compile(r"([a-z_]+)(>=|<=|==|=|>|<)(-?\d+(?:\.\d+)?)\Z")


@verb(
    "status",
    "The whole runtime at a glance: state, plan, windows, scores, servers.",
    examples=("recuros status", "recuros status --json", "recuros status --run runs/first"),
    exits=(3, 124),
)
def status(ctx: Context) -> None:
    """Print the status map."""
    with ctx.client() as client:
        found = client.status()["status"]
    ctx.emit({"schema": "recuros.runtime.status/v1", **found}, _status_text(found))


@verb(
    "ps",
    "The processes: kernel and servers, with their class, state, CPU time and memory.",
    examples=("recuros ps", "recuros ps -o wide", "recuros ps -o name"),
    exits=(3, 124),
)
def ps(ctx: Context) -> None:
    """Print one row a process."""
    with ctx.client() as client:
        found = client.status()["status"]
    kernel = found.get("kernel", {})
    rows = [{"name": "kernel", "class": "kernel", "state": "running", **kernel}, *found.get("servers", [])]
    for row in rows:
        row["cpu_s"] = row.get("cpu_ns", 0) / 1e9
        row["rss_mb"] = row.get("rss_bytes", 0) / 1e6
    columns = {
        "name": "NAME",
        "class": "CLASS",
        "state": "STATE",
        "pid": "PID",
        "cpu_s": "CPU S",
        "rss_mb": "RSS MB",
        "queued": "QUEUED",
        "restarts": "RESTARTS",
        "rank": "RANK",
        "incarnation": "INCARNATION",
        "rights": "RIGHTS",
    }
    table = Table(rows, columns, wide=("rank", "incarnation", "rights"))
    ctx.emit({"schema": "recuros.runtime.ps/v1", "processes": rows}, table)


@verb(
    "halt",
    "Drain, commit and stop the runtime; nothing is left behind.",
    examples=("recuros halt", "recuros halt --now --dry-run", 'recuros halt --reason "host maintenance"'),
    right="interrupt",
    exits=(3, 5, 124),
)
@click.option("--now", is_flag=True, help="Roll the running window back instead of waiting for it.")
@changes()
def halt(ctx: Context, now: bool, reason: str, dry_run: bool) -> None:
    """Ask for a shutdown and wait until the run directory is free."""
    from recuros import wait_gone

    limit_s = HALT_TIMEOUT_S if ctx.timeout_option_s is None else ctx.timeout_option_s
    mode = "now" if now else "drain"
    doc = {"schema": "recuros.runtime.halt/v1", "run": str(ctx.run), "mode": mode}
    with ctx.client() as client:
        windows = client.status()["status"].get("windows", {})
        if dry_run:
            client.change("shutdown", dry_run=True, mode=mode)
            ctx.emit({**doc, "dry_run": True}, f"halt {ctx.run}: would be accepted; nothing was changed")
            return
        client.shutdown(mode=mode, reason=reason)
    wait_gone(ctx.run, limit_s)
    ctx.emit(doc, f"halted {ctx.run}; {windows.get('committed', 0)} windows were committed since its boot")


@verb(
    "wait",
    "Wait until a condition holds: OBJECT is runtime, windows, window/N, server/NAME or probe/ID.",
    examples=(
        "recuros wait windows --for 'committed>=10'",
        "recuros wait server/learner --for ready --timeout 300",
        "recuros wait probe/3 --for 'fired>=5'",
    ),
    exits=(1, 3, 4, 124),
)
@click.argument("what", metavar="OBJECT")
@click.option("--for", "condition", required=True, metavar="COND", help="A state, or NAME>=NUMBER.")
def wait(ctx: Context, what: str, condition: str) -> None:
    """Poll the status; without --timeout for as long as it takes."""
    deadline = None if ctx.timeout_option_s is None else time.monotonic() + ctx.timeout_option_s
    while True:
        with ctx.client() as client:
            found = client.status()["status"]
            if what.startswith("probe/"):
                found["probes"] = client.probe_list()["probes"]
        seen = look(found, what)
        if holds(seen, condition):
            ctx.emit(
                {"schema": "recuros.runtime.wait/v1", "object": what, "for": condition, "seen": seen},
                f"{what}: {condition}",
            )
            return
        if found.get("error"):
            raise RecurosError.from_wire(found["error"])
        if found.get("state") in FINAL:
            raise RecurosError(
                "E1-NO", f"{what} will not reach {condition}: the runtime is {found['state']}, {what} has {cell(seen)}"
            )
        if deadline is not None and time.monotonic() >= deadline:
            raise RecurosError(
                "E124-TIMEOUT", f"{what} did not reach {condition} in {ctx.timeout_s:g} s; {what} has {cell(seen)}"
            )
        time.sleep(POLL_S)


def look(status: dict[str, Any], what: str) -> dict[str, Any]:
    """The state and numbers of an object in a status map; E4-NOENT for an unknown object."""
    if what == "runtime":
        numbers = {k: v for k, v in status.items() if isinstance(v, int | float)}
        return {"state": status.get("state"), **numbers}
    if what == "windows":
        return {
            "state": status.get("window", {}).get("state"),
            "done": status.get("done_windows"),
            **status.get("windows", {}),
        }
    kind, _, name = what.partition("/")
    servers = {row["name"]: row for row in status.get("servers", [])}
    if kind == "window" and name.isdigit():
        return _window(status, int(name))
    if kind == "probe" and name.isdigit():
        return _probe(status, int(name))
    if kind != "server":
        raise no_such("object", what, ["runtime", "windows", "window/N", "probe/ID", *(f"server/{x}" for x in servers)])
    if name not in servers:
        raise no_such("server", name, list(servers))
    return {k: v for k, v in servers[name].items() if isinstance(v, int | float | str)}


def _window(status: dict[str, Any], number: int) -> dict[str, Any]:
    """A window by its number: `committed` when it is in the ledger, `pending` before it is granted."""
    if number <= status.get("done_windows", 0):
        return {"state": "committed"}
    window = status.get("window", {})
    if window.get("id") != number:
        return {"state": "pending"}
    return {
        "state": str(window.get("state", "")).lower(),
        **{k: window.get(k, 0) for k in ("step", "steps", "left_ns")},
    }


def _probe(status: dict[str, Any], number: int) -> dict[str, Any]:
    """A probe by its id: `attached`, `evicted`, or `gone` when no probe has the id (any more)."""
    row = next((row for row in status.get("probes", []) if row.get("id") == number), None)
    if row is None:
        return {"state": "gone", "fired": 0}
    state = "evicted" if row.get("evicted") else "attached"
    return {"state": state, **{k: v for k, v in row.items() if isinstance(v, int | float)}}


def holds(seen: dict[str, Any], condition: str) -> bool:
    """Whether `condition` is the state of `seen`, or a true comparison of one of its numbers; E2-USAGE for another name."""
    match = _CONDITION.match(condition)
    if match is None:
        if not condition.replace("-", "").replace("_", "").isalpha():
            raise RecurosError(
                "E2-USAGE",
                f"condition {condition!r} is neither a state nor NAME>=NUMBER",
                hint="--for 'committed>=10' or --for done",
            )
        return bool(seen.get("state") == condition)
    name, operator, text = match.groups()
    value = seen.get(name)
    if not isinstance(value, int | float):
        numbers = sorted(k for k, v in seen.items() if isinstance(v, int | float))
        raise RecurosError("E2-USAGE", f"there is no number {name!r} here", hint=f"numbers: {', '.join(numbers)}")
    wanted = float(text)
    return {
        ">=": value >= wanted,
        "<=": value <= wanted,
        ">": value > wanted,
        "<": value < wanted,
        "=": value == wanted,
        "==": value == wanted,
    }[operator]


def accuracies(status: dict[str, Any], split: str) -> tuple[float | None, float | None]:
    """(teacher, student) accuracy on a split, None where there is none; the teacher is the one before any role swap."""
    scores = status.get("scores", {}).get(split, {})
    teacher = status.get("reference", {}).get(split) or scores.get("teacher", {})
    return teacher.get("accuracy"), scores.get("student", {}).get("accuracy")


def _plan(found: dict[str, Any]) -> str:
    done, planned = found.get("done_windows", 0), found.get("planned", 0)
    return (
        f"{done} of {planned} windows"
        if done <= planned
        else f"{done} windows: the {planned} planned, and its last phase again"
    )


def _policy(settings: Any) -> str:
    if not isinstance(settings, dict) or not settings:
        return "none"
    return " ".join(f"{k}={cell(v)[:11] if str(v).startswith('b3:') else cell(v)}" for k, v in settings.items())


def _status_text(found: dict[str, Any]) -> str:
    phase, window, windows = found.get("phase", {}), found.get("window", {}), found.get("windows", {})
    lines = [
        f"{found.get('app')}  {found.get('state')}  boot {found.get('boot')}  up {found.get('uptime_ns', 0) / 1e9:.0f} s",
        f"plan      {_plan(found)}, generation {found.get('generation', 0)}",
    ]
    if phase:
        lines.append(f"phase     {phase.get('name')}  window {phase.get('window')} of {phase.get('windows')}")
    if window:
        step, steps = window.get("step", 0), window.get("steps", 0)
        lines.append(
            f"window    {window.get('id')} {window.get('state')}  step {step} of {steps}, {window.get('left_ns', 0) / 1e6:.0f} ms left"
        )
    lines.append("windows   " + ", ".join(f"{windows.get(k, 0)} {k.replace('_', ' ')}" for k in windows))
    metrics = {k: v for k, v in found.get("metrics", {}).items() if k in ("loss", "task", "kd", "hint", "step_ms")}
    if metrics:
        lines.append("metrics   " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, int | float)))
    for split in found.get("scores", {}):
        teacher, student = accuracies(found, split)
        if teacher and student is not None:
            lines.append(f"{split:<10} teacher {teacher:.4f}, student {student:.4f}, retention {student / teacher:.3f}")
    if found.get("cka") is not None:
        lines.append(f"cka       {found['cka']:.4f}")
    lines.append(f"probes    {', '.join(str(p.get('prog')) for p in found.get('probes', [])) or 'none'}")
    lines.append(f"policies  {found.get('policies', 0)}  in force: {_policy(found.get('policy'))}")
    ledger = found.get("ledger", {})
    lines.append(f"ledger    {ledger.get('size', 0)} records, root {str(ledger.get('root', ''))[:16]}")
    lines.append(f"snapshot  {found.get('snapshot') or 'none yet'}")
    states = [f"{row['name']} {row['state']}" for row in found.get("servers", [])]
    lines.append(f"servers   {', '.join(states)}")
    if found.get("error"):
        lines.append(str(RecurosError.from_wire(found["error"])))
    return "\n".join(lines)
