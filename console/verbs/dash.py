"""`recuros dash`: the dashboard of a run directory."""

from __future__ import annotations

import signal
from typing import Any

import click

from console.context import Context
from console.verb import verb
from syscalls.errors import RecurosError


@verb(
    "dash",
    "Serve the dashboard of a run directory on 127.0.0.1, with or without a runtime; it only reads unless told otherwise.",
    examples=("recuros dash", "recuros dash --port 0 --open", "recuros dash --run runs/first --allow-steer"),
    right="none to look; a change needs the operator's right for it",
    exits=(4, 9, 75, 130),
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    metavar="N",
    help="Port [8420, or a free one when that is taken; 0: a free one].",
)
@click.option(
    "--allow-steer",
    is_flag=True,
    help="Let the page pause, resume, name snapshots, set the temperature, detach probes.",
)
@click.option("--open", "open_", is_flag=True, help="Open it in the browser.")
def dash(ctx: Context, port: int | None, allow_steer: bool, open_: bool) -> None:
    """Print the address and serve until interrupted."""
    try:
        from console.dash.serve import listen, make
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn"):
            raise
        raise RecurosError(
            "E2-USAGE", f"the dashboard needs {missing}, which is not installed", hint="pip install 'recuros[dash]'"
        ) from error
    from importlib.metadata import version

    sock = listen(port)
    with sock:
        number = sock.getsockname()[1]
        server, url = make(ctx.run, number, version("recuros"), steer=allow_steer)
        stopped = _stops(server)
        doc = {"schema": "recuros.dash.serve/v1", "url": url, "port": number, "run": str(ctx.run), "steer": allow_steer}
        ctx.emit(doc, url)
        mode = "it may steer" if allow_steer else "read-only"
        ctx.message(f"the dashboard of {ctx.run}, {mode}; the address holds its token. Ctrl-C ends it")
        if open_:
            import webbrowser

            webbrowser.open(url)
        server.run(sockets=[sock])
    if stopped:
        raise KeyboardInterrupt


def _stops(server: Any) -> list[int]:
    """From here on Ctrl-C asks the server to end, also before it has begun to serve; the list then holds the signal."""
    caught: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        caught.append(number)
        server.should_exit = True

    signal.signal(signal.SIGINT, stop)
    return caught
