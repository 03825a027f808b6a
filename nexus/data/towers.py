"""Towers: how something that is not text reaches a byte-level student.

Responsible for: the interface (an encoder from the modality to bytes, a decoder back, the teacher's side of it) and the one tower that
is there, small grey images. A tower has no parameters: what it gives are bytes of the prompt, so a bundle needs no file for it, and a
person can type one. Refuses: prompts that are not its encoding (E2-DATA). Audio has no tower yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nexus.data.teachers import LetterTeacher
from syscalls.errors import RecurosError

LEVELS: Final = "abcdefghijklmnop"
SIDE: Final = 8
LEAD: Final = "image "
END: Final = " = "


class Tower(ABC):
    """One modality."""

    @abstractmethod
    def encode(self, values: NDArray[np.float32]) -> list[bytes]:
        """[n, ...] to the bytes of n prompts."""

    @abstractmethod
    def decode(self, prompts: list[str]) -> NDArray[np.float32]:
        """Its inverse, up to the tower's resolution."""


class PixelTower(Tower):
    """8 x 8 images in [0, 1], one letter of sixteen a pixel, row by row."""

    def encode(self, values: NDArray[np.float32]) -> list[bytes]:
        """`image <64 letters> = `."""
        levels = np.clip(np.rint(values.reshape(len(values), -1) * (len(LEVELS) - 1)), 0, len(LEVELS) - 1).astype(int)
        return [(LEAD + "".join(LEVELS[v] for v in row) + END).encode() for row in levels]

    def decode(self, prompts: list[str]) -> NDArray[np.float32]:
        """[n, 8, 8]."""
        found = np.zeros((len(prompts), SIDE * SIDE), dtype=np.float32)
        for i, prompt in enumerate(prompts):
            body = prompt.removeprefix(LEAD).removesuffix(END)
            if len(body) != SIDE * SIDE or not set(body) <= set(LEVELS):
                raise RecurosError(
                    "E2-DATA",
                    f"prompt {prompt!r:.60} is no image of {SIDE} x {SIDE} pixels",
                    hint='data = { kind = "digit-images" }',
                )
            found[i] = [LEVELS.index(letter) / (len(LEVELS) - 1) for letter in body]
        return found.reshape(-1, SIDE, SIDE)


class VisionTeacher(LetterTeacher):
    """An image classifier of this project (`recuros kfs checkout` writes one); its answers are the digits of its classes."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.tower = PixelTower()

    def answers(self, prompts: list[str]) -> tuple[list[bytes], Tensor]:
        """Ten digits."""
        logits = self.module(torch.from_numpy(self.tower.decode(prompts)))[0]
        return [str(n).encode() for n in range(logits.shape[-1])], torch.softmax(logits.float(), dim=-1)
