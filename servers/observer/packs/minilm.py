"""MiniLM: the last layer's attention, and the relation between its values (Wang et al. 2020, section 3, equations 5 to 9).

L = L_AT + L_VR and nothing of the output: no task, no distillation of answers, no hints. A student so trained is a body for a task
that comes later.
"""

from __future__ import annotations

from typing import Final

from servers.observer.packs.constant import INSIDE, only
from servers.observer.policy import Decision, Evidence, Number, Numbers, Pack

NUMBERS: Final = {
    "attention": Number(1.0, 0.0, 1e3, "weight of the last layer's attention distributions"),
    "values": Number(1.0, 0.0, 1e3, "weight of the relations between the last layer's values"),
}


def decide(_evidence: Evidence, numbers: Numbers) -> Decision:
    """The paper's weights, all the time."""
    return Decision(only(**INSIDE, minilm_at=numbers["attention"], minilm_vr=numbers["values"]))


PACK = Pack("minilm", decide, NUMBERS)
