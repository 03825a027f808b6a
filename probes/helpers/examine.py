"""Figures that need passes of their own: per-sample gradients, Jacobians, the attention of both models on one batch.

Responsible for: the helpers of `on_snapshot`, which run once at the end of a window on its last batch, with the model that the window
made, under `subject.examining`. Figures are of that one look; nothing is carried over.

    fisher_samples   F_i = mean over samples of (d log p(y | x) / d theta_i)^2            Kirkpatrick et al. 2017, equation 3
    jacobian         |J|_F^2 = E |v'J|^2, v ~ N(0, I) over the logits, J = d logits / d input     Hoffman, Roberts and Yaida 2019, section 2
                     drift^2 = E |v'J_S - v'J_T|^2 / E |v'J_T|^2, the same v on both sides         Czarnecki et al. 2017, equation 5
    attention_kl     mean over layers, heads and queries of KL(a_T || a_S)                   Wang et al. 2020 (MiniLM), equation 5

Refuses: a batch of which no sample has a target (the figures are 0 samples); attention that cannot be read honestly
(`probes.attention` says why, and the probe is evicted). A drift needs one input space: for token inputs each model has its own
embedding, and none is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from probes import attention
from probes.helpers.subject import Batch, Subject, examining

FISHER_SAMPLES: Final = 16
JACOBIAN_SAMPLES: Final = 8
DIRECTIONS: Final = 4
ATTENTION_SAMPLES: Final = 8
SMALLEST: Final = 1e-12
"""A probability of the student below this counts as this, so that one underflow is not an infinite divergence."""


def fisher_samples(subject: Subject) -> tuple[float, ...]:
    """(trace, max, mean, samples, parameters) of the diagonal over the student's trainable parameters; labels are the data's."""
    student = subject.modules["student"]
    parameters = [p for p in student.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    squares = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    samples = 0
    for sample in (
        subject.samples(FISHER_SAMPLES) if parameters else ()
    ):  # while the teacher trains, the student is frozen
        logits, targets = subject.forward("student", sample)
        if not len(targets):
            continue
        loss = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for square, gradient in zip(squares, gradients, strict=True):
            if gradient is not None:
                square.add_(gradient.double().square())
        samples += 1
    if not samples:
        return 0.0, 0.0, 0.0, 0.0, float(count)
    trace = float(torch.stack([square.sum() for square in squares]).sum()) / samples
    largest = max(float(square.max()) for square in squares) / samples
    return trace, largest, trace / count, float(samples), float(count)


def jacobian(subject: Subject) -> tuple[float, ...]:
    """(student's norm, teacher's norm, drift, directions, samples); the drift is 0 where there is none."""
    squares = {"student": 0.0, "teacher": 0.0, "drift": 0.0}
    seen = 0
    generator = torch.Generator().manual_seed(0)
    for batch, count in _looks(subject):
        products = {role: _products(subject, role, batch, generator.get_state()) for role in subject.modules}
        if products["student"] is None:
            continue
        seen += count
        for role, held in products.items():
            if held is not None:
                squares[role] += float(held.square().sum())
        student, teacher = products["student"], products.get("teacher")
        if teacher is not None and _shared(batch) and teacher.shape == student.shape:
            squares["drift"] += float((student - teacher).square().sum())
        torch.randn(1, generator=generator)  # other directions for the next look
    if not seen:
        return 0.0, 0.0, 0.0, float(DIRECTIONS), 0.0
    norms = [math.sqrt(squares[role] / (seen * DIRECTIONS)) for role in ("student", "teacher")]
    drift = math.sqrt(squares["drift"] / squares["teacher"]) if squares["teacher"] > 0 else 0.0
    return norms[0], norms[1], drift, float(DIRECTIONS), float(seen)


def _looks(subject: Subject) -> list[tuple[Batch, int]]:
    """What to differentiate, and how many samples each is.

    In evaluation mode the samples of a batch do not see each other, so the gradient of a sum over them holds each one's own: real-valued
    inputs with one row of logits each go together. Token inputs go one by one: which of them have targets is not seen in their rows.
    """
    samples = subject.samples(JACOBIAN_SAMPLES)
    if not samples or not _shared(samples[0]):
        return [(sample, 1) for sample in samples]
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
    with torch.no_grad():
        rows = len(subject.forward("student", batch)[0])
    return [(batch, rows)] if rows == len(samples) else [(sample, 1) for sample in samples]


def attention_kl(subject: Subject) -> tuple[float, ...]:
    """(mean KL in nats, last layer's, layers compared, 1 where heads were compared one by one and 0 where their mean was, samples)."""
    samples = subject.samples(ATTENTION_SAMPLES)
    if not samples or "teacher" not in subject.modules:
        return (0.0,) * 5
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
    student, teacher = (_attention(subject, role, batch) for role in ("student", "teacher"))
    values, by_head = [], True
    for number, s in enumerate(student):
        t = teacher[-(-(number + 1) * len(teacher) // len(student)) - 1]
        if s.shape[0] != t.shape[0] or s.shape[2:] != t.shape[2:]:
            continue
        alike = s.shape[1] == t.shape[1]
        by_head = by_head and alike
        values.append(_divergence(s, t) if alike else _divergence(s.mean(1), t.mean(1)))
    if not values:
        return (0.0,) * 5
    return sum(values) / len(values), values[-1], float(len(values)), float(by_head), float(len(samples))


def _divergence(s: Tensor, t: Tensor) -> float:
    """Mean over rows [..., keys] of KL(t || s)."""
    terms = torch.where(t > 0, t * (t.clamp(min=SMALLEST).log() - s.clamp(min=SMALLEST).log()), 0.0)
    return float(terms.sum(-1).mean())


def _shared(sample: Batch) -> bool:
    return _input(sample) is not None


def _input(sample: Batch) -> str | None:
    """The column of a batch that holds real-valued inputs; None for tokens."""
    return next((name for name, x in sample.items() if x.is_floating_point() and x.dim() > 1), None)


def _products(subject: Subject, role: str, sample: Batch, state: Tensor) -> Tensor | None:
    """v'J of each direction [DIRECTIONS, elements of the input], directions drawn from `state`."""
    logits, inputs = _with_inputs(subject, role, sample)
    if not logits.shape[0]:
        return None
    generator = torch.Generator()
    generator.set_state(state)
    drawn = torch.randn(DIRECTIONS, *logits.shape, generator=generator, dtype=torch.float64)
    rows = []
    for number in range(DIRECTIONS):
        (gradient,) = torch.autograd.grad(
            (logits.double() * drawn[number]).sum(), [inputs], retain_graph=number < DIRECTIONS - 1
        )
        rows.append(gradient.double().flatten())
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


EXAMINATIONS: Final[dict[str, Callable[[Subject], tuple[float, ...]]]] = {
    f.__name__: f for f in (fisher_samples, jacobian, attention_kl)
}


def examine(name: str, subject: Subject) -> tuple[float, ...]:
    """One look, by the helper's name."""
    with examining(subject.modules.values(), subject.quiet):
        return EXAMINATIONS[name](subject)
