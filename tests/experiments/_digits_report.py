"""E1, the report: from runs to results.json, and from results.json to the page and its plots."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from tests.experiments._journal import Journal


def chosen(journal: Journal) -> dict[tuple[str, int], dict[str, float]]:
    """(arm, n) -> the trial with the highest mean validation accuracy; the lower validation NLL decides between equals."""
    scores: dict[tuple[str, int], dict[tuple[tuple[str, float], ...], list[tuple[float, float]]]] = {}
    for job, result in journal.rows():
        if job["stage"] == "tune":
            trial = tuple(sorted(job["settings"].items()))
            by_trial = scores.setdefault((job["arm"], job["n"]), {})
            by_trial.setdefault(trial, []).append((result["accuracy"], result["nll"]))
    found = {}
    for place, by_trial in scores.items():
        best = max(by_trial, key=lambda t: (fmean(a for a, _ in by_trial[t]), -fmean(b for _, b in by_trial[t]), t))
        found[place] = dict(best)
    return found


def write(journal: Journal, meta: dict[str, Any], folder: Path) -> None:
    """Results and page."""
