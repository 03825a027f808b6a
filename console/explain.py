"""Why something is as it is, from the ledger alone.

Responsible for: the story of an object (a window, snapshot, probe, server or record) as lines, each with the number of the record
it rests on. Refuses: guesses; what no record says is not said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from console import explain_policy
from console.context import cell, no_such
from kfs.log import summary
from kfs.records import Record, RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

FORMS: Final = "a code (E6-ADMIT), window/N, snapshot/SNAP, policy/N, probe/ID, server/NAME, or seq/N"
LINES_MAX: Final = 60


@dataclass
class Story:
    """What was found: `facts` are (number of the record or -1, sentence)."""

    object: str
    facts: list[tuple[int, str]] = field(default_factory=list)

    def add(self, record: Record, text: str) -> None:
        """One fact, with who decided it where it was not the kernel."""
        by = "" if record.actor == "kernel" else f" by {record.actor}"
        why = record.args.get("reason") if record.kind not in _REASON_IN_TEXT else ""
        self.facts.append((record.seq, f"{text}{by}" + (f" ({why})" if why else "")))


_REASON_IN_TEXT: Final = (RecordKind.WINDOW_MISS, RecordKind.RESTART, RecordKind.PROBE_EVICT)


def explain(store: Store, what: str) -> Story:
    """The story of `kind/name`; E2-USAGE for another form, E4-NOENT when no record speaks of it."""
    kind, slash, name = what.partition("/")
    teller = TELLERS.get(kind)
    if not slash or not name or teller is None:
        raise RecurosError("E2-USAGE", f"{what!r:.80} is not {FORMS}", hint="recuros explain window/12")
    story = Story(what)
    teller(store, name, story)
    if not story.facts:
        raise RecurosError("E4-NOENT", f"no record speaks of {what}", hint="recuros kfs log")
    return story


def _number(name: str, kind: str) -> int:
    if not name.lstrip("-").isdigit():
        raise RecurosError(
            "E2-USAGE", f"{kind}/{name:.40}: a number belongs after the stroke", hint=f"recuros explain {kind}/3"
        )
    return int(name)


def _window(store: Store, name: str, story: Story) -> None:
    number = _number(name, "window")
    policies: dict[int, Record] = {}
    for r in store.records():
        if r.kind is RecordKind.POLICY:
            policies[r.seq] = r
        if r.args.get("window") != number:
            continue
        match r.kind:
            case RecordKind.WINDOW_GRANT:
                place = r.args["phase"]
                where = place.get("name") if isinstance(place, dict) else place
                story.add(
                    r, f"granted: phase {where}, {r.args['steps']} steps, budget {r.args['budget_ns'] // 10**6} ms"
                )
                for kind, args in r.args["directives"]:
                    story.facts.append((r.seq, f"  it carried {kind} {cell(args)}"))
                if policy := policies.get(r.args["policy_seq"]):
                    evidence = policy.args["settings"].get("evidence", {})
                    settings = {k: v for k, v in policy.args["settings"].items() if k not in ("evidence", "weights")}
                    story.add(
                        policy,
                        f"  policy in force: {cell(settings)}, from window {policy.args['window']}: {cell(evidence)}",
                    )
            case RecordKind.WINDOW_MISS:
                story.add(r, f"failed: {r.args['reason']}")
            case RecordKind.WINDOW_ROLLBACK:
                exact = "bit for bit" if r.args["exact"] else "NOT exactly: the base was loaded again"
                story.add(r, f"rolled back to {(r.args['base'] or 'the state as built')[:19]}, {exact}")
            case RecordKind.WINDOW_COMMIT:
                loss = r.args["metrics"].get("loss")
                figures = f", loss {loss:.4g}" if isinstance(loss, int | float) else ""
                story.add(r, f"committed: snapshot {r.result_snap}{figures}")
            case _:
                story.add(r, f"{r.kind}: {summary(r, 80)}")


def _snapshot(store: Store, name: str, story: Story) -> None:
    from kfs import refs

    root = refs.resolve(store, name)
    for r in store.records():
        if r.result_snap == root and r.kind is RecordKind.WINDOW_COMMIT:
            story.add(
                r,
                f"made by window {r.args['window']}, generation {r.generation}, from {r.parent_snap or 'the state as built'}",
            )
            story.facts.append((r.seq, f"  batches {r.args['metrics'].get('batch', '-')}, code {r.code_id or '-'}"))
        elif r.result_snap == root and r.kind is RecordKind.SNAPSHOT:
            story.add(r, f"named {r.args['name'] or '(no name)'}")
        elif r.kind is RecordKind.RESTORE and r.args["snapshot"] == root:
            story.add(r, f"gone back to, from window {r.args['window']} on")
        elif root in (r.parent_snap, r.result_snap) and r.kind in (RecordKind.EVALUATE, RecordKind.CALIBRATE):
            story.add(r, f"{r.kind}: {summary(r, 80)}")
        elif r.kind is RecordKind.GC_PLAN and root in r.args["ids"]:
            story.add(r, "given up by a collection")


def _probe(store: Store, name: str, story: Story) -> None:
    number = _number(name, "probe")
    for r in store.records():
        if r.kind.value.startswith("probe.") and r.args.get("id") == number:
            match r.kind:
                case RecordKind.PROBE_ATTACH:
                    sites = cell(r.args["sites"][:4]) + (" ..." if len(r.args["sites"]) > 4 else "")
                    story.add(r, f"{r.args['prog']} attached at {r.args['hook']}, step {r.args['step']}: {sites}")
                case RecordKind.PROBE_EVICT:
                    story.add(r, f"evicted at step {r.args['step']}: {r.args['reason']}")
                case _:
                    story.add(r, f"detached at step {r.args.get('step')}")


def _server(store: Store, name: str, story: Story) -> None:
    names: dict[str, None] = {}
    for r in store.records():
        held = r.args.get("name")
        if r.kind in (RecordKind.SPAWN, RecordKind.EXIT, RecordKind.RESTART):
            names[str(held)] = None
        if held != name:
            continue
        match r.kind:
            case RecordKind.SPAWN:
                story.add(r, f"process {r.args['pid']} started, incarnation {r.args['incarnation']}")
            case RecordKind.EXIT:
                story.add(r, f"process {r.args['pid']} ended with status {r.args['status']}")
            case RecordKind.RESTART:
                story.add(r, f"restarted as incarnation {r.args['incarnation']}: {r.args['reason']}")
            case RecordKind.FAULT:
                story.add(r, f"fault {r.args['code']}: {r.args['message']}")
            case _:
                pass
    if not story.facts and names:
        raise no_such("server", name, list(names))


def _policy(store: Store, name: str, story: Story) -> None:
    """By the window that it rests on: evidence, rule, decision and effect; see `console.explain_policy`."""
    number = _number(name, "policy")
    for seq in [r.seq for r in store.records() if r.kind is RecordKind.POLICY and r.args["window"] == number]:
        story.facts += explain_policy.lines(explain_policy.story(store, seq))


def _seq(store: Store, name: str, story: Story) -> None:
    number = _number(name, "seq")
    record = store.record(number if number >= 0 else store.size + number)
    story.add(record, f"{record.kind}: {summary(record, 400)}")
    if record.kind is RecordKind.POLICY:
        story.facts += explain_policy.lines(explain_policy.story(store, record.seq))
    for key in ("grant_seq", "policy_seq", "plan_seq"):
        rests = record.args.get(key)
        if isinstance(rests, int) and rests >= 0:
            below = store.record(rests)
            story.add(below, f"  rests on {below.kind}: {summary(below, 100)}")
    for r in _after(store, record):
        story.add(r, f"  later: {r.kind}: {summary(r, 100)}")


def _after(store: Store, record: Record) -> Iterator[Record]:
    """Records that name this one."""
    for r in store.records(record.seq + 1):
        if record.seq in (r.args.get("grant_seq"), r.args.get("policy_seq"), r.args.get("plan_seq")):
            yield r


TELLERS: Final[dict[str, Callable[[Store, str, Story], None]]] = {
    "window": _window,
    "snapshot": _snapshot,
    "policy": _policy,
    "probe": _probe,
    "server": _server,
    "seq": _seq,
}
