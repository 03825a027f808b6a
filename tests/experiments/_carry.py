"""Taking over runs of earlier code that this code reproduces.

Responsible for: running some of them again and comparing everything but CPU time, arm by arm; copying only the arms that came out
equal; a note of what was taken over and how it was checked, which goes into the report. Refuses: an arm of which one run
differs, or a teacher whose parameters differ.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from tests.experiments._journal import Job, Journal, Result, key

Run = Callable[[Job, Path], Iterable[tuple[Job, Result]]]
NOTE: Final = "carried.json"
TIMES: Final = frozenset({"cpu_seconds"})


def carry(source: Path, folder: Path, run: Run) -> dict[str, Any]:
    """Copy from `source` to `folder` the runs of the arms whose first and last run this code gives again."""
    rows = list(Journal(source / "runs.jsonl").rows())
    groups: dict[str, list[tuple[Job, Result]]] = {}
    for job, result in rows:
        if "arm" in job:
            groups.setdefault(" ".join(str(job[name]) for name in ("stage", "teacher", "arm")), []).append(
                (job, result)
            )
    equal: list[str] = []
    differ: list[str] = []
    checked = 0
    with tempfile.TemporaryDirectory(prefix="carry-") as name:
        for group, members in groups.items():
            samples = members[:1] + members[1:][-1:]
            checked += len(samples)
            same = all(_same(job, result, source, run(job, Path(name))) for job, result in samples)
            (equal if same else differ).append(group)
            print(f"{group}: {'equal' if same else 'differs, is not taken over'}", flush=True)
        same_teachers = _teachers(source / "teachers", Path(name) / "teachers")
    if not same_teachers:
        raise SystemExit("a teacher comes out differently: nothing is taken over")
    journal = Journal(folder / "runs.jsonl")
    there = journal.results()
    taken = [row for group in equal for row in groups[group]] + [row for row in rows if row[0].get("stage") == "teach"]
    for job, result in taken:
        if key(job) not in there:
            journal.append(job, result)
    (folder / "teachers").mkdir(parents=True, exist_ok=True)
    for file in (source / "teachers").glob("*.npy"):
        if not (folder / "teachers" / file.name).exists():
            shutil.copy(file, folder / "teachers" / file.name)
    note = {"code": source.name, "runs": len(taken), "checked": checked, "arms": equal, "not_taken": differ}
    (folder / NOTE).write_text(json.dumps(note), encoding="utf-8")
    return note


def _same(job: Job, result: Result, source: Path, again: Iterable[tuple[Job, Result]]) -> bool:
    known = Journal(source / "runs.jsonl").results()
    return all(_timeless(got) == _timeless(known.get(key(made), {})) for made, got in again)


def _timeless(result: Result) -> Result:
    return {name: value for name, value in result.items() if name not in TIMES}


def _teachers(source: Path, again: Path) -> bool:
    """Whether each teacher that the checks trained again has the very bytes that it had."""
    return all((source / file.name).read_bytes() == file.read_bytes() for file in again.glob("*.npy"))


def note_of(folder: Path) -> dict[str, Any] | None:
    """What was taken over into a folder, if anything."""
    path = folder / NOTE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
