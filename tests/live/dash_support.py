"""A dashboard in this process, over real sockets, and a real headless Chromium to look at it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE_S

from console.dash.serve import listen, make

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)


class Served:
    """A dashboard on a free port of this process."""

    def __init__(self, run: Path, *, steer: bool = False) -> None:
        self.socket = listen(0)
        self.port = self.socket.getsockname()[1]
        self.server, self.url = make(run, self.port, "test", steer=steer)
        self.token = self.url.partition("token=")[2]
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self._thread.start()
        until(lambda: self.server.started, "the dashboard serves")

    def request(
        self, path: str, *, method: str = "GET", token: str | None = None, body: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON; headers with _ for -, an empty value leaves a default out."""
        given = {"Host": f"127.0.0.1:{self.port}", "Authorization": f"Bearer {self.token if token is None else token}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            for name, value in given.items():
                for one in value.split("\n"):
                    if value:
                        connection.putheader(name, one)
            data = (body or "").encode()
            if body is not None:
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data or None)
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text

    def events(self, last: int | None, count: int) -> list[tuple[int, dict[str, Any]]]:
        """The next `count` records of the stream, as (id, data), over a connection of their own."""
        headers = {"Authorization": f"Bearer {self.token}"} | ({} if last is None else {"Last-Event-ID": str(last)})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", "/api/events", headers=headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            found: list[tuple[int, dict[str, Any]]] = []
            block: dict[str, str] = {}
            while len(found) < count:
                line = answer.readline().decode().rstrip("\n")
                name, _, value = line.partition(": ")
                if line:
                    block[name] = value
                else:
                    if block.get("event") == "record":
                        found.append((int(block["id"]), json.loads(block["data"])))
                    block = {}
            return found

    def cut(self) -> None:
        """Abort every connection, as a network that fails does."""
        connections = list(self.server.server_state.connections)

        def abort() -> None:
            for connection in connections:
                connection.transport.abort()  # type: ignore[union-attr]  # what asyncio's servers have

        loop = self.server._dashboard._loop
        assert loop is not None
        loop.call_soon_threadsafe(abort)

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(PATIENCE_S)
        self.socket.close()
        assert not self._thread.is_alive(), "the dashboard does not stop"


@contextlib.contextmanager
def served(run: Path, **options: Any) -> Iterator[Served]:
    """A dashboard; stopped whatever happens."""
    dashboard = Served(run, **options)
    try:
        yield dashboard
    finally:
        dashboard.close()


def until(holds: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return found


class Browser:
    """Chromium, driven."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # another fragment of one address would not load anything
        self.complaints()  # what earlier pages wrote is not this one's
        self.driver.get(url)

    def js(self, code: str, *args: Any) -> Any:
        return self.driver.execute_script(code, *args)

    def ask(self, code: str, *args: Any) -> Any:
        """What a promise gives."""
        told = "(v) => done({v}), (e) => done({e: String(e)})"
        whole = f"const done = arguments[arguments.length - 1]; (async () => {{ {code} }})().then({told})"
        answer = self.driver.execute_async_script(whole, *args)
        assert "e" not in answer, answer["e"]
        return answer["v"]

    def text(self, selector: str) -> str:
        found = self.js(
            "const e = document.querySelector(arguments[0]); return e && !e.hidden ? e.innerText : ''", selector
        )
        return str(found)

    def until(self, selector: str, said: str) -> str:
        return str(
            until(
                lambda: said in (found := self.text(selector)) and found,
                f"{selector} says {said!r}; it says {self.text(selector)!r}",
            )
        )

    def complaints(self) -> list[str]:
        """What the page wrote on its console, requests that were refused on purpose aside."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser; the test is skipped where there is none, unless RECUROS_REQUIRE_BROWSER=1."""
    if not (shutil.which(CHROMIUM) and shutil.which(DRIVER)):
        if os.environ.get("RECUROS_REQUIRE_BROWSER") == "1":
            pytest.fail(f"RECUROS_REQUIRE_BROWSER=1, and {CHROMIUM} or {DRIVER} is not there")
        pytest.skip(f"no Chromium: {CHROMIUM} or {DRIVER} is not there")
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.driver.quit()
