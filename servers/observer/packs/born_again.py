"""Born-again networks: each generation starts anew and learns from the one before (Furlanello et al. 2018, section 3.1).

Labels and the teacher's answers at temperature 1, both with the same weight; after every pass of a repeating phase the student
becomes the teacher as it stands, and a fresh student of the same architecture begins.
"""

from __future__ import annotations

from typing import Final

from servers.observer import rules
from servers.observer.packs.constant import only
from servers.observer.policy import Decision, Evidence, Number, Numbers, Pack
from syscalls import limits

NUMBERS: Final = {
    "temperature": Number(1.0, limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX, "temperature"),
    "mix": Number(0.5, 0.0, 1.0, "share of the teacher's answers"),
    "swap_every": Number(1.0, 0.0, 1e6, "passes of the phase that make a generation; 0 asks for no swap"),
    **rules.PLATEAU,
}


def decide(evidence: Evidence, numbers: Numbers) -> Decision:
    """Constant weights, and a swap by checkpoint when a generation is done."""
    settings, reasons = rules.merged(rules.plateau(evidence, numbers), rules.swap(evidence, numbers, "checkpoint"))
    return Decision({**only(temperature=numbers["temperature"], mix=numbers["mix"]), **settings}, reasons=reasons)


PACK = Pack("born-again", decide, NUMBERS)
