"""The pilot of Nexus, with the controls of the activation anchor: `make experiment NAME=nexus-pilot`.

A whole run of nexus/apps/pilot.toml, and beside it the adapter of `sort` trained without an anchor (A), with the anchor on the
profile's directions (B), and on random directions of the same number (control), over several seeds, each judged on validation items.
What comes out is docs/experiments/nexus-pilot/{results.json,README.md}. A claim for B needs B above A *and* above the control.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from nexus import run as runs
from nexus.context import Context, read_json
from nexus.stages import architect, distill, jobs, profile, scope

ROOT: Final = Path(__file__).resolve().parents[2]
OUT: Final = ROOT / "docs" / "experiments" / "nexus-pilot"
WORK: Final = ROOT / "build" / "experiments" / "nexus-pilot"
APP: Final = ROOT / "nexus" / "apps" / "pilot.toml"
ARMS: Final = {
    "A: outputs only": "none",
    "B: anchor on the profile": "pca",
    "control: anchor on random directions": "random",
}
CAPABILITY: Final = "sort"
BARE: Final = "the backbone alone"
HALF_TAUGHT: Final = 0.4
"""Share of the backbone's steps before the arms: no adapter sorts alone, since it changes no attention; a whole backbone needs none."""


def arms(ctx: Context, seeds: int) -> list[dict[str, Any]]:
    """Every arm and seed on one half-taught backbone: the adapter's ratio on validation items, and how the anchor's error went."""
    capability = ctx.app.capability(CAPABILITY)
    data = distill.synthesize(ctx, capability)
    contract = ctx.app.contracts[CAPABILITY]
    teacher = distill.teacher_scores(ctx, CAPABILITY, "validation").mean()
    rank = profile.planned_rank(ctx, CAPABILITY)["rank"]
    steps = capability.steps or ctx.app.table.training.adapter_steps
    training, seed = ctx.app.table.training, ctx.app.table.app.seed
    same = {"engine": "in-process", "policy": type(training.policy)()}
    rows = []
    try:
        ctx.app.table.training = training.model_copy(update={**same, "steps": int(training.steps * HALF_TAUGHT)})
        distill.train_backbone(ctx)
        base = distill.student_scores(
            distill.load_student(ctx.paths.backbone), None, ctx.data(CAPABILITY)["validation"], contract.metric
        ).mean()
        rows.append({"arm": BARE, "seed": seed, "ratio": float(base / teacher), "anchor": {}})
        print(rows[-1], flush=True)
        for number in range(seeds):
            for arm, kind in ARMS.items():
                ctx.app.table.training = training.model_copy(update={**same, "anchor": kind})
                ctx.app.table.app.seed = seed + number
                ctx.cap(CAPABILITY).alpha = 0.0  # an arm before this one may have escalated it
                job = jobs.Job(
                    f"arm-{kind}", CAPABILITY, rank, None, data, steps, training.adapter_batch, training.adapter_lr
                )
                tensors, figures = jobs.train(ctx, job, ctx.paths.backbone)
                student = distill.load_student(ctx.paths.backbone)
                student.add_adapter(CAPABILITY, rank, seed=seed + number).load_state_dict(tensors)
                samples = ctx.data(CAPABILITY)["validation"]
                with torch.no_grad():
                    scores = distill.student_scores(student, CAPABILITY, samples, contract.metric)
                row = {"arm": arm, "seed": seed + number, "ratio": float(scores.mean() / teacher)}
                rows.append({**row, "anchor": figures["anchor"]})
                print(rows[-1], flush=True)
    finally:
        ctx.app.table.training, ctx.app.table.app.seed = training, seed
    return rows


def page(results: dict[str, Any]) -> str:
    """The report, from the results alone."""
    lines = ["# The Nexus pilot", "", "Made by `make experiment NAME=nexus-pilot` from `results.json`.", ""]
    lines += [
        "| capability | status | rank | retained | lower bound | contract | loops | why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["run"]["capabilities"]:
        ratio, low = (("" if row[k] is None else f"{row[k]:.4f}") for k in ("ratio", "lower"))
        cells = (
            row["capability"],
            row["status"],
            row["rank"],
            ratio,
            low,
            row["retain"],
            row["loops"] or "none",
            row["reason"],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    proof = results["proof"]
    lines += [
        "",
        f"Gate: {results['run']['verdict']}, by {proof['isolation']}. "
        f"Files opened in the trace: {proof['trace']['closed']} with the gate closed, "
        f"of them gated: {proof['trace']['gated_opens_closed']}. Poison control caught: {proof['poison']['caught']}. "
        f"Leak: {max(proof['leak'].values(), default=0.0):.4f} at most. Whole run: {results['seconds']:.0f} s.",
        "",
        "| capability, not named by the caller | routed to it | retained | lower bound |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['accuracy']:.4f} | {row['ratio']:.4f} | {row['lower']:.4f} |"
            for name, row in sorted(proof["routing"].items())
        ),
        "",
        f"## The anchor on `{CAPABILITY}`, {results['seeds']} seeds",
        "",
        f"The adapter is trained on a backbone that had {HALF_TAUGHT:.0%} of its steps: on an untaught one no adapter sorts, since it "
        "changes no attention, and on a whole one every arm is at the ceiling. All arms have the same reserved channels, protected weights "
        "and attention anchor where they have an anchor; the control differs from B in the directions alone.",
        "",
        "| arm | ratio on validation, by seed | mean | anchor's error, first and last windows |",
        "|---|---|---|---|",
    ]
    for arm in (BARE, *ARMS):
        rows = [r for r in results["arms"] if r["arm"] == arm]
        errors = [f"{a['first']:.3f} to {a['last']:.3f}" for r in rows if "first" in (a := r["anchor"])]
        ratios = ", ".join(f"{r['ratio']:.4f}" for r in rows)
        mean = np.mean([r["ratio"] for r in rows])
        lines.append(f"| {arm} | {ratios} | {mean:.4f} | {'; '.join(errors) or 'none'} |")
    lines += ["", f"Verdict on the anchor: {claim(results['arms'])}.", ""]
    return "\n".join(lines)


def claim(rows: list[dict[str, Any]]) -> str:
    """B helps only where it beats A and the control in every seed."""
    by = {arm: {r["seed"]: r["ratio"] for r in rows if r["arm"] == arm} for arm in ARMS}
    a, b, control = by.values()
    if all(b[s] > a[s] and b[s] > control[s] for s in b):
        return "the profile's directions help: above outputs only and above random directions in every seed"
    if all(b[s] > a[s] for s in b):
        return "an anchor helps, and random directions explain it: nothing is claimed for the profile"
    return "no benefit is claimed"


def prepared(ctx: Context) -> None:
    """Stages 0 to 3."""
    scope.scope(ctx)
    scope.registry(ctx)
    profile.profile(ctx)
    architect.architect(ctx)


def main() -> None:
    """Run, write, say where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3, help="seeds of each arm")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, and the report beside the run; not for the docs"
    )
    parser.add_argument("--app", type=Path, default=APP)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    work = options.work or WORK.with_name(WORK.name + ("-quick" if options.quick else ""))
    out = options.out or (work / "report" if options.quick else OUT)
    seeds = 1 if options.quick else options.count
    shutil.rmtree(work, ignore_errors=True)

    def say(what: str, done: int, total: int) -> None:
        if done == total:
            print(f"{what}: {total}", flush=True)

    started = time.monotonic()
    with runs.opened(work / "run", options.app, say) as ctx:
        prepared(ctx)
    before = time.monotonic()
    shutil.copytree(work / "run", work / "arms")  # an arm's loops are no part of the pilot's ledger
    with runs.opened(work / "arms", options.app, say) as ctx:
        measured = arms(ctx, seeds)
    apart = time.monotonic() - before
    with runs.opened(work / "run", options.app, say) as ctx:
        summary = runs.run(ctx)
        report = read_json(ctx.paths.verify_report)
    summary = {k: v for k, v in summary.items() if k not in ("run", "bundle")}
    proof = {k: report[k] for k in ("isolation", "trace", "poison", "leak", "routing", "verdict")}
    results = {
        "run": summary,
        "proof": proof,
        "arms": measured,
        "seeds": seeds,
        "seconds": time.monotonic() - started - apart,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (out / "README.md").write_text(page(results), encoding="utf-8")
    print(out / "README.md")


if __name__ == "__main__":
    main()
