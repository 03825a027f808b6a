"""The addresses of the dashboard.

Responsible for: binding feed, queries, runtime and actions to HTTP. Records are server-sent events whose id is their ledger sequence
number, so a client that comes back with Last-Event-ID gets exactly what it missed; gauges are events without an id, of which only
the newest matters. Refuses: changes, unless it was made with `steer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from console.context import plain
from console.dash.actions import act
from console.dash.feed import Feed
from console.dash.guard import refusal
from console.dash.queries import Queries
from console.dash.runtime import RuntimeThread
from syscalls.errors import RecurosError

Found = TypeVar("Found")

STATIC: Final = Path(__file__).parent / "static"
HISTORY_MAX: Final = 20_000
PAGE_MAX: Final = 4_000
KEEPALIVE_S: Final = 15.0
SUBSCRIBERS_MAX: Final = 32
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}\Z")
STATUS_OF: Final = {1: 409, 2: 400, 3: 503, 4: 404, 5: 403, 6: 409, 7: 409, 8: 422, 9: 500, 75: 503, 124: 504}


@dataclass
class Dashboard:
    """One dashboard over one run directory; `app` is the ASGI application, without its guard."""

    run: Path
    version: str
    steer: bool = False
    feed: Feed = field(init=False)
    gauges: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.feed = Feed(self.run / "store" / "ledger" / "records")
        self._queries: dict[bool, Queries] = {}
        self._runtime = RuntimeThread(self.run, self._told)
        # A store is read by the thread that opened it; what looks at every pack has a thread of its own, so that a record never waits.
        self._readers = {slow: ThreadPoolExecutor(1, f"dash-store-{slow}") for slow in (False, True)}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._subscribers = 0
        routes = [
            Route("/", self._page),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/api/hello", self._hello),
            Route("/api/records", self._records),
            Route("/api/events", self._events),
            Route("/api/search", self._search),
            Route("/api/record/{seq:int}", self._of_record("record")),
            Route("/api/proof/{seq:int}", self._of_record("proof")),
            Route("/api/at/{seq:int}", self._of_record("at")),
            Route("/api/report/{seq:int}", self._of_record("report")),
            Route("/api/layers", self._layers),
            Route("/api/store", self._store),
            Route("/api/collection", self._collection),
            Route("/api/probe/{id:int}", self._probe),
            Route("/api/program", self._program),
            Route("/api/act", self._act, methods=["POST"]),
        ]
        self.app = Starlette(
            routes=routes,
            exception_handlers={RecurosError: _refused, HTTPException: _http, ClientDisconnect: _gone},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self.feed.start()
        self._runtime.start()
        try:
            yield
        finally:
            self.end_streams()
            await self._loop.run_in_executor(None, self._runtime.stop)
            for slow, reader in self._readers.items():
                await self._loop.run_in_executor(reader, self._close_store, slow)
                reader.shutdown()

    def end_streams(self) -> None:
        """End every stream of events, so that a server that stops need not wait for them."""
        if not self.feed.closed:
            self.feed.stop()
        self._changed.set()

    # --- gauges --------------------------------------------------------------------------------------------------------

    def _told(self, gauges: dict[str, Any]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._publish, gauges)

    def _publish(self, gauges: dict[str, Any]) -> None:
        self.gauges = gauges
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- pages ---------------------------------------------------------------------------------------------------------

    async def _page(self, _request: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    async def _hello(self, _request: Request) -> Response:
        size = self.feed.size
        return JSONResponse(
            {
                "schema": "recuros.dash.hello/v1",
                "run": str(self.run),
                "version": self.version,
                "steer": self.steer,
                "size": size,
                "first": max(0, size - HISTORY_MAX),
                "damage": self.feed.damage,
            }
        )

    async def _records(self, request: Request) -> Response:
        after, limit = _number(request, "after", -1), _number(request, "limit", PAGE_MAX)
        stop = min(self.feed.size, after + 1 + max(1, min(limit, PAGE_MAX)))
        rows = list(self.feed.texts(max(0, after + 1), stop))
        body = f'{{"records":[{",".join(rows)}],"size":{self.feed.size}}}'
        return Response(body, media_type="application/json")

    async def _events(self, request: Request) -> Response:
        if self._subscribers >= SUBSCRIBERS_MAX:
            raise RecurosError("E75-FULL", f"{SUBSCRIBERS_MAX} pages are open on this dashboard", hint="close one")
        last = request.headers.get("last-event-id", "")
        after = int(last) if _NUMBER.match(last) else _number(request, "after", self.feed.size - 1)
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._stream(after), media_type="text/event-stream", headers=headers)

    async def _stream(self, after: int) -> AsyncIterator[str]:
        """Records and gauges as they come; a comment now and then, so that a dead connection is found out."""
        self._subscribers += 1
        self._runtime.watch(1)
        outbox: asyncio.Queue[str] = asyncio.Queue(64)
        tasks = [asyncio.create_task(self._send_records(after, outbox)), asyncio.create_task(self._send_gauges(outbox))]
        try:
            yield "retry: 1000\n\n"
            while not self.feed.closed:
                try:
                    yield await asyncio.wait_for(outbox.get(), KEEPALIVE_S)
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self._subscribers -= 1
            self._runtime.watch(-1)
            for task in tasks:
                task.cancel()

    async def _send_records(self, after: int, outbox: asyncio.Queue[str]) -> None:
        try:
            async for seq, text in self.feed.follow(after):
                await outbox.put(f"id: {seq}\nevent: record\ndata: {text}\n\n")
            await outbox.put("event: end\ndata: {}\n\n")
        except RecurosError as error:
            await outbox.put(f"event: damage\ndata: {json.dumps({'code': error.code, 'message': error.message})}\n\n")

    async def _send_gauges(self, outbox: asyncio.Queue[str]) -> None:
        while True:
            changed = self._changed
            if self.gauges:
                await outbox.put(f"event: gauges\ndata: {json.dumps(self.gauges, separators=(',', ':'))}\n\n")
            await changed.wait()

    # --- the store -----------------------------------------------------------------------------------------------------

    async def _query(self, ask: Callable[[Queries], Found], *, slow: bool = False) -> Found:
        def work() -> Found:
            if slow not in self._queries:
                self._queries[slow] = Queries(self.run)
            return ask(self._queries[slow])

        return await asyncio.get_running_loop().run_in_executor(self._readers[slow], work)

    def _close_store(self, slow: bool) -> None:
        if slow in self._queries:
            self._queries[slow].close()

    def _of_record(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            seq = int(request.path_params["seq"])
            return JSONResponse(await self._query(lambda store: getattr(store, name)(seq)))

        return handler

    async def _search(self, request: Request) -> Response:
        q = request.query_params
        before, limit = _number(request, "before", -1), _number(request, "limit", 200)
        text, kind, actor = (q.get(name, "")[:200] for name in ("text", "kind", "actor"))
        return JSONResponse(
            await self._query(
                lambda store: store.search(text=text, kind=kind, actor=actor, before=before, limit=max(1, limit))
            )
        )

    async def _layers(self, request: Request) -> Response:
        after = _number(request, "after", -1)
        return JSONResponse(await self._query(lambda store: store.layers(after)))

    async def _store(self, _request: Request) -> Response:
        return JSONResponse(await self._query(Queries.sizes, slow=True))

    async def _collection(self, request: Request) -> Response:
        percent = _number(request, "percent", 50)
        if not 0 <= percent <= 100:
            raise RecurosError("E2-LIMIT", f"percent is {percent}; it lies between 0 and 100")
        return JSONResponse(await self._query(lambda store: store.collection(percent), slow=True))

    # --- the runtime -----------------------------------------------------------------------------------------------------

    async def _ask(self, future: Future[Found]) -> Found:
        return await asyncio.wrap_future(future)

    async def _probe(self, request: Request) -> Response:
        from console.dash.probes import read

        number = int(request.path_params["id"])
        found = await self._ask(self._runtime.submit(lambda client: read(client, number)))
        return JSONResponse(plain(found))

    async def _program(self, request: Request) -> Response:
        from console.dash.probes import verified

        name = request.query_params.get("prog", "")[:500]
        return JSONResponse(plain(await self._query(lambda _: verified(name))))

    async def _act(self, request: Request) -> Response:
        if not self.steer:
            return refusal(
                403, "E5-DENIED", "this dashboard only reads", "recuros dash --allow-steer opens a few changes"
            )
        try:
            asked = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise RecurosError("E2-USAGE", "the body is not JSON") from error
        return JSONResponse(plain(await self._ask(self._runtime.submit(lambda client: act(client, asked)))))


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise RecurosError("E2-USAGE", f"{name} is {text!r:.40}; it must be a whole number") from error


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RecurosError)
    return refusal(STATUS_OF.get(error.exit_status, 500), error.code, error.message, error.hint)


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, "E4-NOENT" if error.status_code == 404 else "E2-USAGE", str(error.detail))


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)
