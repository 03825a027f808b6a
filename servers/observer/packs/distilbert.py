"""DistilBERT: distillation, the task and the cosine of the hidden states (Sanh, Debut, Chaumond and Wolf 2019, section 2).

L = kd * L_ce + task * L_mlm + cosine * L_cos with the weights of the authors' code, 5, 2 and 1, at temperature 2, scaled so that the
first two add up to one. The student is made from every second layer of the teacher: that is the manifest's `init`, not a policy.
"""

from __future__ import annotations

from typing import Final

from servers.observer.packs.constant import only
from servers.observer.policy import Decision, Evidence, Number, Numbers, Pack
from syscalls import limits

NUMBERS: Final = {
    "temperature": Number(2.0, limits.TEMPERATURE_MIN, limits.TEMPERATURE_MAX, "temperature"),
    "kd": Number(5.0, 0.0, 1e3, "weight of the distillation loss"),
    "task": Number(2.0, 0.0, 1e3, "weight of the task's loss"),
    "cosine": Number(1.0, 0.0, 1e3, "weight of the cosine of the hidden states"),
}


def decide(_evidence: Evidence, numbers: Numbers) -> Decision:
    """The paper's weights, all the time."""
    total = max(numbers["kd"] + numbers["task"], 1e-9)
    settings = only(mix=numbers["kd"] / total, cosine=numbers["cosine"] / total, temperature=numbers["temperature"])
    return Decision(settings)


PACK = Pack("distilbert", decide, NUMBERS)
