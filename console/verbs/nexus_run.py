"""`recuros nexus run | teacher | profile | synth | distill | gate | pack | drop`: the pipeline, whole or a stage at a time.

Responsible for: opening the run, progress on stderr, and the table of what came out. Refuses: options that would lower a threshold or pass
over a gate; there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from console.context import Context, Table
from console.verb import Noun, changes, noun, verb
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from nexus.context import Context as Run

RIGHT: Final = "none: it is the only writer of its run directory"
EXITS: Final = (1, 3, 4, 5, 7, 9, 130)
COLUMNS: Final = {
    "capability": "CAPABILITY",
    "status": "STATUS",
    "rank": "RANK",
    "ratio": "RETAINED",
    "lower": "LOWER",
    "retain": "CONTRACT",
    "anchor": "ANCHOR",
    "loops": "LOOPS",
    "reason": "WHY",
}


@contextmanager
def opened(ctx: Context, app: Path | None) -> Iterator[Run]:
    """The run of this run directory, with bars."""
    from nexus import run as runs

    with ctx.progress("nexus") as tell, runs.opened(ctx.run, app, tell) as found:
        yield found


def show(ctx: Context, run: Run) -> int:
    """Print what came out; 1 when a gate has judged and did not pass."""
    from nexus import run as runs

    doc = runs.summary(run)
    rows = [
        {**row, **{k: "" if row[k] is None else f"{row[k]:.4f}" for k in ("ratio", "lower")}}
        for row in doc["capabilities"]
    ]
    ctx.emit(doc, Table(rows, COLUMNS, key="capability", empty="no capability"))
    ctx.message(f"gate: {doc['verdict']}" + (f"; bundle {doc['bundle']}" if doc["bundle"] else ""))
    return 0 if doc["verdict"] in ("pass", "not judged") else 1


@verb(
    "run",
    "Every stage of APP, resumed where it was left; teachers are copied, and the copies are gone at the end.",
    examples=(
        "recuros nexus run nexus/apps/pilot.toml",
        "recuros --run runs/pilot nexus run nexus/apps/pilot.toml",
        "recuros --run runs/pilot nexus run --json",
    ),
    right=RIGHT,
    exits=EXITS,
)
@click.argument("app", required=False, type=click.Path(path_type=Path))
def run_(ctx: Context, app: Path | None) -> int:
    """Without APP the one that the run directory was run with."""
    from nexus import run as runs

    with opened(ctx, app) as found:
        runs.run(found)
        return show(ctx, found)


def _stage(name: str, doc: str, act: Callable[[Run], None]) -> click.Command:
    @verb(
        name,
        doc,
        examples=(
            f"recuros nexus {name} nexus/apps/pilot.toml",
            f"recuros --run runs/pilot nexus {name}",
            f"recuros --run runs/pilot nexus {name} --json",
        ),
        right=RIGHT,
        exits=EXITS,
    )
    @click.argument("app", required=False, type=click.Path(path_type=Path))
    def stage(ctx: Context, app: Path | None) -> int:
        with opened(ctx, app) as found:
            act(found)
            return show(ctx, found)

    return stage


def _profile(run: Run) -> None:
    from nexus.stages import profile, scope

    scope.scope(run)
    scope.registry(run)
    profile.profile(run)


def _synth(run: Run) -> None:
    from nexus.stages import distill

    _profile(run)
    for capability in run.live():
        distill.synthesize(run, capability)


def _distill(run: Run) -> None:
    from nexus.stages import architect, distill

    _profile(run)
    architect.architect(run)
    distill.distill(run)


def _gate(run: Run) -> None:
    from nexus.stages import gate

    _distill(run)
    gate.gate(run)


def _pack(run: Run) -> None:
    from nexus.stages import gate

    _gate(run)
    gate.package(run)


STAGES: Final = (
    _stage("profile", "Stages 0 to 2: freeze, register, and profile every teacher.", _profile),
    _stage("synth", "Up to the teachers' targets: what stage 4 learns from, and the scores that outlive them.", _synth),
    _stage("distill", "Up to stage 4: the student, its backbone and its adapters, in the learner's windows.", _distill),
    _stage("pack", "Up to stage 6: the bundle, cold-loaded in a fresh process.", _pack),
)


@verb(
    "gate",
    "Up to stage 5; with --bundle, the same proof again on another artifact of this run, such as a quantized bundle.",
    examples=(
        "recuros nexus gate nexus/apps/pilot.toml",
        "recuros --run runs/pilot nexus gate",
        "recuros --run runs/pilot nexus gate --bundle int8_bundle",
    ),
    right=RIGHT,
    exits=EXITS,
)
@click.argument("app", required=False, type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="The artifact to prove.")
def gate(ctx: Context, app: Path | None, bundle: Path | None) -> int:
    """Judge; 1 when it did not pass."""
    from nexus.stages import gate as stage

    with opened(ctx, app) as found:
        if bundle is None:
            _gate(found)
            return show(ctx, found)
        report = stage.regate(found, bundle.absolute())
    rows = [
        {
            "capability": n,
            "status": v["verdict"],
            "ratio": f"{v['ratio']:.4f}",
            "lower": f"{v['lower']:.4f}",
            "reason": v["reason"],
        }
        for n, v in report["capabilities"].items()
    ]
    columns = {k: COLUMNS[k] for k in ("capability", "status", "ratio", "lower", "reason")}
    ctx.emit(
        {"schema": "recuros.nexus.gate/v1", **report}, Table(rows, columns, key="capability", empty="nothing to judge")
    )
    ctx.message(f"gate: {report['verdict']}" + "".join(f"; {p}" for p in report["problems"]))
    return 0 if report["verdict"] == "pass" else 1


teacher: Noun = noun("teacher", "The teachers of a run.")


@verb(
    "ls",
    "The complete list of teachers, and what became of each.",
    examples=(
        "recuros nexus teacher ls",
        "recuros --run runs/pilot nexus teacher ls",
        "recuros nexus teacher ls -o name",
    ),
    right=RIGHT,
    exits=EXITS,
)
@click.argument("app", required=False, type=click.Path(path_type=Path))
def ls(ctx: Context, app: Path | None) -> None:
    """From the CSV and the ledger."""
    with opened(ctx, app) as run:
        rows = []
        for table in run.app.table.teacher:
            row = run.app.rows[table.model_name]
            gone = run.state.dropped.get(table.id, "")
            copied = (run.paths.teachers / table.id).is_dir()
            state = (
                "dropped" if gone else "copied" if copied else "removed" if table.id in run.state.removed else "listed"
            )
            teaches = ", ".join(c.name for c in run.app.of_teacher(table.id))
            rows.append(
                {
                    "teacher": table.id,
                    "model": table.model_name,
                    "parameters": row.parameters,
                    "category": row.category,
                    "teaches": teaches,
                    "state": state,
                    "reason": gone,
                }
            )
    columns = {k: k.upper() for k in ("teacher", "model", "parameters", "category", "teaches", "state", "reason")}
    ctx.emit(
        {"schema": "recuros.nexus.teacher.ls/v1", "teachers": rows}, Table(rows, columns, key="teacher", empty="none")
    )


teacher.add_command(ls)


@verb(
    "drop",
    "Give CAPABILITY up, on record; the others are not trained again.",
    examples=(
        "recuros nexus drop sentences",
        "recuros --run runs/pilot nexus drop sort --reason 'not needed'",
        "recuros --run runs/pilot nexus drop sort --dry-run",
    ),
    right=RIGHT,
    exits=EXITS,
)
@click.argument("capability")
@changes()
def drop(ctx: Context, capability: str, reason: str, dry_run: bool) -> int:
    """The next run proves and packs what is left."""
    from nexus.stages import gate as stage

    with opened(ctx, None) as run:
        table = run.app.capability(capability)
        if run.cap(capability).status == "dropped":
            raise RecurosError(
                "E2-USAGE",
                f"{capability!r} is dropped already: {run.cap(capability).reason}",
                hint="recuros nexus teacher ls",
            )
        if dry_run:
            ctx.message(f"{capability} would be dropped; nothing was changed")
            return show(ctx, run)
        stage.drop(run, table, reason or "dropped by an operator")
        return show(ctx, run)


@verb(
    "add-teacher",
    "Take in what APP has and this run does not know: its adapter alone is trained, and the others answer as before.",
    examples=(
        "recuros --run runs/pilot nexus add-teacher my/app.toml",
        "recuros --run runs/pilot nexus add-teacher",
        "recuros --run runs/pilot nexus add-teacher --json",
    ),
    right=RIGHT,
    exits=EXITS,
)
@click.argument("app", required=False, type=click.Path(path_type=Path))
def add_teacher(ctx: Context, app: Path | None) -> int:
    """The app says who; the gate says whether."""
    from nexus import run as runs

    with opened(ctx, app) as run:
        done = runs.add(run)
        changed = ", ".join(f"{n} {c}" for n, c in done["changed_items"].items()) or "none before"
        ctx.message(f"added {', '.join(done['added'])}; changed items: {changed}")
        return show(ctx, run)


@verb(
    "refine",
    "Stage 7: a black-box teacher (a command, or http on this host) mends what the student gets wrong.",
    examples=(
        "recuros --run runs/pilot nexus refine",
        "recuros --run runs/pilot nexus refine my/app.toml",
        "recuros --run runs/pilot nexus refine --json",
    ),
    right=RIGHT,
    exits=EXITS,
)
@click.argument("app", required=False, type=click.Path(path_type=Path))
def refine(ctx: Context, app: Path | None) -> int:
    """1 when there was no gain, or something else changed."""
    from nexus.stages import refine as stage

    with opened(ctx, app) as run:
        report = stage.refine(run)
    columns = {
        k: k.upper().replace("_", " ")
        for k in ("verdict", "before", "after", "gain_lower", "changed_elsewhere", "asked")
    }
    ctx.emit({"schema": "recuros.nexus.refine/v1", **report}, Table([report], columns, key="verdict", empty="nothing"))
    return 0 if report["verdict"] == "pass" else 1


teacher.add_command(add_teacher, "add")
