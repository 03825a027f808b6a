"""Records on their way to the ledger.

Responsible for: batching (everything that a step produces, and everything that arrives while an append is under way,
goes in one append), and for effects that wait for the acknowledgement: commits, policies, capabilities and the
answers to whoever asked for them. Refuses: to let such an effect happen before its record is durable.
"""

from __future__ import annotations

from typing import Any

from kernel.broker import request
from kernel.state import Batch, Caller, Turn
from kfs import records
from kfs.records import Record, RecordKind
from syscalls import limits


def record(
    t: Turn,
    kind: str,
    args: dict[str, Any],
    *,
    actor: str = "kernel",
    cap: int = -1,
    then: str = "",
    then_data: dict[str, Any] | None = None,
    parent: str = "",
    result: str = "",
    inputs: tuple[str, ...] = (),
    cursor: Any = None,
    generation: int | None = None,
    rng: tuple[str, str] = ("", ""),
) -> None:
    """Queue a record; `then` names a continuation in `core.CONTINUATIONS` that runs with its sequence number once it is durable."""
    s = t.state
    caller = (then_data or {}).get("caller")
    if isinstance(caller, Caller) and caller.reason and not args.get("reason"):
        args = {**args, "reason": caller.reason}
    s.last_t_mono = max(s.last_t_mono + 1, t.now_ns)  # strictly increasing, so that no two drafts of a boot are alike
    learner = s.servers.get("learner")
    info = learner.info if learner else {}
    draft = Record(
        actor=actor,
        kind=RecordKind(kind),
        args=args,
        t_mono=s.last_t_mono,
        cap_id=cap,
        generation=s.generation if generation is None else generation,
        parent_snap=parent or None,
        result_snap=result or None,
        input_ids=inputs,
        code_id=info.get("code") or None,
        env_id=info.get("env_id") or None,
        rng_before=rng[0] or None,
        rng_after=rng[1] or None,
        data_cursor=cursor,
    )
    s.outbox.records.append(records.encode(draft))
    s.outbox.kinds.append(kind)
    if then:
        s.outbox.then.append((len(s.outbox.records) - 1, then, then_data or {}))
    if kind == RecordKind.SCHED_DISPATCH:
        return  # a trace for machines; people follow windows
    shown = {"action" if k == "kind" else k: v for k, v in args.items() if k not in ("resume", "env", "inputs")}
    t.event(kind, **shown)  # an event's own "kind" is the record's


def dispatches(t: Turn) -> None:
    """Put the fair class's decisions since the last time into the ledger: before each commit, before a halt, and when there are many."""
    s = t.state
    if s.dispatches:
        rows, s.dispatches = s.dispatches, []
        record(t, "sched.dispatch", {"boot": s.boot_id, "rows": rows})


def flush(t: Turn) -> None:
    """Send what waits, if no append is under way; called once at the end of every step."""
    s = t.state
    if len(s.dispatches) >= limits.DISPATCHES_PER_RECORD_MAX:
        dispatches(t)
    if s.in_flight is not None or not s.outbox.records or not s.store_open:
        return
    n = limits.BATCH_RECORDS_MAX
    size = 0
    for i, data in enumerate(s.outbox.records[:n]):
        size += len(data)
        if size > limits.FRAME_BYTES_MAX // 2:
            n = max(1, i)
            break
    s.in_flight = Batch(s.outbox.records[:n], s.outbox.kinds[:n], [x for x in s.outbox.then if x[0] < n])
    s.outbox = Batch(s.outbox.records[n:], s.outbox.kinds[n:], [(i - n, k, d) for i, k, d in s.outbox.then if i >= n])
    request(t, "append", "archivist.append", {"records": s.in_flight.records})


def resend(t: Turn) -> None:
    """The archivist came back: what was not acknowledged goes first again. It stores a draft once, however often it is sent."""
    s = t.state
    if s.in_flight is not None:
        batch, rest = s.in_flight, s.outbox
        n = len(batch.records)
        s.outbox = Batch(
            batch.records + rest.records,
            batch.kinds + rest.kinds,
            batch.then + [(i + n, k, d) for i, k, d in rest.then],
        )
        s.in_flight = None


def acknowledged(t: Turn, reply: dict[str, Any]) -> list[tuple[str, dict[str, Any], int]]:
    """The append is durable: returns the continuations with their sequence numbers, in ledger order."""
    s = t.state
    batch = s.in_flight
    assert batch is not None, "an append was answered that was not under way"
    s.in_flight = None
    s.ledger_size, s.ledger_root = reply["size"], reply["root"]
    return [(kind, data, reply["seqs"][i]) for i, kind, data in batch.then]
