"""Snapshot distillation: a run teaches itself, each cycle from the end of the one before (Yang et al. 2019, section 3.3).

Labels and the answers of the last cycle's end at temperature 2; after every pass of a repeating phase (one cycle of the learning
rate) the student's snapshot becomes the teacher, and the student goes on.
"""

from __future__ import annotations

from typing import Final

from servers.observer import rules
from servers.observer.packs.constant import only
from servers.observer.policy import Decision, Evidence, Number, Numbers, Pack
from syscalls import limits

NUMBERS: Final = {
    "temperature": Number(2.0, limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX, "temperature"),
    "mix": Number(0.5, 0.0, 1.0, "share of the teacher's answers"),
    "swap_every": Number(1.0, 0.0, 3.0, "cycles between two snapshots that teach; 0 asks for none"),
}


def decide(evidence: Evidence, numbers: Numbers) -> Decision:
    """Constant weights, and a swap by snapshot at a cycle's end."""
    settings, reasons = rules.swap(evidence, numbers, "snapshot")
    return Decision({**only(temperature=numbers["temperature"], mix=numbers["mix"]), **settings}, reasons=reasons)


PACK = Pack("snapshot", decide, NUMBERS)
