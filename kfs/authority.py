"""What was done under a capability, read from the ledger.

Responsible for: the chain from a capability to the decisions that named it, and from those to the snapshots that rest on
them. Every snapshot builds on the one before it, so what was decided once is in all later ones. Refuses: to look beyond the
last boot; slots start over with every boot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kfs.records import Record, RecordKind

Key = tuple[str, int]
NOT_DECISIONS = frozenset({RecordKind.CAP_DERIVE, RecordKind.CAP_REVOKE, RecordKind.FAULT, RecordKind.BOOT})


@dataclass
class Authority:
    """One capability's life: all are sequence numbers of the ledger, -1 when there is none."""

    granted_seq: int = -1
    ended_seq: int = -1
    rights: list[str] = field(default_factory=list)
    family: list[Key] = field(default_factory=list)
    """The capability and whatever was derived from it, as (holder, slot)."""
    used: list[Record] = field(default_factory=list)
    """Decisions made under the family."""
    snapshots: list[Record] = field(default_factory=list)
    """Commits that rest on one of them."""


def trace(records: Iterable[Record], holder: str, slot: int) -> Authority:
    """What the capability in `slot` of `holder` did, by the last boot of these records (in ledger order)."""
    found, family = Authority(), {(holder, slot)}
    live = set(family)
    manifest = True  # until a record says that it was derived
    for r in records:
        a = r.args
        if r.kind is RecordKind.BOOT or (manifest and r.kind is RecordKind.SPAWN and a["name"] == holder):
            found, family, manifest = Authority(granted_seq=r.seq), {(holder, slot)}, True
            live = set(family)
        elif r.kind is RecordKind.CAP_DERIVE:
            made = (a["holder"], a["slot"])
            if made == (holder, slot):
                found, family, manifest = Authority(granted_seq=r.seq, rights=list(a["rights"])), {made}, False
                live = set(family)
            elif (r.actor, a["parent"]) in live:
                family.add(made)
                live.add(made)
        elif r.kind is RecordKind.CAP_REVOKE and (a["holder"], a["slot"]) == (holder, slot) and a.get("taken"):
            found.ended_seq = r.seq
            live = set()
        elif r.kind is RecordKind.WINDOW_COMMIT:
            writes = holder == "learner" and slot == 1 and found.ended_seq < 0
            if found.used or writes:
                found.snapshots.append(r)
        elif r.kind not in NOT_DECISIONS and (r.actor, r.cap_id) in live:
            found.used.append(r)
    found.family = sorted(family)
    return found
