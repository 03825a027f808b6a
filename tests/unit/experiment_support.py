"""A small experiment for the tests of the runner: `python -m tests.unit.experiment_support`, with its folder in EXPERIMENT_BUILD."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.experiments import _run
from tests.experiments._journal import Job, Journal, Result

RUNS = 6


def stages(_quick: bool, _count: int) -> list[_run.Stage]:
    """A first stage, and one that depends on its result."""

    def first(_journal: Journal) -> Sequence[Job]:
        return [{"stage": "first", "number": number} for number in range(RUNS)]

    def second(journal: Journal) -> Sequence[Job]:
        return [{"stage": "second", "total": sum(result["square"] for _, result in journal.rows())}]

    return [first, second]


def run(given: Job, folder: Path) -> list[tuple[Job, Result]]:
    """The square of a number; the run that FAIL names dies once, after the others had their chance."""
    if str(given.get("number")) == os.environ.get("FAIL"):
        os._exit(9)
    return [(given, {"square": given.get("number", 0) ** 2, "pid": os.getpid(), "nice": os.nice(0)})]


def report(journal: Journal, meta: dict[str, Any], folder: Path) -> None:
    """What there is, as JSON."""
    (folder / "results.json").write_text(json.dumps({"meta": meta, "rows": list(journal.rows())}), encoding="utf-8")


if __name__ == "__main__":
    _run.BUILD = Path(os.environ["EXPERIMENT_BUILD"])  # type: ignore[misc]
    made = _run.Experiment("support", str(__doc__), stages, run, report, lambda _quick: {"fact": 1}, (Path(__file__),))
    raise SystemExit(_run.main(made))
