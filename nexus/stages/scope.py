"""Stages 0 and 1: freeze what the run is, and register its teachers.

Responsible for: configs/ and the run's own copies of the teachers. Refuses: a run directory that was frozen for another app (the key
that differs is named); to touch a teacher's original.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from nexus.app import TeacherTable
from nexus.context import Context, read_json, replace_folder, write_json
from nexus.data import teachers
from nexus.data.makers import Recipe, make_teacher
from nexus.ledger import digest_of
from syscalls.errors import RecurosError

BYTES_PER_WEIGHT = 4


def scope(ctx: Context) -> None:
    """Stage 0: the seed, the limits and the taxonomy, frozen."""
    table = ctx.app.table
    frozen = {
        "app": table.app.name,
        "seed": ctx.app.seed,
        "max_rank": max_rank(ctx),
        "memory_mib": table.scope.memory_mib,
        "student": table.student.model_dump(),
        "taxonomy": {name: row.category for name, row in sorted(ctx.app.rows.items())},
        "paths": {"teachers": "teachers", "profiles": "profiles", "bundle": "nexus_bundle_v1"},
    }
    if 0 in ctx.state.stages:
        _check_frozen(ctx, frozen)
        return
    with ctx.stage(0) as work:
        ctx.paths.configs.mkdir(parents=True, exist_ok=True)
        ctx.paths.seed.write_text(f"{ctx.app.seed}\n", encoding="utf-8")
        write_json(ctx.paths.global_config, frozen)
        source = ctx.app.folder / table.app.contracts
        ctx.paths.contracts.write_bytes(source.read_bytes())
        work.wrote([ctx.paths.seed, ctx.paths.global_config, ctx.paths.contracts])
        work.figures = {"max_rank": frozen["max_rank"]}


def max_rank(ctx: Context) -> int:
    """MAX_RANK: the app's, lowered until adapters of all capabilities take at most half the memory."""
    table = ctx.app.table
    per_rank = 2 * table.student.width * table.student.layers * BYTES_PER_WEIGHT * len(table.capability)
    room = (table.scope.memory_mib << 20) // 2 // per_rank
    return max(1, min(table.scope.max_rank, room, 2 * table.student.width))


def _check_frozen(ctx: Context, now: dict[str, Any]) -> None:
    """Teachers may be added later; what was frozen stays."""
    before = read_json(ctx.paths.global_config)
    for key in ("app", "seed", "student", "memory_mib"):
        if before[key] != now[key]:
            raise RecurosError(
                "E2-MANIFEST",
                f"{ctx.root} was frozen with {key} = {before[key]!r:.120}, now {now[key]!r:.120}",
                hint="name a new run directory with --run",
            )
    source = (ctx.app.folder / ctx.app.table.app.contracts).read_bytes()
    known = ctx.paths.contracts.read_bytes()
    if source != known and not set(known.splitlines()) <= set(source.splitlines()):
        raise RecurosError(
            "E2-MANIFEST",
            f"{ctx.app.table.app.contracts} differs from the contracts that {ctx.root} was frozen with",
            hint="contracts may be added for new capabilities and not changed; else name a new run directory",
        )


def registry(ctx: Context) -> None:
    """Stage 1: every teacher found, copied, loadable on paper, and registered."""
    if 1 in ctx.state.stages:
        return
    with ctx.stage(1) as work:
        found = {}
        for teacher in ctx.app.table.teacher:
            if teacher.id in ctx.state.dropped or teacher.mode == "black-box":
                continue
            capabilities = [c for c in ctx.app.of_teacher(teacher.id) if ctx.cap(c.name).status != "dropped"]
            if not capabilities:
                continue
            original = find_original(ctx, teacher)
            if original is None:
                _absent(ctx, teacher)
                continue
            needed = any(ctx.cap(c.name).status != "passed" for c in capabilities)
            if needed:
                copy_in(ctx, teacher, original)
                ctx.teacher(teacher.id, "registered", original=digest_of(original))
            found[teacher.id] = {
                "teacher_id": teacher.id,
                "model_name": teacher.model_name,
                "model_path": f"teachers/{teacher.id}",
                "mode": teacher.mode,
                "licence": teacher.licence,
                "capabilities": {
                    c.name: {"metric": ctx.metric(c.name), "retain_fraction": "retention_contracts.md"}
                    for c in capabilities
                },
            }
        if not found:
            raise RecurosError(
                "E2-MODEL", "no teacher is left to learn from", hint="see nexus.teacher records: recuros kfs log"
            )
        write_json(ctx.paths.teacher_registry, found)
        work.wrote([ctx.paths.teacher_registry])
        work.figures = {"teachers": len(found)}


def _absent(ctx: Context, teacher: TeacherTable) -> None:
    reason = f"package {teacher.package!r} is not installed"
    for capability in ctx.app.of_teacher(teacher.id):
        ctx.teacher(teacher.id, "dropped", reason, capability.name)
    ctx.teacher(teacher.id, "dropped", reason)


def find_original(ctx: Context, teacher: TeacherTable) -> Path | None:
    """The user's own directory of a teacher; None for an optional package that is not there."""
    if teacher.make is not None:
        path: Path = ctx.paths.originals / teacher.id
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = Recipe(**teacher.make.model_dump())
        data = ctx.data(ctx.app.of_teacher(teacher.id)[0].name)["train"]
        context, vision = ctx.app.table.student.context, teacher.mode == "vision"
        make_teacher(path, recipe, data, context, ctx.app.seed, ctx.progress, vision=vision)
        return path
    if teacher.package is not None:
        name, _, inside = teacher.package.partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is not None and spec.origin:
            return Path(spec.origin).parent / inside
        if teacher.optional:
            return None
        raise RecurosError(
            "E2-MODEL", f"teacher {teacher.id!r}: package {name!r} is not installed", hint=f"pip install {name}"
        )
    return (ctx.app.folder / Path(str(teacher.path)).expanduser()).resolve()


def copy_in(ctx: Context, teacher: TeacherTable, original: Path) -> Path:
    """The run's own copy, by reflink where the file system can; checked to load before anything depends on it."""
    target: Path = ctx.paths.teachers / teacher.id
    if target.is_dir():
        return target
    if not original.is_dir():
        raise RecurosError(
            "E2-MODEL", f"teacher {teacher.id!r}: {original} is not a directory", hint="a local model directory"
        )
    teachers.load(teacher, original)
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(original, part, copy_function=_clone)
    replace_folder(part, target)
    return target


def restore(ctx: Context, teacher: TeacherTable) -> Path:
    """The run's copy again, where a gate that failed had removed it."""
    target: Path = ctx.paths.teachers / teacher.id
    if not target.is_dir():
        original = find_original(ctx, teacher)
        if original is None:
            raise RecurosError(
                "E2-MODEL", f"teacher {teacher.id!r} is not there any more", hint="recuros nexus drop it"
            )
        copy_in(ctx, teacher, original)
        ctx.teacher(teacher.id, "restored", "its outputs are needed again")
    return target


def _clone(source: str, target: str) -> str:
    """FICLONE, else a copy."""
    import fcntl

    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new.fileno(), 0x40049409, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new)
        os.fsync(new.fileno())
    return target
