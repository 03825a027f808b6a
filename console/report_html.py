"""The report of a run directory as one HTML file that needs nothing else.

Responsible for: the series behind the plots, each value from a record, and the page around them. The document of `recuros report
--json` and the series lie in the file as JSON (`<script type="application/json" id="report">`), so what was plotted can be taken
out again. Refuses: to read anything but the ledger and the evidence that its records name.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from console.context import plain
from console.evidence import evidence_of, read_layers
from kfs.records import Record, RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

SCHEMA: Final = "recuros.report.html/v1"
TERMS: Final = (
    "loss",
    "task",
    "kd",
    "hint",
    "at",
    "rkd",
    "rkd_angle",
    "ewc",
    "jacobian",
    "calibration",
    "cosine",
    "embedding",
    "attention_mse",
    "minilm_at",
    "minilm_vr",
    "semantic",
)
"""Those of the learner's objective; a run reports the ones that are on."""
LAYER_WINDOWS_MAX: Final = 600
ROWS_MAX: Final = 30
HEATS: Final = (("cka", "cka"), ("attn-kl", "kl"), ("gradnorm", "norm"), ("fisher", "trace"), ("rms", "rms"))


@dataclass
class Series:
    """What the plots show. `windows`: a row a committed window; `attempts`: (window, seconds, went wrong) of each grant."""

    windows: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[tuple[int, float, bool]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    policies: list[dict[str, Any]] = field(default_factory=list)
    layers: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    """{program: {layer: [[window, value], ...]}}"""

    def column(self, name: str) -> list[tuple[float, float]]:
        """(window, value) of a figure of the committed windows."""
        found = ((w["window"], w.get(name)) for w in self.windows)
        return [(x, float(y)) for x, y in found if isinstance(y, int | float)]


def fold(records: Iterable[Record]) -> Series:
    """The series of a ledger's records."""
    series = Series()
    open_: dict[int, int] = {}
    by_snapshot: dict[str, int] = {}
    last = 0
    for r in records:
        args = r.args
        match r.kind:
            case RecordKind.BOOT:
                open_.clear()
            case RecordKind.WINDOW_GRANT:
                open_[args["window"]] = r.t_mono
            case RecordKind.WINDOW_COMMIT:
                last = args["window"]
                kept = {k: v for k, v in args["metrics"].items() if isinstance(v, int | float)}
                evidence = evidence_of(r)
                series.windows.append(
                    {**kept, "window": last, "seq": r.seq, "generation": r.generation, "evidence": evidence}
                )
                by_snapshot[r.result_snap or ""] = last
                _attempt(series, open_, r, wrong=False)
            case RecordKind.WINDOW_ROLLBACK:
                _attempt(series, open_, r, wrong=True)
            case RecordKind.EVALUATE:
                at = by_snapshot.get(r.parent_snap or "", last)
                scores = {role: args["scores"].get(role) or {} for role in ("student", "teacher")}
                series.evaluations.append({"window": at, "split": args["split"], "generation": r.generation, **scores})
            case RecordKind.GENERATION:
                series.generations.append(args["window"])
            case RecordKind.POLICY if args["settings"] and "refused" not in args["settings"]:
                settings = {k: v for k, v in args["settings"].items() if isinstance(v, int | float)}
                series.policies.append(
                    {"window": args["window"], "applies_at": args["applies_at"], "settings": settings}
                )
    return series


def _attempt(series: Series, open_: dict[int, int], r: Record, *, wrong: bool) -> None:
    began = open_.pop(r.args["window"], None)
    if began is not None:
        series.attempts.append((r.args["window"], (r.t_mono - began) / 1e9, wrong))


def add_layers(store: Store, series: Series) -> None:
    """Add the figures of layers that probes left in the evidence of the last windows; what was collected is left out."""
    for window in [w for w in series.windows if w["evidence"]][-LAYER_WINDOWS_MAX:]:
        try:
            found = read_layers(store, window["evidence"])
        except RecurosError:
            continue  # given up by a collection: the ledger says so, and the plot has a gap
        for program, figure in HEATS:
            for layer, figures in found.get(program, {}).items():
                if figure in figures:
                    rows = series.layers.setdefault(program, {}).setdefault(layer, [])
                    rows.append([window["window"], figures[figure]])


def write(path: Path, run: Path, report: Mapping[str, Any]) -> None:
    """Write the file: E2-USAGE when matplotlib is missing or the file cannot be written."""
    with Store.open_reader(run / "store") as store:
        series = fold(store.records())
        add_layers(store, series)
    text = page(report, series)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise RecurosError("E2-USAGE", f"cannot write {path}: {e.strerror}", hint="name another file") from e


def page(report: Mapping[str, Any], series: Series) -> str:
    """The whole document."""
    try:
        plots = _plots(series)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise RecurosError(
            "E2-USAGE", "the HTML report needs matplotlib, which is not installed", hint="pip install 'recuros[report]'"
        ) from error
    document = {"schema": SCHEMA, "report": report, "series": series.__dict__}
    data = json.dumps(plain(document), separators=(",", ":")).replace("<", "\\u003c")
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    body = "\n".join([_head(report), *plots, *_tables(report)])
    title = html.escape(f"{report['app']}: report of a run")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n<style>\n{style}</style>\n'
        f'</head>\n<body>\n<main>\n{body}\n</main>\n<script type="application/json" id="report">{data}</script>\n</body>\n</html>\n'
    )


def _plots(series: Series) -> list[str]:
    from console import report_plots as draw

    marks = series.generations
    scores: dict[str, list[tuple[float, float]]] = {}
    for e in series.evaluations:
        for role in ("student", "teacher"):
            if isinstance(e[role].get("accuracy"), float):
                scores.setdefault(f"{role}, {e['split']}", []).append((e["window"], e[role]["accuracy"]))
    terms = {name: series.column(name) for name in TERMS}
    found = [
        _figure(
            "loss",
            "Loss and its terms",
            draw.lines("loss", terms, log=True, marks=marks),
            "Means over each committed window; dashed: role swaps.",
        ),
        _figure(
            "accuracy",
            "Accuracy on held-out data",
            draw.lines("accuracy", scores, marks=marks, share=True),
            "No gradient has seen these samples.",
        ),
        _figure(
            "schedule",
            "Time of each window",
            draw.schedule("schedule", series.attempts),
            "From the grant to commit or rollback.",
        ),
        _figure(
            "settings",
            "Temperature and mix",
            draw.lines("settings", {k: series.column(k) for k in ("temperature", "mix")}),
            "As the learner reported them: policies and operators move them.",
        ),
        _figure(
            "grad",
            "Gradient norm",
            draw.lines("grad", {"gradient norm": series.column("grad_norm")}, log=True, marks=marks),
            "",
        ),
    ]
    for program, figure in HEATS:
        if layers := series.layers.get(program):
            windows = sorted({int(w) for rows in layers.values() for w, _ in rows})
            at = {w: i for i, w in enumerate(windows)}
            values = [[math.nan] * len(windows) for _ in layers]
            for row, points in zip(values, layers.values(), strict=True):
                for window, value in points:
                    row[at[int(window)]] = value
            names = [{"(model)": "whole model"}.get(name, name.strip("()")) for name in layers]
            found.append(
                _figure(
                    f"heat-{program}",
                    f"{program}: {figure} by layer",
                    draw.heat(f"heat-{program}", names, windows, values),
                    "From the evidence that each window left.",
                )
            )
    return [part for part in found if part]


def _figure(name: str, title: str, svg: str, note: str) -> str:
    if not svg:
        return ""
    caption = f'<figcaption><h2 id="{name}-title">{html.escape(title)}</h2><p>{html.escape(note)}</p></figcaption>'
    return f"<figure>{caption}<div class=scroll>{svg}</div></figure>"


def _head(report: Mapping[str, Any]) -> str:
    windows, student, teacher = report["windows"], report["student"], report["teacher"]
    kept = report["retention"]
    audit = report["ledger"]
    tiles = [
        (
            "Windows committed",
            f"{windows['committed']:,}",
            f"{windows['missed']} missed, {windows['rolled_back']} rolled back",
        ),
        ("Retention", "–" if kept is None else f"{kept:.1%}", "student over the first teacher, test split"),
        ("Student", _score(student), _params(student)),
        ("First teacher", _score(teacher), _params(teacher)),
    ]
    cells = "".join(
        f"<div><span>{html.escape(a)}</span><b>{html.escape(b)}</b><small>{html.escape(c)}</small></div>"
        for a, b, c in tiles
    )
    verdict = "verified" if audit["verified"] else "NOT VERIFIED"
    tone = "good" if audit["verified"] else "bad"
    line = (
        f"{report['boots']} boots, generation {report['generation']}, {report['policies']} policies that changed something. "
        f"Ledger of {audit['size']:,} records, root <code>{html.escape(audit['root'][:16])}</code>, <em class={tone}>{verdict}</em>."
    )
    title = f"<h1>{html.escape(report['app'])}</h1><p><code>{html.escape(report['run'])}</code></p><p>{line}</p>"
    return f"<header>{title}</header><section class=tiles>{cells}</section>"


def _score(role: Mapping[str, Any]) -> str:
    return "–" if role["score"] is None else f"{role['score']:.2%}"


def _params(role: Mapping[str, Any]) -> str:
    return f"{role['params']:,} parameters" if role["params"] else "not scored"


def _tables(report: Mapping[str, Any]) -> list[str]:
    probes = [
        [p["id"], p["prog"], p["hook"], p["sites"], "attached" if p["attached"] else "detached"]
        for p in report["probes"]
    ]
    return [
        _table("Windows by phase", ("Phase", "Committed"), list(report["phases"].items())),
        _table("Probes", ("Id", "Program", "Hook", "Sites", ""), probes),
        _table(
            "Named snapshots",
            ("Record", "Name", "Window", "Snapshot"),
            [[s["seq"], s["name"], s["window"], s["snapshot"]] for s in report["snapshots"]],
        ),
        _table(
            "Misses and rollbacks",
            ("Record", "Window", "Reason"),
            [[m["seq"], m["window"], m["reason"]] for m in report["misses"]],
        ),
        _table(
            "Faults",
            ("Record", "Where", "Code", "Message"),
            [[f["seq"], f["name"], f["code"], f["message"]] for f in report["faults"]],
        ),
    ]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{html.escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>" for row in rows[-ROWS_MAX:]
    )
    more = f"<p>the last {ROWS_MAX} of {len(rows)}; the JSON below holds all</p>" if len(rows) > ROWS_MAX else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<section><h2>{html.escape(title)}</h2>{more}<div class=scroll>{table}</div></section>"
