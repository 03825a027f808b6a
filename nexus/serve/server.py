"""The HTTP server: sockets, limits, routes.

    GET  /health                 what is served, and whether it is busy
    GET  /v1/models[/ID]         NAME (the router chooses) and NAME/CAPABILITY
    POST /v1/completions         prompt -> text
    POST /v1/chat/completions    messages -> message

Responsible for: bounded bodies, waiting requests and connections; the gate (a flag of the server and the request's own opt-in, both);
ending a generation whose client has gone. Refuses: other hosts' names (a page in a browser cannot reach it by DNS rebinding), bodies
that are not declared as JSON (a page cannot send one without asking), addresses that others can reach without a key.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from nexus.bundle.load import NexusModel
from nexus.serve import protocol
from syscalls.errors import RecurosError

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
MIB: Final = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one client can make the server hold."""

    body_bytes: int = MIB
    tokens: int | None = None
    waiting: int = 8
    connections: int = 64
    idle_s: float = 30.0


@dataclass(frozen=True)
class Settings:
    """How a bundle is served. `gate_open`: requests may opt in to gated capabilities; `key`: what clients must send as bearer token."""

    host: str = "127.0.0.1"
    port: int = 8080
    gate_open: bool = False
    key: str = ""
    names: tuple[str, ...] = ()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.key:
            raise RecurosError(
                "E2-USAGE",
                f"{self.host} can be reached by others, and there is no key",
                hint="set NEXUS_API_KEY, or serve on 127.0.0.1",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Server(ThreadingHTTPServer):
    """Serves one model until `shutdown`. `port` is the one in use."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, model: NexusModel, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.name = model.name
        self.started = int(time.time())
        self.stopping = threading.Event()
        self._waiting = threading.BoundedSemaphore(settings.limits.waiting)
        self._connections = threading.BoundedSemaphore(settings.limits.connections)
        self.busy = 0
        self._count = threading.Lock()
        host = settings.host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, settings.port), Handler)
        except OSError as error:
            raise RecurosError(
                "E2-USAGE", f"cannot listen on {host}:{settings.port}: {error.strerror}", hint="choose another --port"
            ) from error

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self.server_address[1])

    @property
    def capabilities(self) -> list[str]:
        """Those that requests can name: gated ones only with the server's gate open."""
        gated = self.model.gated
        return [name for name in self.model.capabilities if self.settings.gate_open or name not in gated]

    def server_bind(self) -> None:
        """Without the name look-up of the base class, which can wait for a resolver."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.settings.host, self.port

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread a connection, up to the limit; more are closed at once."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._connections.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the base class; and the connection's place is free again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event. Anything else is the base class's traceback on stderr."""
        import sys

        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places for requests that run or wait (E75-FULL)."""
        if not self._waiting.acquire(blocking=False):
            raise RecurosError(
                "E75-FULL", f"{self.settings.limits.waiting} requests run or wait already", hint="try again in a second"
            )
        with self._count:
            self.busy += 1
        try:
            yield
        finally:
            with self._count:
                self.busy -= 1
            self._waiting.release()

    def stop(self) -> None:
        """End running generations and the server."""
        self.stopping.set()
        self.shutdown()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "nexus"
    sys_version = ""

    def setup(self) -> None:
        """A client that neither sends nor reads for a while is let go."""
        self.request.settimeout(self.server.settings.limits.idle_s)
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: prompts are not logged, and neither is who asked."""

    # Routes

    def do_GET(self) -> None:  # the base class's name
        """/health and /v1/models."""
        path = self.path.partition("?")[0]
        with self._answered():
            self._check(key=path != "/health")
            if path == "/health":
                self._json(200, self._health())
            elif path == "/v1/models":
                self._json(200, {"object": "list", "data": self._models()})
            elif path.startswith("/v1/models/"):
                self._json(200, self._one_model(path.removeprefix("/v1/models/")))
            else:
                raise self._unknown(path)

    def do_POST(self) -> None:  # the base class's name
        """Completions."""
        path = self.path.partition("?")[0]
        with self._answered():
            self._check(key=True)
            if path not in ("/v1/completions", "/v1/chat/completions"):
                raise self._unknown(path)
            body = self._body()
            server = self.server
            with contextlib.ExitStack() as held:
                held.enter_context(server.place())
                self._complete(
                    held,
                    protocol.read(
                        body,
                        chat="chat" in path,
                        name=server.name,
                        capabilities=server.capabilities,
                        tokens_max=server.settings.limits.tokens,
                        template=server.model.render_chat,
                    ),
                )

    def _unknown(self, path: str) -> RecurosError:
        return RecurosError("E4-NOENT", f"{self.command} {path[:80]} is not served", hint="see /v1/models and /health")

    def _health(self) -> dict[str, Any]:
        server, model = self.server, self.server.model
        return {
            "status": "ok",
            "name": server.name,
            "bundle": model.manifest.bundle_id,
            "verified": model.verdict.how,
            "runs": model.runs,
            "gate": "open to requests that opt in" if server.settings.gate_open else "closed",
            "busy": server.busy,
            "waiting_max": server.settings.limits.waiting,
        }

    def _models(self) -> list[dict[str, Any]]:
        return protocol.models(self.server.name, self.server.capabilities, self.server.started)

    def _one_model(self, name: str) -> dict[str, Any]:
        from urllib.parse import unquote

        wanted = unquote(name)
        for entry in self._models():
            if entry["id"] == wanted:
                return entry
        raise RecurosError("E4-NOENT", f"there is no model {wanted!r:.80}", hint="see /v1/models")

    # Answering

    def _complete(self, held: contextlib.ExitStack, request: protocol.Request) -> None:
        """Answer. `held` is this request's place, given back before the client can know that it is done and ask again."""
        model = self.server.model
        if request.opted_in and not self.server.settings.gate_open:
            raise RecurosError(
                "E5-DENIED", "this server does not open gates", hint="its operator must start it with --enable-gated"
            )
        chosen = [
            model.choose(prompt, request.capability, enable_uncensored=request.opted_in) for prompt in request.prompts
        ]
        names = [None if found is None else found.name for found in chosen]
        answer = protocol.Answer(request, names, model.manifest.bundle_id)
        streams = [
            model.generate(
                prompt, request.capability, request.opted_in, stream=True, outcome=outcome, **request.options
            )
            for prompt, outcome in zip(request.prompts, answer.outcomes, strict=True)
        ]
        with contextlib.ExitStack() as stack:
            for pieces in streams:
                stack.enter_context(contextlib.closing(pieces))
            if request.stream:
                self._stream(held, answer, streams)
            else:
                body = answer.whole(["".join(self._while_there(pieces)) for pieces in streams])
                held.close()
                self._json(200, body)

    def _while_there(self, pieces: Iterator[str]) -> Iterator[str]:
        """Pieces while the client is there and the server is not stopping."""
        for piece in pieces:
            if self.server.stopping.is_set() or self._gone():
                raise ConnectionAbortedError
            yield piece

    def _gone(self) -> bool:
        """Whether the client has closed its side."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _stream(self, held: contextlib.ExitStack, answer: protocol.Answer, streams: Sequence[Iterator[str]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for index, pieces in enumerate(streams):
                if answer.request.chat:
                    self._chunk(answer.piece(index, "", first=True))
                for piece in self._while_there(pieces):
                    self._chunk(answer.piece(index, piece))
                self._chunk(answer.piece(index, "", answer.outcomes[index].finish))
            held.close()
            self._chunk(answer.last())
        except RecurosError as error:  # too late for a status
            self._chunk(protocol.event(protocol.error_body(error)))
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    # One request

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """Coded errors become answers. After one, the connection is closed: a body may be left unread in it."""
        try:
            yield
        except RecurosError as error:
            self.close_connection = True
            headers = {"Retry-After": "1"} if protocol.status_of(error) in (429, 503) else {}
            self._json(protocol.status_of(error), protocol.error_body(error), headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _check(self, *, key: bool) -> None:
        settings = self.server.settings
        host = (self.headers.get("Host") or "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in {*LOCAL_NAMES, settings.host.lower(), f"[{settings.host.lower()}]", *settings.names}:
            raise RecurosError("E5-DENIED", f"this server is not called {host[:80]!r}", hint="--allow-host NAME")
        sent = self.headers.get("Authorization") or ""
        wanted = f"Bearer {settings.key}"
        if key and settings.key and not hmac.compare_digest(sent.encode(), wanted.encode()):
            raise RecurosError("E5-DENIED", "the key is missing or wrong", hint="send it as Authorization: Bearer KEY")

    def _body(self) -> Any:
        limit = self.server.settings.limits.body_bytes
        if "transfer-encoding" in self.headers:
            raise RecurosError("E2-WIRE", "a body without Content-Length is not taken", hint="send Content-Length")
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RecurosError("E2-WIRE", f"the body is {kind[:60]!r}", hint="send Content-Type: application/json")
        lengths = self.headers.get_all("Content-Length") or []
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise RecurosError("E2-WIRE", "Content-Length is missing or no number", hint="send one")
        length = int(lengths[0][:20])
        if length > limit:
            raise RecurosError(
                "E2-LIMIT", f"the body has {length} bytes; the limit is {limit}", hint="shorten the prompt"
            )
        data = self.rfile.read(length)
        try:
            return json.loads(data.decode(), parse_constant=_not_json)
        except (ValueError, RecursionError) as error:
            raise RecurosError("E2-WIRE", f"the body is not JSON: {error}"[:200], hint="send UTF-8 JSON") from error

    def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


def _not_json(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")
