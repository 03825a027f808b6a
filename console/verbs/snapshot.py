"""Snapshots: name one, list them, look at one, go back to one.

Responsible for: the noun `snapshot`. `ls` and `show` read the run directory; `create` and `restore` ask the runtime. Refuses: going
back to a snapshot that the store does not hold in full.
"""

from __future__ import annotations

from typing import Any, Final

import click

from console.context import Context, Table
from console.verb import changes, noun, verb
from syscalls.errors import RecurosError

READS: Final = "none: it reads the files of the run directory, and those need the file system's permission"
ROLES_OF_A_LEARNER: Final = ("student", "teacher", "ema", "cursor", "rng")

snapshot = noun("snapshot", "Name, list, inspect and restore snapshots.")


@verb(
    "create",
    "Name the last committed state and pin it.",
    examples=(
        "recuros snapshot create",
        "recuros snapshot create before-swap --reason 'the last one of generation 1'",
        "recuros snapshot create best --dry-run --json",
    ),
    right="steer",
    exits=(3, 4, 5, 75, 124),
)
@click.argument("name", default="")
@changes()
def create(ctx: Context, name: str, reason: str, dry_run: bool) -> None:
    """Ask for the snapshot and print its id."""
    with ctx.client() as client:
        answer = client.change("rl_snapshot", reason=reason, dry_run=dry_run, name=name)
    ctx.changed("recuros.snapshot.create/v1", answer, f"{answer.get('snapshot', 'snapshot')} {name}".strip())


@verb(
    "ls",
    "Named snapshots, from the ledger; --all also lists the state after every committed window. Needs no runtime.",
    examples=("recuros snapshot ls", "recuros snapshot ls --all -o name", "recuros snapshot ls --json"),
    right=READS,
    exits=(4, 9),
)
@click.option("--all", "all_", is_flag=True, help="Committed windows too.")
def ls(ctx: Context, all_: bool) -> None:
    """Read the ledger."""
    from kfs.records import RecordKind
    from kfs.store import Store

    kinds = {RecordKind.SNAPSHOT, RecordKind.WINDOW_COMMIT} if all_ else {RecordKind.SNAPSHOT}
    with Store.open_reader(ctx.run / "store") as store:
        rows = [
            {
                "snapshot": record.result_snap,
                "name": record.args.get("name", ""),
                "window": record.args["window"],
                "generation": record.generation,
                "seq": record.seq,
            }
            for record in store.records()
            if record.kind in kinds
        ]
    columns = {"snapshot": "SNAPSHOT", "name": "NAME", "window": "WINDOW", "generation": "GENERATION", "seq": "SEQ"}
    empty = "no named snapshot; recuros snapshot create NAME, or --all"
    ctx.emit({"schema": "recuros.snapshot.ls/v1", "snapshots": rows}, Table(rows, columns, key="snapshot", empty=empty))


@verb(
    "show",
    "One snapshot: where it comes from, its names, and what it holds by role. SNAP: an id, a name, w12, or last.",
    examples=("recuros snapshot show last", "recuros snapshot show before-swap", "recuros snapshot show w12 --json"),
    right=READS,
    exits=(4, 9),
)
@click.argument("snap", metavar="SNAP")
def show(ctx: Context, snap: str) -> None:
    """Read the store."""
    from kfs import refs
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store:
        root = refs.resolve(store, snap)
        doc = {"snapshot": root, **_origin(store, root), "roles": _roles(store, root)}
    lines = [
        f"snapshot    {root}",
        f"names       {', '.join(doc['names']) or '-'}",
        f"window      {doc['window'] if doc['window'] is not None else '-'}, generation {doc['generation']}, ledger seq {doc['seq']}",
        f"parent      {doc['parent'] or 'the state as built'}",
        f"metrics     {', '.join(f'{k} {v:.4g}' for k, v in doc['metrics'].items()) or '-'}",
    ]
    lines += [f"{r['role']:<11} {r['tensors']} objects, {r['bytes']:,} bytes" for r in doc["roles"]]
    ctx.emit({"schema": "recuros.snapshot.show/v1", **doc}, "\n".join(lines))


def _origin(store: Any, root: str) -> dict[str, Any]:
    """What the ledger says of a snapshot: the first commit that made it, and the names it was given."""
    from kfs.records import RecordKind

    found: dict[str, Any] = {"names": [], "window": None, "generation": 0, "seq": -1, "parent": None, "metrics": {}}
    for record in store.records():
        if record.result_snap != root:
            continue
        if record.kind is RecordKind.SNAPSHOT and record.args["name"]:
            found["names"].append(record.args["name"])
        elif record.kind is RecordKind.WINDOW_COMMIT and found["seq"] < 0:
            keep = ("loss", "task", "kd", "hint", "grad_norm", "lr", "temperature", "cka")
            metrics = {k: v for k in keep if isinstance(v := record.args["metrics"].get(k), int | float)}
            found |= {"window": record.args["window"], "generation": record.generation, "seq": record.seq}
            found |= {"parent": record.parent_snap, "metrics": metrics}
    return found


def _roles(store: Any, root: str) -> list[dict[str, Any]]:
    sizes: dict[str, list[int]] = {}
    for path, name in store.snapshot(root).items():
        _, entry = store.entry(name)
        sizes.setdefault(path.partition("/")[0], []).append(entry.object_bytes)
    return [{"role": role, "tensors": len(found), "bytes": sum(found)} for role, found in sizes.items()]


@verb(
    "restore",
    "Go back to the learner's state in SNAP at the next window. The plan, the data and the generation go on; the ledger keeps both.",
    examples=(
        "recuros snapshot restore before-swap --dry-run",
        "recuros snapshot restore w12 --reason 'loss went up' --yes",
        "recuros snapshot restore b3:2f9a51c0 --yes --json",
    ),
    right="steer",
    exits=(3, 4, 5, 9, 75, 124),
)
@click.argument("snap", metavar="SNAP")
@changes()
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore(ctx: Context, snap: str, reason: str, dry_run: bool, yes: bool) -> None:
    """Resolve it in the store, check that it is whole, and ask."""
    from kfs import refs
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store:
        root = refs.resolve(store, snap)
        roles = {row["role"] for row in _roles(store, root)}
    if missing := set(ROLES_OF_A_LEARNER) - roles:
        raise RecurosError(
            "E2-USAGE",
            f"{root} is not a learner's state: it lacks {', '.join(sorted(missing))}",
            hint="recuros snapshot ls --all",
        )
    if not dry_run:
        ctx.confirm(f"Replace the learner's state by {root[:19]}...?", "this replaces the learner's state", yes)
    with ctx.client() as client:
        answer = client.change("rl_restore", reason=reason, dry_run=dry_run, snapshot=root)
    ctx.changed("recuros.snapshot.restore/v1", {"snapshot": root, **answer}, f"go back to {root}")


for _command in (create, ls, show, restore):
    snapshot.add_command(_command)
