"""E1, from runs to results.json: which settings tuning chose, what the arms reached, and what may be said of their differences.

Responsible for: every figure of the report, computed from the journal. Refuses: seeds that lack a run of the arms that are compared
(they are left out and counted), a verdict on what was not run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

import numpy as np

from tests.experiments import _digits_page, _page
from tests.experiments._digits import ABLATIONS, ARMS, COUNTS
from tests.experiments._journal import Job, Journal, Result
from tests.experiments._stats import Effect, effect, holm, labels_for, ratio_interval

Row = dict[str, Any]
Runs = Mapping[tuple[str, int, str, int], Result]
"""(teacher, n, arm, seed) -> result of a final run."""

METRICS: Final = ("accuracy", "agreement", "kl")
SCALE: Final = {"accuracy": 100.0, "agreement": 100.0, "kl": 1.0}
"""Accuracy and agreement are told in points."""
QUESTIONS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "distillation": (("kd-mixup", "ce"), ("kd", "ce"), ("ce-mixup", "ce"), ("kd-mixup", "kd")),
    "observer": (("observer", "kd-mixup"), ("observer", "observer-permuted")),
    "ablations": tuple(("observer", name) for name in ABLATIONS),
}
"""Families of hypotheses, each corrected as a whole for one teacher and one metric: (a, b) is the difference a - b."""
RETENTION: Final = 0.97


def chosen(journal: Journal) -> dict[tuple[str, int], dict[str, float]]:
    """(arm, n) -> the trial with the highest mean validation accuracy; the lower validation NLL decides between equals."""
    return {(row["arm"], row["n"]): row["settings"] for row in tuning(journal.rows()) if row["chosen"]}


def tuning(rows: Iterable[tuple[Job, Result]]) -> list[Row]:
    """Every trial of every arm with its mean scores on validation, and which was chosen."""
    scores: dict[tuple[int, str], dict[str, list[Result]]] = {}
    for job, result in rows:
        if job["stage"] == "tune":
            trial = json.dumps(job["settings"], sort_keys=True)
            scores.setdefault((job["n"], job["arm"]), {}).setdefault(trial, []).append(result)
    found = []
    for (n, arm), by_trial in scores.items():
        means = {
            trial: (fmean(r["accuracy"] for r in got), -fmean(r["nll"] for r in got)) for trial, got in by_trial.items()
        }
        best = max(means, key=lambda trial: (means[trial], trial))
        for trial, got in by_trial.items():
            accuracy, nll = means[trial]
            row = {"n": n, "arm": arm, "settings": json.loads(trial), "runs": len(got)}
            found.append({**row, "accuracy": accuracy, "nll": -nll, "chosen": trial == best})
    return found


def complete(runs: Runs, teacher: str, n: int, arms: Iterable[str]) -> list[int]:
    """The seeds that have a run of every arm."""
    per_arm = [{seed for t, m, a, seed in runs if (t, m, a) == (teacher, n, arm)} for arm in arms]
    return sorted(set.intersection(*per_arm)) if per_arm else []


def means(runs: Runs, teacher: str, n: int, arms: Iterable[str], seeds: Sequence[int]) -> list[Row]:
    """Mean and standard deviation of each arm over the seeds."""
    rows = []
    for arm in arms:
        got = [runs[teacher, n, arm, seed] for seed in seeds]
        row: Row = {"teacher": teacher, "n": n, "arm": arm, "seeds": len(seeds)}
        for name in (
            *METRICS,
            "ece",
            "nll",
            "cpu_seconds",
            "queries",
            "temperature_last",
            "weight_spread",
            "weightless_share",
            "gated_share",
        ):
            values = [r[name] for r in got if name in r]
            if values:
                row[name] = fmean(values)
                row[f"{name}_sd"] = stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


def contrasts(runs: Runs, teacher: str, counts: Sequence[int]) -> list[Row]:
    """Paired differences with intervals, exact p and Holm's correction inside each family."""
    found: list[Row] = []
    for family, pairs in QUESTIONS.items():
        arms = (*ARMS, *(ABLATIONS if family == "ablations" else ()))
        for metric in METRICS:
            rows = []
            for n in counts:
                seeds = complete(runs, teacher, n, arms)
                if len(seeds) < 2:
                    continue
                for a, b in pairs:
                    gaps = [
                        SCALE[metric] * (runs[teacher, n, a, s][metric] - runs[teacher, n, b, s][metric]) for s in seeds
                    ]
                    row = {"family": family, "teacher": teacher, "metric": metric, "n": n, "a": a, "b": b}
                    rows.append({**row, **_plain(effect(gaps))})
            adjusted = holm({str(i): row["p"] for i, row in enumerate(rows)})
            found += [{**row, "holm": adjusted[str(i)]} for i, row in enumerate(rows)]
    return found


def _plain(found: Effect) -> Row:
    return {"mean": found.mean, "low": found.low, "high": found.high, "p": found.p, "pairs": found.pairs}


def labels(runs: Runs, teachers: Mapping[int, float], counts: Sequence[int]) -> Row | None:
    """Labels that KD + mixup needs over labels that CE needs, both for 97 % of the teacher; None without two complete seeds.

    `at_most`: KD + mixup is there with the fewest labels that were tried, so it may need fewer still.
    """
    seeds = sorted(seed for seed in teachers if all(seed in complete(runs, "mlp", n, ARMS) for n in counts))
    if len(seeds) < 2 or len(counts) < 2:
        return None
    ce, kd = (
        np.asarray([[runs["mlp", n, arm, seed]["accuracy"] for n in counts] for seed in seeds])
        for arm in ("ce", "kd-mixup")
    )
    wanted = RETENTION * np.asarray([teachers[seed] for seed in seeds])
    ratio, low, high = ratio_interval(counts, ce, kd, wanted)
    ends = {"ratio": ratio, "low": low, "high": high}
    told: Row = {name: value if np.isfinite(value) else None for name, value in ends.items()}
    bound = labels_for(counts, list(kd.mean(axis=0)), float(wanted.mean())) == counts[0]
    return {**told, "at_most": bound, "retention": RETENTION, "seeds": len(seeds)}


def targets(found: Sequence[Row], ratio: Row | None, seeds: int) -> list[Row]:
    """What was aimed at, what came out, and whether that is met; None where it was not run."""

    def of(a: str, b: str, n: int) -> Row | None:
        match = [
            r for r in found if (r["a"], r["b"], r["n"], r["teacher"], r["metric"]) == (a, b, n, "mlp", "accuracy")
        ]
        return match[0] if match else None

    def row(what: str, target: str, value: Row | None, met: bool | None) -> Row:
        keys = ("mean", "low", "high", "holm", "at_most")
        keep = None if value is None else {k: value[k] for k in keys if k in value}
        return {"what": what, "target": target, "effect": keep, "met": met if value is not None else None}

    rows = []
    for n, least in ((60, 4.0), (120, 2.0)):
        gain = of("kd-mixup", "ce", n)
        met = gain is not None and gain["mean"] >= least and gain["low"] > 0
        rows.append(row(f"KD + mixup over CE at {n} labels, points", f">= +{least:g}, interval above 0", gain, met))
    shown = None if ratio is None else {**ratio, "mean": ratio["ratio"]}
    met = shown is not None and shown["mean"] is not None and shown["mean"] <= 0.60
    rows.append(row("labels for 97 % of the teacher, KD + mixup / CE", "<= 0.60", shown, met))
    full = of("kd-mixup", "ce", COUNTS[-1])
    loss = None if full is None else {"mean": -full["mean"], "low": -full["high"], "high": -full["low"]}
    rows.append(
        row("loss with all labels, CE over KD + mixup, points", "<= 1.0", loss, bool(loss and loss["mean"] <= 1.0))
    )
    rows.append(row("the same, stretch", "<= 0.5", loss, bool(loss and loss["mean"] <= 0.5)))
    gain, control = of("observer", "kd-mixup", 60), of("observer", "observer-permuted", 60)
    rows.append(
        row(
            "Observer over KD + mixup at 60 labels, points",
            ">= +0.5, interval above 0",
            gain,
            bool(gain and gain["mean"] >= 0.5 and gain["low"] > 0),
        )
    )
    rows.append(
        row(
            "Observer over its permuted control at 60 labels, points",
            "interval above 0, Holm p < 0.05",
            control,
            bool(control and control["low"] > 0 and control["holm"] < 0.05),
        )
    )
    count = {"mean": float(seeds), "low": float(seeds), "high": float(seeds)}
    rows.append(row("paired seeds", ">= 20", count, seeds >= 20))
    return rows


def verdict(found: Sequence[Row]) -> str:
    """ "gain" where both of the Observer's targets are met, "no gain" where one is missed, "not run" without them."""
    both = [row for row in found if row["what"].startswith("Observer over")]
    if any(row["met"] is None for row in both):
        return "not run"
    return "gain" if all(row["met"] for row in both) else "no gain"


def results(rows: Sequence[tuple[Job, Result]], meta: Mapping[str, Any]) -> Row:
    """The document that the page is rendered from."""
    runs = {
        (job["teacher"], job["n"], job["arm"], job["seed"]): result for job, result in rows if job["stage"] == "final"
    }
    taught = [
        {"teacher": job["teacher"], "for": job["for"], "seed": job["seed"], **result}
        for job, result in rows
        if job["stage"] == "teach"
    ]
    counts = [n for n in COUNTS if any(m == n for _, m, _, _ in runs)]
    tables: list[Row] = []
    compared: list[Row] = []
    for teacher in ("mlp", "patch"):
        for n in counts:
            for arms, names in ((ARMS, ARMS), ({**ARMS, **ABLATIONS}, ABLATIONS)):
                if seeds := complete(runs, teacher, n, arms):
                    tables += means(runs, teacher, n, names, seeds)
        compared += contrasts(runs, teacher, counts)
    scores = {t["seed"]: t["accuracy"] for t in taught if (t["teacher"], t["for"]) == ("mlp", "final")}
    ratio = labels(runs, scores, counts)
    seeds_of = [len(complete(runs, "mlp", n, ARMS)) for n in counts]
    aims = targets(compared, ratio, min(seeds_of, default=0))
    return {
        "meta": dict(meta),
        "runs": [
            {**_told(result), "teacher": t, "n": n, "arm": arm, "seed": seed}
            for (t, n, arm, seed), result in sorted(runs.items())
        ],
        "teachers": taught,
        "tuning": tuning(rows),
        "means": tables,
        "contrasts": compared,
        "labels": ratio,
        "targets": aims,
        "observer": verdict(aims),
        "cpu_seconds": round(sum(result.get("cpu_seconds", 0.0) for _, result in rows), 1),
    }


def _told(result: Result) -> Result:
    """A run's own figures; how many images it was scored on goes by the name that labels have here, and is the same for all."""
    return {name: value for name, value in result.items() if name not in ("n", "params")}


def write(journal: Journal, meta: dict[str, Any], folder: Path) -> None:
    """results.json, and from it the page and its plots."""
    document = results(list(journal.rows()), meta)
    _page.keep(document, folder / "results.json")
    _digits_page.write(_page.kept(folder / "results.json"), folder)
