"""`recuros kfs gc | fsck`: space, and what a repair can mend.

Responsible for: printing plans and findings, and handing a plan to whoever may write. Refuses: choosing; that is `kfs.gc`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from console.context import Context, Table
from console.verb import verb
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from kfs.gc import Plan
    from kfs.tell import Tell

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(%|[kMGT]?)\Z")
_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_IDS_MAX: Final = 8_192  # of one call to a runtime; a frame holds 1 MiB


class Size(click.ParamType[tuple[float, str]]):
    """Bytes, with k, M, G or T for powers of 1000, or a percentage."""

    name = "BYTES|N%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, str]:
        """To a number and its unit."""
        if isinstance(value, tuple):
            return value
        found = _SIZE.match(value)
        if found is None:
            self.fail(f"{value!r} is not a size such as 500M, 1000000 or 50%", param, ctx)
        return float(found[1]), found[2]


@verb(
    "gc",
    "Choose the snapshots least worth their bytes and give them up; their records stay, and audits say which plan took them.",
    examples=(
        "recuros kfs gc --plan --budget 50%",
        "recuros kfs gc --apply --budget 2G --keep-last 20 --pin before-swap --yes",
        "recuros kfs gc --apply --compact --yes",
    ),
    right="steer, when a runtime is up; otherwise the file system's permission",
    exits=(1, 3, 4, 5, 9, 75),
)
@click.option("--plan", "plan_only", is_flag=True, help="Show what would go, and change nothing [the default].")
@click.option("--dry-run", is_flag=True, help="Same as --plan; with --apply the writer also checks the plan.")
@click.option("--apply", "apply_", is_flag=True, help="Record the plan and carry it out.")
@click.option("--budget", type=Size(), help="What may stay. Without it only packs go that no record names.")
@click.option(
    "--keep-last", type=click.IntRange(2), default=8, metavar="N", help="Never the states of the last N commits [8]."
)
@click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="REF",
    help="Never this snapshot: id, beginning of one, or name. Repeatable.",
)
@click.option(
    "--grace", type=click.IntRange(0), metavar="N", help="Unlink after N more records [64]; only without a runtime."
)
@click.option("--compact", is_flag=True, help="Also re-encode old packs now; only without a runtime.")
@click.option("--reason", default="", metavar="TEXT", help="Goes into the ledger.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def gc(
    ctx: Context,
    *,
    plan_only: bool,
    dry_run: bool,
    apply_: bool,
    budget: tuple[float, str] | None,
    keep_last: int,
    pins: tuple[str, ...],
    grace: int | None,
    compact: bool,
    reason: str,
    yes: bool,
) -> int:
    """Plan as a reader; apply through the archivist, or under the lock when there is none."""
    from kfs.gc import plan as make_plan
    from kfs.store import Store

    if plan_only and apply_:
        raise RecurosError("E2-USAGE", "--plan and --apply exclude each other", hint="recuros kfs gc --help")
    with Store.open_reader(ctx.run / "store") as store, ctx.progress("plan") as tell:
        limit = None if budget is None else _bytes(budget, store, tell)
        made = make_plan(store, budget=limit, keep_last=keep_last, pins=pins, tell=tell)
    made.reason = "; ".join(part for part in (reason, made.reason) if part)
    doc = _document(made)
    if not apply_:
        ctx.emit(doc, _table(made))
        return 0
    from recuros import listens

    up = listens(ctx.run)
    if up and (grace is not None or compact):
        raise RecurosError(
            "E2-USAGE",
            "a runtime is up: --grace and --compact are for stores that nobody writes",
            hint="recuros halt, then again",
        )
    if not dry_run:
        _confirm(made, yes)
    if up:
        done = _through_archivist(ctx, made, dry_run)
    elif dry_run:
        done = {"seq": -1, "pending": []}
    else:
        with ctx.progress("gc") as tell:
            done = _offline(ctx.run, made, grace, compact, tell)
    for note in done.pop("notes", []):
        ctx.message(note)
    ctx.emit({**doc, "applied": not dry_run, **done}, _outcome(made, done, dry_run))
    return 0


def _bytes(budget: tuple[float, str], store: Any, tell: Tell) -> int:
    from kfs.gc import plan as make_plan

    number, unit = budget
    return int(make_plan(store, tell=tell).bytes_now * number / 100) if unit == "%" else int(number * _UNITS[unit])


def _confirm(made: Plan, yes: bool) -> None:
    if yes or not made.choices:
        return
    if not sys.stdin.isatty():
        raise RecurosError(
            "E2-USAGE", f"this gives up {len(made.choices)} snapshots or artifacts for good", hint="add --yes"
        )
    freed = made.bytes_now - made.bytes_after
    click.confirm(f"Give up {len(made.choices)} snapshots or artifacts ({freed} bytes) for good?", abort=True, err=True)


def _through_archivist(ctx: Context, made: Plan, dry_run: bool) -> dict[str, Any]:
    if len(made.choices) > _IDS_MAX:
        raise RecurosError(
            "E2-LIMIT",
            f"{len(made.choices)} ids in one plan; a runtime takes {_IDS_MAX}",
            hint="a larger --budget first, then again",
        )
    if not made.choices and not made.unreferenced:
        return {"seq": -1, "pending": []}
    with ctx.client() as client:
        return dict(client.kfs_gc(ids=made.ids, scores=made.scores, reason=made.reason, dry_run=dry_run))


def _offline(run: Path, made: Plan, grace: int | None, compact: bool, tell: Tell) -> dict[str, Any]:
    from kfs.compactor import Compactor
    from kfs.gc import Collector, collect
    from kfs.store import Store
    from kfs.trash import GRACE_RECORDS, unlink_due

    records = GRACE_RECORDS if grace is None else grace
    with Store.open_writer(run / "store") as store:
        seq, notes = collect(store, made, grace_records=records, tell=tell)
        done: dict[str, Any] = {"seq": seq}
        if compact:
            figures = Compactor(store).run(tell=tell)
            for _ in unlink_due(store, records):
                pass
            done["compacted"] = {"bytes_before": figures.bytes_before, "bytes_after": figures.bytes_after}
            notes += figures.notes
        collector = Collector(store, lease_records=0, grace_records=records)
        collector.run(tell)
        return {**done, "pending": collector.pending, "notes": notes}


def _document(made: Plan) -> dict[str, Any]:
    return {
        "schema": "recuros.kfs.gc/v1",
        "applied": False,
        "budget": made.budget,
        "bytes_now": made.bytes_now,
        "bytes_after": made.bytes_after,
        "snapshots": made.snapshots,
        "unreferenced_packs": made.unreferenced,
        "reason": made.reason,
        "collect": _rows(made),
        "pins": made.pins,
    }


def _rows(made: Plan) -> list[dict[str, Any]]:
    return [
        {"id": c.name, "what": c.what, "window": c.window, "seq": c.seq, "utility": c.score, "bytes": c.bytes}
        for c in made.choices
    ]


def _table(made: Plan) -> Table:
    columns = {"id": "ID", "what": "WHAT", "window": "WINDOW", "seq": "SEQ", "utility": "UTILITY", "bytes": "FREES"}
    unnamed = f"; {made.unreferenced} packs that no record names" if made.unreferenced else ""
    empty = f"nothing that a record names: {made.snapshots} snapshots, {made.bytes_now} bytes{unnamed}"
    return Table(_rows(made), columns, key="id", empty=empty)


def _outcome(made: Plan, done: dict[str, Any], dry_run: bool) -> str:
    if dry_run:
        return f"would give up {len(made.choices)} and {made.unreferenced} unnamed packs; nothing was changed"
    lines = []
    if done["seq"] >= 0:
        freed = made.bytes_now - made.bytes_after
        lines.append(f"gave up {len(made.choices)}, {freed} bytes: ledger seq {done['seq']}")
    else:
        lines.append("nothing to give up")
    if "compacted" in done:
        lines.append("compacted {bytes_before} bytes of packs to {bytes_after}".format(**done["compacted"]))
    if done["pending"]:
        lines.append(
            f"in its grace: plan {', '.join(map(str, done['pending']))}; packs are unlinked when more records have come"
        )
    return "\n".join(lines)


@verb(
    "fsck",
    "Find what a repair can mend, and with --repair mend it; whether bytes match their ids is `kfs verify`'s question.",
    examples=("recuros kfs fsck", "recuros kfs fsck --repair", "recuros kfs fsck --json --run runs/first"),
    right="none; --repair needs the file system's permission and no runtime",
    exits=(1, 3, 4, 9),
)
@click.option("--repair", is_flag=True, help="Mend what can be mended, under the writer's lock.")
@click.option("--dry-run", is_flag=True, help="Only say what a repair would do [the default].")
def fsck(ctx: Context, repair: bool, dry_run: bool) -> int:
    """Check, perhaps repair; 0 nothing is left, 1 a repair would mend it, 9 something cannot be mended."""
    from kfs.fsck import fsck as check

    with ctx.progress("fsck") as tell:
        result = check(ctx.run / "store", repair=repair and not dry_run, tell=tell)
    rows = [
        {"what": f.what, "where": f.where, "detail": f.detail, "repair": f.repair or None, "done": f.done}
        for f in result.findings
    ]
    doc = {"schema": "recuros.kfs.fsck/v1", "ok": result.status == 0, "findings": rows, "notes": result.notes}
    for note in result.notes:
        ctx.message(note)
    columns = {"what": "WHAT", "where": "WHERE", "detail": "DETAIL", "repair": "REPAIR", "done": "DONE"}
    ctx.emit(doc, Table(rows, columns, key="where", empty="nothing to mend"))
    return result.status
