"""What a run came to, from the ledger of its run directory.

Responsible for: the figures of the closing report and of `recuros report`, each from a record (the live status only adds what is no
record: the device, and the last figures of probes). Refuses: a score on anything but the test split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kfs.records import Record, RecordKind
from kfs.store import Store
from kfs.tell import Tell, silent
from kfs.verify import verify
from syscalls.errors import RecurosError


@dataclass
class Ledger:
    """The run directory's history, folded."""

    app: str = ""
    boots: int = 0
    counts: Counter[RecordKind] = field(default_factory=Counter)
    committed_here: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference: dict[str, dict[str, Any]] = field(default_factory=dict)
    probes: dict[int, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    misses: list[dict[str, Any]] = field(default_factory=list)
    inexact: int = 0
    policies: int = 0
    generation: int = 0
    last_snapshot: str = ""


def read_ledger(run: Path) -> Ledger:
    """Fold every record; E4-NOENT when the run directory has no store."""
    if not (run / "store" / "FORMAT").is_file():
        raise RecurosError(
            "E4-NOENT", f"{run} holds no store", hint="recuros boot makes one; --run names another directory"
        )
    found = Ledger()
    with Store.open_reader(run / "store") as store:
        for record in store.records():
            _fold(found, record)
    return found


def _fold(found: Ledger, record: Record) -> None:
    args = record.args
    found.counts[record.kind] += 1
    found.generation = max(found.generation, record.generation)
    match record.kind:
        case RecordKind.BOOT:
            found.app = args["app"]
            found.boots += 1
            found.committed_here = 0
        case RecordKind.WINDOW_COMMIT:
            found.committed_here += 1
            phase = args["phase"]
            name = str(phase.get("name", "")) if isinstance(phase, dict) else str(phase)
            found.phases[name] = found.phases.get(name, 0) + 1
            found.metrics = args["metrics"]
            found.last_snapshot = record.result_snap or ""
        case RecordKind.WINDOW_MISS:
            found.misses.append({"seq": record.seq, **args})
        case RecordKind.WINDOW_ROLLBACK:
            found.inexact += not args["exact"]
        case RecordKind.EVALUATE:
            found.scores[args["split"]] = {**args["scores"], "seq": record.seq}
            if record.generation == 0:  # before any swap: the teacher that retention refers to
                found.reference[args["split"]] = args["scores"].get("teacher", {})
        case RecordKind.POLICY:
            found.policies += bool(args["settings"]) and "refused" not in args["settings"]
        case RecordKind.PROBE_ATTACH:
            keep = {key: args[key] for key in ("id", "hook", "prog", "step")}
            found.probes[args["id"]] = {**keep, "sites": len(args["sites"]), "attached": True}
        case RecordKind.PROBE_DETACH | RecordKind.PROBE_EVICT:
            if args["id"] in found.probes:
                found.probes[args["id"]]["attached"] = False
        case RecordKind.SNAPSHOT:
            found.snapshots.append(
                {"seq": record.seq, "name": args["name"], "window": args["window"], "snapshot": record.result_snap}
            )
        case RecordKind.FAULT:
            found.faults.append({"seq": record.seq, **args})
        case _:
            pass


def boot_report(
    run: Path,
    ledger: Ledger,
    status: Mapping[str, Any],
    figures: Mapping[int, Any],
    seconds: float,
    tell: Tell = silent,
) -> dict[str, Any]:
    """The document of `recuros boot --json`. Scores are accuracies on the test split, None where there is none."""
    roles = {role: _role(ledger, status, role) for role in ("teacher", "student")}
    audit = verify(run / "store", tell=tell)
    counts = ledger.counts
    teacher, student = roles["teacher"]["score"], roles["student"]["score"]
    return {
        "schema": "recuros.boot.report/v1",
        "app": ledger.app,
        "windows": {
            "granted": counts[RecordKind.WINDOW_GRANT],
            "committed": counts[RecordKind.WINDOW_COMMIT],
            "missed": sum(str(miss["reason"]).startswith("E7-MISSED") for miss in ledger.misses),
            "rolled_back": counts[RecordKind.WINDOW_ROLLBACK],
        },
        **roles,
        "retention": student / teacher if teacher and student is not None else None,
        "policies": ledger.policies,
        "probes": [{**probe, "last": figures.get(number)} for number, probe in ledger.probes.items()],
        "ledger": {"size": audit.records, "root": audit.root, "verified": audit.ok},
        "device": device_text(status),
        "seconds": round(seconds, 3),
    }


def _role(ledger: Ledger, status: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The student as it is now; the teacher as it was before the first swap, whatever has its role now."""
    test = ledger.reference.get("test", {}) if role == "teacher" else ledger.scores.get("test", {}).get(role, {})
    params = (
        test.get("params") or ledger.metrics.get(f"{role}_params") or status.get("metrics", {}).get(f"{role}_params")
    )
    return {"score": test.get("accuracy"), "params": int(params) if params else None}


def device_text(status: Mapping[str, Any]) -> str:
    """The devices in words; the note says so when there is no GPU."""
    device = status.get("device") or {}
    names = [str(d.get("name", "GPU")) if isinstance(d, Mapping) else str(d) for d in device.get("devices", [])]
    return ", ".join(names) or f"cpu; {device.get('note') or 'no device was reported'}"


def figures_of(maps: Any) -> Any:
    """The figures of a probe: its summary where it gives one, else the numbers of its maps by name."""
    if isinstance(maps, Mapping) and maps.get("summary"):
        return figures_of({k: v for k, v in maps["summary"].items() if k != "ran"})  # figures, not how they were made
    if isinstance(maps, Mapping):
        found = {str(k): figures_of(v) for k, v in maps.items()}
        return {k: v for k, v in found.items() if v is not None}
    return maps if isinstance(maps, int | float | str) else None


def text(report: Mapping[str, Any], ledger: Ledger) -> str:
    """The closing report for a person."""
    windows, teacher, student = report["windows"], report["teacher"], report["student"]
    lines = [
        f"{report['app']}: {windows['committed']} windows committed ({ledger.committed_here} in this boot, {ledger.boots} boots), "
        f"{windows['missed']} missed, {windows['rolled_back']} rolled back",
        f"  teacher    {_score(teacher)}",
        f"  student    {_score(student)}",
    ]
    if report["retention"] is not None:
        share = student["params"] / teacher["params"] if teacher["params"] and student["params"] else None
        size = f" at {share:.1%} of the parameters" if share is not None else ""
        lines.append(
            f"  retention  {report['retention']:.4f}{size} (accuracy on the test split, which no gradient and no decision saw)"
        )
    if ledger.inexact:
        lines.append(f"  rollbacks  {ledger.inexact} were NOT exact")
    lines.append(f"  policies   {report['policies']} that changed something, generation {ledger.generation}")
    for probe in report["probes"]:
        state = "" if probe["attached"] else " (detached)"
        lines.append(f"  probe {probe['id']:<4} {probe['prog']} at {probe['hook']}{state}{_figures(probe['last'])}")
    audit = report["ledger"]
    verified = "verified" if audit["verified"] else "NOT VERIFIED: recuros kfs verify"
    lines.append(f"  ledger     {audit['size']} records, root {audit['root'][:16]}, {verified}")
    if report["device"] is not None:
        lines.append(f"  device     {report['device']}")
        lines.append(f"  time       {report['seconds']:.1f} s")
    return "\n".join(lines)


def _score(role: Mapping[str, Any]) -> str:
    score = "not scored" if role["score"] is None else f"{role['score']:.4f}"
    return f"{score}, {role['params']:,} parameters" if isinstance(role["params"], int) else score


def _figures(last: Any) -> str:
    numbers = [f"{name} {value:.4g}" for name, value in _leaves(last) if isinstance(value, int | float)]
    return f": {', '.join(numbers[:6])}" if numbers else ""


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(name, value)]
    return [leaf for key, below in value.items() for leaf in _leaves(below, f"{name}.{key}" if name else str(key))]
