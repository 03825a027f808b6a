"""Who may speak to the dashboard.

Responsible for: three questions before any handler runs. Is the Host one of ours (a page of another site that rebinds its name to
127.0.0.1 sends its own)? Does a request for data carry the token of this dashboard? Is a change asked for by our own page, on purpose?
The token travels in the Authorization header only: no cookie is set, so nothing is sent along by a browser on its own account, and
cookies, which ports of one host share, cannot leak it to a neighbour. Refuses: everything else, before it is read.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from starlette.responses import JSONResponse, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ACTION_HEADER: Final = "x-recuros-action"
BODY_BYTES_MAX: Final = 16_384
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def refusal(status: int, code: str, message: str, hint: str = "") -> Response:
    """An error as every address answers it."""
    return JSONResponse({"error": {"code": code, "message": message, "hint": hint}}, status)


class Guard:
    """An ASGI application around another one. `port` is the one that the dashboard listens on."""

    def __init__(self, app: App, *, port: int, token: str) -> None:
        self._app = app
        self._token = token.encode()
        self.hosts: Final = frozenset({f"127.0.0.1:{port}", f"localhost:{port}"})
        self.origins: Final = frozenset({f"http://{host}" for host in self.hosts})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, or answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        refused = self.judge(scope)
        await (refused or self._app)(scope, receive, with_headers)

    def judge(self, scope: Scope) -> Response | None:
        """The refusal, or None for a request that may go on."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        host = headers.get("host", [])
        if len(host) != 1 or host[0].lower() not in self.hosts:
            named = ", ".join(host) or "none"
            return refusal(
                403, "E5-DENIED", f"Host {named!r:.100} is not this dashboard", f"open http://{min(self.hosts)}/"
            )
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return refusal(405, "E2-USAGE", f"{scope['method']!r:.20} is not served here; GET is")
        if not scope["path"].startswith("/api/"):
            return None if scope["method"] != "POST" else refusal(405, "E2-USAGE", "only /api/act takes POST")
        if headers.get("sec-fetch-site", ["same-origin"])[0] not in ("same-origin", "none"):
            return refusal(403, "E5-DENIED", "a page of another site asked for this")
        return self._check_token(headers) or (self._check_action(headers) if scope["method"] == "POST" else None)

    def _check_token(self, headers: dict[str, list[str]]) -> Response | None:
        scheme, _, given = headers.get("authorization", [""])[0].partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token):
            return None
        what = "the token is not that of this dashboard" if given else "no token came with the request"
        return refusal(401, "E5-DENIED", what, "use the address that recuros dash printed when it started")

    def _check_action(self, headers: dict[str, list[str]]) -> Response | None:
        origin = headers.get("origin", [""])[0]
        if origin not in self.origins:
            return refusal(403, "E5-DENIED", f"a change from origin {origin or 'none'!r:.100} is refused")
        if headers.get(ACTION_HEADER, [""])[0] != "confirmed":
            return refusal(403, "E5-DENIED", f"a change needs the header {ACTION_HEADER}: confirmed")
        if not headers.get("content-type", [""])[0].startswith("application/json"):
            return refusal(415, "E2-USAGE", "a change is sent as application/json")
        size = headers.get("content-length", [""])[0]
        if not size.isdigit() or int(size) > BODY_BYTES_MAX:
            return refusal(413, "E2-LIMIT", f"a change takes at most {BODY_BYTES_MAX} bytes, with their number given")
        return None
