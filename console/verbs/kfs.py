"""`recuros kfs`: read and audit the knowledge file system of a run directory, with or without a runtime.

Responsible for: log, show, verify, ls, cat. Refuses: writing; the archivist is the only writer.
"""

from __future__ import annotations

import base64
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from console.context import Context, Table
from console.verb import noun, verb
from console.verbs import kfs_proof, kfs_space, kfs_time
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from kfs.verify import Report

INTEGRITY: Final = 9
PROBLEMS_SHOWN_MAX: Final = 50
RIGHT: Final = "none: it reads the files of the run directory, and those need the file system's permission"

kfs = noun("kfs", "The knowledge file system: objects, snapshots and the ledger.")


def _store_dir(ctx: Context) -> Path:
    return ctx.run / "store"


class When(click.ParamType[int | datetime]):
    """A sequence number (negative: from the end), or a time in ISO 8601 (UTC unless it says otherwise)."""

    name = "SEQ|TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        """To an int or an aware datetime."""
        if isinstance(value, int | datetime):
            return value
        try:
            return int(value)
        except ValueError:
            pass
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a sequence number nor a time such as 2026-01-31T12:00:00", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)


@verb(
    "log",
    "The records of the ledger, oldest first.",
    examples=(
        "recuros kfs log --kind window.commit --limit 10",
        "recuros kfs log --actor observer --since -100 --json",
        "recuros kfs log --kind probe. --since 2026-01-31T12:00:00",
    ),
    right=RIGHT,
    exits=(4, 9),
)
@click.option("--actor", metavar="NAME", help="Only records by this principal.")
@click.option("--kind", metavar="KIND", help="Only this kind; a prefix that ends in a dot takes the family.")
@click.option("--snapshot", metavar="ID", help="Only records that name this object as parent, result or input.")
@click.option("--since", type=When(), default=0, show_default=False, help="From here on; -N: the last N records.")
@click.option("--until", type=When(), default=None, help="Up to here, exclusive.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the newest N of what matches.")
def log(
    ctx: Context,
    *,
    actor: str | None,
    kind: str | None,
    snapshot: str | None,
    since: int | datetime,
    until: int | datetime | None,
    limit: int | None,
) -> None:
    """Print matching records."""
    from collections import deque

    from kfs.log import Filter, render, select, summary
    from kfs.store import Store

    with Store.open_reader(_store_dir(ctx)) as store:
        wanted = Filter(
            actor=actor,
            kind=kind,
            snapshot=None if snapshot is None else store.resolve(snapshot),
            since=since if isinstance(since, int) else 0,
            until=until if isinstance(until, int) else None,
            after_ns=_ns(since) if isinstance(since, datetime) else 0,
            before_ns=_ns(until) if isinstance(until, datetime) else None,
        )
        found = deque(select(store, wanted), maxlen=limit)
        size = store.size
    rows = [render(record) for record in found]
    doc = {"schema": "recuros.kfs.log/v1", "size": size, "records": rows}
    if ctx.output in ("table", "wide"):
        for row, record in zip(rows, found, strict=True):
            row["what"] = summary(record)
            row["snapshot"] = (record.result_snap or record.parent_snap or "")[:11]
    columns = {
        "seq": "SEQ",
        "time": "TIME",
        "actor": "ACTOR",
        "kind": "KIND",
        "generation": "GEN",
        "snapshot": "SNAPSHOT",
        "what": "WHAT",
    }
    ctx.emit(doc, Table(rows, columns, wide=("time", "generation"), key="seq", empty="no record matches"))


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)


@verb(
    "show",
    "One record in full, with the hash of its leaf.",
    examples=("recuros kfs show 12", "recuros kfs show -1 --json", "recuros kfs show 0 --run runs/first"),
    right=RIGHT,
    exits=(4, 9),
)
@click.argument("seq", type=int)
def show(ctx: Context, seq: int) -> None:
    """Print one record; a negative number counts from the end."""
    from kfs import records
    from kfs.log import render
    from kfs.merkle import leaf_hash
    from kfs.store import Store

    with Store.open_reader(_store_dir(ctx)) as store:
        data = store.record_bytes(store.size + seq if -store.size <= seq < 0 else seq)
    row = {**render(records.decode(data)), "bytes": len(data), "leaf": leaf_hash(data).hex()}
    width = max(map(len, row))
    lines = []
    for name, value in row.items():
        if isinstance(value, dict) and value:
            lines += [f"{name}:", *(f"  {key:<{width}}  {_json(item)}" for key, item in value.items())]
        else:
            lines.append(f"{name + ':':<{width + 1}}  {_json(value)}")
    ctx.emit({"schema": "recuros.kfs.show/v1", **row}, "\n".join(lines))


show.context_settings = {"ignore_unknown_options": True}  # -1 is a record and no option


def _json(value: Any) -> str:
    import json

    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


@verb(
    "verify",
    "Recompute every object, record and root against the signed checkpoint, and name what is wrong.",
    examples=(
        "recuros kfs verify",
        "recuros kfs verify --fast --json",
        "recuros kfs verify --key key.pub --checkpoint checkpoint.last-week",
    ),
    right=RIGHT,
    exits=(4, 9),
)
@click.option("--fast", is_flag=True, help="The ledger only, not the objects.")
@click.option("--key", metavar="FILE|STRING", help="The store's public key, kept elsewhere.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A checkpoint kept elsewhere, from which the log must have grown.",
)
def verify(ctx: Context, fast: bool, key: str | None, checkpoint: Path | None) -> int:
    """Audit the store; 0 when nothing is wrong, 9 otherwise."""
    from kfs.anchor import read_key, read_note_file
    from kfs.verify import verify as audit

    known = None if key is None else read_key(key)
    anchor = None if checkpoint is None else read_note_file(checkpoint)
    with ctx.progress("verify") as tell:
        report = audit(_store_dir(ctx), fast=fast, key=known, anchor=anchor, tell=tell)
    doc = {
        "schema": "recuros.kfs.verify/v1",
        "ok": report.ok,
        "records": report.records,
        "objects": report.objects,
        "root": report.root,
        "signed": report.signed,
        "fast": report.fast,
        "key": "store" if report.own_key else "given",
        "anchored": report.anchored,
        "problems": [{"what": p.what, "where": p.where, "detail": p.detail} for p in report.problems],
        "notes": report.notes,
    }
    notes = [f"note: {note}" for note in report.notes[:PROBLEMS_SHOWN_MAX]]
    ctx.emit(doc, "\n".join([_verdict(report), *notes]))
    return 0 if report.ok else INTEGRITY


def _verdict(report: Report) -> str:
    objects = "objects not read (--fast)" if report.fast else f"{report.objects} objects"
    scope = f"{report.records} records ({report.signed} signed), {objects}, root {report.root or '-'}"
    if report.ok:
        return "\n".join([f"ok: {scope}", *_trust(report)])
    shown = [f"  {p.what} {p.where}: {p.detail}" for p in report.problems[:PROBLEMS_SHOWN_MAX]]
    if len(report.problems) > PROBLEMS_SHOWN_MAX:
        shown.append(f"  and {len(report.problems) - PROBLEMS_SHOWN_MAX} more; --json lists them all")
    return "\n".join([f"DAMAGED: {len(report.problems)} problems in {scope}", *shown])


def _trust(report: Report) -> list[str]:
    """What the answer rests on: with nothing from elsewhere it does not bind the owner of this machine."""
    lines = []
    if report.anchored is not None:
        lines.append(f"the log grew from the given checkpoint of {report.anchored} records")
    if not report.own_key:
        lines.append("signed by the given key")
    elif report.anchored is None:
        lines.append(
            "verified with the key in the store itself, which proves nothing against whoever owns this machine; "
            "keep the key and a checkpoint elsewhere and give them: --key, --checkpoint"
        )
    else:
        lines.append("the key is the store's own; keep it elsewhere too and give it: --key")
    return lines


@verb(
    "ls",
    "The objects of the store, or the leaves of one snapshot: an id, a name, w12, a record's number, or last.",
    examples=("recuros kfs ls --kind report", "recuros kfs ls last", "recuros kfs ls -o name"),
    right=RIGHT,
    exits=(4, 9),
)
@click.argument("snapshot", required=False)
@click.option("--kind", metavar="KIND", help="Only objects of this kind.")
def ls(ctx: Context, snapshot: str | None, kind: str | None) -> None:
    """Print one row an object."""
    from kfs import refs
    from kfs.ids import KINDS
    from kfs.store import Store

    if kind is not None and kind not in KINDS:
        raise RecurosError("E2-USAGE", f"no object kind is called {kind!r}", hint=f"one of {', '.join(sorted(KINDS))}")
    rows: list[dict[str, Any]] = []
    with Store.open_reader(_store_dir(ctx)) as store:
        if snapshot is None:
            found = [("", name, entry) for name, entry in store.objects(kind)]
        else:
            leaves = sorted(store.snapshot(refs.resolve(store, snapshot)).items())
            found = [(path, name, store.entry(name)[1]) for path, name in leaves]
        for path, name, entry in found:
            if kind is None or entry.kind == kind:
                shape = list(entry.shape)
                row = {"id": name, "kind": entry.kind, "dtype": entry.dtype, "shape": shape, "bytes": entry.length}
                rows.append({"path": path, **row} if snapshot else row)
    columns = {"id": "ID", "kind": "KIND", "dtype": "DTYPE", "shape": "SHAPE", "bytes": "BYTES"}
    if snapshot:
        columns = {"path": "PATH", **columns}
    ctx.emit({"schema": "recuros.kfs.ls/v1", "objects": rows}, Table(rows, columns, key="id", empty="no object"))


@verb(
    "cat",
    "The bytes of one object, checked against its id.",
    examples=(
        "recuros kfs cat b3:2f9a51c0 > tensor.bin",
        "recuros kfs cat 2f9a51c0 --json",
        "recuros kfs cat 2f9a51c0 | xxd",
    ),
    right=RIGHT,
    exits=(4, 9),
)
@click.argument("id_", metavar="ID")
def cat(ctx: Context, id_: str) -> None:
    """Write the raw bytes to stdout; as JSON, with dtype, shape and kind, and the bytes in base64."""
    from kfs.store import Store

    with Store.open_reader(_store_dir(ctx)) as store:
        name = store.resolve(id_)
        found = store.get(name)
    if ctx.output in ("json", "jsonl"):
        form = {"id": name, "kind": found.kind, "dtype": found.dtype, "shape": list(found.shape)}
        ctx.emit({"schema": "recuros.kfs.cat/v1", **form, "data": base64.b64encode(found.data).decode()})
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(found.data)
    sys.stdout.buffer.flush()


for command in (log, show, verify, ls, cat):
    kfs.add_command(command)
for command in (kfs_proof.prove, kfs_proof.export):
    kfs.add_command(command)
for command in (kfs_time.at, kfs_time.diff, kfs_time.checkout):
    kfs.add_command(command)
for command in (kfs_space.gc, kfs_space.fsck):
    kfs.add_command(command)
