"""L0 gates over heads and neurons (Louizos, Welling and Kingma 2018): hard-concrete variables that learn which units can go.

    u ~ U(0, 1),  s = sigmoid((log u - log(1 - u) + log a) / BETA),  z = clamp(s (ZETA - GAMMA) + GAMMA, 0, 1)        equations 10, 11
    P(z > 0) = sigmoid(log a - BETA log(-GAMMA / ZETA))                                                               equation 12
    without noise: z = clamp(sigmoid(log a) (ZETA - GAMMA) + GAMMA, 0, 1)                                             equation 13

A unit's output is multiplied by its z where it is read. In place of lambda * E[L0] stands weight * max(0, mean P(z > 0) - (1 - target))
for heads and for neurons: it presses until the share that is to stay is reached, and no further.
Responsible for: the parameters, one draw a step, the hooks that multiply, the penalty. Refuses: nothing.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from servers.models.structure import Units

BETA: Final = 2.0 / 3.0
GAMMA: Final = -0.1
ZETA: Final = 1.1
START: Final = 2.2
"""log a at first: a unit is open with probability 0.98."""
RATE: Final = 0.05
"""Learning rate of the gates, whatever the model's is: log a must be able to cross zero within a phase."""
SMALL: Final = 1e-6


class Gates(nn.Module):
    """log a of every unit, a vector a layer and kind."""

    def __init__(self, units: list[Units]) -> None:
        super().__init__()
        self.units = units
        self.log_a = nn.ParameterList(nn.Parameter(torch.full((u.count,), START)) for u in units)
        self._drawn: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def draw(self) -> None:
        """Gates of the next step; noise from the process's generator, which is state."""
        self._drawn = []
        for log_a in self.log_a:
            u = torch.rand(log_a.shape).to(log_a.device).clamp(SMALL, 1.0 - SMALL)
            self._drawn.append(stretched((u.log() - (1.0 - u).log() + log_a) / BETA))

    def settled(self) -> list[Tensor]:
        """Gates without noise."""
        return [stretched(log_a.detach()) for log_a in self.log_a]

    def penalty(self, target: float, weight: float) -> Tensor:
        """What presses on gates while more than 1 - target of a kind is expected to stay open."""
        total = self.log_a[0].new_zeros(())
        for kind in ("heads", "neurons"):
            logs = [a for u, a in zip(self.units, self.log_a, strict=True) if u.kind == kind]
            if logs:
                stays = torch.sigmoid(torch.cat(logs) - BETA * math.log(-GAMMA / ZETA)).mean()
                total = total + torch.relu(stays - (1.0 - target))
        pressed: Tensor = weight * total
        return pressed

    def install(self, module: nn.Module) -> None:
        """Multiply what the readers of the units get, in training by the draw, else by the settled gates."""
        self.remove()
        for number, unit in enumerate(self.units):
            reader = module.get_submodule(unit.reads[0].rpartition(".")[0])
            self._handles.append(reader.register_forward_pre_hook(self._hook(number, unit.size)))

    def _hook(self, number: int, size: int) -> Any:
        def multiply(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = self._drawn[number] if module.training and self._drawn else stretched(self.log_a[number].detach())
            return (args[0] * z.repeat_interleave(size), *args[1:])

        return multiply

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def stretched(logits: Tensor) -> Tensor:
    """sigmoid, stretched beyond [0, 1] and cut off there."""
    return (torch.sigmoid(logits) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
