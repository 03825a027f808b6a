"""Figures that need passes of their own: per-sample gradients, Jacobians, the attention of both models.

Responsible for: the helpers of `on_snapshot`, which run once at the end of a window with the model that the window made, under
`subject.examining`.

    fisher_samples   F_i = mean over samples of (d log p(y | x) / d theta_i)^2            Kirkpatrick et al. 2017, equation 3
    ewc              1/2 sum_i F_i (theta_i - theta*_i)^2, theta* and F at the generation's first look     the same, equation 3
    jacobian         |J|_F^2 = E |v'J|^2, v ~ N(0, I) over the logits, J = d logits / d input     Hoffman, Roberts and Yaida 2019, section 2
                     drift^2 = E |v'J_S - v'J_T|^2 / E |v'J_T|^2, the same v on both sides         Czarnecki et al. 2017, equation 5
    attention_kl     mean over layers, heads and queries of KL(a_T || a_S)                   Wang et al. 2020 (MiniLM), equation 5

`fisher_samples` looks at the last batch that was trained on, and carries nothing over. `jacobian` and `attention_kl` look at the same
samples, along the same directions, as long as a generation lasts (`ProbeSet`: the batch of its first look), so that a change of a figure is
the model's; what a frozen teacher gives on them is computed once and kept. A state is a value that is replaced and never changed.

Refuses: a batch of which no sample has a target, and a student that nothing trains (the figures are 0 samples); attention that cannot be
read honestly (`probes.attention` says why, and the probe is evicted). A drift needs one input space: for token inputs each model has its
own embedding, and none is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from probes import attention
from probes.helpers.subject import Batch, Subject, examining

FISHER_SAMPLES: Final = 16
JACOBIAN_SAMPLES: Final = 32
PROJECTIONS: Final = 32
"""Samples times directions of a Jacobian; small batches get several directions a sample."""
ATTENTION_SAMPLES: Final = 8
KEPT_BYTES_MAX: Final = 16 << 20
"""What is kept of a teacher's answers on a probe set; more is computed at each look."""
SMALLEST: Final = 1e-12
"""A probability of the student below this counts as this, so that one underflow is not an infinite divergence."""

Values = tuple[float, ...]
Found = tuple[Any, Values]
"""The state to go on from, and the figures in the order of the helper's results."""


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The samples that a generation is looked at with, and what the teacher of `version` gave on them; None: not kept."""

    generation: int
    batch: Batch
    version: int = -1
    kept: Any = None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The student at a generation's first look, and the diagonal of its Fisher information there, parameter after parameter."""

    generation: int
    theta: Tensor
    fisher: Tensor
    samples: int


def _probe_set(state: ProbeSet | None, subject: Subject, most: int) -> ProbeSet:
    """The set of this generation; what was kept of a teacher that is another one now is dropped."""
    if state is None or state.generation != subject.generation:
        return ProbeSet(subject.generation, subject.some(most), subject.teacher_version)
    if state.version != subject.teacher_version:
        return replace(state, version=subject.teacher_version, kept=None)
    return state


def fisher_samples(state: Any, subject: Subject) -> Found:
    """(trace, max, mean, samples, parameters) of the diagonal over the student's trainable parameters; labels are the data's."""
    parameters = subject.trained
    count = sum(p.numel() for p in parameters)
    squares = torch.zeros(count, dtype=torch.float64)
    samples = 0
    for gradient in _per_sample(subject, parameters, None):
        wide = gradient.to("cpu", torch.float64)
        squares.addcmul_(wide, wide)
        samples += 1
    if not samples:
        return state, (0.0, 0.0, 0.0, 0.0, float(count))
    trace = float(squares.sum()) / samples
    largest = float(squares.max()) / samples
    return state, (trace, largest, trace / count, float(samples), float(count))


def _per_sample(subject: Subject, parameters: list[Tensor], draws: torch.Generator | None) -> Iterator[Tensor]:
    """Gradients of -log p(y | x) of at most FISHER_SAMPLES samples, parameter after parameter; y is the data's, or drawn from the model.

    One tensor instead of one for each parameter: small models spend more on calls than on numbers.
    """
    for sample in subject.samples(FISHER_SAMPLES) if parameters else ():
        logits, targets = subject.forward("student", sample)
        if not len(targets):
            continue
        if draws is not None:
            p = logits.detach().double().softmax(-1).cpu()
            targets = torch.multinomial(p, 1, generator=draws)[:, 0].to(logits.device)
        loss = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        yield torch.cat([gradient.reshape(-1) for gradient in found])


def ewc(state: Anchor | None, subject: Subject) -> Found:
    """(penalty, moved: |theta - theta*| / |theta*|, trace of F, samples, parameters); a student of another size is anchored anew.

    The labels of F are drawn from the model (Kunstner et al. 2019 tell why not the data's), as in the loss term of this name.
    """
    parameters = subject.trained
    if not parameters:
        return state, (0.0,) * 5
    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    count = float(len(theta))
    if state is None or state.generation != subject.generation or state.theta.shape != theta.shape:
        state = _anchored(subject, parameters, theta)
        return (state if state.samples else None), (0.0, 0.0, float(state.fisher.sum()), float(state.samples), count)
    away = theta - state.theta
    norm = float(torch.linalg.vector_norm(state.theta))
    moved = float(torch.linalg.vector_norm(away)) / norm if norm > 0 else 0.0
    penalty = 0.5 * float((state.fisher * away.square()).sum())
    return state, (penalty, moved, float(state.fisher.sum()), float(state.samples), count)


def _anchored(subject: Subject, parameters: list[Tensor], theta: Tensor) -> Anchor:
    total, samples = torch.zeros_like(theta), 0
    for gradient in _per_sample(subject, parameters, torch.Generator().manual_seed(0)):
        total += gradient.square()
        samples += 1
    return Anchor(subject.generation, theta, total / max(1, samples), samples)


def jacobian(state: ProbeSet | None, subject: Subject) -> Found:
    """(student's norm, teacher's norm, drift, directions, samples); the drift is 0 where there is none."""
    if not subject.trained:
        return state, (0.0,) * 5
    state = _probe_set(state, subject, JACOBIAN_SAMPLES)
    samples = _size(state.batch)
    directions = max(1, PROJECTIONS // max(1, samples))
    student = _products(subject, "student", state.batch, directions) if samples else None
    if student is None:
        return state, (0.0, 0.0, 0.0, float(directions), 0.0)
    sides = [_square(student), 0.0]
    apart = 0.0
    if "teacher" in subject.modules:
        if state.kept is None:
            theirs = _products(subject, "teacher", state.batch, directions)
            shared = theirs is not None and _input(state.batch) is not None and theirs.shape == student.shape
            kept = (_square(theirs) if theirs is not None else 0.0, theirs if shared else None)
            state = _keep(state, kept, kept[1])
            teacher = kept
        else:
            teacher = state.kept
        sides[1] = teacher[0]
        apart = _square(student - teacher[1]) if teacher[1] is not None else 0.0
    norms = [math.sqrt(side / (samples * directions)) for side in sides]
    drift = math.sqrt(apart / sides[1]) if sides[1] > 0 else 0.0
    return state, (norms[0], norms[1], drift, float(directions), float(samples))


def attention_kl(state: ProbeSet | None, subject: Subject) -> Found:
    """(mean KL in nats, last layer's, layers compared, 1 where heads were compared one by one and 0 where their mean was, samples)."""
    if not subject.trained or "teacher" not in subject.modules:
        return state, (0.0,) * 5
    state = _probe_set(state, subject, ATTENTION_SAMPLES)
    samples = _size(state.batch)
    if not samples:
        return state, (0.0,) * 5
    teacher = state.kept
    if teacher is None:
        teacher = _attention(subject, "teacher", state.batch)
        state = _keep(state, teacher, *teacher)
    student = _attention(subject, "student", state.batch)
    values, by_head = [], True
    for s, t in _mapped(subject, student, teacher):
        if s.shape[0] != t.shape[0] or s.shape[2:] != t.shape[2:]:
            continue
        alike = s.shape[1] == t.shape[1]
        by_head = by_head and alike
        values.append(_divergence(s, t) if alike else _divergence(s.mean(1), t.mean(1)))
    if not values:
        return state, (0.0,) * 5
    return state, (sum(values) / len(values), values[-1], float(len(values)), float(by_head), float(samples))


def _mapped(subject: Subject, student: list[Tensor], teacher: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Attention of the pairs of layers that the run maps; where it says none, of layers at the same share of the depth."""
    if subject.pairs:
        inside = [(s, t) for s, t in subject.pairs if s <= len(student) and t <= len(teacher)]
        yield from ((student[s - 1], teacher[t - 1]) for s, t in inside)
        return
    for number, s in enumerate(student):
        yield s, teacher[-(-(number + 1) * len(teacher) // len(student)) - 1]


def _keep(state: ProbeSet, kept: Any, *tensors: Tensor | None) -> ProbeSet:
    """The state with what the teacher gave, where that is small."""
    size = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    return replace(state, kept=kept) if size <= KEPT_BYTES_MAX else state


def _size(batch: Batch) -> int:
    return min((len(column) for column in batch.values()), default=0)


def _square(x: Tensor) -> float:
    return float(x.double().square().sum())


def _divergence(s: Tensor, t: Tensor) -> float:
    """Mean over rows [..., keys] of KL(t || s)."""
    terms = torch.where(t > 0, t * (t.clamp(min=SMALLEST).log() - s.clamp(min=SMALLEST).log()), 0.0)
    return float(terms.sum(-1).mean())


def _input(sample: Batch) -> str | None:
    """The column of a batch that holds real-valued inputs; None for tokens."""
    return next((name for name, x in sample.items() if x.is_floating_point() and x.dim() > 1), None)


def _products(subject: Subject, role: str, batch: Batch, directions: int) -> Tensor | None:
    """v'J of each direction and sample [directions, elements of the input]; None where no row has a target.

    Samples of a batch do not see each other in evaluation mode, so one pass gives the products of all of them.
    """
    logits, inputs = _with_inputs(subject, role, batch)
    if not logits.shape[0]:
        return None
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(directions):
        drawn = torch.randn(logits.shape, generator=generator).to(logits)
        (gradient,) = torch.autograd.grad(logits, [inputs], drawn, retain_graph=number < directions - 1)
        rows.append(gradient.flatten())
    return torch.stack(rows)


def _with_inputs(subject: Subject, role: str, sample: Batch) -> tuple[Tensor, Tensor]:
    """Logits, and the input they can be differentiated by: the column itself, or what the input embedding made of tokens."""
    name = _input(sample)
    if name is not None:
        inputs = sample[name].detach().clone().requires_grad_()
        return subject.forward(role, {**sample, name: inputs})[0], inputs
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().clone().requires_grad_())
        return kept[-1]

    module = subject.modules[role]
    find = getattr(module, "get_input_embeddings", None)
    if find is None:
        raise TypeError(f"the {role} takes tokens and says nothing of its input embedding")
    handle = find().register_forward_hook(keep)
    try:
        return subject.forward(role, sample)[0], kept[0]
    finally:
        handle.remove()


def _attention(subject: Subject, role: str, batch: Batch) -> list[Tensor]:
    """The attention probabilities of each layer, in double, first to last."""
    found: list[Tensor] = []
    handles = []
    for layer in subject.modules[role].modules():
        inside = (other for other in layer.modules() if other is not layer)
        if attention.is_attention(layer) and not any(attention.is_attention(other) for other in inside):
            handles.append(layer.register_forward_hook(_reader(found), with_kwargs=True))
    try:
        with torch.no_grad():
            subject.forward(role, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _reader(found: list[Tensor]) -> Callable[..., None]:
    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        probs = attention.eager(output)
        if probs is None:
            how = attention.plan(module)
            if isinstance(how, str):
                raise attention.AttentionUnavailableError(how)
            probs = attention.recompute(module, how, args, kwargs, output)
        else:
            attention.require_distribution(probs)
        found.append(probs.double())

    return read


EXAMINATIONS: Final[dict[str, Callable[[Any, Subject], Found]]] = {
    f.__name__: f for f in (fisher_samples, jacobian, attention_kl, ewc)
}


def examine(name: str, subject: Subject, state: Any = None) -> Found:
    """One look, by the helper's name: the state to go on from, and the figures."""
    with examining(subject.modules.values(), subject.quiet):
        return EXAMINATIONS[name](state, subject)
