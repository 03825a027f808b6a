"""What a probe program is, and the read-only view of a firing that it gets.

Responsible for: `Program`, the interface that built-ins share with verified oBPF programs, and `Context`. Tensors come out
detached; the version counter of each one handed out is compared after the program ran, so a write into the live step is
noticed and named, never silent.
Refuses: access to modules, optimizers and gradients' graphs; a program sees the tensors of its hook and nothing else.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from probes.maps import Map

Pair = tuple[str, Tensor, Tensor]
"""A mapped layer's name with the student's and the teacher's hidden states, each [B, ..., width]."""


class Context:
    """One firing: `hook`, `site` (such as "student/blocks.0"; the hook's name where there is one site), `step`."""

    __slots__ = ("_attention", "_given", "_tensors", "hook", "site", "step")

    def __init__(
        self,
        hook: str,
        site: str,
        step: int,
        tensors: Mapping[str, Any],
        attention: Callable[[], tuple[Tensor, str]] | None = None,
    ) -> None:
        self.hook = hook
        self.site = site
        self.step = step
        self._tensors = tensors
        self._attention = attention
        self._given: list[tuple[str, Tensor, int]] = []

    def tensor(self, name: str) -> Tensor:
        """A tensor of this hook, detached. Raises LookupError when the hook was fired without it."""
        found = self.get(name)
        if found is None:
            raise LookupError(f"{self.hook} fired without {name!r}; it has: {', '.join(sorted(self._tensors))}")
        return found

    def get(self, name: str) -> Tensor | None:
        """The same, or None."""
        found = self._tensors.get(name)
        return self._hand_out(name, found) if isinstance(found, Tensor) else None

    def peek(self, name: str) -> Tensor | None:
        """A tensor of this hook as it is, for readers that go by its address and so cannot write into it by mistake."""
        found = self._tensors.get(name)
        return found if isinstance(found, Tensor) else None

    def listed(self, name: str) -> Sequence[Pair]:
        """The (name, tensor, tensor) rows of an event, as they are: `hidden` of on_kd_step, `pruned` of on_prune."""
        rows: Sequence[Pair] = self._tensors.get(name) or ()
        return rows

    def number(self, name: str) -> float:
        """A figure of this event, such as `temperature`; NaN when it has none."""
        found = self._tensors.get(name)
        return float(found) if isinstance(found, int | float) else math.nan

    def pairs(self) -> list[Pair]:
        """The mapped hidden states of `on_kd_step`, student beside teacher."""
        return [
            (name, self._hand_out(f"student {name}", student), self._hand_out(f"teacher {name}", teacher))
            for name, student, teacher in self._tensors.get("hidden") or ()
        ]

    def attention(self) -> tuple[Tensor, str]:
        """Attention probabilities [B, heads, queries, keys] and the path that gave them, "eager" or "recompute"."""
        if self._attention is None:
            raise LookupError(f"{self.hook} carries no attention probabilities")
        probs, path = self._attention()
        return self._hand_out("attention probabilities", probs), path

    def written(self) -> str:
        """The name of a tensor that the program wrote into, or "" when it kept to reading."""
        for name, tensor, version in self._given:
            if tensor._version != version:
                return name
        return ""

    def _hand_out(self, name: str, tensor: Tensor) -> Tensor:
        view = tensor.detach()
        # Inference tensors keep no version; PyTorch itself refuses to write to them outside inference mode.
        if not view.is_inference():
            self._given.append((name, view, view._version))
        return view


class Program(ABC):
    """A probe program: fires at its hook every `every` micro-steps and folds what it sees into bounded maps."""

    name: str
    every: int
    maps: dict[str, Map]

    @abstractmethod
    def fire(self, context: Context) -> None:
        """Read the context's tensors; runs without autograd, must not draw random numbers, may raise (and is evicted)."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """The probe is detached and nobody reads its maps any more: let go of what the collector cannot see."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The figures that the maps amount to now, JSON-able; a figure that is not defined is None with a reason."""
