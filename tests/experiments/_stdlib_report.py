"""E2, from runs to results.json.

Responsible for: the share of the gap that distillation closes, at the last step and against the best point of the other arm's curve;
and what the same CPU time buys without a teacher. Refuses: seeds that lack an arm; a verdict on what was not run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from tests.experiments import _page, _stdlib_page
from tests.experiments._journal import Job, Journal, Result
from tests.experiments._stats import effect, holm
from tests.experiments._stdlib import DEFAULTS, TUNED_KB

Row = dict[str, Any]
GAP_TARGET: Final = 0.50
TEACHER_TARGET: Final = 0.30


def chosen(journal: Journal) -> dict[tuple[str, int], dict[str, float]]:
    """(arm, size) -> the trial with the fewest bits on validation."""
    best: dict[tuple[str, int], tuple[float, str]] = {}
    for job, result in journal.rows():
        if job["stage"] == "tune":
            place, trial = (job["arm"], job["kb"]), (result["bpb"], json.dumps(job["settings"], sort_keys=True))
            best[place] = min(best.get(place, trial), trial)
    return {place: json.loads(trial) for place, (_, trial) in best.items()}


def settings(found: Mapping[tuple[str, int], dict[str, float]], arm: str, kb: int) -> dict[str, float]:
    """What an arm runs with at a size (0: the whole pool): that of the largest tuned size not above it, else the defaults."""
    below = [size for size in TUNED_KB if (arm, size) in found and (kb == 0 or size <= kb)]
    return dict(found[arm, max(below)]) if below else dict(DEFAULTS[arm])


def results(rows: Sequence[tuple[Job, Result]], meta: Mapping[str, Any]) -> Row:
    """The document that the page is rendered from."""
    runs = {(j["stage"], j["arm"], j["kb"], j["seed"]): r for j, r in rows if j["stage"] in ("final", "equal")}
    teacher = next((r for j, r in rows if j["stage"] == "teach"), None)
    sizes = sorted({kb for _, _, kb, _ in runs if kb})
    means, gaps, differences = [], [], []
    for kb in sizes:
        seeds = [s for _, arm, m, s in runs if (arm, m) == ("kd", kb) and ("final", "ce", kb, s) in runs]
        if not seeds:
            continue
        pairs = [(runs["final", "ce", kb, s], runs["final", "kd", kb, s]) for s in sorted(seeds)]
        means += [_mean(arm, kb, [pair[i] for pair in pairs]) for i, arm in enumerate(("ce", "kd"))]
        if teacher and len(pairs) > 1:
            gaps.append(_gap(kb, pairs, teacher["bpb"]))
            differences += [_difference(kb, metric, pairs) for metric in ("bpb", "accuracy", "agreement", "kl")]
    for metric in {row["metric"] for row in differences}:
        family = {str(row["kb"]): row["p"] for row in differences if row["metric"] == metric}
        adjusted = holm(family)
        for row in differences:
            if row["metric"] == metric:
                row["holm"] = adjusted[str(row["kb"])]
    whole = [r for (stage, arm, kb, _), r in sorted(runs.items()) if (stage, arm, kb) == ("final", "ce", 0)]
    equal = next((r for (stage, *_), r in runs.items() if stage == "equal"), None)
    document: Row = {
        "meta": dict(meta),
        "teacher": teacher,
        "equal": equal,
        "runs": [
            {"stage": stage, "arm": arm, "kb": kb, "seed": seed, **r}
            for (stage, arm, kb, seed), r in sorted(runs.items())
        ],
        "tuning": [
            {"arm": j["arm"], "kb": j["kb"], "settings": j["settings"], "bpb": r["bpb"]}
            for j, r in rows
            if j["stage"] == "tune"
        ],
        "means": means + ([_mean("ce", 0, whole)] if whole else []),
        "gaps": gaps,
        "differences": differences,
        "cpu_seconds": round(sum(r.get("cpu_seconds", 0.0) for _, r in rows), 1),
    }
    document["targets"] = targets(document)
    return document


def _mean(arm: str, kb: int, got: Sequence[Result]) -> Row:
    """Means over seeds; the curve too, point by point."""
    row: Row = {"arm": arm, "kb": kb, "seeds": len(got)}
    for name in ("bpb", "accuracy", "agreement", "kl", "cpu_seconds", "queries"):
        values = [r[name] for r in got]
        row[name] = fmean(values)
        row[f"{name}_sd"] = stdev(values) if len(values) > 1 else 0.0
    row["curve"] = [
        [fmean(point[i] for point in step) for i in range(3)] for step in zip(*(r["curve"] for r in got), strict=True)
    ]
    row["best"] = fmean(min(point[2] for point in r["curve"]) for r in got)
    return row


def _gap(kb: int, pairs: Sequence[tuple[Result, Result]], teacher: float) -> Row:
    """Share of the way from CE to the teacher that KD goes, a seed at a time: on test files after the last step; and on validation
    files from CE's best point (chosen there, which flatters CE) to KD's last."""
    last = [(ce["bpb"] - kd["bpb"]) / (ce["bpb"] - teacher) for ce, kd in pairs]
    strict = []
    for ce, kd in pairs:
        best = min(point[2] for point in ce["curve"])
        strict.append((best - kd["curve"][-1][2]) / (best - teacher))
    found = {"kb": kb}
    for name, values in (("last", last), ("strict", strict)):
        of = effect(values)
        found[name] = {"mean": of.mean, "low": of.low, "high": of.high}
    return {**found, "pairs": len(pairs)}


def _difference(kb: int, metric: str, pairs: Sequence[tuple[Result, Result]]) -> Row:
    scale = 100.0 if metric in ("accuracy", "agreement") else 1.0
    of = effect([scale * (kd[metric] - ce[metric]) for ce, kd in pairs])
    return {"kb": kb, "metric": metric, "mean": of.mean, "low": of.low, "high": of.high, "p": of.p, "pairs": of.pairs}


def targets(found: Row) -> list[Row]:
    """What was aimed at, and what came out."""
    gap = next((row["last"] for row in found["gaps"] if row["kb"] == 32), None)
    lead = None
    if found["teacher"] and found["equal"]:
        lead = found["equal"]["bpb"] - found["teacher"]["bpb"]
    return [
        {
            "what": "share of the CE-to-teacher gap closed at 32 KB",
            "target": ">= 0.50",
            "value": None if gap is None else f"{gap['mean']:.2f} [{gap['low']:.2f}, {gap['high']:.2f}]",
            "met": None if gap is None else gap["mean"] >= GAP_TARGET,
        },
        {
            "what": "teacher better than a student of equal compute, bits a byte",
            "target": ">= 0.30",
            "value": None if lead is None else f"{lead:.2f}",
            "met": None if lead is None else lead >= TEACHER_TARGET,
        },
    ]


def write(journal: Journal, meta: dict[str, Any], folder: Path) -> None:
    """results.json, and from it the page and its plots."""
    _page.keep(results(list(journal.rows()), meta), folder / "results.json")
    _stdlib_page.write(_page.kept(folder / "results.json"), folder)
