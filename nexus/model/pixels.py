"""What stands at the ends of a bundle that reads images: an encoder that writes them into a prompt, a decoder that reads the answer.

Responsible for: small grey images as letters, answers as numbers of classes, and both as the small JSON files of a bundle. They have no
weights. Refuses: images of another size, prompts and answers that are not theirs (E2-DATA), files that describe none (E9-INTEGRITY).
Needs torch only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from syscalls.errors import RecurosError

LEVELS: Final = "abcdefghijklmnop"
SIDE_MAX: Final = 64
LABELS_MAX: Final = 10_000


@dataclass(frozen=True)
class Pixels:
    """Images [side, side] in [0, 1], one letter a pixel, row by row: `LEAD letters END`."""

    side: int = 8
    levels: str = LEVELS
    lead: str = "image "
    end: str = " = "

    def encode(self, image: Any) -> str:
        """The prompt of an image: a tensor, an array or lists."""
        values = torch.as_tensor(image, dtype=torch.float32)
        if tuple(values.shape) != (self.side, self.side) or not bool(values.isfinite().all()):
            raise RecurosError(
                "E2-DATA",
                f"an image has shape {list(values.shape)}, expected finite numbers [{self.side}, {self.side}]",
                hint="scale it, and its values to 0 (black) to 1",
            )
        top = len(self.levels) - 1
        steps = (values.flatten() * top).round().clamp(0, top).to(torch.int64).tolist()
        return self.lead + "".join(self.levels[step] for step in steps) + self.end

    def decode(self, prompt: str, *, damaged: bool = False) -> Tensor:
        """Its inverse, up to the number of levels: [side, side]. In a `damaged` prompt of the right length what is no level is black."""
        first = len(self.lead)
        body = prompt[first : len(prompt) - len(self.end)]
        whole = prompt == self.lead + body + self.end and set(body) <= set(self.levels)
        if len(body) != self.side**2 or not (whole or damaged):
            raise RecurosError(
                "E2-DATA",
                f"prompt {prompt!r:.60} is no image of {self.side} x {self.side} pixels",
                hint='data = { kind = "digit-images" }',
            )
        steps = [max(0, self.levels.find(letter)) / (len(self.levels) - 1) for letter in body]
        return torch.tensor(steps).view(self.side, self.side)

    def to_map(self) -> dict[str, Any]:
        """As a file of a bundle says it."""
        return {"kind": "pixels", "side": self.side, "levels": self.levels, "lead": self.lead, "end": self.end}


@dataclass(frozen=True)
class Labels:
    """Answers that are names of classes."""

    labels: tuple[str, ...]

    def decode(self, answer: str) -> int:
        """The class that an answer names."""
        if answer.strip() not in self.labels:
            raise RecurosError(
                "E2-DATA", f"the answer {answer!r:.60} names no class", hint=f"one of {', '.join(self.labels[:20])}"
            )
        return self.labels.index(answer.strip())

    def to_map(self) -> dict[str, Any]:
        """As a file of a bundle says it."""
        return {"kind": "labels", "labels": list(self.labels)}


def encoder_of(said: Any, name: str) -> Pixels:
    """The encoder that a file describes."""
    match said:
        case {"kind": "pixels", "side": int(side), "levels": str(levels), "lead": str(lead), "end": str(end)} if (
            len(said) == 5 and 1 <= side <= SIDE_MAX and 2 <= len(levels) == len(set(levels))
        ):
            return Pixels(side, levels, lead, end)
    raise RecurosError("E9-INTEGRITY", f"{name} describes no encoder that is known", hint="fetch the bundle again")


def decoder_of(said: Any, name: str) -> Labels:
    """The decoder that a file describes."""
    match said:
        case {"kind": "labels", "labels": list(labels)} if (
            len(said) == 2
            and 0 < len(labels) <= LABELS_MAX
            and all(isinstance(label, str) and label for label in labels)
        ):
            return Labels(tuple(labels))
    raise RecurosError("E9-INTEGRITY", f"{name} describes no decoder that is known", hint="fetch the bundle again")


Towers = tuple[Pixels, Labels]
"""What a capability of another modality has at its ends."""


def digits() -> Towers:
    """Those of the data kind `digit-images`."""
    return Pixels(), Labels(tuple(map(str, range(10))))
