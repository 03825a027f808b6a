"""Stage 7: a late, larger or black-box teacher mends what the student gets wrong, and nothing else.

Responsible for: asking a command or a loopback HTTP endpoint, the deltas (items that the student fails), one refinement adapter with
everything else frozen, and the verdict relative to the student: a measurable gain, and no changed item elsewhere. Refuses: endpoints
that are not on this host; a teacher that answers nothing; a refinement without a gain, which is recorded and not packed.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from nexus.app import RefineTable, TeacherTable
from nexus.bundle.write import write_bundle
from nexus.context import Context, write_json
from nexus.data import sets
from nexus.data.samples import Samples, pack
from nexus.data.teachers import Targets
from nexus.model.tokenizer import VOCABULARY, byte_tokenizer
from nexus.servers import targets
from nexus.stages import distill
from nexus.stages.gate import fit_router, towers_of
from nexus.stages.jobs import Job, train
from syscalls.errors import RecurosError

NAME: Final = "refinement"
TIMEOUT_S: Final = 60
ANSWER_BYTES_MAX: Final = 4096
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
SURE: Final = 0.99
RESAMPLES: Final = 4000


def refine(ctx: Context) -> dict[str, Any]:
    """Run stage 7 of a packed run; the report that is also written to refinement/report.json."""
    table = ctx.app.table.refine
    if table is None:
        raise RecurosError("E2-USAGE", "this app has no [refine] table", hint="see docs/how-to/nexus.md")
    if 6 not in ctx.state.stages:
        raise RecurosError("E1-NO", "stage 7 comes after the bundle", hint="recuros nexus run")
    teacher = ctx.app.teacher(table.teacher)
    with ctx.stage(7) as work:
        report = _refine(ctx, table, teacher)
        work.wrote(sorted(ctx.paths.refinement.glob("*.json*")))
        work.figures = {
            k: report[k] for k in ("verdict", "before", "after", "gain_lower", "changed_elsewhere", "asked")
        }
    return report


def _refine(ctx: Context, table: RefineTable, teacher: TeacherTable) -> dict[str, Any]:
    kind, options = ctx.app.data_options(table.data)
    data = sets.make(kind, options, ctx.app.seed, ctx.app.table.student.context)
    names = [c.name for c in ctx.live()]
    public = [n for n in names if not ctx.app.capability(n).gated]
    student = distill.assemble(ctx, names)
    before_elsewhere = _elsewhere(ctx, student, names)
    best = {split: _best(student, public, data[split]) for split in ("train", "test")}
    failed = np.flatnonzero(best["train"] < 1.0)
    if not len(failed):
        raise RecurosError(
            "E1-NO", "the student fails none of the items; there is nothing to refine", hint="other data"
        )
    texts = data["train"].take(failed).texts()
    told = ask(teacher, [prompt for prompt, _ in texts], ctx)
    rows = [(prompt.encode(), answer) for (prompt, _), answer in zip(texts, told, strict=True) if answer]
    if not rows:
        raise RecurosError(
            "E2-MODEL", f"teacher {teacher.id!r} answered none of {len(texts)} items", hint="try it by hand"
        )
    ctx.paths.refinement.mkdir(parents=True, exist_ok=True)
    _deltas(ctx.paths.refinement / "train_delta.jsonl", rows)
    learnt = pack(rows, ctx.app.table.student.context)
    _train(ctx, table, learnt)
    student = distill.assemble(ctx, [*names, NAME])
    after = distill.student_scores(student, NAME, data["test"], "exact-match")
    low = gain_lower(best["test"], after, ctx.app.seed)
    changed = int(sum((a != b).sum() for a, b in zip(before_elsewhere, _elsewhere(ctx, student, names), strict=True)))
    report = {
        "verdict": "pass" if low > 0 and changed == 0 else "fail",
        "teacher": teacher.id,
        "asked": len(texts),
        "answered": len(rows),
        "before": float(best["test"].mean()),
        "after": float(after.mean()),
        "gain_lower": low,
        "changed_elsewhere": changed,
        "rank": table.rank,
        "items": len(after),
    }
    write_json(ctx.paths.refinement / "report.json", report)
    if report["verdict"] == "pass":
        _pack(ctx, names, report)
    return report


def _train(ctx: Context, table: RefineTable, learnt: Samples) -> None:
    path = ctx.paths.cache / f"{NAME}.safetensors"
    hard = hard_targets(learnt, ctx.app.table.training.top_k)
    columns = distill.columns(learnt, hard)
    targets.save(path, {"train": columns, "validation": columns, "test": columns})
    job = Job(NAME, NAME, table.rank, None, path, table.steps, ctx.app.table.training.adapter_batch, table.lr)
    tensors, _ = train(ctx, job, ctx.paths.backbone)
    distill.save_adapter(distill.adapter_path(ctx, NAME), tensors, table.rank, None)
    path.unlink()


def hard_targets(samples: Samples, k: int) -> Targets:
    """A text answer as targets: 99 % of the mass on the byte that was said, the rest on others."""
    n, width = samples.ids.shape
    top_ids = np.tile(np.arange(k, dtype=np.int16), (n, width, 1))
    said = np.zeros((n, width), dtype=np.int16)
    said[:, :-1] = samples.ids[:, 1:]
    double = top_ids == said[..., None]
    top_ids = np.where(double, k, top_ids).astype(np.int16)  # the said byte stands first; its place goes to another one
    top_ids[..., 0] = said
    logp = np.full((n, width, k), np.log((1 - SURE) / (VOCABULARY - 1)), dtype=np.float16)
    logp[..., 0] = np.log(SURE)
    return Targets(top_ids, logp)


def _best(student: Any, public: list[str], samples: Samples) -> NDArray[np.float64]:
    """What the student can do without help: the best of its public adapters and the bare backbone, item by item."""
    found = [distill.student_scores(student, name, samples, "exact-match") for name in (None, *public)]
    best: NDArray[np.float64] = np.max(found, axis=0)
    return best


def _elsewhere(ctx: Context, student: Any, names: list[str]) -> list[NDArray[np.float64]]:
    """Per-item scores of every other capability on its test items."""
    return [distill.student_scores(student, n, ctx.data(n)["test"], ctx.metric(n)) for n in names]


def gain_lower(before: NDArray[np.float64], after: NDArray[np.float64], seed: int) -> float:
    """The 5th percentile of the mean gain over paired resamples."""
    dice = np.random.default_rng(seed)
    gain = after - before
    means = [gain[dice.integers(0, len(gain), len(gain))].mean() for _ in range(RESAMPLES)]
    return float(np.quantile(means, 0.05))


def _pack(ctx: Context, names: list[str], report: dict[str, Any]) -> None:
    import shutil

    folder: Path = ctx.paths.refinement / "nexus_bundle_v1"
    shutil.rmtree(folder, ignore_errors=True)
    student = distill.assemble(ctx, [*names, NAME])
    gated = {n for n in names if ctx.app.capability(n).gated}
    about = {n: {"tier": ctx.app.capability(n).tier} for n in names} | {
        NAME: {"tier": 2, "contract": {"relative_to": "student"}}
    }
    fields = {
        "name": ctx.app.table.app.name,
        "capabilities": about,
        "lineage": {"refinement": {k: report[k] for k in ("teacher", "before", "after")}},
        "ledger_proof": ctx.ledger.proof(),
        "verify_report": report,
    }
    router = fit_router(ctx, student, names)
    tokenizer = byte_tokenizer(ctx.app.table.student.context)
    towers = towers_of(ctx, names)
    write_bundle(folder, student, [*names, NAME], router, tokenizer, fields, gated=gated, towers=towers)


def _deltas(path: Path, rows: Sequence[tuple[bytes, bytes]]) -> None:
    lines = [
        json.dumps({"prompt": p.decode("utf-8", "replace"), "answer": a.decode("utf-8", "replace")}) for p, a in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# Black boxes


def ask(teacher: TeacherTable, prompts: Sequence[str], ctx: Context) -> list[bytes]:
    """One answer a prompt; an empty one where the teacher had none."""
    found = []
    for n, prompt in enumerate(prompts):
        answer = _command(teacher.command, prompt) if teacher.command else _http(str(teacher.url), prompt)
        found.append(answer[:ANSWER_BYTES_MAX])
        ctx.progress(f"ask {teacher.id}", n + 1, len(prompts))
    return found


def _command(command: Sequence[str], prompt: str) -> bytes:
    """The prompt on stdin, the answer on stdout. No shell."""
    try:
        done = subprocess.run(list(command), input=prompt.encode(), capture_output=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise RecurosError(
            "E2-MODEL", f"the teacher {command[0]!r} did not answer: {error}", hint="run it by hand"
        ) from error
    return done.stdout.rstrip(b"\n")


def _http(url: str, prompt: str) -> bytes:
    """POST {"prompt"} to an endpoint on this host: {"answer"}, or an OpenAI completion."""
    if urlsplit(url).hostname not in LOOPBACK or urlsplit(url).scheme != "http":
        raise RecurosError(
            "E5-DENIED", f"{url} is not an http endpoint on this host", hint=f"one of {', '.join(LOOPBACK)}"
        )
    body = json.dumps({"prompt": prompt, "max_tokens": 64, "temperature": 0}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as reply:
            document = json.loads(reply.read(1 << 20))
    except (OSError, ValueError) as error:
        raise RecurosError(
            "E2-MODEL", f"the teacher at {url} did not answer: {error}", hint="try it with curl"
        ) from error
    said = document.get("answer")
    if said is None and document.get("choices"):
        said = document["choices"][0].get("text", "")
    return str(said or "").encode()
