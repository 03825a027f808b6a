"""`recuros replay`: do again what the ledger says was done, and compare.

Responsible for: the plan, the processes that compute (batches, windows, decisions), and one verdict. Refuses: to say "ok" for
anything that was not computed and found equal; to import what those processes need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import click

from console.context import Context, Table
from console.verb import verb
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from kfs.replay import Plan

EXITS: Final = {"differs": 9, "environment": 75, "missing": 4, "unequal": 1, "equal": 0}
"""Verdict -> exit status; the first of them that occurs decides."""
RIGHT: Final = "none: it reads the files of the run directory, and those need the file system's permission"
ENDING_S: Final = 60.0


@verb(
    "replay",
    "Do committed windows and policies again from their recorded inputs and compare bit for bit. FROM..TO counts records "
    "(12..40, -50..) or windows (w3..w9); both ends belong to it. Exits 9 when something differs and 75 when the environment "
    "does, which is then named and nothing is run.",
    examples=("recuros replay w3..w9", "recuros replay 12..40 --decisions --json", "recuros replay -100.. --force"),
    right=RIGHT,
    exits=(1, 4, 9, 75),
)
@click.argument("span", metavar="FROM..TO")
@click.option("--state", is_flag=True, help="Only re-execute windows.")
@click.option("--decisions", is_flag=True, help="Only re-evaluate policies.")
@click.option(
    "--force", is_flag=True, help="Re-execute where code or environment differ, too; says whether it is equal."
)
def replay(ctx: Context, span: str, state: bool, decisions: bool, force: bool) -> int:
    """Replay and report; the exit status is that of the worst verdict."""
    import msgpack

    from kfs.replay import plan
    from kfs.store import Store

    both = state == decisions
    with Store.open_reader(ctx.run / "store") as store:
        made = plan(store, span, state=state or both, decisions=decisions or both)
        data: bytes = msgpack.packb(made.to_map(store, force=force))
    windows: list[dict[str, Any]] = []
    decided: list[dict[str, Any]] = []
    with ctx.progress("replay") as tell:
        for row in _decisions(data) if made.decisions else ():
            decided.append(row)
            tell("decisions", len(decided), len(made.decisions))
        for row in _windows(data) if made.windows else ():
            windows.append(row)
            tell("windows", len(windows), len(made.windows))
            if row["verdict"] != "equal":
                ctx.message(f"window {row['window']}: {row['verdict']} ({len(windows)} of {len(made.windows)})")
    return _report(ctx, made, windows, decided)


replay.context_settings = {"ignore_unknown_options": True}  # -100.. is a range and no option


def _report(ctx: Context, made: Plan, windows: list[dict[str, Any]], decided: list[dict[str, Any]]) -> int:
    _note_unanswered(made, windows, decided)
    findings = [
        {"what": f.what, "seq": f.seq, "window": f.window, "verdict": "differs", "detail": f.detail}
        for f in made.findings
    ]
    for row in [*decided, *windows]:
        findings += [
            {"seq": row["seq"], "window": row["window"], "verdict": row["verdict"], **f} for f in row["findings"]
        ]
    verdicts = {f["verdict"] for f in findings} | {row["verdict"] for row in [*windows, *decided]}
    verdict = next(name for name in EXITS if name in verdicts or name == "equal")
    ran = [row["seconds"] for row in windows if row["here"]]
    rate = len(ran) / sum(ran) if ran else None
    doc = {
        "schema": "recuros.replay/v1",
        "verdict": verdict,
        "windows": windows,
        "decisions": decided,
        "findings": findings,
        "windows_per_s": rate,
    }
    if ctx.output in ("table", "wide"):
        ctx.emit(doc, _text(verdict, windows, decided, findings, rate))
    else:
        rows = [*({"kind": "decision", **row} for row in decided), *({"kind": "window", **row} for row in windows)]
        ctx.emit(doc, Table(rows, {"seq": "SEQ", "kind": "KIND", "window": "WINDOW", "verdict": "VERDICT"}, key="seq"))
    return EXITS[verdict]


def _note_unanswered(made: Plan, windows: list[dict[str, Any]], decided: list[dict[str, Any]]) -> None:
    """A process that ended early must not look like a shorter plan."""
    for what, wanted, got in (("window", made.windows, windows), ("policy", made.decisions, decided)):
        answered = {row["seq"] for row in got}
        for item in wanted:
            if item.seq not in answered:
                raise RecurosError(
                    "E3-GONE",
                    f"the process that replays ended before {what} record {item.seq}",
                    hint="see its messages above",
                )


def _text(
    verdict: str,
    windows: list[dict[str, Any]],
    decided: list[dict[str, Any]],
    findings: list[dict[str, Any]],
    rate: float | None,
) -> str:
    def count(rows: list[dict[str, Any]]) -> str:
        return f"{sum(row['verdict'] == 'equal' for row in rows)} of {len(rows)} equal"

    speed = f", {rate:.1f} windows/s" if rate is not None else ""
    elsewhere = sorted({line for row in windows if row["verdict"] == "equal" for line in row.get("differences", ())})
    word = "equal here" if elsewhere else "ok"
    head = word if verdict == "equal" else verdict.upper()
    lines = [f"{head}: decisions {count(decided)}; windows {count(windows)}{speed}"]
    lines += [f"  not in the recorded environment: {line}" for line in elsewhere]
    for (what, detail), same in groupby(findings, lambda f: (f["what"], f["detail"])):
        places = [f"record {f['seq']}, window {f['window']}" for f in same if f["seq"] >= 0]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(f"  {what} ({places[0]}{more}): {detail}" if places else f"  {what}: {detail}")
    if verdict == "environment":
        lines.append(
            "  nothing was run; replay where these are as recorded, or with --force to see whether it is equal here"
        )
    return "\n".join(lines)


def _decisions(data: bytes) -> Iterator[dict[str, Any]]:
    with _process("servers.observer.replay", data) as process:
        yield from _rows(process)


def _windows(data: bytes) -> Iterator[dict[str, Any]]:
    """Two processes and a pipe: one makes the batches, one runs the windows."""
    out, into = os.pipe()
    try:
        with _process("servers.dataset.replay", data, stdout=into):
            os.close(into)
            into = -1
            with _process("servers.learner.replay", data, "--batches", str(out), fds=(out,)) as process:
                os.close(out)
                out = -1
                yield from _rows(process)
    finally:
        for fd in (out, into):
            if fd >= 0:
                os.close(fd)


@contextmanager
def _process(
    module: str, data: bytes, *argv: str, stdout: int = subprocess.PIPE, fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the plan on its stdin; killed when the caller is done before it is."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, *argv], stdin=subprocess.PIPE, stdout=stdout, pass_fds=fds
    ) as process:
        try:
            assert process.stdin is not None
            try:
                process.stdin.write(data)
                process.stdin.close()
            except BrokenPipeError as e:
                raise RecurosError("E3-GONE", f"{module} ended at its start", hint="see its messages above") from e
            yield process
        except BaseException:
            process.kill()
            raise
        status = process.wait(ENDING_S)
        if status:
            raise RecurosError("E3-GONE", f"{module} ended with status {status}", hint="see its messages above")


def _rows(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)
