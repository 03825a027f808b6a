"""Elastic weight consolidation against the previous generation (Kirkpatrick et al. 2017, equation 3).

ewc = 1/2 sum_i F_i (theta_i - theta*_i)^2, theta* the student at the last swap that it outlived, F the diagonal of its Fisher information
there: the mean over samples of squared per-sample gradients of log p(y | x), y drawn from the model itself (Kunstner et al. 2019 tell why
not the labels). Squared batch gradients would be smaller by about the size of the batch.

F is measured at the first step after the swap, on at most SAMPLES_MAX samples of its batch, where theta is still theta*. Until there
was a swap there is nothing to hold on to, and the term is 0 (`ewc_anchored` says which).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from servers.learner.losses.base import KdSettings, Look, Memory, Rows, Term
from servers.models.model import Model, valid_rows

SAMPLES_MAX: Final = 32
ANCHOR: Final = "ewc/anchor"
FISHER: Final = "ewc/fisher"


class EwcTerm(Term):
    """ewc * the penalty."""

    name = "ewc"
    needs = frozenset({"look"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """0 while there is no previous generation."""
        assert rows.look is not None, "the engine hands its models out when this term is on"
        anchor = rows.memory.get(ANCHOR)
        rows.reports["ewc_anchored"] = float(anchor is not None)
        if anchor is None:
            return rows.student.new_zeros(())
        fisher = rows.memory.get(FISHER)
        if fisher is None:
            fisher = measured(rows.look)
            rows.memory.stage(FISHER, fisher)
        theta = torch.cat([p.reshape(-1) for p in rows.look.parameters])
        return 0.5 * (fisher * (theta - anchor).square()).sum()


def anchor_at(memory: Memory, parameters: Sequence[Tensor]) -> None:
    """Hold on to the student as it is now."""
    memory.forget("ewc")
    memory.stage(ANCHOR, torch.cat([p.detach().reshape(-1) for p in parameters]))
    memory.commit()


def measured(look: Look) -> Tensor:
    """The diagonal of the student's Fisher information, laid out as its parameters one after another."""
    size = len(next(iter(look.batch.values())))
    step = -(-size // SAMPLES_MAX)
    model, generator = look.student, look.generator()
    training = model.module.training
    model.module.eval()
    total = torch.zeros_like(torch.cat([p.detach().reshape(-1) for p in look.parameters]))
    rows = range(0, size, step)
    with look.quiet(), torch.enable_grad():
        for at in rows:
            sample = {name: column[at : at + 1] for name, column in look.batch.items()}
            grads = torch.autograd.grad(_log_likelihood(model, sample, generator), look.parameters, allow_unused=True)
            flat = [
                torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
                for g, p in zip(grads, look.parameters, strict=True)
            ]
            total += torch.cat(flat).square()
    model.module.train(training)
    return total / len(rows)


def _log_likelihood(model: Model, sample: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """log p(y | x) with y drawn from p, summed over a sequence's valid positions."""
    out = model.forward(dict(sample))
    logs = torch.log_softmax(valid_rows(out.logits, out.valid_mask), dim=-1)
    drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(logs.device)
    return logs.gather(1, drawn).sum()
