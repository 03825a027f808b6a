"""The HTTP server: a stock OpenAI client talks to it; what is not done is refused by name; nobody holds it up."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import openai
import pytest

from nexus import NexusModel
from nexus.serve.server import Limits, Server, Settings, is_loopback
from syscalls.errors import RecurosError
from tests.unit import nexus_support as make
from tests.unit.nexus_support import one_thread  # noqa: F401

WAIT_S = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NexusModel:
    path = tmp_path_factory.mktemp("served") / "b"
    make.bundle(path)
    return NexusModel.load(path)


@contextmanager
def serving(model: NexusModel, **settings: Any) -> Iterator[Server]:
    server = Server(model, Settings(port=0, **settings))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(WAIT_S)
        server.server_close()


@pytest.fixture(scope="module")
def server(model: NexusModel) -> Iterator[Server]:
    with serving(model, limits=Limits(tokens=64, body_bytes=4096)) as found:
        yield found


@pytest.fixture(scope="module")
def open_server(model: NexusModel) -> Iterator[Server]:
    with serving(model, gate_open=True) as found:
        yield found


@contextmanager
def client_of(server: Server, key: str = "any") -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0, timeout=WAIT_S
    ) as found:
        yield found


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), dict(answer.headers)
    finally:
        connection.close()


def complete(server: Server, **body: Any) -> tuple[int, Any]:
    return ask(server, "POST", "/v1/completions", {"prompt": "def f", "max_tokens": 4, **body})[:2]


# A stock client


def test_a_stock_client_completes(server: Server, model: NexusModel) -> None:
    with client_of(server) as client:
        for name, capability in (("nexus", None), ("nexus/sort", "sort")):
            got = client.completions.create(model=name, prompt="def f", max_tokens=20)
            assert got.choices[0].text == model.generate("def f", capability, max_new_tokens=20)
            assert got.usage is not None
            assert got.usage.prompt_tokens == 5
            assert got.usage.completion_tokens <= 20
            assert got.choices[0].finish_reason in ("stop", "length")


def test_a_stock_client_streams(server: Server, model: NexusModel) -> None:
    with client_of(server) as client:
        wanted = model.generate("3 1 2", max_new_tokens=30)
        parts = list(client.completions.create(model="nexus", prompt="3 1 2", max_tokens=30, stream=True))
        assert "".join(part.choices[0].text for part in parts) == wanted
        assert parts[-1].choices[0].finish_reason in ("stop", "length")
        assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)  # type: ignore[comparison-overlap]  # None while it goes on


def test_a_stock_client_chats(server: Server, model: NexusModel) -> None:
    with client_of(server) as client:
        messages: Any = [{"role": "system", "content": "code"}, {"role": "user", "content": "def f"}]
        wanted = model.generate("code\ndef f", max_new_tokens=20)
        got = client.chat.completions.create(model="nexus", messages=messages, max_completion_tokens=20)
        assert got.choices[0].message.content == wanted
        stream = client.chat.completions.create(
            model="nexus", messages=messages, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
        parts = list(stream)
        assert "".join(c.delta.content or "" for part in parts for c in part.choices) == wanted
        assert parts[0].choices[0].delta.role == "assistant"
        assert parts[-1].usage is not None
        assert got.usage is not None
        assert parts[-1].usage.total_tokens == got.usage.total_tokens


def test_a_stock_client_lists_models_without_gated_ones(server: Server, open_server: Server) -> None:
    with client_of(server) as client:
        assert sorted(found.id for found in client.models.list()) == ["nexus", "nexus/code", "nexus/sort"]
        assert client.models.retrieve("nexus/code").id == "nexus/code"
    with client_of(open_server) as client:
        assert "nexus/canary" in {found.id for found in client.models.list()}


def test_several_prompts_are_answered_in_order(server: Server, model: NexusModel) -> None:
    with client_of(server) as client:
        prompts = ["def f", "1 2", "x"]
        got = client.completions.create(model="nexus/code", prompt=prompts, max_tokens=6)
        wanted = [model.generate(prompt, "code", max_new_tokens=6) for prompt in prompts]
        assert [choice.text for choice in got.choices] == wanted
        said = ["", "", ""]
        for part in client.completions.create(model="nexus/code", prompt=prompts, max_tokens=6, stream=True):
            said[part.choices[0].index] += part.choices[0].text
        assert said == wanted


def test_options_reach_the_model(server: Server, model: NexusModel) -> None:
    with client_of(server) as client:
        options: Any = {"temperature": 1.5, "top_p": 0.9, "seed": 9}
        got = client.completions.create(model="nexus", prompt="def f", max_tokens=20, **options)
        assert got.choices[0].text == model.generate("def f", max_new_tokens=20, **options)
        whole = model.generate("def f", max_new_tokens=20)
        got = client.completions.create(model="nexus", prompt="def f", max_tokens=20, stop=whole[4:6])
        assert got.choices[0].text == whole[: whole.index(whole[4:6])]
        assert got.choices[0].finish_reason == "stop"


def test_clients_at_the_same_time_do_not_disturb_each_other(model: NexusModel) -> None:
    calls = [("def f", "code"), ("3 1", "sort"), ("zz", "code"), ("5", "sort")]
    said: dict[int, str] = {}
    with serving(model) as server:

        def one(number: int, prompt: str, capability: str) -> None:
            with client_of(server) as client:
                got = client.completions.create(model=f"nexus/{capability}", prompt=prompt, max_tokens=15)
                said[number] = got.choices[0].text

        threads = [threading.Thread(target=one, args=(n, *call)) for n, call in enumerate(calls)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert [said[n] for n in range(4)] == [model.generate(p, c, max_new_tokens=15) for p, c in calls]


# The gate


@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_server_gives_nothing_gated_whatever_is_asked(server: Server, stream: bool) -> None:
    for body in (
        {"model": "nexus/canary"},
        {"model": "nexus/canary", "enable_uncensored": True},
        {"model": "nexus", "enable_uncensored": True},
    ):
        status, answer = complete(server, **body, stream=stream)
        assert status in (403, 404)
        assert answer["error"]["code"] in ("E5-DENIED", "E4-NOENT")


def test_an_open_server_needs_the_requests_own_opt_in(open_server: Server, model: NexusModel) -> None:
    status, answer = complete(open_server, model="nexus/canary")
    assert (status, answer["error"]["code"]) == (403, "E5-DENIED")
    for value in (1, "true", [True]):
        assert complete(open_server, model="nexus/canary", enable_uncensored=value)[0] == 400
    with client_of(open_server) as client:
        got = client.completions.create(
            model="nexus/canary", prompt="def f", max_tokens=9, extra_body={"enable_uncensored": True}
        )
        assert got.choices[0].text == model.generate("def f", "canary", True, max_new_tokens=9)
    assert complete(open_server, model="nexus/canary")[0] == 403


# What is refused


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "other"}, 404),
        ({"model": None}, 404),
        ({"model": "nexus/"}, 404),
        ({"prompt": None}, 400),
        ({"prompt": []}, 400),
        ({"prompt": [1, 2]}, 400),
        ({"prompt": ["x"] * 9}, 400),
        ({"prompt": "x" * 200}, 400),
        ({"max_tokens": 0}, 400),
        ({"max_tokens": 65}, 400),
        ({"max_tokens": "4"}, 400),
        ({"max_tokens": True}, 400),
        ({"temperature": "hot"}, 400),
        ({"temperature": 1e9}, 400),
        ({"top_p": -1}, 400),
        ({"seed": 0.5}, 400),
        ({"stop": [""]}, 400),
        ({"stop": ["x"] * 9}, 400),
        ({"stop": 5}, 400),
        ({"stream": "yes"}, 400),
        ({"stream_options": {"more": 1}}, 400),
        ({"n": 2}, 400),
        ({"n": True}, 400),
        ({"echo": True}, 400),
        ({"logprobs": 3}, 400),
        ({"tools": [{}]}, 400),
        ({"response_format": {"type": "json_object"}}, 400),
        ({"messages": []}, 400),
        ({"mystery": 1}, 400),
    ],
)
def test_a_field_that_is_wrong_or_not_done_is_refused(server: Server, body: dict[str, Any], status: int) -> None:
    got, answer = complete(server, **body)
    assert got == status
    assert answer["error"]["message"]
    assert answer["error"]["code"].startswith(f"E{2 if status == 400 else 4}-")


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hi",
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "x", "tool_calls": [{}]}],
        [{"role": "user", "content": "x"}] * 257,
        ["x"],
    ],
)
def test_messages_that_cannot_be_read_are_refused(server: Server, messages: Any) -> None:
    status, answer, _ = ask(server, "POST", "/v1/chat/completions", {"messages": messages})
    assert status == 400
    assert answer["error"]["code"] in ("E2-USAGE", "E2-LIMIT")


def test_text_parts_are_a_text(server: Server, model: NexusModel) -> None:
    content = [{"type": "text", "text": "def"}, {"type": "text", "text": " f"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 5, "user": "me"}
    answer = ask(server, "POST", "/v1/chat/completions", body)[1]
    assert answer["choices"][0]["message"]["content"] == model.generate("def f", max_new_tokens=5)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"temperature": NaN}', {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 3000, {}, 400),
        (b"[]", {}, 400),
        (b"x" * 5000, {}, 400),
        (b"{}", {"Content_Type": "text/plain"}, 400),
        (b"{}", {"Host": "evil.example"}, 403),
        (b"{}", {"Content_Length": "-1"}, 400),
        (b"{}", {"Content_Length": "1e3"}, 400),
        (b"{}", {"Content_Length": "9" * 40}, 400),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(
    server: Server, body: bytes, headers: dict[str, str], status: int
) -> None:
    got, answer, _ = ask(server, "POST", "/v1/completions", body, **headers)
    assert got == status
    assert answer["error"]["code"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/v1/completions"), ("POST", "/health"), ("GET", "/v1/models/x")]
)
def test_other_paths_are_not_found(server: Server, method: str, path: str) -> None:
    assert ask(server, method, path, b"{}" if method == "POST" else None)[0] == 404


def test_health_says_what_is_served(server: Server, open_server: Server, model: NexusModel) -> None:
    status, answer, headers = ask(server, "GET", "/health")
    assert status == 200
    assert answer["bundle"] == model.manifest.bundle_id
    assert answer["gate"] == "closed"
    assert "open" in ask(open_server, "GET", "/health")[1]["gate"]
    assert "Python" not in headers["Server"]


# Limits and clients that misbehave


class Held:
    """A model whose steps wait until they are let go."""

    def __init__(self, model: NexusModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.began, self.steps = threading.Event(), threading.Event(), 0
        forward = model.student.forward

        def slow(**inputs: Any) -> Any:
            self.steps += 1
            self.began.set()
            assert self.go.wait(WAIT_S)
            return forward(**inputs)

        monkeypatch.setattr(model.student, "forward", slow)


def test_more_requests_than_may_wait_are_told_to_come_again(model: NexusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(model, monkeypatch)
    with serving(model, limits=Limits(waiting=1)) as server:
        got: list[tuple[int, Any]] = []
        first = threading.Thread(target=lambda: got.append(complete(server)))
        first.start()
        assert held.began.wait(WAIT_S)
        status, answer, headers = ask(server, "POST", "/v1/completions", {"prompt": "x"})
        assert (status, answer["error"]["code"], headers["Retry-After"]) == (429, "E75-FULL", "1")
        assert ask(server, "GET", "/health")[1]["busy"] == 1
        with client_of(server) as client, pytest.raises(openai.RateLimitError):
            client.completions.create(model="nexus", prompt="x")
        held.go.set()
        first.join(WAIT_S)
        assert got[0][0] == 200
        assert complete(server)[0] == 200


def test_a_client_that_goes_away_ends_its_generation(model: NexusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(model, monkeypatch)
    with serving(model) as server:
        body = json.dumps({"prompt": "x", "max_tokens": 90, "model": "nexus/code"}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            assert held.began.wait(WAIT_S)
        held.go.set()
        assert complete(server)[0] == 200  # it had its turn; the other one ended long before its 90 tokens
        free = threading.Event()
        while server.busy:
            free.wait(0.01)
        assert held.steps < 60


def test_stopping_ends_running_generations(model: NexusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(model, monkeypatch)
    got: list[Any] = []

    def one(server: Server) -> None:
        try:
            got.append(complete(server, max_tokens=80))
        except http.client.HTTPException as error:
            got.append(error)

    with serving(model) as server:
        thread = threading.Thread(target=one, args=(server,))
        thread.start()
        assert held.began.wait(WAIT_S)
        server.stopping.set()
        held.go.set()
        thread.join(WAIT_S)
    assert isinstance(got[0], http.client.HTTPException)


def test_a_client_that_says_nothing_is_let_go(model: NexusModel) -> None:
    with serving(model, limits=Limits(idle_s=0.1, connections=2)) as server:
        with (
            socket.create_connection(("127.0.0.1", server.port)) as silent,
            socket.create_connection(("127.0.0.1", server.port)) as half,
        ):
            head = "Host: localhost\r\nContent-Length: 10\r\nContent-Type: application/json"
            half.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{{".encode())
            for connection in (silent, half):
                connection.settimeout(WAIT_S)
                while connection.recv(4096):
                    pass
        assert ask(server, "GET", "/health")[0] == 200


def test_connections_are_bounded(model: NexusModel) -> None:
    with serving(model, limits=Limits(connections=2)) as server:
        keep = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        for connection in keep:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        with socket.create_connection(("127.0.0.1", server.port)) as third:
            third.settimeout(WAIT_S)
            with suppress(ConnectionResetError):
                assert third.recv(1) == b""
        for connection in keep:
            connection.close()


# Who may


def test_a_key_is_asked_for_where_there_is_one(model: NexusModel) -> None:
    with serving(model, key="secret") as server:
        assert ask(server, "GET", "/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            assert ask(server, "GET", "/v1/models", **headers)[0] == 403
            assert ask(server, "POST", "/v1/completions", {"prompt": "x"}, **headers)[0] == 403
        with client_of(server, "secret") as client:
            assert client.completions.create(model="nexus", prompt="x", max_tokens=1).choices
        with client_of(server, "wrong") as client, pytest.raises(openai.PermissionDeniedError):
            client.models.list()


def test_an_address_that_others_reach_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        with pytest.raises(RecurosError, match="can be reached by others"):
            Settings(host=host)
        assert Settings(host=host, key="k").host == host
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]")))


def test_a_port_that_is_taken_is_said(server: Server, model: NexusModel) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RecurosError, match="cannot listen"):
            Server(model, Settings(port=taken.getsockname()[1]))


def test_another_name_is_let_in_when_it_is_named(model: NexusModel) -> None:
    with serving(model, names=("box.local",)) as server:
        assert ask(server, "GET", "/health", Host="box.local:8080")[0] == 200
        assert ask(server, "GET", "/health", Host="[::1]:99")[0] == 200
        assert ask(server, "GET", "/health", Host="")[0] == 403
