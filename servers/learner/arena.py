"""A role's parameters in one flat buffer, with their gradients, moments and moving averages laid out alike.

Responsible for: one buffer per kind of state, so that an optimizer step, a moving average, a gradient norm and a copy for a
snapshot are one operation each instead of one per tensor. Parameters that decay come first, then those that do not.
Refuses: parameters of different dtypes.

Tensors start at multiples of 64 bytes: which vector kernel runs, and so the last bit, must not depend on a neighbour's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from servers.learner.state import DTYPES, Leaf, byte_view, copy_into, host_copy, leaf_of

ALIGN_ITEMS = 16


def split_name(name: str) -> str:
    """`blocks.0.attn.qkv.weight` -> `blocks.0.attn.qkv/weight`; a tensor of the root module gets the module name "."."""
    module, dot, tensor = name.rpartition(".")
    return f"{module if dot else '.'}/{tensor}"


def joined_name(path: str) -> str:
    """Inverse of `split_name`."""
    module, _, tensor = path.rpartition("/")
    return tensor if module == "." else f"{module}.{tensor}"


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies."""

    path: str
    offset: int
    numel: int
    shape: tuple[int, ...]


class Arena:
    """The parameters of `module`, moved into `flat`; the module's own tensors become views of it."""

    def __init__(self, module: nn.Module) -> None:
        named = list(module.named_parameters())
        ordered = [(n, p) for n, p in named if p.dim() > 1] + [(n, p) for n, p in named if p.dim() <= 1]
        self.parameters = [p for _, p in ordered]
        self.slots: list[Slot] = []
        at = self.decayed = 0
        for name, parameter in ordered:
            self.slots.append(Slot(split_name(name), at, parameter.numel(), tuple(parameter.shape)))
            at += -(-parameter.numel() // ALIGN_ITEMS) * ALIGN_ITEMS
            if parameter.dim() > 1:
                self.decayed = at
        dtype = self.parameters[0].dtype if self.parameters else torch.float32
        device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.flat = torch.zeros(at, dtype=dtype, device=device)
        self.grad: Tensor | None = None
        for parameter, view in zip(self.parameters, self.views(self.flat), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        # Persistent buffers (running statistics and the like) are state too; there are few.
        buffers = dict(module.named_buffers())
        self.buffers = {n: b for n, b in module.state_dict(keep_vars=True).items() if n in buffers}

    def views(self, flat: Tensor) -> list[Tensor]:
        """One view per parameter into a buffer of this layout."""
        return [flat[s.offset : s.offset + s.numel].view(s.shape) for s in self.slots]

    def move(self, device: torch.device) -> None:
        """Lay the parameters out anew on a device; not while they are trained."""
        assert self.grad is None, "gradients and moments stay where the parameters are"
        self.flat = self.flat.to(device, copy=True)
        for parameter, view in zip(self.parameters, self.views(self.flat), strict=True):
            parameter.data = view

    def train(self, on: bool) -> None:
        """Make the parameters trainable, with gradients that accumulate into one buffer, or freeze them."""
        self.grad = torch.zeros_like(self.flat) if on else None
        views = self.views(self.grad) if self.grad is not None else [None] * len(self.slots)
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.requires_grad_(on)
            parameter.grad = view

    def zero_grad(self) -> None:
        """Zero the gradients in place; they stay views of one buffer."""
        if self.grad is not None:
            self.grad.zero_()

    def leaves(self, role: str, flat: Tensor) -> dict[str, Leaf]:
        """`role/module/tensor` -> leaf for a buffer of this layout: one copy, one leaf per parameter."""
        data = byte_view(host_copy(flat))
        item, dtype = flat.element_size(), DTYPES[flat.dtype]
        return {
            f"{role}/{s.path}": Leaf(dtype, s.shape, data[s.offset * item : (s.offset + s.numel) * item])
            for s in self.slots
        }

    def buffer_leaves(self, role: str) -> dict[str, Leaf]:
        """`role/module/tensor` -> leaf for the persistent buffers."""
        return {f"{role}/{split_name(n)}": leaf_of(b) for n, b in self.buffers.items()}

    def load(self, role: str, flat: Tensor, leaves: Mapping[str, Leaf]) -> None:
        """Inverse of `leaves`."""
        for slot in self.slots:
            copy_into(flat[slot.offset : slot.offset + slot.numel].view(slot.shape), leaves, f"{role}/{slot.path}")

    def load_buffers(self, role: str, leaves: Mapping[str, Leaf]) -> None:
        """Inverse of `buffer_leaves`."""
        for name, buffer in self.buffers.items():
            copy_into(buffer, leaves, f"{role}/{split_name(name)}")


class FlatAdamW:
    """torch.optim's AdamW (Loshchilov and Hutter 2019), fused, over an arena in two parts: decayed and not.

    The moments live in `exp_avg` and `exp_avg_sq`, laid out as the arena, so that a snapshot copies two buffers. The operation under
    `torch.optim.adamw` is called by itself, because the bookkeeping around it costs more than the update of a small model; a test
    compares the bits.
    """

    def __init__(
        self, arena: Arena, *, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        assert arena.grad is not None, "an optimizer needs a trainable arena"
        self.exp_avg = torch.zeros_like(arena.flat)
        self.exp_avg_sq = torch.zeros_like(arena.flat)
        self._step = torch.zeros((), dtype=torch.float32, device=arena.flat.device)
        self._betas, self._eps = betas, eps
        self._parts: list[tuple[float, tuple[list[Tensor], ...]]] = []
        for low, high, decay in ((0, arena.decayed, weight_decay), (arena.decayed, arena.flat.numel(), 0.0)):
            if low < high:
                buffers = (arena.flat, arena.grad, self.exp_avg, self.exp_avg_sq)
                self._parts.append((decay, tuple([buffer[low:high]] for buffer in buffers)))

    @property
    def steps(self) -> int:
        """Updates made so far; the bias correction depends on it."""
        return int(self._step)

    @steps.setter
    def steps(self, value: int) -> None:
        self._step.fill_(float(value))

    def step(self, lr: float | Tensor) -> None:
        """One update with the gradients in the arena; a tensor's rate is read on its device."""
        self._step += 1.0
        for decay, (flat, grad, exp_avg, exp_avg_sq) in self._parts:
            torch._fused_adamw_(
                flat,
                grad,
                exp_avg,
                exp_avg_sq,
                [],
                [self._step],
                lr=lr,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=decay,
                eps=self._eps,
                amsgrad=False,
                maximize=False,
            )
