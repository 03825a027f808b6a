"""TinyBERT: first the insides, then the answers (Jiao et al. 2020, section 3.2 and equation 11).

Stage one: mean squared errors of embeddings, hidden states (both through a learned projection) and attention scores, and nothing of
the output. Stage two: the soft cross-entropy with the teacher's answers at temperature 1, and nothing else. The authors run the
stages one after the other; here `stage_one` is the share of the phase that the first one has.
"""

from __future__ import annotations

from typing import Final

from servers.observer.packs.constant import INSIDE, only
from servers.observer.policy import Decision, Evidence, Number, Numbers, Pack

NUMBERS: Final = {
    "stage_one": Number(0.5, 0.0, 1.0, "share of the phase that learns embeddings, hidden states and attention"),
    "embedding": Number(1.0, 0.0, 1e3, "stage one: weight of the embeddings"),
    "hidden": Number(1.0, 0.0, 1e3, "stage one: weight of the hidden states"),
    "attention": Number(1.0, 0.0, 1e3, "stage one: weight of the attention scores"),
}


def decide(evidence: Evidence, numbers: Numbers) -> Decision:
    """The weights of the stage that the phase is in when they apply."""
    p = evidence.progress
    share = 0.0 if p is None else p.applies_at % p.phase_steps / p.phase_steps
    if share < numbers["stage_one"]:
        weights = {"embedding": numbers["embedding"], "alpha": numbers["hidden"], "attention_mse": numbers["attention"]}
        return Decision(only(**INSIDE, **weights), reasons=("stage one: embeddings, hidden states, attention",))
    settings = only(mix=1.0, temperature=1.0)
    return Decision(settings, reasons=("stage two: the teacher's answers",))


PACK = Pack("tinybert", decide, NUMBERS)
