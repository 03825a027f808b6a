"""Jacobian drift: both models answer to a small change of the input alike (Czarnecki et al. 2017, equation 5; Srinivas and Fleuret 2018).

jacobian = mean over samples of E_v |d(v'z_S)/dx - d(v'z_T)/dx|^2 = |J_S - J_T|_F^2, v ~ N(0, I) over the logits, one draw a step and
the very same in both models: drawn apart, the expectation would hold the sum of both norms. On at most SAMPLES_MAX samples.

The student is run once more, with a graph of its gradient; attention takes the plain kernel there, since fused ones have no second
derivative. Refuses: inputs that are not numbers (E2-MODEL): tokens reach each model through an embedding of its own.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from servers.learner.losses.base import KdSettings, Rows, Term
from servers.models.model import Model
from syscalls.errors import RecurosError

SAMPLES_MAX: Final = 32
INPUT: Final = "x"


class JacobianTerm(Term):
    """jacobian * the drift."""

    name = "jacobian"
    needs = frozenset({"look", "numbers"})

    def value(self, rows: Rows, kd: KdSettings) -> Tensor:
        """An estimate from one random projection of each sample's logits."""
        look = rows.look
        assert look is not None, "the engine hands its models out when this term is on"
        if INPUT not in look.batch:
            raise RecurosError(
                "E2-MODEL",
                f"jacobian needs an input of numbers that both models read; this batch has {', '.join(sorted(look.batch))}",
                hint="jacobian = 0: tokens reach each model through its own embedding",
            )
        step = -(-len(look.batch[INPUT]) // SAMPLES_MAX)
        images = look.batch[INPUT][::step].detach()
        shape = (len(images), look.student.num_classes)
        direction = torch.randn(shape, generator=look.generator()).to(images)
        with look.quiet(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            teacher = pulled(look.teacher, images, direction, graph=False)
            student = pulled(look.student, images, direction, graph=True)
        return (student - teacher).square().flatten(1).sum(1).mean()


def pulled(model: Model, images: Tensor, direction: Tensor, *, graph: bool) -> Tensor:
    """v'J of each sample, of the shape of `images`; with its own graph on request."""
    images = images.clone().requires_grad_()
    logits = model.forward({INPUT: images}).logits
    (found,) = torch.autograd.grad((logits * direction).sum(), images, create_graph=graph)
    return found
