"""`recuros boot`: start, watch, report."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from console.context import Context
from console.verb import verb
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from recuros import Runtime

POLL_S: Final = 0.25
INTERRUPTED: Final = 130
HALT_TIMEOUT_S: Final = 120.0
NOBODY_ANSWERS: Final = ("E3-DOWN", "E3-GONE", "E124-TIMEOUT")


@verb(
    "boot",
    "Start a runtime, or resume the one of this run directory, and follow it to its report.",
    examples=("recuros boot digits", "recuros boot -c my.toml --run runs/mine", "recuros boot --detach --json"),
    exits=(3, 5, 6, 7, 9, 124, 130),
)
@click.argument("app", required=False)
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="A manifest of your own.")
@click.option("--detach", is_flag=True, help="Return when it runs and leave it running.")
def boot(ctx: Context, app: str | None, config: Path | None, detach: bool) -> int:
    """Boot in the foreground or detached; without APP and -c a run directory's own manifest, else the default app."""
    import recuros

    began = time.monotonic()
    if detach:
        return _detached(ctx, app, config)
    ctx.message(f"booting in {ctx.run}")
    runtime = recuros.boot(app, ctx.run, config, until="up")
    stop = _Interrupts()
    error: RecurosError | None = None
    figures: dict[int, Any] = {}
    try:
        with stop.installed():
            figures = _follow(ctx, runtime, stop)
    except RecurosError as raised:
        error = raised
    finally:
        runtime.kill()
    _report(ctx, runtime, error, figures, time.monotonic() - began)
    if error is not None:
        raise error
    return INTERRUPTED if stop.count else 0


class _Interrupts:
    """Ctrl-C: the first asks for a drain, the second for an end now."""

    def __init__(self) -> None:
        self.count = 0

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while the runtime is followed."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _detached(ctx: Context, app: str | None, config: Path | None) -> int:
    import recuros

    runtime = recuros.boot(app, ctx.run, config, detach=True)
    status = runtime.status()
    pid, name = runtime.pid, runtime.app
    runtime.detach()
    doc = {
        "schema": "recuros.boot.detached/v1",
        "app": name,
        "run": str(ctx.run),
        "pid": pid,
        "state": status.get("state"),
    }
    ctx.emit(doc, f"{name} is {status.get('state')} in {ctx.run} (supervisor {pid}); recuros status, recuros halt")
    return 0


def _follow(ctx: Context, runtime: Runtime, stop: _Interrupts) -> dict[int, Any]:
    """Watch until the plan is done, then drain. Returns the last figures of each probe; raises what the runtime failed with."""
    from console.live import open_view

    view = open_view(ctx)
    asked = 0
    figures: dict[int, Any] = {}
    failure: RecurosError | None = None
    deadline = float("inf")
    try:
        while not runtime.ended:
            runtime.event(POLL_S)
            if runtime.ended:
                break
            status = _status(runtime)
            if status is not None:
                view.show(status)
                if status.get("state") == "done" and not asked:
                    failure = RecurosError.from_wire(status["error"]) if status.get("error") else None
                    figures = _figures(runtime, status)
                    asked = _shutdown(runtime, "drain", "the plan is done")
            if stop.count > asked:
                figures = figures or _figures(runtime, status or {})
                mode = "drain" if stop.count == 1 else "now"
                ctx.message(
                    "draining; Ctrl-C once more to roll the running window back" if stop.count == 1 else "stopping now"
                )
                asked = max(stop.count, _shutdown(runtime, mode, "interrupted"))
            if asked and deadline == float("inf"):
                deadline = time.monotonic() + HALT_TIMEOUT_S
            if time.monotonic() > deadline:
                runtime.finish(0.0)
    finally:
        view.close()
    if failure is not None:
        raise failure
    return figures


def _shutdown(runtime: Runtime, mode: str, reason: str) -> int:
    try:
        runtime.client.shutdown(mode=mode, reason=reason)
    except RecurosError as error:
        if error.code not in NOBODY_ANSWERS:
            raise
    return 1


def _status(runtime: Runtime) -> dict[str, Any] | None:
    """The status, or None in the moments around the end when nobody answers; the supervisor's pipe then says what happened."""
    try:
        found: dict[str, Any] = runtime.client.syscall("status", timeout_s=2.0)["status"]
    except RecurosError as error:
        if error.code in NOBODY_ANSWERS:
            return None
        raise
    return found


def _figures(runtime: Runtime, status: dict[str, Any]) -> dict[int, Any]:
    """What each attached probe holds at the end, where it can still be read."""
    from console.report import figures_of

    figures: dict[int, Any] = {}
    for probe in status.get("probes", []):
        try:
            figures[probe["id"]] = figures_of(runtime.client.probe_read(id=probe["id"])["maps"])
        except RecurosError:
            continue  # the operator may not read traces, or the probe has gone: the report says nothing about it
    return figures


def _report(
    ctx: Context, runtime: Runtime, error: RecurosError | None, figures: dict[int, Any], seconds: float
) -> None:
    from console import report

    try:
        ledger = report.read_ledger(ctx.run)
        if not ledger.boots or (error is not None and not ledger.phases and ctx.output != "json"):
            return  # it failed before it could write its first record, or before it committed a window to report on
        with ctx.progress("report: verify") as tell:
            doc = report.boot_report(ctx.run, ledger, runtime.last, figures, seconds, tell)
    except RecurosError as unreadable:
        if error is None:
            raise
        if ctx.verbose:
            ctx.message(str(unreadable))
        return  # the error that is raised next says what went wrong
    ctx.emit(doc, report.text(doc, ledger))
