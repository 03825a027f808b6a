"""A whole run: stages 0 to 6, and 7 where the app asks for it, resumed from what the ledger says.

Responsible for: the order, and nothing else. Kill it anywhere and run it again: a stage that is recorded as done is not done again,
and one that was begun starts over from its last committed window. Refuses: a second run in one directory at a time (E3-BUSY).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nexus import app as apps
from nexus.context import Context, read_json
from nexus.data.samples import Progress, silent
from nexus.ledger import RunLedger
from nexus.stages import architect, gate, profile, scope
from syscalls.errors import RecurosError

APP_FILE = "nexus.app"


@contextmanager
def opened(root: Path, app: Path | None = None, progress: Progress = silent) -> Iterator[Context]:
    """The context of a run directory; without an app the one it was run with last."""
    root = root.absolute()
    with RunLedger(root) as ledger:
        if app is None:
            app = Path((root / APP_FILE).read_text(encoding="utf-8").strip()) if (root / APP_FILE).is_file() else None
        if app is None:
            raise RecurosError("E4-NOENT", f"{root} holds no Nexus run", hint="recuros nexus run FILE")
        app = packaged(app)
        loaded = apps.load(app)
        (root / APP_FILE).write_text(f"{app.absolute()}\n", encoding="utf-8")
        yield Context(loaded, root, ledger, progress)


def packaged(app: Path) -> Path:
    """The app's file: the path as given, else the app of that name that comes with Nexus."""
    found = Path(__file__).parent / "apps" / f"{app}.toml"
    return found if not app.exists() and app.suffix == "" and found.is_file() else app


def run(ctx: Context) -> dict[str, Any]:
    """Every stage; the summary of what came out."""
    scope.scope(ctx)
    scope.registry(ctx)
    profile.profile(ctx)
    architect.architect(ctx)
    gate.gate(ctx)
    gate.package(ctx)
    return summary(ctx)


def add(ctx: Context) -> dict[str, Any]:
    """Take in the teachers that the app has and the ledger does not know; the others are not trained again.

    What was there answers every item as before, or it is E9-INTEGRITY.
    """
    scope.scope(ctx)
    fresh = [t.id for t in ctx.app.table.teacher if t.id not in ctx.state.known and t.mode != "black-box"]
    if not fresh:
        raise RecurosError(
            "E2-USAGE",
            "the app has no teacher that this run does not know",
            hint="add it to the app, its CSV and its contracts first",
        )
    before = read_json(ctx.paths.verify_report)["scores"] if ctx.paths.verify_report.is_file() else {}
    ctx.paths.contracts.write_bytes((ctx.app.folder / ctx.app.table.app.contracts).read_bytes())
    for teacher in fresh:
        ctx.teacher(teacher, "added", "by an operator")
    run(ctx)
    after = read_json(ctx.paths.verify_report)["scores"]
    changed = {n: sum(a != b for a, b in zip(s, after[n], strict=True)) for n, s in before.items() if n in after}
    if any(changed.values()):
        raise RecurosError("E9-INTEGRITY", f"items of other capabilities changed: {changed}", hint="report this")
    for teacher in fresh:
        ctx.teacher(teacher, "unchanged", "items of the other capabilities that changed", changed=changed)
    return {**summary(ctx), "added": fresh, "changed_items": changed}


def summary(ctx: Context) -> dict[str, Any]:
    """What a person wants to know of a run, out of its ledger and its report."""
    report = read_json(ctx.paths.verify_report) if ctx.paths.verify_report.is_file() else {}
    rows = []
    for table in ctx.app.table.capability:
        state = ctx.cap(table.name)
        verdict = report.get("capabilities", {}).get(table.name, {})
        rank = state.rank or profile.planned_rank(ctx, table.name)["rank"]
        rows.append(
            {
                "capability": table.name,
                "teacher": table.teacher,
                "status": state.status,
                "rank": rank,
                "ratio": verdict.get("ratio"),
                "lower": verdict.get("lower"),
                "retain": ctx.app.contracts[table.name].retain,
                "anchor": state.anchor,
                "loops": " ".join(state.edges),
                "reason": state.reason or verdict.get("reason", ""),
            }
        )
    return {
        "schema": "recuros.nexus.run/v1",
        "app": ctx.app.table.app.name,
        "run": str(ctx.root),
        "verdict": report.get("verdict", "not judged"),
        "stages": sorted(ctx.state.stages),
        "capabilities": rows,
        "bundle": str(ctx.paths.bundle) if ctx.paths.bundle.is_dir() else "",
        "records": ctx.ledger.size,
    }
