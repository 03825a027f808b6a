"""Why a policy was made, and what came of it, from the ledger and the stored evidence alone.

Responsible for: `story`, evidence -> rule -> decision -> effect of one policy record as plain data, and `lines` of it for people.
Refuses: records that are no policy (E2-USAGE). What is not stored any more is said to be gone, not guessed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from console.context import cell
from kfs.records import Record, RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

ABSENT: Final = {
    "timeout": "the Observer did not answer in time; the absence is an input of the window it would have applied from",
    "lost": "a crash took the evidence that was with the Observer",
}
FOLLOWED: Final = ("loss", "kd", "temperature", "mix", "alpha", "sparsity", "generation")
WINDOWS_AFTER: Final = 3
COUNTS: Final = ("rows", "dropped")


def story(store: Store, seq: int) -> dict[str, Any]:
    """{"policy", "evidence", "rule", "decision", "effect"} of the policy at `seq`."""
    record = store.record(seq)
    if record.kind is not RecordKind.POLICY:
        raise RecurosError(
            "E2-USAGE", f"record {seq} is {record.kind}, not a policy", hint="recuros kfs log --kind policy"
        )
    args = record.args
    document = _document(store, record)
    return {
        "policy": {
            "seq": seq,
            "window": args["window"],
            "applies_at": args["applies_at"],
            "pack": args["pack"],
            "actor": record.actor,
            "inputs": list(record.input_ids),
        },
        "evidence": _evidence(store, record, document),
        "rule": {
            "pack": args["pack"],
            "numbers": dict(document.get("numbers", {})),
            "reasons": list(document.get("reasons", [])) or [r for r in [_why(args)] if r],
            "absent": ABSENT.get(args["pack"], ""),
        },
        "decision": _decision(store, args, document),
        "effect": _effect(store, record),
    }


def _why(args: dict[str, Any]) -> str:
    evidence = args["settings"].get("evidence")
    return str(evidence.get("why", "")) if isinstance(evidence, dict) else ""


def _document(store: Store, record: Record) -> dict[str, Any]:
    """The evidence object, which is named last; {} where none is named or it is gone."""
    import msgpack

    if not record.input_ids:
        return {}
    try:
        found = msgpack.unpackb(bytes(store.get(record.input_ids[-1]).data), raw=False, strict_map_key=False)
    except (RecurosError, ValueError):
        return {}
    return found if isinstance(found, dict) and "diagnostics" in found else {}


def _evidence(store: Store, record: Record, document: dict[str, Any]) -> dict[str, Any]:
    """The figures, each with its average and slope; where the trace is; what was held out."""
    recorded = record.args["settings"].get("evidence", {})
    figures = document.get("diagnostics") or (recorded if isinstance(recorded, dict) else {})
    state = document.get("state", {})
    averages = {name: series[1] for name, series in state.get("trajectory", {}).items()}
    slopes = document.get("slopes", {})
    rows = [
        {"figure": name, "value": value, "average": averages.get(name), "slope": slopes.get(name)}
        for name, value in sorted(figures.items())
        if isinstance(value, int | float)
    ]
    commit = _commit(store, record.args["window"], record.seq)
    held = state.get("held_out") or []
    return {
        "window": record.args["window"],
        "snapshot": document.get("snapshot", ""),
        "trace": ((commit.args.get("inputs") or {}).get("evidence", "") if commit else ""),
        "commit_seq": commit.seq if commit else -1,
        "stored": bool(document),
        "figures": rows,
        "held_out": dict(
            zip(("count", "ece", "average_ece", "fresh", "accuracy", "teacher_accuracy"), held, strict=False)
        ),
    }


def _commit(store: Store, window: int, before: int) -> Record | None:
    """The commit of a window; a window that rolled back and ran again committed once."""
    found = None
    for r in store.records():
        if r.kind is RecordKind.WINDOW_COMMIT and r.args["window"] == window:
            found = r
            if r.seq < before:
                return r
    return found


def _decision(store: Store, args: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    settings = {k: v for k, v in args["settings"].items() if k not in ("evidence", "weights", "order", "refused")}
    return {
        "changes": bool(args["settings"]) and "refused" not in args["settings"],
        "settings": settings,
        "refused": str(args["settings"].get("refused", "")),
        "weights": _spread(store, str(args["settings"].get("weights") or "")),
        "order": str(args["settings"].get("order") or ""),
    }


def _spread(store: Store, name: str) -> dict[str, Any]:
    """What a weights object amounts to."""
    if not name:
        return {}
    try:
        data = bytes(store.get(name).data)
    except RecurosError:
        return {"object": name, "gone": True}
    values = struct.unpack(f"<{len(data) // 4}f", data)
    kept = [v for v in values if v > 0]
    return {
        "object": name,
        "samples": len(values),
        "left_out": len(values) - len(kept),
        "lowest": min(kept, default=0.0),
        "highest": max(kept, default=0.0),
    }


def _effect(store: Store, policy: Record) -> dict[str, Any]:
    """The windows that ran under it, what they carried because of it, and the figures before and after."""
    granted: list[int] = []
    carried: list[Any] = []
    figures: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    overridden: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    for r in _after(store, policy):
        a = r.args
        if r.kind is RecordKind.WINDOW_GRANT and a["policy_seq"] == policy.seq:
            granted.append(a["window"])
        elif r.actor == "kernel:policy" and a.get("window") == policy.args["applies_at"]:
            carried.append(
                {"seq": r.seq, "kind": str(r.kind), **{k: v for k, v in a.items() if k in ("mode", "mask_spec")}}
            )
        elif r.kind is RecordKind.KD_SET and not granted:
            overridden.append({"seq": r.seq, "by": r.actor})
        elif r.kind is RecordKind.WINDOW_COMMIT:
            row = {"seq": r.seq, "window": a["window"], **_figures(a["metrics"]), "phase": a["phase"]["name"]}
            if a["window"] < policy.args["applies_at"]:
                before = row
            elif len(figures) < WINDOWS_AFTER:
                figures.append(row)
        elif r.kind is RecordKind.EVALUATE and figures and not scores:
            scores.append(
                {
                    "seq": r.seq,
                    "split": a["split"],
                    **_figures(a["scores"].get("student") or {}, ("accuracy", "nll", "ece")),
                }
            )
    windows = sorted(set(granted))
    return {
        "windows": windows,
        "carried": carried,
        "before": before,
        "after": figures,
        "scores": scores,
        "overridden": overridden,
    }


def _figures(values: dict[str, Any], names: tuple[str, ...] = FOLLOWED) -> dict[str, Any]:
    return {name: values[name] for name in names if isinstance(values.get(name), int | float)}


def _after(store: Store, policy: Record) -> Iterator[Record]:
    yield from store.records(policy.seq + 1)


def lines(found: dict[str, Any]) -> list[tuple[int, str]]:
    """(record, sentence) of a story."""
    p, e, rule, d, effect = (found[key] for key in ("policy", "evidence", "rule", "decision", "effect"))
    out = [(e["commit_seq"], f"evidence: window {e['window']}, trace {e['trace'] or 'not stored'}")]
    for row in e["figures"]:
        average, slope = row["average"], row["slope"]
        if row["figure"] not in COUNTS:
            text = (
                ""
                if average is None
                else f" (average {average:.4g}{'' if slope is None else f', {slope:+.2g} a window'})"
            )
            out.append((p["seq"], f"  {row['figure']} {row['value']:.4g}{text}"))
    if not e["figures"]:
        out.append((p["seq"], "  no teacher ran there, or the pack looks at nothing: there was nothing to decide on"))
    elif not e["stored"]:
        out.append((p["seq"], "  the stored evidence is gone; these are the figures of the record"))
    why = rule["absent"] or "; ".join(rule["reasons"]) or "no rule asked for a change of settings"
    out.append((p["seq"], f"rule: pack {rule['pack']}: {why}"))
    out.append((p["seq"], f"decision: {_decided(d)}, from window {p['applies_at']} on"))
    if not d["changes"]:
        return out
    windows = effect["windows"]
    ran = f"windows {windows[0]}..{windows[-1]} ran under it" if windows else "no window has run under it"
    out.append((p["seq"], f"effect: {ran}"))
    out += [
        (
            c["seq"],
            f"  window {p['applies_at']} carried {c['kind']} {cell({k: v for k, v in c.items() if k not in ('seq', 'kind')})}",
        )
        for c in effect["carried"]
    ]
    out += [
        (o["seq"], f"  {o['by']} set the loss before it applied: what was set so stands") for o in effect["overridden"]
    ]
    rows = [("before", effect["before"]), *(("after", row) for row in effect["after"])]
    out += [
        (row["seq"], f"  {when}: {cell({k: v for k, v in row.items() if k != 'seq'})}") for when, row in rows if row
    ]
    out += [(s["seq"], f"  held out: {cell({k: v for k, v in s.items() if k != 'seq'})}") for s in effect["scores"]]
    return out


def _decided(d: dict[str, Any]) -> str:
    if d["refused"]:
        return f"refused, and nothing changed: {d['refused']}"
    if not d["changes"]:
        return "no change"
    w = d["weights"]
    parts = [cell(d["settings"])] if d["settings"] else []
    if w:
        parts.append(
            f"weights {w['object'][:15]}"
            if w.get("gone")
            else f"weights of {w['samples']} samples, {w['left_out']} left out, the others {w['lowest']:.3g} to {w['highest']:.3g}"
        )
    return ", ".join(parts + (["an order"] if d["order"] else [])) or "the settings as they are"
