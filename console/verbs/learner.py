"""Verbs that steer the learner: learner, swap, snapshot."""

from __future__ import annotations

from typing import Any, Final

import click

from console.context import Context, Table, no_such
from console.verb import noun, verb
from syscalls.errors import RecurosError

CALIBRATE_TIMEOUT_S: Final = 120.0
STEER_EXITS: Final = (3, 5, 75, 124)

learner = noun("learner", "Pause, steer, prune and calibrate the learner.")
snapshot = noun("snapshot", "Name and list snapshots.")


def _interrupt(kind: str, doc: str) -> None:
    @verb(
        kind,
        doc,
        examples=(
            f"recuros learner {kind}",
            f"recuros learner {kind} --json",
            f"recuros learner {kind} --reason maintenance",
        ),
        right="interrupt",
        exits=STEER_EXITS,
    )
    @click.option("--reason", default="", metavar="TEXT", help="Goes into the ledger.")
    def interrupt(ctx: Context, reason: str) -> None:
        with ctx.client() as client:
            answer = client.interrupt(kind=kind, reason=reason)
        ctx.changed(f"recuros.learner.{kind}/v1", answer, kind)

    learner.add_command(interrupt)


_interrupt("pause", "Pause: the running window ends, no other is granted.")
_interrupt("resume", "Resume after a pause.")


@verb(
    "kd",
    "Change temperature, hint weight, mix or projector of the distillation loss; what is not given stays.",
    examples=(
        "recuros learner kd --temperature 3",
        "recuros learner kd --mix 0.9 --alpha 0.5",
        "recuros learner kd --proj none",
    ),
    right="steer",
    exits=STEER_EXITS,
)
@click.option("--temperature", type=float, help="1 to 4.")
@click.option("--alpha", type=float, help="Weight of the hint term.")
@click.option("--mix", type=float, help="Share of the KD term, 0 to 1.")
@click.option("--proj", type=click.Choice(["linear", "none"]), help="Projector of the hint term.")
def kd(ctx: Context, **given: Any) -> None:
    """Send what was given."""
    settings = {name: value for name, value in given.items() if value is not None}
    if not settings:
        raise RecurosError("E2-USAGE", "nothing to change was given", hint="recuros learner kd --temperature 3")
    with ctx.client() as client:
        answer = client.rl_set_kd(**settings)
    ctx.changed("recuros.learner.kd/v1", answer, " ".join(f"{k}={v}" for k, v in settings.items()))


@verb(
    "gate",
    "Leave the easiest and the most ambiguous samples out, by teacher entropy; --open takes all of them again.",
    examples=(
        "recuros learner gate --drop-low 0.1 --drop-high 0.1",
        "recuros learner gate --drop-high 0.05",
        "recuros learner gate --open",
    ),
    right="steer",
    exits=STEER_EXITS,
)
@click.option(
    "--drop-low", type=click.FloatRange(0, 1), metavar="SHARE", help="Share of the lowest entropies to leave out."
)
@click.option(
    "--drop-high", type=click.FloatRange(0, 1), metavar="SHARE", help="Share of the highest entropies to leave out."
)
@click.option("--open", "open_", is_flag=True, help="Leave nothing out.")
def gate(ctx: Context, drop_low: float | None, drop_high: float | None, open_: bool) -> None:
    """Set or open the gate."""
    criteria = {k: v for k, v in (("drop_low", drop_low), ("drop_high", drop_high)) if v is not None}
    if open_ == bool(criteria):
        raise RecurosError(
            "E2-USAGE", "give shares to leave out, or --open", hint="recuros learner gate --drop-low 0.1"
        )
    with ctx.client() as client:
        answer = client.rl_gate_samples(criteria=criteria)
    ctx.changed(
        "recuros.learner.gate/v1", answer, "gate " + (" ".join(f"{k}={v}" for k, v in criteria.items()) or "open")
    )


@verb(
    "prune",
    "Zero a SHARE of the student's weights by magnitude; the masks hold from then on.",
    examples=(
        "recuros learner prune 0.5",
        "recuros learner prune 0.7 --json",
        "recuros --run runs/first learner prune 0.3",
    ),
    right="steer",
    exits=STEER_EXITS,
)
@click.argument("share", type=click.FloatRange(0, 1, max_open=True))
def prune(ctx: Context, share: float) -> None:
    """Send the sparsity."""
    with ctx.client() as client:
        answer = client.rl_prune(mask_spec={"sparsity": share})
    ctx.changed("recuros.learner.prune/v1", answer, f"prune to sparsity {share:g}")


@verb(
    "calibrate",
    "Fit a scaling temperature to the last committed student on validation data.",
    examples=(
        "recuros learner calibrate",
        "recuros learner calibrate --json",
        "recuros learner calibrate --timeout 300",
    ),
    right="steer",
    exits=STEER_EXITS,
)
def calibrate(ctx: Context) -> None:
    """Ask, and print the fit."""
    limit_s = CALIBRATE_TIMEOUT_S if ctx.timeout_option_s is None else ctx.timeout_option_s
    with ctx.client() as client:
        answer = client.syscall("rl_calibrate", timeout_s=limit_s)
    found = ", ".join(f"{k} {v:.4g}" for k, v in answer["result"].items() if isinstance(v, int | float))
    ctx.changed("recuros.learner.calibrate/v1", answer, f"calibrated: {found}")


for _command in (kd, gate, prune, calibrate):
    learner.add_command(_command)


@verb(
    "swap",
    "Make the student the teacher at the next window: by its moving average, or as it stands.",
    examples=("recuros swap", "recuros swap learner --mode checkpoint", "recuros swap --dry-run"),
    right="steer",
    exits=(*STEER_EXITS, 4),
)
@click.argument("target", metavar="[LEARNER]", default="learner")
@click.option(
    "--mode", type=click.Choice(["ema", "checkpoint"]), default="ema", help="Which weights become the teacher's [ema]."
)
@click.option("--dry-run", is_flag=True, help="Check, and change nothing.")
def swap(ctx: Context, target: str, mode: str, dry_run: bool) -> None:
    """Ask for the swap."""
    if target != "learner":
        raise no_such("learner", target, ["learner"])
    with ctx.client() as client:
        answer = client.rl_swap_roles(mode=mode, dry_run=dry_run)
    ctx.changed("recuros.learner.swap/v1", answer, f"swap by {mode}" + (" would be accepted" if dry_run else ""))


@verb(
    "create",
    "Name the last committed state and pin it.",
    examples=("recuros snapshot create", "recuros snapshot create before-swap", "recuros snapshot create best --json"),
    right="steer",
    exits=STEER_EXITS,
)
@click.argument("name", default="")
def create(ctx: Context, name: str) -> None:
    """Ask for the snapshot and print its id."""
    with ctx.client() as client:
        answer = client.rl_snapshot(name=name)
    ctx.changed("recuros.snapshot.create/v1", answer, f"{answer['snapshot']} {name}".strip())


@verb(
    "ls",
    "Named snapshots, from the ledger; --all also lists the state after every committed window. Needs no runtime.",
    examples=("recuros snapshot ls", "recuros snapshot ls --all -o name", "recuros snapshot ls --json"),
    exits=(4,),
)
@click.option("--all", "all_", is_flag=True, help="Committed windows too.")
def ls(ctx: Context, all_: bool) -> None:
    """Read the ledger."""
    from kfs.records import RecordKind
    from kfs.store import Store

    kinds = {RecordKind.SNAPSHOT, RecordKind.WINDOW_COMMIT} if all_ else {RecordKind.SNAPSHOT}
    rows = []
    with Store.open_reader(ctx.run / "store") as store:
        for record in store.records():
            if record.kind in kinds:
                name = record.args.get("name", "")
                rows.append(
                    {
                        "snapshot": record.result_snap,
                        "name": name,
                        "window": record.args["window"],
                        "generation": record.generation,
                        "seq": record.seq,
                    }
                )
    columns = {"snapshot": "SNAPSHOT", "name": "NAME", "window": "WINDOW", "generation": "GENERATION", "seq": "SEQ"}
    empty = "no named snapshot; recuros snapshot create NAME, or --all"
    ctx.emit({"schema": "recuros.snapshot.ls/v1", "snapshots": rows}, Table(rows, columns, key="snapshot", empty=empty))


for _command in (create, ls):
    snapshot.add_command(_command)
