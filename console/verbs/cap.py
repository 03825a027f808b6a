"""Capabilities: who may do what, by whose grant, and what came of it."""

from __future__ import annotations

from typing import Any, Final

import click

from console.context import Context, Table
from console.verb import changes, noun, verb
from syscalls.errors import RecurosError

SHOWN_MAX: Final = 20

cap = noun("cap", "Capabilities: who may do what.")


@verb(
    "ls",
    "Capabilities of a PRINCIPAL, or of this session: slot, kind, object, rights.",
    examples=("recuros cap ls", "recuros cap ls learner", "recuros cap ls observer --json"),
    exits=(3, 4, 5, 124),
)
@click.argument("principal", default="")
def ls(ctx: Context, principal: str) -> None:
    """Print one row a capability."""
    with ctx.client() as client:
        rows = client.cap_list(principal=principal)["caps"]
    columns = {
        "slot": "SLOT",
        "kind": "KIND",
        "object": "OBJECT",
        "rights": "RIGHTS",
        "badge": "BADGE",
        "parent": "PARENT",
    }
    table = Table(rows, columns, wide=("badge", "parent"), key="slot", empty="no capability")
    ctx.emit({"schema": "recuros.cap.ls/v1", "principal": principal, "caps": rows}, table)


@verb(
    "grant",
    "Give PRINCIPAL a capability with some of this session's rights. It stays when the session ends.",
    examples=(
        "recuros cap grant observer --rights steer",
        "recuros cap grant observer --rights steer,interrupt --badge night-shift",
        "recuros cap grant observer --rights steer --dry-run --json",
    ),
    right="grant",
    exits=(3, 4, 5, 124),
)
@click.argument("principal")
@click.option("--rights", required=True, metavar="R,R", help="Rights that this session holds, by name.")
@click.option("--badge", default="", metavar="TEXT", help="A mark that every derived capability keeps.")
@changes()
def grant(ctx: Context, principal: str, rights: str, badge: str, dry_run: bool, reason: str) -> None:
    """Derive from the session's own capability."""
    names = [name.strip() for name in rights.split(",") if name.strip()]
    with ctx.client() as client:
        if dry_run:
            answer = client.cap_derive(cap=1, rights=names, to=principal, badge=badge, dry_run=True)
        else:
            answer = client.change("cap_derive", reason=reason, cap=1, rights=names, to=principal, badge=badge)
    doc = {"schema": "recuros.cap.grant/v1", "principal": principal, "rights": names, "dry_run": dry_run, **answer}
    if dry_run:
        ctx.emit(doc, f"{principal} would get {', '.join(names)}; nothing was changed")
        return
    ctx.emit(doc, f"{principal} slot {answer['slot']}: {', '.join(names)}, ledger seq {answer['seq']}")


@verb(
    "revoke",
    "Take the capability in SLOT from PRINCIPAL with all derived from it; lists the snapshots that rest on it.",
    examples=(
        "recuros cap revoke observer 4",
        "recuros cap revoke observer 4 --dry-run",
        "recuros cap revoke learner 1 --dry-run --json",
    ),
    right="revoke",
    exits=(3, 4, 5, 124),
)
@click.argument("principal")
@click.argument("slot", type=click.IntRange(1, 1 << 32))
@changes()
def revoke(ctx: Context, principal: str, slot: int, dry_run: bool, reason: str) -> None:
    """Take it, at once; calls that wait under it are answered E5-DENIED."""
    with ctx.client() as client:
        if dry_run:
            answer = client.cap_take(principal=principal, cap=slot, dry_run=True)  # counts what would go
        else:
            answer = client.change("cap_take", reason=reason, principal=principal, cap=slot)
    history = _history(ctx, principal, slot)
    doc = {
        "schema": "recuros.cap.revoke/v1",
        "principal": principal,
        "slot": slot,
        "dry_run": dry_run,
        **answer,
        **history,
    }
    would = "would remove" if dry_run else "removed"
    text = f"{principal} slot {slot}: {would} {answer['removed']} capabilities"
    if not dry_run:
        text += f", {answer['cancelled']} waiting calls refused, ledger seq {answer['seq']}"
    ctx.emit(doc, "\n".join([text, *_history_lines(history)]))


@verb(
    "explain",
    "Where the capability in SLOT of PRINCIPAL comes from, what was decided under it, and the snapshots that rest on that.",
    examples=(
        "recuros cap explain learner 1",
        "recuros cap explain observer 4",
        "recuros cap explain learner 1 --json",
    ),
    exits=(3, 4, 5, 124),
)
@click.argument("principal")
@click.argument("slot", type=click.IntRange(1, 1 << 32))
def explain(ctx: Context, principal: str, slot: int) -> None:
    """The chain of parents from the kernel; the rest from the ledger."""
    chain: list[dict[str, Any]] = []
    at: list[Any] | None = [principal, slot]
    with ctx.client() as client:
        while at is not None:
            holder, number = str(at[0]), int(at[1])
            row = next((r for r in client.cap_list(principal=holder)["caps"] if r["slot"] == number), None)
            if row is None:
                raise RecurosError(
                    "E4-NOENT", f"{holder} holds no capability in slot {number}", hint=f"recuros cap ls {holder}"
                )
            chain.append({"holder": holder, **row})
            at = row["parent"]
    history = _history(ctx, principal, slot)
    doc = {"schema": "recuros.cap.explain/v1", "principal": principal, "slot": slot, "chain": chain, **history}
    lines = [
        f"{'  ' * depth}{r['holder']} slot {r['slot']}: {r['kind']} {r['object']}, {','.join(r['rights']) or 'no right'}"
        + (f", badge {r['badge']}" if r["badge"] else "")
        for depth, r in enumerate(reversed(chain))
    ]
    ctx.emit(doc, "\n".join([*lines, *_history_lines(history)]))


def _history(ctx: Context, principal: str, slot: int) -> dict[str, Any]:
    """What the ledger says of a capability."""
    from kfs.authority import trace
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store:
        found = trace(store.records(), principal, slot)
    return {
        "granted_seq": found.granted_seq,
        "ended_seq": found.ended_seq,
        "family": [list(key) for key in found.family],
        "used": [{"seq": r.seq, "actor": r.actor, "kind": str(r.kind)} for r in found.used],
        "snapshots": [{"seq": r.seq, "window": r.args["window"], "id": r.result_snap} for r in found.snapshots],
    }


def _history_lines(history: dict[str, Any]) -> list[str]:
    used, snapshots = history["used"], history["snapshots"]
    ended = f", taken at seq {history['ended_seq']}" if history["ended_seq"] >= 0 else ""
    lines = [f"since ledger seq {history['granted_seq']}{ended}: {len(used)} decisions, {len(snapshots)} snapshots"]
    lines += [f"  seq {u['seq']}  {u['kind']} by {u['actor']}" for u in used[-SHOWN_MAX:]]
    lines += [f"  window {x['window']}  {x['id']}" for x in snapshots[-SHOWN_MAX:]]
    if max(len(used), len(snapshots)) > SHOWN_MAX:
        lines.append(f"  the last {SHOWN_MAX} of each; all with --json")
    return lines


for _command in (ls, grant, revoke, explain):
    cap.add_command(_command)
