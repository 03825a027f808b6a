"""Reservations: show them, change the learner's, ask whether another would be admitted, and what the schedule was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from console.context import Context, cell
from console.verb import changes, noun, verb
from syscalls.errors import RecurosError

REFUSED: Final = 6

sched = noun("sched", "Reservations, their admission, and the schedule that was.")
_MS: Final = click.IntRange(1, 86_400_000)


@verb(
    "show",
    "Reservations, lanes, the fair class and their counters.",
    examples=("recuros sched show", "recuros sched show --json", "recuros sched show --run runs/first"),
    exits=(3, 124),
)
def show(ctx: Context) -> None:
    """Print the scheduler's map."""
    with ctx.client() as client:
        found = client.sched_show()["sched"]
    ctx.emit({"schema": "recuros.sched.show/v1", **found}, "\n".join(_lines(found, "")))


def _lines(value: Any, indent: str) -> list[str]:
    """A nested map as indented lines."""
    lines = []
    for key, below in value.items():
        if isinstance(below, dict) and below:
            lines += [f"{indent}{key}", *_lines(below, indent + "  ")]
        elif isinstance(below, list) and below and all(isinstance(item, dict) for item in below):
            lines.append(f"{indent}{key}")
            lines += [f"{indent}  {cell(item)}" for item in below]
        else:
            lines.append(f"{indent}{key}  {cell(below)}")
    return lines


@verb(
    "set",
    "Change the replay reservation, if admission allows it.",
    examples=(
        "recuros sched set --budget-ms 800 --period-ms 1000",
        "recuros sched set --budget-ms 800 --period-ms 1000 --deadline-ms 900 --dry-run",
        "recuros sched set --budget-ms 3000 --period-ms 4000 --reason 'larger batches' --json",
    ),
    right="sched-control",
    exits=(3, 5, 6, 124),
)
@click.option("--budget-ms", type=_MS, required=True, help="Time a window may use.")
@click.option("--period-ms", type=_MS, required=True, help="How often a window is granted.")
@click.option("--deadline-ms", type=_MS, help="Time after its grant by which it must be done [the period].")
@changes()
def set_(ctx: Context, budget_ms: int, period_ms: int, deadline_ms: int | None, reason: str, dry_run: bool) -> None:
    """Ask for the change; a refusal exits 6."""
    window = {"budget_ms": budget_ms, "period_ms": period_ms}
    deadline = period_ms if deadline_ms is None else deadline_ms
    with ctx.client() as client:
        answer = client.change("rl_schedule", reason=reason, dry_run=dry_run, window=window, deadline=deadline)
    what = f"reservation {budget_ms} ms / {period_ms} ms"
    if not answer.get("admitted", dry_run):
        raise RecurosError(
            "E6-ADMIT",
            f"{what} refused: {cell(answer['witness'])}",
            hint="recuros sched show",
            details=answer["witness"],
        )
    ctx.changed("recuros.sched.set/v1", answer, what)


@verb(
    "admit",
    "Would reservation NAME be admitted beside the present ones? A present NAME (replay) is replaced. Exits 6 when refused.",
    examples=(
        "recuros sched admit --dry-run --budget-ms 40 --period-ms 100",
        "recuros sched admit --dry-run --budget-ms 40 --period-ms 100 --deadline-ms 60",
        "recuros sched admit replay --dry-run --budget-ms 3500 --period-ms 4000 --json",
    ),
    exits=(3, 6, 124),
)
@click.argument("name", default="question")
@click.option("--dry-run", is_flag=True, help="What this verb always does: it only asks.")
@click.option("--budget-ms", type=_MS, required=True, help="Time a window may use.")
@click.option("--period-ms", type=_MS, required=True, help="How often a window is granted.")
@click.option("--deadline-ms", type=_MS, help="Relative deadline [the period].")
def admit(ctx: Context, name: str, dry_run: bool, budget_ms: int, period_ms: int, deadline_ms: int | None) -> int:
    """Ask the kernel."""
    del dry_run
    deadline = period_ms if deadline_ms is None else deadline_ms
    with ctx.client() as client:
        answer = client.sched_admit(name=name, budget_ms=budget_ms, period_ms=period_ms, deadline_ms=deadline)
    verdict = "admitted" if answer["admitted"] else "refused"
    text = f"{name} {budget_ms} ms / {period_ms} ms would be {verdict}: {cell(answer['witness'])}"
    ctx.emit({"schema": "recuros.sched.admit/v1", **answer}, text)
    return 0 if answer["admitted"] else REFUSED


@verb(
    "trace",
    "Write the schedule that the ledger holds as a Chrome trace for Perfetto: lanes, servers, windows, dispatches of every boot.",
    examples=(
        "recuros sched trace --out schedule.json",
        "recuros sched trace --out schedule.json --run runs/first",
        "recuros sched trace --out /tmp/schedule.json --json",
    ),
    right="none: it reads the files of the run directory, and those need the file system's permission",
    exits=(3, 4, 9),
)
@click.option(
    "--out", "file", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE", help="Where to."
)
def trace(ctx: Context, file: Path) -> None:
    """Replay the ledger's decisions; https://ui.perfetto.dev and chrome://tracing open the file."""
    from console.trace import chrome, write
    from kernel.replay import replay
    from kfs.store import Store

    with Store.open_reader(ctx.run / "store") as store:
        found = list(store.records())
    schedules = replay(found)
    events = chrome(schedules, found)
    write(file, events)
    windows = sum(e["ph"] == "X" and e["name"].startswith("window ") for e in events)
    cut = sum(not s.whole for s in schedules)
    doc = {
        "file": str(file),
        "boots": len(schedules),
        "windows": windows,
        "events": len(events),
        "boots_not_whole": cut,
    }
    text = (
        f"{file}: {len(schedules)} boots, {windows} windows, {len(events)} events; open it in https://ui.perfetto.dev"
    )
    if cut:
        text += f"\n{cut} boots did not end with a halt: dispatches after their last batch are not known"
    ctx.emit({"schema": "recuros.sched.trace/v1", **doc}, text)


for _command in (show, set_, admit, trace):
    sched.add_command(_command)
