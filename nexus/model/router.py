"""The router: which adapter a text is for, learnt from which adapter measurably did better on each training item.

A text becomes counts of its byte n-grams (1 to 4) hashed into `BUCKETS` columns, damped and scaled to length one; a linear map gives a
score per capability. Fitting is ridge regression in closed form (Hoerl & Kennard, 1970) on the wins: no seed,
no order, the same bits again.

Responsible for: fit, route, safetensors in and out. Refuses: gated capabilities (their data must not reach what everybody loads), names
that are no capabilities, wins that are not finite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nexus.model.names import checked
from syscalls.errors import RecurosError

FORMAT: Final = "nexus-router/1"
BUCKETS: Final = 2048
GRAM_MAX: Final = 4
TEXT_BYTES_MAX: Final = 4096
RIDGE: Final = 1e-2
MULTIPLIER: Final = 0x4F1BBCDD
MASK: Final = 0x7FFFFFFF  # 31 bits, so that no product leaves int64


@dataclass(frozen=True)
class Route:
    """A choice: the capability with the highest score, or None where the bare backbone scores higher. `scores` has them all."""

    capability: str | None
    scores: dict[str, float]


class Router:
    """Scores of capabilities for a text. `weight` [capabilities + 1, BUCKETS], `bias` [capabilities + 1]; row 0 is the bare backbone."""

    def __init__(self, capabilities: Sequence[str], weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.capabilities = [checked(name) for name in capabilities]
        if len(set(self.capabilities)) != len(self.capabilities):
            raise RecurosError("E2-USAGE", f"a capability is named twice: {', '.join(self.capabilities)}")
        rows = len(self.capabilities) + 1
        self.weight = torch.zeros(rows, BUCKETS) if weight is None else weight
        self.bias = torch.zeros(rows) if bias is None else bias
        if self.weight.shape != (rows, BUCKETS) or self.bias.shape != (rows,):
            raise RecurosError(
                "E9-INTEGRITY",
                f"a router for {rows - 1} capabilities has [{rows}, {BUCKETS}] weights, not {list(self.weight.shape)}",
            )
        if not (self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise RecurosError("E9-INTEGRITY", "the router's weights are not finite", hint="fit it again")

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        wins: Sequence[Mapping[str, float]],
        *,
        gated: frozenset[str] | set[str] = frozenset(),
    ) -> Router:
        """Learn from items: `wins[i]` has what each capability's adapter scored on `texts[i]` (the bare backbone under "").

        A missing capability counts 0. Capabilities are those that the wins name, in order of their names.
        """
        if not texts or len(texts) != len(wins):
            raise RecurosError(
                "E2-USAGE",
                f"{len(texts)} texts and {len(wins)} wins; a router needs as many, and some",
                hint="one map per text",
            )
        names = sorted({name for win in wins for name in win if name})
        if found := sorted(set(names) & set(gated)):
            raise RecurosError(
                "E5-DENIED",
                f"wins name the gated capability {found[0]!r}; its data must not reach the router",
                hint="leave its items out: a gated capability is named by the caller, never routed to",
            )
        router = cls(names)
        target = torch.tensor(
            [[float(win.get(name, 0.0)) for name in ("", *names)] for win in wins], dtype=torch.float64
        )
        if not target.isfinite().all():
            raise RecurosError("E2-DATA", "a win is not a finite number", hint="score every item, or leave it out")
        matrix = torch.stack([features(text) for text in texts]).double()
        mean, offset = matrix.mean(0), target.mean(0)
        centred = matrix - mean
        ridge = RIDGE * len(texts)
        if len(texts) < BUCKETS:  # the dual form is the smaller system: X'(XX' + r)^-1 y
            gram = centred @ centred.T + ridge * torch.eye(len(texts), dtype=torch.float64)
            solved = centred.T @ torch.linalg.solve(gram, target - offset)
        else:
            gram = centred.T @ centred + ridge * torch.eye(BUCKETS, dtype=torch.float64)
            solved = torch.linalg.solve(gram, centred.T @ (target - offset))
        router.weight = solved.T.float().contiguous()
        router.bias = (offset - solved.T @ mean).float()
        return router

    def route(self, text: str) -> Route:
        """The capability that should do best. Of equals the first in `capabilities`; only a higher score of "" means none."""
        values = (self.weight @ features(text) + self.bias).tolist()
        scores = dict(zip(("", *self.capabilities), values, strict=True))
        best = max(self.capabilities, key=lambda name: scores[name], default="")
        return Route(best if best and scores[best] >= scores[""] else None, scores)

    def save(self, path: Path | str) -> None:
        """One safetensors file."""
        about = {"format": FORMAT, "capabilities": self.capabilities}
        save_file({"weight": self.weight, "bias": self.bias}, str(path), metadata={"nexus": json.dumps(about)})

    @classmethod
    def load(cls, path: Path | str) -> Router:
        """Read what `save` wrote (E9-VERSION, E9-INTEGRITY)."""
        try:
            with safe_open(str(path), framework="pt") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {}).get("nexus", "{}"))
                if about.get("format") != FORMAT:
                    raise RecurosError(
                        "E9-VERSION", f"{path}: format {about.get('format')!r}, and this reads {FORMAT!r}"
                    )
                return cls(about["capabilities"], file.get_tensor("weight"), file.get_tensor("bias"))
        except RecurosError:
            raise
        except Exception as error:
            raise RecurosError("E9-INTEGRITY", f"{path} is not a router: {error}") from error


def features(text: str) -> Tensor:
    """Hashed n-gram counts of a text [BUCKETS]: log(1 + count), scaled to length one (zeros for an empty text).

    Of a text longer than TEXT_BYTES_MAX bytes the first and the last half of that many count, so that routing has a bounded cost.
    """
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > TEXT_BYTES_MAX:
        data = data[: TEXT_BYTES_MAX // 2] + data[-TEXT_BYTES_MAX // 2 :]
    counts = torch.zeros(BUCKETS)
    if not data:
        return counts
    codes = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    grams = torch.zeros(len(codes) + 1, dtype=torch.long)
    for size in range(1, min(GRAM_MAX, len(codes)) + 1):
        grams = (((grams[: len(codes) - size + 1] * 257 + codes[size - 1 :] + 1) & MASK) * MULTIPLIER) & MASK
        counts += torch.bincount((grams >> 11) % BUCKETS, minlength=BUCKETS)
    damped = counts.log1p()
    scaled: Tensor = damped / torch.linalg.vector_norm(damped)
    return scaled
