"""E2: how much of the gap between a small language model and its teacher does distillation close when text is scarce?

    make experiment NAME=stdlib [QUICK=1] [COUNT=seeds] [SECONDS=limit] [PROCS=2]

A byte-level teacher of 3 x 160 learns 10 MB of the Python standard library's own source; students of 2 x 64 learn 32 KB to 1 MB of it with
and without the teacher. Held-out modules, 5 paired seeds, curves at equal steps and at equal CPU time. The full variant takes up to
three hours and writes docs/experiments/stdlib; the quick one some minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.experiments import _loop, _stdlib, _stdlib_report
from tests.experiments._journal import Job, Journal, Result
from tests.experiments._run import Experiment, Stage, main
from tests.experiments._stdlib import FULL, OWN, QUICK, TUNED_KB, TUNING_SEED, Plan, job, trials


def plan_of(quick: bool) -> Plan:
    """The variant's sizes."""
    return QUICK if quick else FULL


def teacher_job(plan: Plan) -> Job:
    """The teacher's training as a run of its own."""
    return {"stage": "teach", "steps": plan.teacher_steps, "rows": plan.rows}


def stages(quick: bool, count: int) -> list[Stage]:
    """Teacher, tuning, final runs."""
    plan = plan_of(quick)
    seeds = plan.seeds[: count or None]
    facts = {"teacher_steps": plan.teacher_steps, "rows": plan.rows}

    def made(*of: Any) -> Job:
        return {**job(*of), **facts}

    def teach(_journal: Journal) -> Sequence[Job]:
        return [teacher_job(plan)]

    def tune(_journal: Journal) -> Sequence[Job]:
        if not plan.tuning_steps:
            return []
        return [
            made("tune", arm, kb, TUNING_SEED, settings, plan.tuning_steps, 1)
            for kb in TUNED_KB
            for arm in OWN
            for settings in trials(arm)
        ]

    def final(journal: Journal) -> Sequence[Job]:
        chosen = _stdlib_report.chosen(journal)
        found = []
        for seed in seeds:
            for kb in plan.sizes_kb:
                found += [
                    made(
                        "final", arm, kb, seed, _stdlib_report.settings(chosen, arm, kb), plan.student_steps, plan.curve
                    )
                    for arm in OWN
                ]
            long = plan.student_steps * plan.ratio
            of_all = _stdlib_report.settings(chosen, "ce", 0)
            found.append(made("final", "ce", 0, seed, of_all, long, plan.curve * plan.ratio))
        if plan.equal_steps:
            found.append(made("equal", "ce", 0, seeds[0], of_all, plan.equal_steps, plan.curve))
        return found

    return [teach, tune, final]


def run(given: Job, folder: Path) -> Iterator[tuple[Job, Result]]:
    """The teacher's run, or a student's with the teacher that is there."""
    table = _stdlib.source(given["rows"])
    if given["stage"] == "teach":
        yield given, _stdlib.teach(folder / "teachers", table, given["steps"])
    else:
        yield given, _stdlib.run(given, table, _stdlib.taught(folder / "teachers", given["teacher_steps"]))


def facts(quick: bool) -> dict[str, Any]:
    """What the page says of the setup."""
    plan = plan_of(quick)
    return {
        "steps": plan.student_steps,
        "teacher_steps": plan.teacher_steps,
        "tuning_steps": plan.tuning_steps,
        "equal_steps": plan.equal_steps,
        "ratio": plan.ratio,
        "rows": plan.rows,
        "seeds": len(plan.seeds),
    }


EXPERIMENT: Final = Experiment(
    name="stdlib",
    doc=str(__doc__),
    stages=stages,
    run=run,
    report=_stdlib_report.write,
    facts=facts,
    sources=tuple(Path(str(module.__file__)) for module in (_stdlib, _loop)),
)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
