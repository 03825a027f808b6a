"""Which decisions and snapshots a ledger attributes to a capability."""

from __future__ import annotations

from itertools import count
from typing import Any

from kfs.authority import trace
from kfs.records import Record, RecordKind

ROOT = "sha256:" + "0" * 64


class Ledger:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.seqs = count()
        self.add("kernel", RecordKind.BOOT, boot="b", app="a", abi="1.0", resumed_from=-1, env={})

    def add(self, actor: str, kind: RecordKind, /, cap: int = -1, **args: Any) -> int:
        seq = next(self.seqs)
        self.records.append(Record(actor, kind, args, t_mono=seq, cap_id=cap, seq=seq, t_wall=1, result_snap=ROOT))
        return seq

    def derive(self, actor: str, parent: int, holder: str, slot: int) -> int:
        args = {"slot": slot, "parent": parent, "holder": holder, "object": actor, "rights": ["steer"], "badge": ""}
        return self.add(actor, RecordKind.CAP_DERIVE, cap=parent, **args)

    def decide(self, actor: str, slot: int) -> int:
        return self.add(actor, RecordKind.GATE_SET, cap=slot, criteria={}, window=1)

    def commit(self, window: int) -> int:
        return self.add("kernel", RecordKind.WINDOW_COMMIT, window=window)

    def take(self, holder: str, slot: int) -> int:
        return self.add("op", RecordKind.CAP_REVOKE, slot=slot, holder=holder, removed=1, taken=True)

    def told(self, holder: str, slot: int) -> tuple[list[int], list[int]]:
        found = trace(self.records, holder, slot)
        return [r.seq for r in found.used], [r.seq for r in found.snapshots]


def test_snapshots_rest_on_what_was_decided_before_them() -> None:
    ledger = Ledger()
    ledger.derive("op", 1, "a", 4)
    ledger.commit(1)
    used = ledger.decide("a", 4)
    after = [ledger.commit(2), ledger.commit(3)]
    assert ledger.told("a", 4) == ([used], after)
    assert ledger.told("a", 5) == ([], [])


def test_descendants_count_with_their_ancestor_and_not_the_other_way() -> None:
    ledger = Ledger()
    ledger.derive("op", 1, "a", 4)
    ledger.derive("a", 4, "b", 2)
    used = ledger.decide("b", 2)
    after = ledger.commit(1)
    own = ledger.decide("a", 4)
    assert ledger.told("a", 4) == ([used, own], [after])
    assert ledger.told("b", 2) == ([used], [after])
    assert trace(ledger.records, "a", 4).family == [("a", 4), ("b", 2)]


def test_what_comes_after_its_end_is_not_its_own_and_a_slot_given_again_starts_over() -> None:
    ledger = Ledger()
    ledger.derive("op", 1, "a", 4)
    used = ledger.decide("a", 4)
    ended = ledger.take("a", 4)
    ledger.decide("a", 4)
    after = ledger.commit(1)
    assert ledger.told("a", 4) == ([used], [after]), "snapshots go on resting on what was decided"
    assert trace(ledger.records, "a", 4).ended_seq == ended
    again = ledger.derive("op", 1, "a", 4)
    assert ledger.told("a", 4) == ([], [])
    assert trace(ledger.records, "a", 4).granted_seq == again


def test_the_learners_own_capability_writes_every_snapshot_of_this_boot() -> None:
    ledger = Ledger()
    ledger.commit(1)
    boot = ledger.add("kernel", RecordKind.BOOT, boot="c", app="a", abi="1.0", resumed_from=1, env={})
    commits = [ledger.commit(2), ledger.commit(3)]
    assert ledger.told("learner", 1) == ([], commits)
    assert trace(ledger.records, "learner", 1).granted_seq == boot
