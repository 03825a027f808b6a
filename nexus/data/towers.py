"""Towers: how something that is not text reaches a byte-level student.

Responsible for: the interface (an encoder from the modality to bytes, a decoder back, the teacher's side of it) and the one tower that
is there, small grey images. A tower has no parameters: what it gives are bytes of the prompt, and a person can type one; a bundle
describes it in encoders/ and decoders/. Refuses: prompts that are not its encoding (E2-DATA); teachers without blocks to look into.
Audio has no tower yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nexus.data.teachers import LetterTeacher
from nexus.model.pixels import digits
from syscalls.errors import RecurosError


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

    def __init__(self) -> None:
        self.pixels, self.labels = digits()

    def encode(self, values: NDArray[np.float32]) -> list[bytes]:
        """`image <64 letters> = `."""
        return [self.pixels.encode(image).encode() for image in values]

    def decode(self, prompts: list[str], *, damaged: bool = False) -> NDArray[np.float32]:
        """[n, 8, 8]; pixels that a perturbation has dropped are black where prompts may be `damaged`."""
        images = [self.pixels.decode(prompt, damaged=damaged).numpy() for prompt in prompts]
        found: NDArray[np.float32] = np.stack(images)
        return found


class VisionTeacher(LetterTeacher):
    """An image classifier of this project (`recuros kfs checkout` writes one); its answers are the digits of its classes."""

    def __init__(self, module: Any) -> None:
        if not hasattr(module, "blocks"):
            raise RecurosError(
                "E2-MODEL", "a vision teacher without transformer blocks cannot be profiled", hint='model kind "patch"'
            )
        self.module = module
        self.tower = PixelTower()

    def answers(self, prompts: list[str]) -> tuple[list[bytes], Tensor]:
        """Ten digits. The profiler's perturbations reach it as damaged prompts."""
        logits = self.module(torch.from_numpy(self.tower.decode(prompts, damaged=True)))[0]
        return [label.encode() for label in self.tower.labels.labels], torch.softmax(logits.float(), dim=-1)

    @property
    def layers(self) -> list[torch.nn.Module]:
        """Its blocks."""
        return list(self.module.blocks)

    @property
    def width(self) -> int:
        """Of a block's output."""
        return int(self.module.config.width)

    @property
    def heads(self) -> int:
        """Of a block; 0 once some were pruned, when blocks differ."""
        return 0 if self.module.config.layer_heads else int(self.module.config.heads)
