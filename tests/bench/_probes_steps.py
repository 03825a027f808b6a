"""Training steps for the benchmark of probes: plain, under the dispatcher with programs attached, and with hooks of plain PyTorch.

Responsible for: one distillation step of two patch transformers as a callable, `attach` as the learner does it (sizes asked of the
dispatcher, verified, machine code in place), and `TWELVE`, the probes that count as "12 in-place probes". All cases of a row train
the same two models in turns, with other hooks on them. Refuses: a probe that was evicted, or ran without machine code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probes import catalogue, isa, library, sizes
from probes.helpers.subject import Subject
from probes.helpers.worker import Worker, new_queue
from probes.hooks import Dispatcher
from probes.jit import Compiler
from probes.library.attached import BuiltIn
from servers.models.patch import PatchConfig, PatchTransformer
from tests.bench._probes_time import Hooks, Turn

EVERY = 25
TWELVE = (
    ("on_forward:student/embed", "rms"),
    ("on_forward:student/blocks.0", "rms"),
    ("on_forward:student/blocks.1", "rms"),
    ("on_forward:student/norm", "rms"),
    ("on_forward:student/head", "nan-watch"),
    ("on_forward:student/blocks.0.fc1", "dead-units"),
    ("on_attention:student/blocks.0.attn", "attn-entropy"),
    ("on_grad:student/blocks.0.attn.qkv.weight", "gradnorm"),
    ("on_grad:student/blocks.1.fc1.weight", "gradnorm"),
    ("on_grad:student/head.weight", "gradnorm"),
    ("on_kd_step", "entropy"),
    ("on_kd_step", "disagreement"),
)
"""Twelve programs that read in place, each at one site: twelve firings a step."""


@dataclass(frozen=True)
class Scale:
    """Two models and a batch."""

    name: str
    teacher: PatchConfig
    student: PatchConfig
    batch: int


LARGE = Scale("step of 40 ms or more", PatchConfig(6, 96, 4), PatchConfig(4, 64, 4), 96)
TOY = Scale("toy step of about 3 ms", PatchConfig(2, 16, 2), PatchConfig(3, 16, 2), 24)
APP = Scale("digits app's step", PatchConfig(), PatchConfig(2, 24, 2), 64)


def evicted(probe_id: int, reason: str) -> None:
    raise AssertionError(f"probe {probe_id} was evicted: {reason}")


class Training:
    """A distillation step, `step()`, and a window of EVERY of them, `window()`."""

    def __init__(self, scale: Scale) -> None:
        torch.manual_seed(0)
        self.teacher, self.student = PatchTransformer(scale.teacher).eval(), PatchTransformer(scale.student)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3)
        self.images, self.labels = torch.rand(scale.batch, 8, 8), torch.randint(0, 10, (scale.batch,))
        self.ratio = scale.teacher.layers // scale.student.layers
        self.dispatcher: Dispatcher | None = None
        self.dims: dict[str, int] = {
            "rows": scale.batch,
            "classes": scale.student.classes,
            "hidden_rows": scale.batch * 16,
            "student_width": scale.student.width,
            "teacher_width": scale.teacher.width,
        }
        self.worker: Worker | None = None
        self.programs: list[BuiltIn] = []
        self.count = itertools.count()
        self._bare = Hooks(self.student, self.teacher)

    def case(self, call: Callable[[], object], install: Callable[[], object] = lambda: None) -> Turn:
        """`call`, to take turns with other cases of these models, with the hooks that `install` puts on."""
        self._bare.fork()
        self.dispatcher, self.worker, self.programs, self.count = None, None, [], itertools.count()
        install()
        hooks, held = Hooks(self.student, self.teacher), (self.dispatcher, self.worker, self.programs, self.count)
        self._bare.put()

        def before() -> None:
            hooks.put()
            self.dispatcher, self.worker, self.programs, self.count = held

        return Turn(call, before)

    def step(self) -> None:
        """One micro-step, as the learner's engine makes it."""
        dispatcher = self.dispatcher
        if dispatcher is not None:
            dispatcher.step(next(self.count))
        with torch.no_grad():
            teacher_logits, teacher_hidden, _ = self.teacher(self.images, need_hidden=True)
        logits, hidden, _ = self.student(self.images, need_hidden=True)
        if dispatcher is not None and dispatcher.wants("on_kd_step"):
            last = len(teacher_hidden) - 1
            dispatcher.fire(
                "on_kd_step",
                student_logits=logits,
                teacher_logits=teacher_logits,
                labels=self.labels,
                hidden=[
                    (f"blocks.{i}", hidden[i + 1], teacher_hidden[min(last, self.ratio * i + self.ratio)])
                    for i in range(len(hidden) - 1)
                ],
                temperature=2.0,
            )
        kl = nn.functional.kl_div(logits.log_softmax(-1), teacher_logits.softmax(-1), reduction="batchmean")
        self.optimizer.zero_grad()
        (nn.functional.cross_entropy(logits, self.labels) + kl).backward()
        self.optimizer.step()

    def window(self) -> None:
        """EVERY steps and, where probes are attached, what belongs to the end of a window: helpers and their figures."""
        for _ in range(EVERY):
            self.step()
        if self.dispatcher is not None:
            self.dispatcher.fire("on_snapshot")
        if self.worker is not None:
            self.worker.serve()
            for program in self.programs:
                program.land()

    def host(self, probes: Sequence[tuple[str, str]], compiler: Compiler, every: int) -> None:
        """Install the dispatcher and attach `probes`, pairs of a hook and a built-in's name, to fire every `every` steps."""
        dispatcher = Dispatcher(on_evict=evicted)
        dispatcher.install("student", self.student)
        dispatcher.install("teacher", self.teacher)
        self.dispatcher = dispatcher
        self.step()  # sites tell their sizes in their first firing
        queue = new_queue()
        subject = self.subject(dispatcher)
        self.worker = Worker(queue, lambda: subject)
        for number, (hook, name) in enumerate(probes):
            _, dims, _ = dispatcher.match(hook)
            kind = catalogue.BUILTINS[name].hooks[0]
            if kind == "on_kd_step":
                dims = self.dims
            elif kind == "on_prune":
                dims = sizes.largest(sizes.of_matrix(p) for p in self.student.parameters())
            prog = catalogue.PREFIX + name
            compiler.compile(isa.encode(library.compile(f"{prog},every={every}")))
            program = library.build(prog, every, dims, compiler=compiler)
            program.queue = queue
            program.worker = None
            assert program.backend == "jit", f"{prog}: {program.reason}"
            dispatcher.attach(number, hook, program)
            self.programs.append(program)

    def subject(self, dispatcher: Dispatcher) -> Subject:
        """What a helper of a window's end looks at."""
        modules = {"student": self.student, "teacher": self.teacher}
        return Subject(
            modules,
            lambda role, batch: (modules[role](batch["x"])[0], batch["labels"]),
            {"x": self.images, "labels": self.labels},
            dispatcher.quiet,
        )


def suite() -> list[tuple[str, str]]:
    """Every built-in, at all sites of its hook (layers' outputs: those of the student's blocks)."""
    where = {
        "on_forward": "on_forward:student/blocks.*",
        "on_attention": "on_attention:student/**",
        "on_grad": "on_grad:student/**",
    }
    return [(where.get(b.hooks[0], b.hooks[0]), name) for name, b in catalogue.BUILTINS.items()]


def hooked(training: Training) -> None:
    """The figures of TWELVE by hand: forward and gradient hooks with torch operations, sums kept in a list of floats."""
    student, held = training.student, [[0.0] * 8 for _ in TWELVE]

    def largest(number: int) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, Tensor]], None]:
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
            x = (output[0] if isinstance(output, tuple) else output).detach()
            bad = int((~torch.isfinite(x)).sum())
            row = held[number]
            row[0] += x.numel() - bad
            row[1] += float(x.double().square().sum())
            row[2] = max(row[2], float(x.abs().max()))
            row[3] += bad

        return hook

    def nonfinite(module: nn.Module, args: object, output: Tensor) -> None:
        held[4][0] += int((~torch.isfinite(output.detach())).sum())

    fired = torch.zeros(student.config.width * student.config.mlp_ratio)

    def dead(module: nn.Module, args: object, output: Tensor) -> None:
        fired.add_((output.detach() > 0).flatten(0, -2).sum(0))

    def attention(module: nn.Module, args: object, output: tuple[Tensor, Tensor]) -> None:
        entropies = torch.special.entr(output[1].detach().double()).sum(-1).mean((0, 2))
        held[6][: len(entropies)] = entropies.tolist()

    def gradient(number: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            held[number][0] += float(parameter.grad.double().square().sum())
            held[number][1] += int((~torch.isfinite(parameter.grad)).sum())

        return hook

    for number, name in ((0, "embed"), (1, "blocks.0"), (2, "blocks.1"), (3, "norm")):
        student.get_submodule(name).register_forward_hook(largest(number))
    student.head.register_forward_hook(nonfinite)
    student.get_submodule("blocks.0.fc1").register_forward_hook(dead)
    student.get_submodule("blocks.0.attn").register_forward_hook(attention)
    for number, name in ((7, "blocks.0.attn.qkv"), (8, "blocks.1.fc1"), (9, "head")):
        student.get_submodule(name).weight.register_post_accumulate_grad_hook(gradient(number))
    seen: list[Tensor] = []

    def logits(module: nn.Module, args: object, output: tuple[Tensor, ...]) -> None:
        seen.append(output[0].detach().double())
        if module is student:
            teacher, own = (x.log_softmax(-1) for x in seen)
            held[10][0] += float(-(own.exp() * own).sum())
            held[10][1] += float(-(teacher.exp() * teacher).sum())
            held[11][0] += int((teacher.argmax(-1) != own.argmax(-1)).sum())
            held[11][1] += float((teacher.exp() * (teacher - own)).sum())
            seen.clear()

    training.teacher.register_forward_hook(logits)
    student.register_forward_hook(logits)
