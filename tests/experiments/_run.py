"""Runs an experiment's jobs in stages: at most two processes of one thread, at the lowest priority, each result kept at once.

Responsible for: the options that every experiment takes, sharing a stage's missing runs out, going on where an earlier call was cut
off. Refuses: more than two processes. A stage begins when the one before is done, since what it runs may depend on it.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from threadpoolctl import threadpool_limits

from tests.experiments._carry import carry, note_of
from tests.experiments._journal import ROOT, Job, Journal, Result, code_digest, key

BUILD: Final = ROOT / "build" / "experiment"
DOCS: Final = ROOT / "docs" / "experiments"
PROCESSES_MAX: Final = 2
NICE: Final = 19

Stage = Callable[[Journal], Sequence[Job]]


@dataclass(frozen=True)
class Experiment:
    """What an experiment is.

    `stages(quick, count)`: what to run, each stage from the journal of those before. `run(job, folder)`: its result, after those
    of runs that it needed. `report(journal, meta, folder)`: write results and page. `facts(quick)`: what the page says of the setup.
    `sources`: the experiment's own files that decide a result.
    """

    name: str
    doc: str
    stages: Callable[[bool, int], list[Stage]]
    run: Callable[[Job, Path], Iterable[tuple[Job, Result]]]
    report: Callable[[Journal, dict[str, Any], Path], None]
    facts: Callable[[bool], dict[str, Any]]
    sources: tuple[Path, ...]


def folder_of(experiment: Experiment, quick: bool) -> Path:
    """Where runs are kept: results of other code are another folder's, so they never mix."""
    variant = "quick" if quick else "full"
    return BUILD / experiment.name / variant / code_digest(experiment.sources)


def missing(stage: Sequence[Job], journal: Journal, shard: int = 0, shards: int = 1) -> list[Job]:
    """Of each `shards`-th job of a stage those that have no result yet.

    The share is of the whole stage, not of what is missing: processes look at different moments, and must not share out different lists.
    """
    done = journal.results()
    return [job for job in stage[shard::shards] if key(job) not in done]


def work(experiment: Experiment, jobs: Sequence[Job], folder: Path, deadline: float) -> bool:
    """Run jobs until all are done (True) or the time is up (False)."""
    journal = Journal(folder / "runs.jsonl")
    for number, job in enumerate(jobs):
        if time.monotonic() >= deadline:
            return False
        for done, result in experiment.run(job, folder):
            journal.append(done, result)
        print(f"{number + 1}/{len(jobs)} {' '.join(str(v) for v in job.values())}", flush=True)
    return True


def main(experiment: Experiment) -> int:
    """The command line of an experiment."""
    options = _options(experiment)
    os.nice(NICE - os.nice(0))
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's and scikit-learn's own
    folder = folder_of(experiment, options.quick)
    journal = Journal(folder / "runs.jsonl")
    if options.carry and options.shard is None:
        carry(options.carry, folder, experiment.run)
    stages = experiment.stages(options.quick, options.count)
    deadline = time.monotonic() + options.seconds if options.seconds else float("inf")
    if options.shard is not None:
        stage = stages[options.stage](journal)
        return 0 if work(experiment, missing(stage, journal, options.shard, options.procs), folder, deadline) else 1
    complete = options.report or all(
        _stage(experiment, options, i, stages, journal, deadline) for i in range(len(stages))
    )
    out = folder / "report" if options.quick else DOCS / experiment.name
    out.mkdir(parents=True, exist_ok=True)
    meta = {**_meta(experiment, options, folder), **experiment.facts(options.quick)}
    experiment.report(journal, meta, out)
    print(f"report in {out}" + ("" if complete else "; runs are missing, the same command goes on"))
    return 0


def _stage(
    experiment: Experiment,
    options: argparse.Namespace,
    index: int,
    stages: list[Stage],
    journal: Journal,
    deadline: float,
) -> bool:
    """Run one stage to its end; False when the time is up before."""
    jobs = missing(stages[index](journal), journal)
    if not jobs:
        return True
    if options.procs == 1 or len(jobs) == 1:
        return work(experiment, jobs, journal.path.parent, deadline)
    left = [] if deadline == float("inf") else ["--seconds", str(max(1, int(deadline - time.monotonic())))]
    command = [sys.executable, *_module(), *sys.argv[1:], *left, "--stage", str(index)]
    workers = [subprocess.Popen([*command, "--shard", str(shard)], cwd=ROOT) for shard in range(options.procs)]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(code not in (0, 1) for code in codes):
        raise SystemExit(f"workers ended with {codes}; what was finished is kept, the same command goes on")
    return not missing(stages[index](journal), journal)


def _module() -> list[str]:
    """How this program was started, as arguments of the interpreter."""
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name] if spec is not None else [sys.argv[0]]


def _options(experiment: Experiment) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=experiment.doc)
    parser.add_argument(
        "--quick", action="store_true", help="a small grid, to see that everything works; not for the docs"
    )
    parser.add_argument("--count", type=int, default=0, help="seeds; 0: all")
    parser.add_argument("--seconds", type=int, default=0, help="begin no run after so many; 0: no limit")
    parser.add_argument("--procs", type=int, default=1, choices=range(1, PROCESSES_MAX + 1), help="processes")
    parser.add_argument("--report", action="store_true", help="run nothing; report what there is")
    parser.add_argument(
        "--carry", type=Path, help="a folder of runs by other code: take over the arms that this code reproduces"
    )
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shard", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _meta(experiment: Experiment, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Under which circumstances the results came about."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "experiment": experiment.name,
        "quick": options.quick,
        "command": f"make experiment NAME={experiment.name}" + (" QUICK=1" if options.quick else ""),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{model}, {os.cpu_count()} cores, one thread a process, nice {NICE}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "code": folder.name,
        "carried": note_of(folder),
    }
