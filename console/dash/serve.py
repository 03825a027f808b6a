"""Running the dashboard: a loopback socket, a token, and an end that leaves nothing behind.

Responsible for: choosing the port, the token of this start, and stopping on the first signal although pages still listen. Refuses: any
address but 127.0.0.1, and a run directory without a store.
"""

from __future__ import annotations

import errno
import secrets
import socket
from pathlib import Path
from typing import Any, Final

import uvicorn

from console.dash.app import Dashboard
from console.dash.guard import Guard
from syscalls.errors import RecurosError

PORT_DEFAULT: Final = 8420
LOOPBACK: Final = "127.0.0.1"
STOP_S: Final = 3


class _Server(uvicorn.Server):
    """Ends the streams of events first: they never end by themselves."""

    def __init__(self, config: uvicorn.Config, dashboard: Dashboard) -> None:
        super().__init__(config)
        self._dashboard = dashboard

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._dashboard.end_streams()
        await super().shutdown(sockets)


def listen(port: int | None) -> socket.socket:
    """A listening socket on the port; without one on the usual port, or on any free one when that is taken (a second dashboard)."""
    for candidate in (PORT_DEFAULT, 0) if port is None else (port,):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, candidate))
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and port is None:
                continue
            raise RecurosError(
                "E2-USAGE",
                f"port {candidate} of {LOOPBACK} cannot be used: {error.strerror}",
                hint="--port 0 takes a free one",
            ) from error
        sock.listen(64)
        return sock
    raise RecurosError("E75-AGAIN", f"no port of {LOOPBACK} is free")


def make(run: Path, port: int, version: str, *, steer: bool) -> tuple[_Server, str]:
    """A server for a socket on that port, and the address that lets one in."""
    if not (run / "store" / "FORMAT").is_file():
        raise RecurosError(
            "E4-NOENT", f"{run} holds no store", hint="recuros boot makes one; --run names another directory"
        )
    token = secrets.token_urlsafe(32)
    dashboard = Dashboard(run, version, steer)
    settings: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "ws": "none",
        "http": "h11",
        "loop": "asyncio",
    }
    config = uvicorn.Config(
        Guard(dashboard.app, port=port, token=token),
        server_header=False,
        date_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_graceful_shutdown=STOP_S,
        **settings,
    )
    return _Server(config, dashboard), f"http://{LOOPBACK}:{port}/#token={token}"
