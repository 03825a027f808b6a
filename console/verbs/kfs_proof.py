"""`recuros kfs prove | export`: what somebody else needs to check a record or a student without this machine.

Responsible for: printing proof documents and writing exports. Refuses: writing into the store.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import click

from console.context import Context
from console.verb import verb

RIGHT: Final = "none: it reads the files of the run directory, and those need the file system's permission"
OWN_KEY: Final = "the key is the one in this store: it convinces nobody who does not have it from elsewhere"


@verb(
    "prove",
    "Prove that a record is under the signed checkpoint, as a document that verifies on its own.",
    examples=(
        "recuros kfs prove 12",
        "recuros kfs prove 12 -o json > proof.json",
        "recuros kfs prove 12 --from checkpoint.last-week -o json",
    ),
    right=RIGHT,
    exits=(4, 9),
)
@click.argument("seq", type=int)
@click.option(
    "--from",
    "old",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Prove as well that the log grew from this earlier checkpoint.",
)
def prove(ctx: Context, seq: int, old: Path | None) -> None:
    """Print the proof, which was verified first."""
    from kfs.anchor import read_note_file
    from kfs.checkpoint import VerifiedCheckpoint
    from kfs.prover import Prover
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store:
        seq = store.size + seq if -store.size <= seq < 0 else seq
        prover = Prover(store)
        start = None if old is None else VerifiedCheckpoint(read_note_file(old), store.format.key)
        document = prover.document(seq, start)
    for note in prover.notes:
        ctx.message(note)
    doc = document.to_json()
    lines = [
        f"record {seq} is under the checkpoint of {prover.checkpoint.size} records",
        f"log:    {prover.checkpoint.origin}",
        f"root:   {prover.checkpoint.root.hex()}",
        f"leaf:   {doc['leaf']}",
        *(f"        {item}" for item in doc["inclusion"]),
    ]
    if document.consistency is not None:
        lines.append(f"and the log grew from the checkpoint of {document.consistency.old_size} records:")
        lines += [f"        {item}" for item in doc["from"]["consistency"]]
    ctx.emit(doc, "\n".join([*lines, OWN_KEY]))


prove.context_settings = {"ignore_unknown_options": True}  # -1 is a record and no option


@verb(
    "export",
    "One snapshot with the records that made it, their proofs, the checkpoint, the key and a verifier.",
    examples=(
        "recuros kfs export last student-export",
        "recuros kfs export best student-export --role student",
        "recuros kfs export b3:2f9a51c0 /tmp/student --json",
    ),
    right=RIGHT,
    exits=(4, 9, 75),
)
@click.argument("snapshot")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="Only the objects of this role; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Read and prove everything, write nothing.")
def export(ctx: Context, snapshot: str, directory: Path, roles: tuple[str, ...], dry_run: bool) -> None:
    """Write the directory; SNAPSHOT is what `kfs.refs` reads: an id or its beginning, a name, w12, a record's number, last."""
    from kfs.export import export as write
    from kfs.refs import resolve
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store, ctx.progress("export") as tell:
        manifest, notes = write(store, resolve(store, snapshot), directory, roles, dry_run=dry_run, tell=tell)
    for note in notes:
        ctx.message(note)
    there = shlex.quote(str(directory))
    text = (
        f"{directory}: {manifest['snapshot']}, {', '.join(manifest['roles'])}: {manifest['objects']} objects, "
        f"{len(manifest['windows'])} windows, {len(manifest['records'])} records with proofs\n"
        + ("not written (--dry-run)" if dry_run else f"verify: python {there}/verify.py {there} --key KEY")
    )
    ctx.emit(manifest | {"directory": str(directory), "dry_run": dry_run}, text)
