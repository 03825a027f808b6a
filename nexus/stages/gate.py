"""Stages 5 and 6: rehearsal, removal, proof, and the bundle.

Responsible for: the loops 5->4 and 5->3 on validation items until every capability passes or is dropped; the candidate bundle;
recording and then physically removing the run's own teachers and caches; the proof on test items; the final bundle, cold-loaded
in a fresh process. Refuses: to remove a user's originals; to pack what the gate did not pass.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kfs.records import RecordKind
from nexus.app import CapabilityTable
from nexus.bundle.write import versions, write_bundle
from nexus.context import Context, read_json, write_json
from nexus.gate.prove import Case, prove, save_items
from nexus.judge import PASS
from nexus.model.pixels import Towers, digits
from nexus.model.router import Router
from nexus.model.student import NexusStudent
from nexus.model.tokenizer import byte_tokenizer
from nexus.stages import distill, profile
from nexus.stages.scope import find_original, max_rank
from syscalls.errors import RecurosError

RANK_GROWTH = 4
STEP_GROWTH = 1.5
ROUTER = "router"
"""The name under which its loop is recorded; no capability may have it."""
ROUTER_ITEMS = 100
ROUTER_GROWTH = 4
ROUTER_ATTEMPTS = 2


def gate(ctx: Context) -> None:
    """Stage 5. Takes the loops itself; returns when every capability has passed or is dropped."""
    while 5 not in ctx.state.stages:
        distill.distill(ctx)
        if _rehearse(ctx):
            continue
        if not ctx.live():
            raise RecurosError(
                "E1-NO", "every capability was dropped; there is no student to pack", hint="recuros kfs log"
            )
        with ctx.stage(5) as work:
            report = _prove(ctx)
            work.wrote([ctx.paths.verify_report, ctx.paths.repro_manifest])
            work.figures = {"verdict": report["verdict"]}
        if report["verdict"] != PASS:
            _after_failure(ctx, report)


def _rehearse(ctx: Context) -> bool:
    """Judge open capabilities on validation items; True when a loop was taken or a capability was dropped."""
    moved = False
    for capability in ctx.live():
        if ctx.cap(capability.name).status == "passed":
            continue
        student = distill.assemble(ctx, [capability.name])
        ratio = rehearsal(ctx, student, capability)
        ctx.progress(f"rehearse {capability.name}", 1, 1)
        if ratio < ctx.app.contracts[capability.name].retain:
            retry(ctx, capability, f"validation ratio {ratio:.4f} is below the contract")
            moved = True
    return moved


def rehearsal(ctx: Context, student: NexusStudent, capability: CapabilityTable) -> float:
    """The ratio above chance on validation items."""
    contract = ctx.app.contracts[capability.name]
    samples = ctx.data(capability.name)["validation"]
    kept = distill.student_scores(student, capability.name, samples, contract.metric).mean() - contract.chance
    above = distill.teacher_scores(ctx, capability.name, "validation").mean() - contract.chance
    return float(kept / above) if above > 0 else 0.0


def retry(ctx: Context, capability: CapabilityTable, reason: str) -> None:
    """5->4 first: train the same adapter longer; then 5->3: more rank, the student's width at least; then a drop."""
    state = ctx.cap(capability.name)
    plan = profile.planned_rank(ctx, capability.name)["rank"]
    rank = state.rank or plan
    steps = state.steps or capability.steps or ctx.app.table.training.adapter_steps
    if state.attempt + 1 >= capability.attempts:
        drop(ctx, capability, f"{reason}, after {state.attempt + 1} attempts")
    elif state.attempt == 0:
        ctx.loop("5->4", capability.name, reason, {"steps": int(steps * STEP_GROWTH), "rank": rank})
    else:
        measured = profile.measured_rank(ctx, capability.name)
        more = min(max_rank(ctx), max(rank * RANK_GROWTH, ctx.app.table.student.width, measured))
        if more <= rank:
            drop(ctx, capability, f"{reason}, and rank {rank} is the largest that memory allows")
        else:
            ctx.loop("5->3", capability.name, reason, {"rank": more, "steps": int(steps * STEP_GROWTH)})


def drop(ctx: Context, capability: CapabilityTable, reason: str) -> None:
    """Give a capability up, on record; its teacher too, if it teaches nothing else."""
    ctx.teacher(capability.teacher, "dropped", reason, capability.name)
    if not [c for c in ctx.live() if c.teacher == capability.teacher]:
        ctx.teacher(capability.teacher, "dropped", reason)
        remove(ctx, [capability.teacher], [capability.name])


def _after_failure(ctx: Context, report: dict[str, Any]) -> None:
    """The proof failed: a capability that fell short goes round again; anything else is an error that no loop mends."""
    if report["problems"]:
        raise RecurosError("E9-INTEGRITY", f"the gate refused: {report['problems'][0]}", hint="see verify_report.json")
    for name, verdict in report["capabilities"].items():
        if verdict["verdict"] != PASS:
            retry(ctx, ctx.app.capability(name), verdict["reason"])
    if all(v["verdict"] == PASS for v in report["capabilities"].values()):
        _route_again(ctx, report["routing"])


def _route_again(ctx: Context, routing: dict[str, Any]) -> None:
    """5->3 for the router: fit it on more items, once; an adapter cannot mend what goes to another one."""
    name, row = next((n, r) for n, r in routing.items() if r["verdict"] != PASS)
    reason = (
        f"{name}: {row['accuracy']:.4f} of its items are routed to it, and without a named capability {row['reason']}"
    )
    attempt = ctx.cap(ROUTER).attempt
    if attempt + 1 >= ROUTER_ATTEMPTS:
        raise RecurosError(
            "E1-NO",
            f"the router does not keep the contract: {reason}",
            hint="prompts that tell the capabilities apart, or recuros nexus drop one of them",
        )
    ctx.loop("5->3", ROUTER, reason, {"items": router_items(ctx) * ROUTER_GROWTH})


def router_items(ctx: Context) -> int:
    """How many validation items of each capability the router learns from."""
    return int(ROUTER_ITEMS * ROUTER_GROWTH ** ctx.cap(ROUTER).attempt)


def _prove(ctx: Context) -> dict[str, Any]:
    """Build the candidate, remove the teachers, prove."""
    names = [c.name for c in ctx.live()]
    items = ctx.paths.gate / "items.safetensors"
    save_items(items, {name: ctx.data(name)["test"] for name in names})
    shutil.rmtree(ctx.paths.candidate, ignore_errors=True)
    pack(ctx, ctx.paths.candidate, {"verdict": "not verified"})
    originals = [p for t in ctx.app.table.teacher if (p := _original(ctx, t.id)) is not None]
    remove(ctx, [t.id for t in ctx.app.table.teacher], [c.name for c in ctx.app.table.capability])
    report = prove(case_of(ctx, ctx.paths.candidate, originals))
    record_gate(ctx, "candidate", report)
    write_json(ctx.paths.verify_report, report)
    write_json(ctx.paths.repro_manifest, reproduction(ctx))
    for name, verdict in report["capabilities"].items():
        if verdict["verdict"] == PASS and not report["problems"] and ctx.cap(name).status != "passed":
            with ctx.stage(5, name) as work:
                work.figures = {k: v for k, v in verdict.items() if k != "capability"}
    return report


def _original(ctx: Context, teacher: str) -> Path | None:
    table = ctx.app.teacher(teacher)
    if table.mode == "black-box" or table.make is not None:
        path: Path = ctx.paths.originals / teacher
        return path if path.is_dir() else None
    return find_original(ctx, table)


def case_of(ctx: Context, bundle: Path, originals: list[Path]) -> Case:
    """What `prove` needs for a bundle of this run."""
    names = list(ctx.app.contracts)
    known = [n for n in names if distill.scores_path(ctx, n).is_file()]
    teacher: dict[str, NDArray[np.float64]] = {n: distill.teacher_scores(ctx, n, "test") for n in known}
    forbidden = [ctx.paths.teachers, ctx.paths.cache, ctx.paths.originals, *originals]
    return Case(
        bundle=bundle,
        work=ctx.paths.gate / f"proof-{bundle.name}",
        items=ctx.paths.gate / "items.safetensors",
        teacher=teacher,
        contracts=ctx.app.contracts,
        forbidden=list(dict.fromkeys(forbidden)),
        seed=ctx.app.seed,
    )


def remove(ctx: Context, teachers: list[str], capabilities: list[str]) -> None:
    """Delete the run's own copies and caches, and record how many bytes went. Originals are never touched."""
    for name in teachers:
        path: Path = ctx.paths.teachers / name
        if path.is_dir():
            size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            shutil.rmtree(path)
            ctx.teacher(name, "removed", "before the gate", bytes=size)
    cached = [distill.cache_path(ctx, name) for name in capabilities]
    if len(capabilities) == len(ctx.app.table.capability):
        cached += [ctx.paths.cache / f"{name}.safetensors" for name in (distill.BACKBONE, distill.JOINT)]
    for file in cached:
        file.unlink(missing_ok=True)


def record_gate(ctx: Context, artifact: str, report: dict[str, Any]) -> None:
    """The verdict as a record, the whole report as its input."""
    said = {name: v["verdict"] for name, v in report["capabilities"].items()}
    args = {"artifact": artifact, "verdict": report["verdict"], "capabilities": said}
    ctx.ledger.append(RecordKind.NEXUS_GATE, args, [ctx.ledger.report(report)])


def reproduction(ctx: Context) -> dict[str, Any]:
    """What it takes to do the run again."""
    return {
        "seed": ctx.app.seed,
        "versions": versions(),
        "artifacts": dict(sorted(ctx.state.artifacts.items())),
        "capabilities": {
            n: {"edges": s.edges, "attempt": s.attempt, "status": s.status} for n, s in ctx.state.caps.items()
        },
        "ledger": ctx.ledger.proof(),
    }


# The bundle


def fit_router(ctx: Context, student: NexusStudent, names: list[str]) -> Router | None:
    """Learn from what each public adapter measurably scores on validation items; gated ones are not part of it."""
    public = [n for n in names if not ctx.app.capability(n).gated]
    if not public:
        return None
    texts: list[str] = []
    wins: list[dict[str, float]] = []
    for name in public:
        samples = ctx.data(name)["validation"].head(router_items(ctx))
        by = {
            other: distill.student_scores(student, other or None, samples, ctx.metric(name)) for other in ("", *public)
        }
        for i, (prompt, _) in enumerate(samples.texts()):
            texts.append(prompt)
            wins.append({other: float(scores[i]) for other, scores in by.items()})
    return Router.fit(texts, wins)


def pack(ctx: Context, path: Path, report: dict[str, Any]) -> None:
    """Write a bundle of every live capability."""
    names = [c.name for c in ctx.live()]
    student = distill.assemble(ctx, names)
    about: dict[str, dict[str, Any]] = {}
    for name in names:
        table = ctx.app.capability(name)
        contract = ctx.app.contracts[name]
        about[name] = {"tier": table.tier, "contract": {"metric": contract.metric, "retain": contract.retain}}
    lineage = {
        "app": ctx.app.table.app.name,
        "seed": ctx.app.seed,
        "dropped": {n: s.reason for n, s in ctx.state.caps.items() if s.status == "dropped"},
        "artifacts": dict(sorted(ctx.state.artifacts.items())),
    }
    fields = {
        "name": ctx.app.table.app.name,
        "capabilities": about,
        "lineage": lineage,
        "ledger_proof": ctx.ledger.proof(),
        "verify_report": report,
    }
    router = fit_router(ctx, student, names)
    tokenizer = byte_tokenizer(ctx.app.table.student.context)
    gated = {n for n in names if ctx.app.capability(n).gated}
    write_bundle(path, student, names, router, tokenizer, fields, gated=gated, towers=towers_of(ctx, names))


def towers_of(ctx: Context, names: list[str]) -> dict[str, Towers]:
    """Encoders and decoders of the capabilities that read images."""
    return {n: digits() for n in names if ctx.app.capability(n).data.get("kind") == "digit-images"}


def package(ctx: Context) -> None:
    """Stage 6: the bundle with its report, cold-loaded in a fresh process with the same answers item by item."""
    if 6 in ctx.state.stages and ctx.paths.bundle.is_dir():
        return
    if 5 not in ctx.state.stages:
        raise RecurosError("E1-NO", "the gate has not passed; there is nothing to pack", hint="recuros nexus gate")
    with ctx.stage(6) as work:
        report = read_json(ctx.paths.verify_report)
        shutil.rmtree(ctx.paths.bundle, ignore_errors=True)
        pack(ctx, ctx.paths.bundle, report)
        originals = [p for t in ctx.app.table.teacher if (p := _original(ctx, t.id)) is not None]
        cold = prove(case_of(ctx, ctx.paths.bundle, originals))
        if cold["verdict"] != PASS or cold["scores"] != report["scores"]:
            shutil.rmtree(ctx.paths.bundle)
            raise RecurosError("E9-INTEGRITY", "the packed bundle does not answer as the one that passed the gate")
        record_gate(ctx, "nexus_bundle_v1", cold)
        shutil.rmtree(ctx.paths.candidate, ignore_errors=True)
        work.wrote([ctx.paths.bundle / "manifest.json"])
        work.figures = {"bundle_id": cold["bundle_id"]}


def regate(ctx: Context, bundle: Path) -> dict[str, Any]:
    """The gate on another artifact of this run, such as a quantized bundle: same items, same recorded scores."""
    originals = [p for t in ctx.app.table.teacher if (p := _original(ctx, t.id)) is not None]
    report = prove(case_of(ctx, bundle, originals))
    record_gate(ctx, bundle.name, report)
    return report
