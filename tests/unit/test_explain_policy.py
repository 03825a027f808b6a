"""A policy's story where something is missing: a refusal, an absence, evidence that is gone, a record that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from console.explain_policy import lines, story
from kfs.objects import blob, object_id
from kfs.records import Record, RecordKind
from kfs.store import Store
from syscalls.errors import RecurosError

GONE = "b3:" + "7" * 64
OTHER = object_id("U8", (11,), b"no evidence")
"""What the record names holds something else."""


def ledger(path: Path, *policies: tuple[str, dict[str, Any], tuple[str, ...]]) -> list[int]:
    """Numbers of policy records on windows 1, 2, ..."""
    drafts = [
        Record(
            actor="observer",
            kind=RecordKind.POLICY,
            args={"window": i, "applies_at": i + 2, "settings": settings, "pack": pack},
            t_mono=i,
            input_ids=inputs,
        )
        for i, (pack, settings, inputs) in enumerate(policies, 1)
    ]
    with Store.open_writer(path) as store:
        store.put([blob(b"no evidence", "cal")])
        return store.append(drafts)


def told(path: Path, seq: int) -> str:
    with Store.open_reader(path) as store:
        return "\n".join(text for _, text in lines(story(store, seq)))


def test_a_refusal_says_what_was_refused_and_that_nothing_changed(tmp_path: Path) -> None:
    refused = {"refused": "temperature 9 is outside 1..4", "evidence": {"kl": 0.25, "why": "because"}}
    (seq,) = ledger(tmp_path, ("wild", refused, (OTHER,)))
    text = told(tmp_path, seq)
    assert "decision: refused, and nothing changed: temperature 9 is outside 1..4, from window 3 on" in text
    assert "rule: pack wild: because" in text
    assert "kl 0.25" in text
    assert "the stored evidence is gone" in text
    assert "effect" not in text


@pytest.mark.parametrize(
    ("pack", "why"), [("timeout", "did not answer in time"), ("lost", "a crash took the evidence")]
)
def test_an_absence_says_why_nobody_decided(tmp_path: Path, pack: str, why: str) -> None:
    (seq,) = ledger(tmp_path, (pack, {}, ()))
    assert why in told(tmp_path, seq)
    assert "decision: no change" in told(tmp_path, seq)


def test_weights_that_are_gone_are_said_to_be_gone(tmp_path: Path) -> None:
    (seq,) = ledger(tmp_path, ("starter", {"temperature": 2.0, "weights": GONE, "evidence": {}}, (OTHER,)))
    with Store.open_reader(tmp_path) as store:
        found = story(store, seq)
    assert found["decision"]["weights"] == {"object": GONE, "gone": True}
    assert "no window has run under it" in told(tmp_path, seq)


def test_another_record_is_no_policy(tmp_path: Path) -> None:
    args = {"kind": "pause", "window": 1, "step": 0, "reason": ""}
    with Store.open_writer(tmp_path) as store:
        seq = store.append([Record(actor="operator", kind=RecordKind.INTERRUPT, args=args, t_mono=1)])[0]
    with Store.open_reader(tmp_path) as store, pytest.raises(RecurosError, match="is interrupt, not a policy"):
        story(store, seq)
