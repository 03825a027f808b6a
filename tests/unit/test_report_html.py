"""The HTML report: series out of records, one file that needs nothing else, and the figures inside it."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from console import report_html
from console.report_html import Series, fold, page
from kfs.records import Record, RecordKind
from syscalls.errors import RecurosError

ROOT = Path(__file__).resolve().parents[2]
REPORT: dict[str, Any] = {
    "schema": "recuros.run.report/v1",
    "run": "/runs/<first>",
    "app": "digits & more",
    "windows": {"granted": 5, "committed": 4, "missed": 1, "rolled_back": 1},
    "teacher": {"score": 0.98, "params": 145_610},
    "student": {"score": 0.95, "params": 10_510},
    "retention": 0.9694,
    "policies": 1,
    "probes": [{"id": 1, "prog": "builtin:cka", "hook": "on_kd_step", "sites": 2, "attached": True, "last": None}],
    "ledger": {"size": 12, "root": "ab" * 32, "verified": True},
    "boots": 1,
    "generation": 1,
    "phases": {"distil": 4},
    "scores": {},
    "snapshot": "b3:" + "0" * 64,
    "snapshots": [{"seq": 9, "name": "</script><b>x", "window": 3, "snapshot": "b3:" + "1" * 64}],
    "misses": [{"seq": 7, "window": 3, "reason": "E7-MISSED"}],
    "faults": [],
    "inexact_rollbacks": 0,
}


def snap(n: int) -> str:
    return "b3:" + f"{n:064x}"


def history() -> list[Record]:
    """Four committed windows; the third took two attempts; a swap before the fourth."""
    found: list[Record] = []

    def add(kind: RecordKind, t_ns: int, **args: Any) -> None:
        given = {k: args.pop(k) for k in ("parent_snap", "result_snap", "generation") if k in args}
        found.append(Record("kernel", kind, args, t_ns, seq=len(found), t_wall=1, **given))

    add(RecordKind.BOOT, 0, boot="b", app="digits", abi="1", resumed_from=-1, env={})
    clock = 1_000_000_000
    for window, attempts in ((1, 1), (2, 1), (3, 2), (4, 1)):
        for attempt in range(attempts):
            add(RecordKind.WINDOW_GRANT, clock, window=window, steps=25)
            clock += 500_000_000 * window
            if attempt + 1 < attempts:
                add(RecordKind.WINDOW_ROLLBACK, clock, window=window, exact=True)
        metrics = {"loss": 1 / window, "kd": 0.1, "temperature": 2.0, "mix": 0.9, "batch": "ff", "grad_norm": 3.0}
        result = {"result_snap": snap(window), "generation": int(window == 4)}
        add(RecordKind.WINDOW_COMMIT, clock, window=window, metrics=metrics, inputs={}, **result)
        if window == 3:
            add(RecordKind.GENERATION, clock + 1, generation=1, window=3, reason="swap")
    scores = {"student": {"accuracy": 0.75}, "teacher": {"accuracy": 0.9}}
    add(RecordKind.EVALUATE, clock, split="test", scores=scores, parent_snap=snap(2))
    add(
        RecordKind.POLICY,
        clock,
        window=2,
        applies_at=4,
        settings={"temperature": 1.5, "weights": snap(9)},
        pack="starter",
    )
    add(RecordKind.POLICY, clock, window=3, applies_at=5, settings={}, pack="starter")
    return found


def test_series_are_what_the_records_say() -> None:
    series = fold(history())
    assert series.column("loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert series.attempts == [(1, 0.5, False), (2, 1.0, False), (3, 1.5, True), (3, 1.5, False), (4, 2.0, False)]
    assert series.generations == [3]
    assert [(e["window"], e["split"], e["student"]["accuracy"]) for e in series.evaluations] == [(2, "test", 0.75)]
    assert series.policies == [{"window": 2, "applies_at": 4, "settings": {"temperature": 1.5}}]


class Page(HTMLParser):
    """What a browser would take out of the file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data
            self._inside = False


def shown(layers: bool = True) -> tuple[str, Series]:
    series = fold(history())
    if layers:
        series.layers = {"cka": {"1:2": [[2, 0.5], [4, 0.8]], "(model)": [[2, 0.4], [3, float("nan")]]}}
    return page(REPORT, series), series


def test_the_file_needs_nothing_else_and_holds_its_figures() -> None:
    text, series = shown()
    found = Page(text)
    for tag, attrs in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "image")
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
    assert [attrs.get("type") for tag, attrs in found.tags if tag == "script"] == ["application/json"]
    assert "@import" not in text
    assert "url(http" not in text
    document = json.loads(found.data)
    assert document["schema"] == "recuros.report.html/v1"
    assert document["report"] == REPORT
    assert document["series"]["windows"] == series.windows
    assert document["series"]["layers"]["cka"]["(model)"] == [[2, 0.4], [3, None]]


def test_what_a_record_holds_is_text_and_no_markup() -> None:
    text, _ = shown()
    assert "<b>x" not in text
    assert "&lt;/script&gt;&lt;b&gt;x" in text
    assert "digits &amp; more" in text
    assert "/runs/&lt;first&gt;" in text


def test_plots_are_pieces_of_svg_in_the_colours_of_the_page() -> None:
    text, _ = shown()
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 6
    ids: list[str] = []
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        assert root.get("width") is None
        ids += [e.get("id", "") for e in root.iter() if e.get("id")]
        for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', picture):
            assert f'id="{target}"' in picture
    assert len(ids) == len(set(ids))
    assert "var(--c1)" in text
    assert not re.search(r"#0(\d)0\1f\1|#010101|#020202|#030303", text)
    assert all(
        f'id="{name}-title"' in text for name in ("loss", "accuracy", "schedule", "settings", "grad", "heat-cka")
    )


def test_a_run_without_windows_has_a_report_without_plots() -> None:
    text = page({**REPORT, "retention": None, "student": {"score": None, "params": None}}, fold(history()[:1]))
    assert "<svg" not in text
    assert "not scored" in text


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "console.report_plots", raising=False)
    monkeypatch.delattr("console.report_plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RecurosError, match="matplotlib") as caught:
        report_html.page(REPORT, fold(history()))
    assert caught.value.exit_status == 2
    assert "recuros[report]" in caught.value.hint


def test_report_and_page_know_every_term_of_the_objective() -> None:
    from servers.learner.losses import TERMS

    names = [
        "loss",
        *(term.name for term in TERMS if term.name != "cka"),
    ]  # the name of a diagnostic, with a plot of its own
    assert list(report_html.TERMS) == names
    page_ = (ROOT / "console" / "dash" / "static" / "js" / "pages" / "learning.js").read_text(encoding="utf-8")
    assert re.findall(r'"([\w-]+)"', page_.partition("const TERMS = [")[2].partition("]")[0]) == names
