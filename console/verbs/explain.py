"""`recuros explain`: what a code means and what to do about it; why an object is as it is."""

from __future__ import annotations

from typing import Any

import click

from console.context import Context, no_such
from console.verb import EXITS, verb
from syscalls.errors import CODES, RecurosError


@verb(
    "explain",
    "What an error CODE or exit status means and what to do; or why an OBJECT is as it is, from the ledger alone.",
    examples=("recuros explain E6-ADMIT", "recuros explain window/12", "recuros explain snapshot/last --json"),
    right="none: objects are read in the files of the run directory, and those need the file system's permission",
    exits=(4, 9),
)
@click.argument("what", metavar="CODE|OBJECT")
def explain(ctx: Context, what: str) -> None:
    """CODE: E6-ADMIT or 6. OBJECT: window/N, snapshot/SNAP, policy/N, probe/ID, server/NAME, seq/N."""
    if "/" not in what:
        _code(ctx, what)
        return
    from console.explain import LINES_MAX
    from console.explain import explain as tell
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store:
        story = tell(store, what)
    facts = [{"seq": seq, "text": text} for seq, text in story.facts]
    width = len(str(max(seq for seq, _ in story.facts)))
    lines = [f"seq {seq:>{width}}  {text}" for seq, text in story.facts[:LINES_MAX]]
    if len(facts) > LINES_MAX:
        lines.append(f"and {len(facts) - LINES_MAX} more (--json shows all)")
    ctx.emit({"schema": "recuros.explain.object/v1", "object": what, "facts": facts}, "\n".join(lines))


def _code(ctx: Context, what: str) -> None:
    from console.advice import ADVICE
    from console.explain import FORMS

    wanted = what.upper().strip("[]")
    codes = [wanted] if wanted in CODES else [c for c in CODES if wanted in (c.partition("-")[0], str(_exit(c)))]
    if not codes and not (wanted.isdigit() and int(wanted) in EXITS):
        if wanted.startswith("E") and wanted[1:2].isdigit():
            raise no_such("code", what, list(CODES))
        raise RecurosError("E2-USAGE", f"{what!r:.80} is not {FORMS}", hint="recuros explain E6-ADMIT")
    rows: list[dict[str, Any]] = []
    for code in codes:
        why, ways = ADVICE.get(code, ("", ()))
        rows.append({"code": code, "exit": _exit(code), "means": CODES[code], "why": why, "try": list(ways)})
    status = rows[0]["exit"] if rows else int(wanted)
    lines = [] if wanted in CODES else [f"exit status {status}: {EXITS[status]}"]
    for row in rows:
        lines += [f"{row['code']}: {row['means']}", *([f"  {row['why']}"] if row["why"] else [])]
        lines += [f"  try: {way}" for way in row["try"]]
    ctx.emit({"schema": "recuros.explain.code/v1", "exit": status, "codes": rows}, "\n".join(lines))


def _exit(code: str) -> int:
    return int(code[1 : code.index("-")])
