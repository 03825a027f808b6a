"""The helpers a program may call: names, views, rights and declared cost; part of the instruction set.

Responsible for: the table that the verifier checks calls against and the reference page is made from. The code of the helpers is
in `probes.helpers`. Refuses: nothing. Append new numbers; a number is never used again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Tier(enum.IntEnum):
    """What a program may reach: the instructions alone, native helpers inside the step, helpers outside the step."""

    PURE = 0
    INLINE = 1
    ASYNC = 2


@dataclass(frozen=True, slots=True)
class Helper:
    """A native helper. `views`: rank of each view argument; `same_rows`: their first axes must be proved equal.

    `cost` and `per_element`: declared units. Where a helper's work grows with more than the elements of its views, they are for features
    up to about 256 wide and models up to about 100,000 parameters; what it really takes is measured and charged.
    `results`: names of the cells an asynchronous helper writes into its map.
    """

    nr: int
    name: str
    views: tuple[int, ...]
    hooks: tuple[str, ...]
    tier: Tier
    doc: str
    cost: int
    per_element: int
    rights: tuple[str, ...] = ("read-trace",)
    same_rows: bool = False
    results: tuple[str, ...] = ()


_KD = ("on_kd_step",)
_ALL = ("on_forward", "on_attention", "on_kd_step", "on_grad", "on_snapshot", "on_prune")
HELPERS: Final[tuple[Helper, ...]] = (
    Helper(
        1,
        "cosine",
        (1, 1),
        _ALL,
        Tier.INLINE,
        "cosine of the angle between two vectors of equal length; 0 when one is 0",
        60,
        3,
        same_rows=True,
    ),
    Helper(
        2,
        "rkd_distance",
        (2, 2),
        _KD,
        Tier.INLINE,
        "RKD distance loss over at most 64 evenly chosen rows",
        800_000,
        2,
        same_rows=True,
    ),
    Helper(
        3,
        "rkd_angle",
        (2, 2),
        _KD,
        Tier.INLINE,
        "RKD angle loss over at most 32 evenly chosen rows",
        2_000_000,
        2,
        same_rows=True,
    ),
    Helper(
        16,
        "cka",
        (2, 2),
        _KD,
        Tier.ASYNC,
        "unbiased linear CKA, streamed",
        400_000,
        2,
        same_rows=True,
        results=("xy", "xx", "yy", "batches", "rows", "short", "nonfinite"),
    ),
    Helper(
        17,
        "svcca",
        (2, 2),
        _KD,
        Tier.ASYNC,
        "SVCCA over a bounded reservoir of rows",
        30_000_000,
        2,
        same_rows=True,
        results=("svcca", "rows"),
    ),
    Helper(
        18,
        "pwcca",
        (2, 2),
        _KD,
        Tier.ASYNC,
        "PWCCA over a bounded reservoir of rows",
        30_000_000,
        2,
        same_rows=True,
        results=("pwcca", "rows"),
    ),
    Helper(
        19,
        "mahalanobis",
        (2,),
        ("on_forward",),
        Tier.ASYNC,
        "mean Mahalanobis distance of rows to a Ledoit-Wolf fit of earlier ones",
        1_000_000,
        2,
        results=("distance", "threshold", "outliers", "rows"),
    ),
    Helper(
        20,
        "deep_knn",
        (2,),
        ("on_forward",),
        Tier.ASYNC,
        "mean distance of rows to their k nearest among a bounded bank",
        1_500_000,
        2,
        results=("distance", "credibility", "rows"),
    ),
    Helper(
        21,
        "fisher",
        (2,),
        ("on_grad",),
        Tier.ASYNC,
        "diagonal of squared gradients, summarised",
        3_000_000,
        2,
        results=("trace", "max", "batches"),
    ),
    Helper(
        22,
        "fisher_samples",
        (),
        ("on_snapshot",),
        Tier.ASYNC,
        "diagonal of the Fisher information from per-sample gradients of at most 16 samples",
        50_000_000,
        0,
        results=("trace", "max", "mean", "samples", "parameters"),
    ),
    Helper(
        23,
        "jacobian",
        (),
        ("on_snapshot",),
        Tier.ASYNC,
        "norm of the input-output Jacobian of both models by 32 random projections, the same on both sides",
        30_000_000,
        0,
        results=("student", "teacher", "drift", "directions", "samples"),
    ),
    Helper(
        24,
        "attention_kl",
        (),
        ("on_snapshot",),
        Tier.ASYNC,
        "KL of the teacher's attention from the student's over at most 8 samples",
        10_000_000,
        0,
        results=("kl", "last", "layers", "by_head", "samples"),
    ),
    Helper(
        25,
        "ewc",
        (),
        ("on_snapshot",),
        Tier.ASYNC,
        "how far the student has moved from the generation's first look, weighted by its Fisher information there",
        30_000_000,
        0,
        results=("penalty", "moved", "trace", "samples", "parameters"),
    ),
)
HELPER_BY_NR: Final[dict[int, Helper]] = {h.nr: h for h in HELPERS}
HELPER_BY_NAME: Final[dict[str, Helper]] = {h.name: h for h in HELPERS}
