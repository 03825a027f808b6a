"""`recuros kfs at`, `diff` and `checkout`: what was, what changed, and a model directory of it.

Responsible for: printing what `kfs.at`, `kfs.diff` and `kfs.checkout` find. Refuses: writing into the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.context import Context, Table
from console.verb import verb

if TYPE_CHECKING:
    from kfs.diff import Row

RIGHT = "none: it reads the files of the run directory, and those need the file system's permission"


@verb(
    "at",
    "The whole state as of a record or a time: snapshot, policies, probes, capabilities, schedule, servers.",
    examples=("recuros kfs at -1", "recuros kfs at 120 --json", "recuros kfs at 2026-01-31T12:00:00"),
    right=RIGHT,
    exits=(4, 9),
)
@click.argument("when", metavar="SEQ|TIME")
def at(ctx: Context, when: str) -> None:
    """Fold the ledger up to there and print the state."""
    from console.verbs.kfs import When
    from kfs.at import seq_at, state_at
    from kfs.store import Store

    moment = When().convert(when, None, None)
    with Store.open_reader(ctx.run / "store") as store:
        seq = moment if isinstance(moment, int) else seq_at(store, int(moment.timestamp() * 1e9))
        state = state_at(store, seq).to_map()
    state["time"] = datetime.fromtimestamp(state["t_wall"] / 1e9, UTC).isoformat(timespec="milliseconds")
    ctx.emit({"schema": "recuros.kfs.at/v1", **state}, _state(state))


at.context_settings = {"ignore_unknown_options": True}  # -1 is a record and no option


def _state(s: dict[str, Any]) -> str:
    """The state for people: one line a subject."""
    done = s["committed"]
    halted = s["halted"]
    how = f"halted ({halted['mode']}: {halted['reason'] or '-'})" if halted else "paused" if s["paused"] else "up"
    lines = [
        f"record      {s['seq']}  {s['time']}",
        f"runtime     {s['app'] or '-'}, boot {s['boot'] or '-'} (number {s['boots']}), {how}",
        f"committed   window {done['window']}, snapshot {done['snapshot'] or '-'}, record {done['seq']}",
        f"windows     {_brief(s['windows'])}; open: {_list(str(w['window']) for w in s['open'])}",
        f"generation  {s['generation']}; swaps: {_list(_swap(w) for w in s['swaps'])}",
        f"kd          in force {_brief(s['kd']['in_force'])}; asked {_brief(s['kd']['asked'])}",
        f"policy      record {s['policy']['seq']}: {_brief(s['policy']['in_force'])}",
    ]
    for policy in s["policy"]["pending"]:
        lines.append(
            f"  pending   from window {policy['applies_at']}, record {policy['seq']}: {_brief(policy['settings'])}"
        )
    for window, why in s["policy"]["absent"].items():
        lines.append(f"  absent    for window {window}: {why}")
    lines += [
        f"gate        {_brief(s['gate'])}",
        f"directives  {_list(str(d[0]) for d in s['directives'])}",
        f"prunes      {_list(_brief(p['mask_spec']) for p in s['prunes'])}",
        "calibrated  " + _list(f"{mode}: {_brief(c['result'])}" for mode, c in s["calibration"].items()),
        f"schedule    {_schedule(s['schedule'])}",
        "scores      " + _list(f"{split}: {_scores(v)}" for split, v in s["scores"].items()),
        "pins        " + _list(f"{name} = {v['snapshot'][:11]}" for name, v in s["pins"].items()),
    ]
    lines += [f"probe       {p['id']}: {p['prog']} at {p['hook']}, {len(p['sites'])} sites" for p in s["probes"]]
    lines += [
        f"capability  {c['holder']} slot {c['slot']}: {', '.join(c['rights'])} on {c['object']}, badge {c['badge'] or '-'}"
        for c in s["capabilities"]
    ]
    lines += [
        f"server      {v['name']}: pid {v['pid']}, incarnation {v['incarnation']}, {v['state']}" for v in s["servers"]
    ]
    return "\n".join(lines)


def _list(items: Iterable[str]) -> str:
    return ", ".join(items) or "none"


def _swap(swap: dict[str, Any]) -> str:
    return f"{swap['mode']} in window {swap['window']} by {swap['by']}"


def _schedule(s: dict[str, Any]) -> str:
    if not s:
        return "none"
    budget, deadline, period = (s[f"{k}_ns"] // 1_000_000 for k in ("budget", "deadline", "period"))
    return f"{s['name']}: budget {budget} ms, deadline {deadline} ms, period {period} ms (record {s['seq']}, {s['by']})"


def _scores(scores: dict[str, Any]) -> str:
    found = [f"{role} {v['accuracy']:.4f}" for role, v in scores.items() if isinstance(v, dict) and "accuracy" in v]
    return "/".join(found) or "-"


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{k} {_brief(v)}" for k, v in value.items() if v not in ("", None)) + "}"
            if value
            else "none"
        )
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:11] if isinstance(value, str) and value.startswith("b3:") else str(value)


@verb(
    "diff",
    "What differs between two snapshots, tensor by tensor. A and B: an id, a name, w12, a record's number, or last.",
    examples=("recuros kfs diff w3 last", "recuros kfs diff 40 -1 --role student", "recuros kfs diff w1 w2 --json"),
    right=RIGHT,
    exits=(1, 4, 9),
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--role", metavar="ROLE", default="", help="Only below this role: student, teacher, ema, optimizer ...")
def diff(ctx: Context, a: str, b: str, role: str) -> int:
    """Print a row for each path that differs; exits 1 when some does, as diff does."""
    from console.tensors import compare
    from kfs import refs
    from kfs.diff import diff as rows_of
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store, ctx.progress("diff") as tell:
        roots = refs.resolve(store, a), refs.resolve(store, b)
        found = list(rows_of(store, *roots, compare, prefix=f"{role}/" if role else "", tell=tell))
        same = len(store.snapshot(roots[1])) - sum(row.status != "removed" for row in found)
    rows = [_row(row) for row in found]
    doc = {"schema": "recuros.kfs.diff/v1", "a": roots[0], "b": roots[1], "equal": not rows, "changes": rows}
    if not role:
        doc["same"] = same
    columns = {
        "path": "PATH",
        "status": "STATUS",
        "form": "FORM",
        "items": "ITEMS",
        "changed": "CHANGED",
        "l2": "L2",
        "max_abs": "MAX",
        "before": "BEFORE",
        "after": "AFTER",
    }
    ctx.emit(doc, Table(rows, columns, wide=("before", "after"), key="path", empty="nothing differs"))
    return 1 if rows else 0


diff.context_settings = {"ignore_unknown_options": True}


def _row(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"path": row.path, "status": row.status, "form": row.form}
    if row.change is not None:
        change = row.change
        found |= {"items": change.items, "changed": change.changed, "not_finite": change.not_finite}
        found |= {k: _finite(v) for k, v in (("l2", change.l2), ("max_abs", change.max_abs)) if v is not None}
    return {**found, "before": row.before, "after": row.after}


def _finite(value: float) -> float | str:
    """A difference of two finite numbers may overflow; JSON has no word for that."""
    return value if math.isfinite(value) else str(value)


@verb(
    "checkout",
    "Write a role of a snapshot as a model directory that transformers loads: safetensors, config, tokenizer.",
    examples=(
        "recuros kfs checkout last out/student",
        "recuros kfs checkout w12 out/teacher --role teacher",
        "recuros kfs checkout b3:2f9a51c0 out/ema --role ema --json",
    ),
    right="none: it reads the files of the run directory and writes DIR",
    exits=(4, 9),
)
@click.argument("snap", metavar="SNAP")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--role", metavar="ROLE", default="student", show_default=True, help="student, teacher or ema.")
def checkout(ctx: Context, snap: str, directory: Path, role: str) -> None:
    """Write the directory and say how to load it."""
    from kfs import refs
    from kfs.checkout import checkout as write
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store, ctx.progress("checkout") as tell:
        note = write(store, refs.resolve(store, snap), directory, role, tell=tell)
    doc = {"schema": "recuros.kfs.checkout/v1", "directory": str(directory), **note}
    text = [
        f"{directory}: {note['role']} of {note['snapshot']}, {note['tensors']} tensors",
        f"{note['form']['kind']}: {_form(note['form'])}",
        f"load it with {note['load']}",
    ]
    ctx.emit(doc, "\n".join(text))


def _form(form: dict[str, Any]) -> str:
    parts = [f"{form['parameters']:,} parameters"]
    if form["removed"]["parameters"]:
        gone = ", ".join(f"{form['removed'][k]} {k}" for k in ("heads", "neurons") if form["removed"][k])
        parts.append(f"{form['removed']['parameters']:,} are gone with {gone}")
    if form["zeros"]:
        parts.append(f"{form['zeros']:,} are zero, and written as zeros")
    return "; ".join(parts)
