"""Verbs that steer the learner: learner, swap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from console import interrupts
from console.context import Context, no_such
from console.verb import changes, noun, verb
from syscalls import limits, masks
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from syscalls.client import Client

LEARNER: Final = "learner"
CALIBRATE_TIMEOUT_S: Final = 120.0
STEER_EXITS: Final = (3, 5, 75, 124)

learner = noun("learner", "Pause, steer, prune and calibrate the learner.")


def _learner(name: str) -> None:
    """There is one learner; a name is for scripts that say which one they mean."""
    if name != LEARNER:
        raise no_such("learner", name, [LEARNER])


_which = click.argument("target", metavar="[LEARNER]", default=LEARNER)


def _interrupt(kind: str, doc: str) -> None:
    @verb(
        kind,
        doc,
        examples=(
            f"recuros learner {kind}",
            f"recuros learner {kind} --dry-run --json",
            f"recuros learner {kind} --reason maintenance",
        ),
        right="interrupt",
        exits=(*STEER_EXITS, 4),
    )
    @_which
    @changes()
    def interrupt(ctx: Context, target: str, reason: str, dry_run: bool) -> None:
        _learner(target)
        with ctx.client() as client:
            answer = client.change("interrupt", dry_run=dry_run, kind=kind, reason=reason)
        ctx.changed(f"recuros.learner.{kind}/v1", answer, kind)

    learner.add_command(interrupt)


_interrupt("pause", "Pause: the running window ends, no other is granted.")
_interrupt("resume", "Resume after a pause, or after a plan that stopped with an error.")


@verb(
    "interrupt",
    "Interrupt the learner: KIND is pause, resume or stop (it drains and halts the runtime), or what the Observer's policy decides on: "
    "data (new labelled samples in a JSONL or CSV FILE), constraint (classes that answers are kept to; none takes it back) or "
    "objective (settings of the loss). Exits 1 when the policy rejects it.",
    examples=(
        "recuros learner interrupt data new.jsonl --reason 'labels of Monday'",
        "recuros learner interrupt constraint --forbid 3 --implies 7=1,7 --weight 0.5",
        "recuros learner interrupt objective --set mix=0.8 --set cka=0.2",
    ),
    right="interrupt",
    exits=(1, *STEER_EXITS),
)
@click.argument("kind")
@click.argument("file", required=False)
@click.option("--allow", metavar="CLASSES", help="constraint: classes that answers are kept to, such as 0,1,2.")
@click.option("--forbid", metavar="CLASSES", help="constraint: classes that are left out.")
@click.option(
    "--implies", multiple=True, metavar="LABEL=CLASSES", help="constraint: rows of this label answer in these."
)
@click.option("--weight", type=float, help="constraint: weight of its loss. [1]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="objective: a setting of the loss.")
@click.option(
    "--verdict-ms", type=int, default=10_000, show_default=True, help="Without a verdict by then it is rejected."
)
@changes()
@click.option("--yes", is_flag=True, help="Do not ask.")
def interrupt(
    ctx: Context, kind: str, file: str | None, reason: str, dry_run: bool, yes: bool, verdict_ms: int, **words: Any
) -> int:
    """Send it as it is: the kernel knows the kinds."""
    if kind in interrupts.KINDS:
        return _considered(ctx, kind, file, reason, dry_run, verdict_ms, words)
    if file is not None or any(value not in (None, ()) for value in words.values()):
        raise RecurosError(
            "E2-USAGE", f"{kind} takes nothing besides", hint=f"kinds with more: {', '.join(interrupts.KINDS)}"
        )
    if kind == "stop" and not dry_run:
        ctx.confirm("Drain and halt the runtime?", "this halts the runtime", yes)
    with ctx.client() as client:
        answer = client.change("interrupt", dry_run=dry_run, kind=kind, reason=reason)
    ctx.changed("recuros.learner.interrupt/v1", {"kind": kind, **answer}, kind)
    return 0


def _considered(
    ctx: Context, kind: str, file: str | None, reason: str, dry_run: bool, verdict_ms: int, words: dict[str, Any]
) -> int:
    body, data = interrupts.body_of(kind, file, words)
    timeout_s = verdict_ms / 1e3 + CALIBRATE_TIMEOUT_S
    with ctx.client() as client:
        page = 0
        if len(data) > limits.INTERRUPT_BYTES_MAX:
            page, data = _offered(client, body["name"], data), b""
        answer = client.change(
            "rl_interrupt",
            reason=reason,
            dry_run=dry_run,
            timeout_s=timeout_s,
            kind=kind,
            body=body,
            data=data,
            timeout_ms=verdict_ms,
            page=page,
        )
    if dry_run:
        ctx.changed("recuros.learner.interrupt/v1", {"kind": kind, **answer}, f"{kind}, put to the Observer's policy")
        return 0
    taken = bool(answer["accepted"])
    ctx.changed(
        "recuros.learner.interrupt/v1",
        {"kind": kind, **answer},
        f"{kind} {'taken' if taken else 'rejected'}: {answer['reason']}",
    )
    return 0 if taken else 1


def _offered(client: Client, name: str, data: bytes) -> int:
    """More than a message takes goes through a page; over the network there are none."""
    if client.remote:
        raise RecurosError(
            "E2-LIMIT",
            f"{name} has {len(data)} bytes; over the network 1 to {limits.INTERRUPT_BYTES_MAX} are taken at a time",
            hint="run the command on the machine of the runtime, or split the file: each interrupt adds to the ones before",
        )
    return client.offer(data)


@verb(
    "kd",
    "Change temperature, hint weight, mix, projector or the weights of terms of the loss; what is not given stays.",
    examples=(
        "recuros learner kd --temperature 3",
        "recuros learner kd --mix 0.9 --alpha 0.5",
        "recuros learner kd --term cka=0.2 --term at=0 --dry-run",
    ),
    right="steer",
    exits=STEER_EXITS,
)
@click.option("--temperature", type=float, help="1 to 4.")
@click.option("--alpha", type=float, help="Weight of the hint term.")
@click.option("--mix", type=float, help="Share of the KD term, 0 to 1.")
@click.option("--proj", type=click.Choice(["linear", "none"]), help="Projector of the hint term.")
@click.option(
    "--term", "terms", multiple=True, metavar="NAME=WEIGHT", help="A further term; 0 turns it off. Repeatable."
)
@changes()
def kd(ctx: Context, reason: str, dry_run: bool, terms: tuple[str, ...], **given: Any) -> None:
    """Send what was given."""
    settings = {name: value for name, value in given.items() if value is not None}
    if terms:
        settings["terms"] = dict(map(_term, terms))
    if not settings:
        raise RecurosError("E2-USAGE", "nothing to change was given", hint="recuros learner kd --temperature 3")
    with ctx.client() as client:
        answer = client.change("rl_set_kd", reason=reason, dry_run=dry_run, **settings)
    ctx.changed("recuros.learner.kd/v1", answer, " ".join(f"{k}={v}" for k, v in settings.items()))


def _term(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        return name.replace("-", "_"), float(weight)
    except ValueError:
        raise RecurosError("E2-USAGE", f"--term {text!r:.60} is no NAME=WEIGHT", hint="--term cka=0.2") from None


@verb(
    "gate",
    "Leave the easiest and the most ambiguous samples out, by teacher entropy; --open takes all of them again.",
    examples=(
        "recuros learner gate --drop-low 0.1 --drop-high 0.1",
        "recuros learner gate --drop-high 0.05 --reason 'two labels are doubtful'",
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
@changes()
def gate(
    ctx: Context, drop_low: float | None, drop_high: float | None, open_: bool, reason: str, dry_run: bool
) -> None:
    """Set or open the gate."""
    criteria = {k: v for k, v in (("drop_low", drop_low), ("drop_high", drop_high)) if v is not None}
    if open_ == bool(criteria):
        raise RecurosError(
            "E2-USAGE", "give shares to leave out, or --open", hint="recuros learner gate --drop-low 0.1"
        )
    with ctx.client() as client:
        answer = client.change("rl_gate_samples", reason=reason, dry_run=dry_run, criteria=criteria)
    ctx.changed(
        "recuros.learner.gate/v1", answer, "gate " + (" ".join(f"{k}={v}" for k, v in criteria.items()) or "open")
    )


@verb(
    "prune",
    "Prune the student: a SHARE of its weights (or of its heads and neurons), or the --head's that are named.",
    examples=(
        "recuros learner prune 0.5",
        "recuros learner prune 0.6 --method movement --steps 400",
        "recuros learner prune --method heads --head 1:2 --head 2:4 --dry-run",
    ),
    right="steer",
    exits=STEER_EXITS,
)
@click.argument("share", type=click.FloatRange(0, 1, max_open=True), required=False)
@click.option(
    "--method", type=click.Choice(masks.METHODS), default="magnitude", help="What decides who goes [magnitude]."
)
@click.option(
    "--steps", type=int, help="Of movement and l0: until the share is reached; else most of what is left of the phase."
)
@click.option("--head", "heads", multiple=True, metavar="LAYER:HEAD", help="A head, counted from 1. Repeatable.")
@changes()
def prune(
    ctx: Context,
    share: float | None,
    method: str,
    steps: int | None,
    heads: tuple[str, ...],
    reason: str,
    dry_run: bool,
) -> None:
    """Send the mask spec."""
    given = {"target": share, "steps": steps, "heads": [_head(h) for h in heads] or None}
    spec = masks.checked({"method": method, **{k: v for k, v in given.items() if v is not None}})
    with ctx.client() as client:
        answer = client.change("rl_prune", reason=reason, dry_run=dry_run, mask_spec=spec)
    what = f"{len(spec['heads'])} heads" if "heads" in spec else f"to {spec['target']:g}"
    ctx.changed("recuros.learner.prune/v1", answer, f"prune by {method}: {what}")


def _head(text: str) -> list[int]:
    layer, _, head = text.partition(":")
    if not (layer.isdecimal() and head.isdecimal()):
        raise RecurosError("E2-USAGE", f"--head {text!r:.40} is no LAYER:HEAD", hint="--head 1:2")
    return [int(layer), int(head)]


@verb(
    "calibrate",
    "Fit a scaling temperature to the last committed student on validation data.",
    examples=(
        "recuros learner calibrate",
        "recuros learner calibrate --dry-run --json",
        "recuros learner calibrate --timeout 300",
    ),
    right="steer",
    exits=(*STEER_EXITS, 4),
)
@_which
@changes()
def calibrate(ctx: Context, target: str, reason: str, dry_run: bool) -> None:
    """Ask, and print the fit."""
    _learner(target)
    limit_s = CALIBRATE_TIMEOUT_S if ctx.timeout_option_s is None else ctx.timeout_option_s
    with ctx.client() as client:
        answer = client.change("rl_calibrate", reason=reason, dry_run=dry_run, timeout_s=limit_s)
    if dry_run:
        ctx.changed("recuros.learner.calibrate/v1", answer, "a fit by the Observer")
        return
    found = ", ".join(f"{k} {v:.4g}" for k, v in answer["result"].items() if isinstance(v, int | float))
    ctx.changed("recuros.learner.calibrate/v1", answer, f"calibrated: {found}")


for _command in (interrupt, kd, gate, prune, calibrate):
    learner.add_command(_command)


@verb(
    "swap",
    "Make the student the teacher at the next window: by its moving average, or as it stands.",
    examples=("recuros swap", "recuros swap learner --mode checkpoint", "recuros swap --dry-run"),
    right="steer",
    exits=(*STEER_EXITS, 4),
)
@_which
@click.option(
    "--mode", type=click.Choice(limits.SWAP_MODES), default="ema", help="Which weights become the teacher's [ema]."
)
@changes()
def swap(ctx: Context, target: str, mode: str, reason: str, dry_run: bool) -> None:
    """Ask for the swap."""
    _learner(target)
    with ctx.client() as client:
        answer = client.change("rl_swap_roles", reason=reason, dry_run=dry_run, mode=mode)
    ctx.changed("recuros.learner.swap/v1", answer, f"swap by {mode}")
