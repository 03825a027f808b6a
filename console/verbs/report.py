"""`recuros report`: what a run directory holds; needs no runtime."""

from __future__ import annotations

from console.context import Context
from console.verb import verb


@verb(
    "report",
    "What a run directory holds: windows, scores, probes, policies and whether the ledger verifies.",
    examples=("recuros report", "recuros report --run runs/first", "recuros report --json"),
    exits=(4, 9),
)
def report(ctx: Context) -> int:
    """Fold the ledger and verify the store; 9 when it does not verify."""
    from console import report as reports

    ledger = reports.read_ledger(ctx.run)
    found = reports.boot_report(ctx.run, ledger, {}, {}, 0.0)
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
    ctx.emit(doc, reports.text({**found, "device": None, "seconds": None}, ledger))
    return 0 if found["ledger"]["verified"] else 9
