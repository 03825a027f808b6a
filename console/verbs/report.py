"""`recuros report`: what a run directory holds; needs no runtime."""

from __future__ import annotations

from pathlib import Path

import click

from console.context import Context
from console.verb import verb


@verb(
    "report",
    "What a run directory holds: windows, scores, probes, policies and whether the ledger verifies.",
    examples=("recuros report", "recuros report --run runs/first --html report.html", "recuros report --json"),
    exits=(4, 9),
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write one HTML file with plots and every figure as JSON; needs the extra report.",
)
def report(ctx: Context, html: Path | None) -> int:
    """Fold the ledger and verify the store; 9 when it does not verify."""
    from console import report as reports

    ledger = reports.read_ledger(ctx.run)
    with ctx.progress("report: verify") as tell:
        found = reports.boot_report(ctx.run, ledger, {}, {}, 0.0, tell)
    for key in ("schema", "device", "seconds"):
        del found[key]
    doc = {
        "schema": "recuros.run.report/v1",
        "run": str(ctx.run),
        **found,
        "boots": ledger.boots,
        "generation": ledger.generation,
        "phases": ledger.phases,
        "scores": ledger.scores,
        "snapshot": ledger.last_snapshot,
        "snapshots": ledger.snapshots,
        "misses": ledger.misses,
        "faults": ledger.faults,
        "inexact_rollbacks": ledger.inexact,
    }
    if html is not None:
        from console.report_html import write

        write(html, ctx.run, doc)
        ctx.message(f"wrote {html}")
    ctx.emit(doc, reports.text({**found, "device": None, "seconds": None}, ledger))
    return 0 if found["ledger"]["verified"] else 9
