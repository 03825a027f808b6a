"""The gate on one artifact: isolation, trace, poison control, leak, and the verdicts.

Responsible for: running the check twice (gate closed, gate open) and the poison control once, each in a fresh sandbox, and judging
per-item scores against the contracts. Refuses: an artifact whose trace shows a teacher's file, the network, or a gated file while the
gate was closed; a control that was not caught makes the whole gate invalid. There is no option that overrides any of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nexus.bundle import format as form
from nexus.contracts import Contract
from nexus.data.samples import Samples
from nexus.gate import sandbox
from nexus.judge import FAIL, INSUFFICIENT, PASS, judge
from syscalls.errors import RecurosError

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """What is judged."""

    bundle: Path
    work: Path
    items: Path
    teacher: Mapping[str, NDArray[np.float64]]
    contracts: Mapping[str, Contract]
    forbidden: Sequence[Path]
    """Directories of teachers: run copies, caches and originals."""
    seed: int


def save_items(path: Path, items: Mapping[str, Samples]) -> None:
    """Record the test items of every capability."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    flat: dict[str, Any] = {}
    for name, samples in items.items():
        flat |= {
            f"{name}/ids": samples.ids,
            f"{name}/scored": samples.scored.astype(np.uint8),
            f"{name}/lengths": samples.lengths,
        }
    save_file({k: np.ascontiguousarray(v) for k, v in flat.items()}, str(path))


def prove(case: Case) -> dict[str, Any]:
    """The report: {"verdict", "capabilities", "isolation", "trace", "poison", "leak", ...}."""
    how = sandbox.means()
    manifest = form.read_manifest(case.bundle)
    unknown = sorted(n for n in manifest.capabilities if n not in case.contracts or n not in case.teacher)
    if unknown or not manifest.capabilities:
        raise RecurosError(
            "E9-INTEGRITY",
            f"{case.bundle}: "
            + (
                f"capability {unknown[0]!r} has no contract or no recorded scores"
                if unknown
                else "it has no capability"
            ),
            hint="a bundle passes by what it was judged on; gate it in the run that made it",
        )
    about = {
        name: {"metric": case.contracts[name].metric, "gated": capability.gated}
        for name, capability in manifest.capabilities.items()
        if name in case.contracts
    }
    case.work.mkdir(parents=True, exist_ok=True)
    poison = _poison(case)
    closed, closed_trace = _check(case, about, opened=False)
    problems = [*poison["problems"], *_hidden(case)]
    opened, opened_trace = closed, closed_trace
    if any(a["gated"] for a in about.values()):
        opened, opened_trace = _check(case, about, opened=True)
    gated_files = [case.bundle / path for path in manifest.gated_paths]
    touched = closed_trace.under(gated_files)
    for trace, what in ((closed_trace, "closed"), (opened_trace, "open")):
        if seen := trace.under(case.forbidden):
            problems.append(f"with the gate {what}, a teacher's file was opened: {seen[0]}")
        if trace.network:
            problems.append(f"with the gate {what}, the network was tried: {trace.network[0]}")
    if touched:
        problems.append(f"with the gate closed, {touched[0]} was opened")
    for name, code in closed["denied"].items():
        if code != "E5-DENIED":
            problems.append(f"capability {name!r} answered without the opt-in")
    for where, share in closed["leak"].items():
        chance = case.contracts[where.partition(" by ")[0]].chance
        if share > chance:
            problems.append(f"{where}: {share:.4f} of the items, chance is {chance:g}")
    verdicts = {}
    for name in about:
        student = np.asarray(opened["scores"][name], dtype=np.float64)
        verdicts[name] = judge(case.contracts[name], case.teacher[name], student, case.seed).to_map()
    routing = {name: _routed(case, name, found, opened["scores"][name]) for name, found in closed["routes"].items()}
    said = [v["verdict"] for v in (*verdicts.values(), *routing.values())]
    verdict = FAIL if problems or FAIL in said else INSUFFICIENT if INSUFFICIENT in said else PASS
    return {
        "verdict": verdict,
        "problems": problems,
        "capabilities": verdicts,
        "routing": routing,
        "bundle_id": manifest.bundle_id,
        "isolation": how,
        "hidden": [str(p.name) for p in case.forbidden],
        "trace": {
            "closed": len(closed_trace.opened),
            "open": len(opened_trace.opened),
            "gated_opens_closed": len(touched),
        },
        "poison": poison,
        "leak": closed["leak"],
        "denied": closed["denied"],
        "scores": opened["scores"],
    }


def _routed(case: Case, name: str, found: Mapping[str, Any], own: Sequence[float]) -> dict[str, Any]:
    """What a caller gets who names no capability: judged by the same contract, on the adapter that the router chose for each item.

    `accuracy`: share of items sent to the capability itself; `wins`: share whose chosen adapter does no worse than that one.
    """
    scores, mine = np.asarray(found["scores"], dtype=np.float64), np.asarray(own, dtype=np.float64)
    verdict = judge(case.contracts[name], case.teacher[name], scores, case.seed).to_map()
    wins = float((scores >= mine).mean())
    return {**verdict, "to": found["to"], "accuracy": found["to"].get(name, 0) / len(scores), "wins": wins}


def _check(case: Case, about: dict[str, Any], *, opened: bool) -> tuple[dict[str, Any], sandbox.Traced]:
    what = "open" if opened else "closed"
    out = case.work / f"{what}.json"
    out.unlink(missing_ok=True)
    spec = {
        "bundle": str(case.bundle),
        "items": str(case.items),
        "out": str(out),
        "open": opened,
        "capabilities": about,
    }
    traced = _run(case, what, spec, case.forbidden)
    if traced.returncode != 0 or not out.is_file():
        raise RecurosError(
            "E9-INTEGRITY",
            f"{case.bundle} does not run by itself: {traced.stderr.strip()[-500:]}",
            hint="the bundle needs something that the gate hid or forbids",
        )
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found, traced


def _poison(case: Case) -> dict[str, Any]:
    """A process that does open a teacher's file and call home: the same trace must show both."""
    import torch
    from safetensors.torch import save_file

    decoy = case.work / "decoy" / "model.safetensors"
    decoy.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.zeros(1)}, str(decoy))
    spec = {"poison": str(decoy), "poison_only": True, "out": str(case.work / "poison.json")}
    traced = _run(case, "poison", spec, case.forbidden)
    seen, called = traced.under([decoy.parent]), bool(traced.network)
    problems = []
    if not seen:
        problems.append("the poison control was not caught: the trace missed a file that was read")
    if not called:
        problems.append("the poison control was not caught: the trace missed an attempt at the network")
    return {"caught": not problems, "file": bool(seen), "network": called, "problems": problems}


READ: Final = "import sys; open(sys.argv[1]).read(); sys.exit(3)"


def _hidden(case: Case) -> list[str]:
    """The other control: a file in a hidden directory. That it is tried must show, and reading it must fail."""
    decoy = case.work / "hidden" / "teacher"
    decoy.parent.mkdir(parents=True, exist_ok=True)
    decoy.write_text("a teacher", encoding="utf-8")
    command = [sys.executable, "-I", "-S", "-c", READ, str(decoy)]
    traced = sandbox.run(command, [*case.forbidden, decoy.parent], case.work / "hidden.trace", ROOT)
    problems = []
    if traced.returncode == 3:
        problems.append("the hiding control failed: a file in a hidden directory could be read")
    if not traced.under([decoy.parent]):
        problems.append("the hiding control was not caught: the trace missed a file that was tried")
    return problems


def _run(case: Case, what: str, spec: dict[str, Any], hide: Sequence[Path]) -> sandbox.Traced:
    path = case.work / f"{what}.spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    return sandbox.run([sys.executable, "-m", "nexus.gate.check", str(path)], hide, case.work / f"{what}.trace", ROOT)
