"""The dashboard: who is let in, what the stream owes a reader that comes back, and its pages in a real browser on a real runtime."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from dash_support import Browser, Served, chromium, served, until
from harness import PATIENCE_S, ROOT, Live, live

from kfs.objects import blob
from kfs.records import Record, RecordKind
from kfs.store import Store

PAGES = ("overview", "schedule", "learning", "layers", "probes", "policies", "ledger", "kfs", "devices", "nexus")
COMMAND = [sys.executable, "-m", "console.main"]
WATCH_THE_CONNECTION = """
    const text = document.getElementById("conn-text");
    window.lost = 0;
    new MutationObserver(() => { window.lost += text.textContent === "disconnected" })
        .observe(text, {childList: true, characterData: true, subtree: true});
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("dash") / "run") as running:
        running.goes_on(12)
        pause(running)  # hundreds of windows a second are no history that a person has
        yield running


def pause(runtime: Live) -> None:
    runtime.client.interrupt(kind="pause")
    runtime.until(lambda: runtime.status()["state"] == "paused", "paused")


def more(runtime: Live) -> int:
    """Some more windows; returns the ledger's size when they are over."""
    runtime.client.interrupt(kind="resume")
    runtime.goes_on(2)
    pause(runtime)
    return int(runtime.status()["ledger"]["size"])


@pytest.fixture(scope="module")
def dashboard(runtime: Live) -> Iterator[Served]:
    with served(runtime.run) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


# --- who is let in -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"Authorization": ""}, 401, "no token"),
        ({"token": "x" * 43}, 401, "not that of this dashboard"),
        ({"token": ""}, 401, "no token"),
        ({"Authorization": "Bearer \u00e9"}, 401, "not that of this dashboard"),
        ({"Host": "evil.example:80"}, 403, "is not this dashboard"),
        ({"Host": "127.0.0.1"}, 403, "is not this dashboard"),
        ({"Sec_Fetch_Site": "cross-site"}, 403, "another site"),
        ({"Sec_Fetch_Site": "same-site"}, 403, "another site"),
        ({"method": "DELETE"}, 405, "not served"),
        ({"method": "OPTIONS"}, 405, "not served"),
    ],
)
def test_a_request_without_the_right_to_it_is_refused(
    dashboard: Served, change: dict[str, str], status: int, says: str
) -> None:
    found, document = dashboard.request("/api/hello", **change)
    assert found == status
    assert says in document["error"]["message"]
    assert "records" not in document


@pytest.mark.parametrize("host", ["", "{own}\nevil.example", "evil.example\n{own}"])
def test_no_host_and_two_hosts_are_no_request(dashboard: Served, host: str) -> None:
    assert dashboard.request("/", Host=host.format(own=f"127.0.0.1:{dashboard.port}"))[0] == 400


def test_a_foreign_host_does_not_even_get_the_page(dashboard: Served) -> None:
    assert dashboard.request("/", Host=f"rebound.example:{dashboard.port}")[0] == 403
    status, page = dashboard.request("/", Host=f"localhost:{dashboard.port}", Authorization="")
    assert status == 200
    assert dashboard.token not in page
    assert str(dashboard.server._dashboard.run) not in page


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/record/99999999", 404, "E4-NOENT"),
        ("/api/proof/99999999", 404, "E4-NOENT"),
        ("/api/at/99999999", 404, "E4-NOENT"),
        ("/api/record/x", 404, "E4-NOENT"),
        ("/api/nothing", 404, "E4-NOENT"),
        ("/api/records?after=x", 400, "E2-USAGE"),
        ("/api/collection?percent=101", 400, "E2-LIMIT"),
        ("/api/program?prog=builtin:nope", 200, ""),
        ("/static/..%2f..%2fapp.py", 404, "E4-NOENT"),
    ],
)
def test_a_bad_question_gets_a_coded_answer(dashboard: Served, path: str, status: int, code: str) -> None:
    found, document = dashboard.request(path)
    assert found == status
    assert document.get("error", {}).get("code", "") == code


def change(dashboard: Served, action: str, **headers: str) -> tuple[int, dict[str, object]]:
    given = {
        "Origin": f"http://127.0.0.1:{dashboard.port}",
        "X_Recuros_Action": "confirmed",
        "Content_Type": "application/json",
        **headers,
    }
    return dashboard.request("/api/act", method="POST", body=json.dumps({"action": action, "args": {}}), **given)


def test_a_dashboard_that_only_reads_changes_nothing(dashboard: Served, runtime: Live) -> None:
    status, document = change(dashboard, "resume")
    assert status == 403
    assert "--allow-steer" in str(document)
    assert runtime.status()["state"] == "paused"


def test_steering_needs_our_page_and_does_only_what_is_listed(runtime: Live) -> None:
    with served(runtime.run, steer=True) as open_:
        for wrong in (
            {"Origin": ""},
            {"Origin": "http://evil.example"},
            {"X_Recuros_Action": ""},
            {"Content_Type": "text/plain"},
            {"token": "x"},
        ):
            assert change(open_, "resume", **wrong)[0] in (401, 403, 415), wrong
        assert change(open_, "shutdown")[0] == 400
        assert change(open_, "snapshot")[0] == 400
        assert runtime.status()["state"] == "paused"
        for name, state in (("resume", "running"), ("pause", "paused")):
            status, answer = change(open_, name)
            assert status == 200
            assert runtime.status()["state"] == state
            record = open_.request(f"/api/record/{answer['seq']}")[1]
            assert (record["kind"], record["args"]["kind"], record["args"]["reason"]) == (
                "interrupt",
                name,
                "dashboard",
            )


# --- the stream ----------------------------------------------------------------------------------------------------------------


def test_a_reader_that_comes_back_gets_exactly_what_it_missed(dashboard: Served, runtime: Live) -> None:
    first = dashboard.events(-1, 5)
    assert [seq for seq, _ in first] == [0, 1, 2, 3, 4]
    more(runtime)
    second = dashboard.events(4, 8)
    assert [seq for seq, _ in second] == list(range(5, 13))
    assert all(data["seq"] == seq for seq, data in first + second)
    assert "resume" not in next(d for _, d in first + second if d["kind"] == "window.commit")["args"]


def test_records_come_in_pages_and_the_search_goes_backwards(dashboard: Served) -> None:
    page = dashboard.request("/api/records?after=1&limit=3")[1]
    assert [r["seq"] for r in page["records"]] == [2, 3, 4]
    found = dashboard.request("/api/search?kind=window.commit&limit=2")[1]
    assert [r["kind"] for r in found["records"]] == ["window.commit"] * 2
    assert found["records"][0]["seq"] > found["records"][1]["seq"] >= found["before"] > 0
    older = dashboard.request(f"/api/search?kind=window.&before={found['before']}&limit=1")[1]["records"]
    assert older[0]["seq"] < found["before"]
    assert dashboard.request("/api/search?text=no-such-text-anywhere")[1]["records"] == []


def test_streams_are_bounded_and_a_lost_reader_gives_its_place_back(
    dashboard: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("console.dash.app.SUBSCRIBERS_MAX", 1)
    inner = dashboard.server._dashboard
    until(lambda: inner._subscribers == 0, "nobody listens")
    connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/api/events", headers={"Authorization": f"Bearer {dashboard.token}"})
        assert connection.getresponse().status == 200
        until(lambda: inner._subscribers == 1, "one listens")
        status, document = dashboard.request("/api/events")
        assert (status, document["error"]["code"]) == (503, "E75-FULL")
    until(lambda: inner._subscribers == 0, "the place is free again")
    assert [seq for seq, _ in dashboard.events(-1, 2)] == [0, 1]


# --- the pages -------------------------------------------------------------------------------------------------------------------


def test_every_page_renders_without_a_complaint(browser: Browser, dashboard: Served) -> None:
    browser.open(dashboard.url)
    browser.until("#conn-text", "live")
    assert "token" not in browser.driver.current_url
    for page in PAGES:
        browser.js("location.hash = '#/' + arguments[0]", page)
        browser.until(f'nav a[data-page="{page}"][aria-current="page"]', "")
        title = browser.text(f'nav a[data-page="{page}"]')
        browser.until("h1", title)
        until(lambda: not browser.js("return document.querySelector('#page').innerText.match(/Reading|Loading/)"), page)
        wide = browser.js("return document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{page} is {wide} pixels too wide"
        nameless = browser.js(
            "return [...document.querySelectorAll('button, a, input, select, canvas, svg[role=img]')]"
            ".filter((e) => ![e.innerText, e.ariaLabel, e.title].join('').trim()).map((e) => e.outerHTML.slice(0, 80))"
        )
        assert nameless == []
    assert browser.complaints() == []


def test_pages_fit_a_phone_in_both_themes(browser: Browser, dashboard: Served) -> None:
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        browser.open(dashboard.url)
        browser.until("#conn-text", "live")
        colours = set()
        for page in PAGES:
            browser.js("location.hash = '#/' + arguments[0]", page)
            browser.until("h1", browser.js(f"return document.querySelector('nav a[data-page={page}]').textContent"))
            assert browser.js("return document.documentElement.scrollWidth") <= 400, page
        for _ in range(3):
            browser.js("document.getElementById('theme').click()")
            colours.add(browser.js("return getComputedStyle(document.body).backgroundColor"))
        assert len(colours) == 2
        browser.js("document.getElementById('menu').click()")
        seen = "return getComputedStyle(document.getElementById('nav')).visibility"
        until(lambda: browser.js(seen) == "visible", "the menu opens")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.complaints() == []


def test_an_event_reaches_the_page(browser: Browser, dashboard: Served, runtime: Live) -> None:
    browser.open(dashboard.url)
    browser.until("#conn-text", "live")
    seq = runtime.client.rl_snapshot(name="<b>seen in the page</b>")["seq"]
    until(lambda: browser.js("return window.recuros.store.record(arguments[0])?.args.name", seq), "the record came")
    assert browser.js("return window.recuros.store.snapshots.at(-1).name") == "<b>seen in the page</b>"
    browser.js("location.hash = '#/kfs'")
    browser.until("#page", "<b>seen in the page</b>")  # as text: markup in a record is no markup here


def test_what_is_patched_stays_and_takes_on_what_differs(browser: Browser, dashboard: Served) -> None:
    browser.open(dashboard.url)
    browser.until("#conn-text", "live")
    found = browser.ask(
        "const { patch, keyed, h } = await import('/static/js/dom.js'); const box = h('div', {});"
        "patch(box, h('i', { style: { width: '10%' }, title: 'a' }), 'one'); const first = box.firstChild;"
        "patch(box, h('i', { style: { width: '90%' }, class: 'b' }), 'two', h('b', {}));"
        "const list = h('ul', {}); const make = (x) => h('li', {}, x[1]); const key = (x) => x[0];"
        "keyed(list, [[2, 'b'], [1, 'a']], key, make); const [two, one] = list.children;"
        "keyed(list, [[3, 'c'], [2, 'B'], [1, 'a']], key, make); keyed(list, [[3, 'c'], [2, 'B']], key, make);"
        "return [box.firstChild === first, first.style.width, first.className, first.hasAttribute('title'), box.textContent,"
        " box.children.length, list.children[1] === two, one.isConnected, list.textContent]"
    )
    assert found == [True, "90%", "b", False, "two", 2, True, False, "cB"]
    assert browser.complaints() == []


def test_rows_that_stay_are_the_same_elements_so_that_clicks_and_selections_survive(
    browser: Browser, dashboard: Served, runtime: Live
) -> None:
    browser.open(dashboard.url)
    browser.until("#conn-text", "live")
    for page, rows in (("overview", ".feed li"), ("ledger", ".ledger-table tbody tr")):
        browser.js("location.hash = '#/' + arguments[0]", page)
        until(lambda rows=rows: browser.js("return document.querySelectorAll(arguments[0]).length > 3", rows), page)
        browser.js("document.querySelectorAll(arguments[0])[1].mine = true", rows)
        kept = browser.js("return document.querySelectorAll(arguments[0])[1].dataset.seq", rows)
        seq = runtime.client.rl_snapshot(name="one more")["seq"]
        until(lambda rows=rows, seq=seq: browser.js(
            "return document.querySelector(`${arguments[0]}[data-seq='${arguments[1]}']`)", rows, seq), "the row")  # fmt: skip
        assert browser.js(
            "return document.querySelector(`${arguments[0]}[data-seq='${arguments[1]}']`)?.mine", rows, kept
        )
        order = browser.js(
            "return [...document.querySelectorAll(arguments[0])].map((e) => Number(e.dataset.seq))", rows
        )
        assert order == sorted(order, reverse=True)


def test_a_proof_is_computed_in_the_page_and_a_changed_byte_fails_it(
    browser: Browser, dashboard: Served, runtime: Live
) -> None:
    more(runtime)
    signed = until(
        lambda: dashboard.request("/api/proof/5")[0] == 200 and dashboard.request("/api/proof/5")[1], "signed"
    )
    size = int(signed["checkpoint"].split("\n")[1])
    browser.open(dashboard.url)
    browser.until("#conn-text", "live")
    for seq in {0, 1, 5, size // 2, size - 1}:
        document = dashboard.request(f"/api/proof/{seq}")[1]
        found = browser.ask("return await (await import('/static/js/proof.js')).check(arguments[0])", document)
        assert found["ok"] is True, (seq, found)
        assert found["signature"]["ok"] in (True, None)
        assert found["leaf"] == document["leaf"]
        assert found["record"][1] == seq  # its own decoder reads the bytes that were hashed
    for name, wrong in (
        ("record", {**signed, "record": signed["record"][:-8] + "AAAAAAA="}),
        ("path", {**signed, "inclusion": [signed["inclusion"][0][::-1], *signed["inclusion"][1:]]}),
        ("checkpoint", {**signed, "checkpoint": signed["checkpoint"].replace(str(size), str(size + 1), 1)}),
    ):
        verdict = browser.ask(
            "try { return (await (await import('/static/js/proof.js')).check(arguments[0])).ok } catch { return false }",
            wrong,
        )
        assert verdict is False, name
    browser.js("location.hash = '#/ledger/5'")
    browser.until("#record-title", "Record 5")
    browser.js("document.querySelector('[data-tab=proof]').click()")
    browser.until("#proof-verdict", "Proved in this page")
    browser.js("document.querySelector('[data-tab=at]').click()")
    browser.until("#page", "Folded from the records")
    assert browser.complaints() == []


def test_a_browser_that_reconnects_loses_nothing(browser: Browser, dashboard: Served, runtime: Live) -> None:
    browser.open(dashboard.url)
    browser.until("#conn-text", "live")
    browser.js(WATCH_THE_CONNECTION)
    size = 0
    for round_ in (1, 2):
        dashboard.cut()
        size = more(runtime)
        until(lambda n=round_: browser.js("return window.lost") >= n, "the page saw the break")
        browser.until("#conn-text", "live")
    until(lambda: browser.js("return window.recuros.store.next") >= size, "the page is up to date")
    seqs = browser.js("return window.recuros.store.records.map((r) => r.seq)")
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


def test_a_wrong_token_shows_a_form_and_no_data(browser: Browser, dashboard: Served) -> None:
    browser.open(dashboard.url.partition("#")[0] + "#token=wrong")
    browser.until("#page", "This page needs its token")
    assert browser.js("return window.recuros.store.records.length") == 0
    browser.js("document.querySelector('.token-form input').value = arguments[0]", dashboard.token)
    browser.js("document.querySelector('.token-form button').click()")
    browser.until("#conn-text", "live")
    browser.complaints()


def test_the_page_steers_only_after_it_asked(browser: Browser, runtime: Live) -> None:
    with served(runtime.run, steer=True) as open_:
        browser.open(open_.url)
        browser.until("#conn-text", "live")
        browser.until("#state", "paused")
        browser.js("[...document.querySelectorAll('.page-head button')].find((b) => b.innerText === 'Resume').click()")
        browser.until("dialog", "Reason")
        assert runtime.status()["state"] == "paused"
        browser.js("document.querySelector('dialog .primary').click()")
        browser.until("#state", "running")
        pause(runtime)
        browser.until("#state", "paused")


def test_a_runtime_that_goes_away_shows_so_and_a_stopped_directory_opens(browser: Browser, tmp_path: Path) -> None:
    with live(tmp_path / "run") as running:
        running.goes_on(1)
        with served(running.run) as first:
            browser.open(first.url)
            browser.until("#conn-text", "live")
            running.halt()
            browser.until("#banner", "The runtime went away")
            browser.until("#state", "halted")
        browser.until("#banner", "does not answer")  # and then the dashboard went, too
        browser.until("#conn-text", "disconnected")
        with served(running.run) as second:
            browser.open(second.url)
            browser.until("#banner", "No runtime is up here")
            assert "committed" in browser.text("#page")
            status, document = change(second, "pause")
            assert status == 403, document
        out = tmp_path / "report.html"
        subprocess.run(
            [*COMMAND, "--run", str(running.run), "report", "--html", str(out)], capture_output=True, check=True
        )
        browser.open(out.as_uri())
        browser.until("h1", "live")
        assert browser.js("return JSON.parse(document.getElementById('report').textContent).report.app") == "live"
        assert browser.js("return document.querySelectorAll('figure svg').length") > 0


# --- the command -------------------------------------------------------------------------------------------------------------------


def start(run: Path, *words: str) -> tuple[subprocess.Popen[str], dict[str, object]]:
    command = [*COMMAND, "--run", str(run), "dash", "--json", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def test_a_second_dashboard_takes_another_port_and_both_end_on_a_signal(runtime: Live) -> None:
    pair = [start(runtime.run), start(runtime.run)]
    try:
        (_, a), (_, b) = pair
        assert a["schema"] == "recuros.dash.serve/v1"
        assert a["port"] != b["port"]
        assert a["url"] != b["url"]
        assert str(a["url"]).startswith(f"http://127.0.0.1:{a['port']}/#token=")
    finally:
        for process, _ in pair:
            process.send_signal(signal.SIGINT)
        ends = [process.communicate(timeout=PATIENCE_S)[1] for process, _ in pair]
    assert [process.returncode for process, _ in pair] == [130, 130], ends
    assert not any("Traceback" in text for text in ends), ends


def test_what_cannot_be_served_is_said(tmp_path: Path, dashboard: Served, capsys: pytest.CaptureFixture[str]) -> None:
    from console.main import run

    assert run(["--run", str(tmp_path), "dash"]) == 4
    assert "holds no store" in capsys.readouterr().err
    assert run(["--run", str(dashboard.server._dashboard.run), "dash", "--port", str(dashboard.port)]) == 2
    assert "--port 0" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_the_error_names_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from console.main import run; sys.exit(run(['dash']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert f"the dashboard needs {missing}" in done.stderr
    assert "pip install 'recuros[dash]'" in done.stderr


def test_the_wheel_takes_every_file_of_the_page_and_the_page_fetches_nothing_elsewhere() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["console.dash"]
    folder = ROOT / "console" / "dash"
    files = [path for path in (folder / "static").rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        name = path.relative_to(folder)
        assert any(fnmatch(str(name), p) and len(name.parts) == len(Path(p).parts) for p in patterns), name
        text = path.read_text(encoding="utf-8")
        links = {word for word in text.replace("http://www.w3.org/2000/svg", "").split('"') if "://" in word}
        assert not links, f"{name} names {links}"


def test_gates_of_nexus_are_shown_with_their_report(browser: Browser, tmp_path: Path) -> None:
    figures = {
        "ratio": 0.981,
        "lower": 0.972,
        "upper": 0.99,
        "retain": 0.97,
        "items": 400,
        "reason": "ratio 0.9810, lower bound 0.9720",
    }
    short = {**figures, "ratio": 0.9, "lower": 0.85, "upper": 0.93, "reason": "ratio 0.9000 is below 0.97"}
    report = {
        "verdict": "fail",
        "capabilities": {"code": figures, "sort": short},
        "problems": ["a poison was not caught"],
    }
    with Store.open_writer(tmp_path / "run" / "store") as store:
        (name,) = store.put([blob(json.dumps(report).encode(), "report")])
        stage = {
            "stage": 4,
            "capability": "code",
            "attempt": 1,
            "state": "done",
            "artifacts": {},
            "figures": {"loss": 0.5},
        }
        gate = {"artifact": "candidate", "verdict": "fail", "capabilities": {"code": "pass", "sort": "fail"}}
        teacher = {
            "teacher": "t1",
            "capability": "sort",
            "act": "dropped",
            "reason": "it misses its contract",
            "figures": {},
        }
        loop = {"edge": "5->4", "capability": "sort", "attempt": 2, "reason": "fail", "change": {"anchor": 5.0}}
        drafts = [
            (RecordKind.NEXUS_STAGE, stage, ()),
            (RecordKind.NEXUS_GATE, gate, (name,)),
            (RecordKind.NEXUS_TEACHER, teacher, ()),
            (RecordKind.NEXUS_LOOP, loop, ()),
        ]
        store.append(
            [Record("nexus", kind, args, t_mono=n + 1, input_ids=ids) for n, (kind, args, ids) in enumerate(drafts)]
        )
    with served(tmp_path / "run") as dashboard:
        assert dashboard.request("/api/report/0")[0] == 404
        browser.open(dashboard.url)
        browser.until("#banner", "No runtime is up here")
        browser.js("location.hash = '#/nexus'")
        browser.until("#page", "98.1 %")
        shown = browser.text("#page")
        for said in ("candidate", "90.0 %", "97.0 %", "85.0 %", "400", "is below 0.97", "a poison was not caught"):
            assert said in shown
        for said in ("4 distill", "it misses its contract", "5->4"):
            assert said in shown
        assert browser.complaints() == []
