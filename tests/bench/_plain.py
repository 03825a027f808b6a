"""The peer: one plain PyTorch loop over a whole plan, in its own process. No runtime, no server, no ledger.

Written from the formulas (learner.md's objective, AdamW, gradient clipping, moving average, the data order of
`servers.dataset.stream`'s docstring) and not from the engine; it shares only the networks' definition and the bundled data. What an
Observer decided in a hosted run (temperature, sample weights) comes in as given settings, since the peer has no Observer.

`python -m tests.bench._plain` reads a request and then commands from stdin, one JSON line each, runs the windows that a command asks
for and answers with their timings, one JSON line each; between commands it sleeps. Loop "flat" keeps parameters,
gradients and moments in flat buffers, 64-byte aligned and matrices first: the fastest plain loop known here, and the one whose
sums run in the engine's order, so that its parameters can be compared bit for bit. Loop "textbook" is `AdamW(model.parameters())`,
`clip_grad_norm_` and `zero_grad` as in any tutorial; its last bits differ.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from servers.models.mlp import Mlp, MlpConfig
from servers.models.patch import PatchConfig, PatchTransformer

Net = PatchTransformer | Mlp


def training_data() -> tuple[Tensor, Tensor]:
    """Images [1000, 8, 8] and labels of the fixed training split."""
    bunch = load_digits()
    images, labels = (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)
    rest, _ = train_test_split(np.arange(len(labels)), test_size=600, stratify=labels, random_state=0)
    train, _ = train_test_split(rest, test_size=197, stratify=labels[rest], random_state=0)
    rows = np.sort(train)
    return torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])


class Order:
    """Which samples batch p of a phase holds: epochs are seeded permutations, laid end to end."""

    def __init__(self, seed: int, phase: str, n: int, batch: int) -> None:
        self.seed, self.phase, self.n, self.batch = seed, phase, n, batch
        self.epochs: dict[int, np.ndarray] = {}

    def epoch(self, number: int) -> np.ndarray:
        if number not in self.epochs:
            key = blake3("\x1f".join(("permutation", str(self.seed), self.phase, str(number))).encode()).digest(16)
            draws = np.random.PCG64(int.from_bytes(key, "little")).random_raw(self.n)
            self.epochs[number] = np.argsort(draws, kind="stable")
        return self.epochs[number]

    def ids(self, p: int) -> np.ndarray:
        low, high = p * self.batch, (p + 1) * self.batch
        epochs = range(low // self.n, (high - 1) // self.n + 1)
        laid = np.concatenate([self.epoch(e) for e in epochs])
        start = low - epochs[0] * self.n
        return laid[start : start + self.batch]


def flatten(module: nn.Module) -> tuple[Tensor, int]:
    """Move the parameters into one buffer, matrices first, each at a multiple of 16 floats; also where the matrices end."""
    parameters = sorted(module.parameters(), key=lambda p: p.dim() <= 1)
    sizes = [-(-p.numel() // 16) * 16 for p in parameters]
    flat, grad, at = torch.zeros(sum(sizes)), torch.zeros(sum(sizes)), 0
    for p, size in zip(parameters, sizes, strict=True):
        view = flat[at : at + p.numel()].view_as(p)
        view.copy_(p.detach())
        p.data, p.grad = view, grad[at : at + p.numel()].view_as(p)
        at += size
    flat.grad = grad
    return flat, sum(s for p, s in zip(parameters, sizes, strict=True) if p.dim() > 1)


class Flat:
    """Updates over flat buffers."""

    def __init__(self, modules: list[nn.Module], adamw: dict[str, Any], decay: float, clip: float) -> None:
        self.flats = []
        self.optimizers = []
        self.clip = clip
        for module in modules:
            flat, split = flatten(module)
            groups = []
            for low, high, weight_decay in ((0, split, decay), (split, len(flat), 0.0)):
                part = nn.Parameter(flat[low:high])
                part.grad = flat.grad[low:high]
                groups.append({"params": [part], "weight_decay": weight_decay})
            self.flats.append(flat)
            self.optimizers.append(torch.optim.AdamW(groups, fused=True, **adamw))

    def zero_grad(self) -> None:
        for flat in self.flats:
            flat.grad.zero_()

    def step(self, lr: float) -> None:
        norm = math.sqrt(sum(float(f.grad.dot(f.grad)) for f in self.flats))
        for flat, optimizer in zip(self.flats, self.optimizers, strict=True):
            if norm > self.clip > 0:
                flat.grad.mul_(self.clip / norm)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()


class Textbook:
    """Updates as in any tutorial."""

    def __init__(self, modules: list[nn.Module], adamw: dict[str, Any], decay: float, clip: float) -> None:
        self.parameters = [p for m in modules for p in m.parameters()]
        self.clip = clip
        matrices = [p for p in self.parameters if p.dim() > 1]
        others = [p for p in self.parameters if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizers = [torch.optim.AdamW(groups, **adamw)]

    def zero_grad(self) -> None:
        self.optimizers[0].zero_grad()

    def step(self, lr: float) -> None:
        if self.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for group in self.optimizers[0].param_groups:
            group["lr"] = lr
        self.optimizers[0].step()


def rate(phase: dict[str, Any], step: int) -> float:
    """Linear warm-up, then a cosine down to lr * lr_floor."""
    lr, warmup, total = phase["lr"], phase["warmup_steps"], phase["windows"] * phase["steps"]
    if step < warmup:
        return float(lr * (step + 1) / (warmup + 1))
    floor, done = phase["lr_floor"], (step - warmup) / max(1, total - warmup)
    return float(lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))))


class Run:
    """A plan, from its first step on."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.model = request, request["model"]
        self.draws = torch.Generator().manual_seed(request["seed"])
        self.teacher, self.student = (self.build(self.model[role]) for role in ("teacher", "student"))
        self.average = [p.detach().clone() for p in self.student.parameters()]
        self.projectors = nn.ModuleList()
        self.images, self.labels = training_data()
        self.window = 0
        self.updates: Flat | Textbook | None = None

    def draw(self) -> int:
        return int(torch.randint(0, 2**31 - 1, (), generator=self.draws))

    def build(self, spec: dict[str, Any]) -> Net:
        torch.manual_seed(self.draw())
        sizes = {k: v for k, v in spec.items() if k != "kind"}
        return Mlp(MlpConfig(**sizes)) if spec["kind"] == "mlp" else PatchTransformer(PatchConfig(**sizes))

    def build_projectors(self) -> nn.ModuleList:
        torch.manual_seed(self.draw())
        a, b = self.student.config.width, self.teacher.config.width
        made = nn.ModuleList(nn.Linear(a, b) for _ in range(self.student.config.layers))
        for phi in made if a == b else ():
            nn.init.eye_(phi.weight)
            nn.init.zeros_(phi.bias)
        return made

    def loss(self, phase: dict[str, Any], kd: dict[str, Any], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        raw, weight = weight, weight / weight.mean()
        smoothing = phase["label_smoothing"]
        if phase["train"] == "teacher":
            logits = self.teacher(x)[0]
            task = functional.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
            return (task * weight).mean()
        tau, mix, alpha = kd["temperature"], kd["mix"], kd["alpha"]
        logits, hidden = self.student(x, need_hidden=alpha > 0)[:2]
        with torch.no_grad():
            t_logits, t_hidden = self.teacher(x, need_hidden=alpha > 0)[:2]
        task = functional.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
        log_t, log_s = (functional.log_softmax(z / tau, dim=-1) for z in (t_logits, logits))
        kl = functional.kl_div(log_s, log_t, reduction="none", log_target=True)
        start = (1 - mix) * (task * weight).mean() + mix * ((kl.sum(dim=-1) * weight).mean() * tau**2)
        if not alpha:
            return start
        hint = torch.zeros(())
        layers, deep = self.student.config.layers, self.teacher.config.layers
        per_token = raw[:, None].expand(len(x), hidden[0].shape[1]).reshape(-1)
        per_token = per_token / per_token.mean()
        for i, project in enumerate(self.projectors, start=1):
            target = t_hidden[max(1, round(i * deep / layers))].reshape(len(per_token), -1)
            guess = project(hidden[i].reshape(len(per_token), -1))
            hint = hint + ((target - guess).square().mean(dim=-1) * per_token).mean()
        return start + alpha * hint

    def enter(self, phase: dict[str, Any], end_before: str) -> None:
        """Roles, projectors and a fresh optimizer for a phase."""
        if end_before == "swap:ema":
            self.teacher = copy.deepcopy(self.student)
            with torch.no_grad():
                for p, average in zip(self.teacher.parameters(), self.average, strict=True):
                    p.copy_(average)
        trained: nn.Module = self.teacher if phase["train"] == "teacher" else self.student
        modules = [trained]
        if phase["train"] == "student":
            if self.model["kd"]["alpha"] and (not self.projectors or end_before):
                self.projectors = self.build_projectors()
            modules += [self.projectors] if self.projectors else []
        for module in (self.teacher, self.student):
            module.requires_grad_(module is trained)
        kind = Textbook if self.request["loop"] == "textbook" else Flat
        options = self.model["optimizer"]
        adamw = {"lr": 0.0, "betas": tuple(options["betas"]), "eps": options.get("eps", 1e-8)}
        self.updates = kind(modules, adamw, options["weight_decay"], self.model["clip"])
        if isinstance(self.updates, Flat) and phase["train"] == "student":
            self.flatten_average()

    def flatten_average(self) -> None:
        """Lay the moving average out like the student, so that it is one operation."""
        twin = copy.deepcopy(self.student)
        with torch.no_grad():
            for p, average in zip(twin.parameters(), self.average, strict=True):
                p.copy_(average)
        self.flat_average, _ = flatten(twin)
        self.average = [p.detach() for p in twin.parameters()]

    def run_window(self, phase: dict[str, Any], number: int, settings: dict[str, Any]) -> float:
        """Window `number` of a phase; `settings`: temperature, mix and alpha that differ, and a file of sample weights."""
        assert self.updates is not None
        kd = {**self.model["kd"], **{k: v for k, v in settings.items() if k != "weights"}}
        weights = None
        if settings.get("weights") and phase["train"] == "student":
            weights = np.maximum(np.load(settings["weights"]).astype(np.float64), 0.0)
        loss = 0.0
        for i in range(number * phase["steps"], (number + 1) * phase["steps"]):
            ids = self.order.ids(i)
            weight = torch.ones(len(ids))
            if weights is not None and (total := float(weights[ids].sum())) > 0:
                weight = torch.from_numpy((weights[ids] * (len(ids) / total)).astype(np.float32))
            rows = torch.from_numpy(ids)
            self.updates.zero_grad()
            value = self.loss(phase, kd, self.images[rows], self.labels[rows], weight)
            value.backward()
            loss = value.item()
            if not math.isfinite(loss):
                raise SystemExit(f"step {i}: the loss is {loss}")
            self.updates.step(rate(phase, i))
            if phase["train"] == "student":
                self.follow()
        return loss

    def follow(self) -> None:
        """The moving average."""
        share = 1 - self.model["ema"]
        with torch.no_grad():
            if isinstance(self.updates, Flat):
                self.flat_average.lerp_(self.updates.flats[0], share)
            else:
                torch._foreach_lerp_(self.average, list(self.student.parameters()), share)

    def checkpoint(self, path: Path) -> None:
        """One file a window: everything that a restart needs."""
        assert self.updates is not None
        torch.save(
            {
                "models": [m.state_dict() for m in (self.teacher, self.student, self.projectors)],
                "average": self.average,
                "optimizers": [o.state_dict() for o in self.updates.optimizers],
                "rng": [torch.get_rng_state(), self.draws.get_state()],
                "window": self.window,
            },
            path,
        )

    def run(self, index: int, first: int, settings: list[dict[str, Any]]) -> dict[str, Any]:
        """Windows `first`.. of phase `index`, one per entry of `settings`, a checkpoint after each; seconds, and CPU seconds."""
        phase = self.request["phases"][index]
        path = self.request["checkpoint"]
        stamps, cpu_ns, loss = [time.perf_counter()], time.process_time_ns(), 0.0
        if first == 0:
            self.order = Order(self.request["seed"], phase["name"], len(self.labels), self.request["batch"])
            self.enter(phase, self.request["phases"][index - 1]["end"] if index else "")
        for number, given in enumerate(settings, start=first):
            loss = self.run_window(phase, number, given)
            self.window += 1
            if path:
                self.checkpoint(Path(path))
            stamps.append(time.perf_counter())
        return {
            "steps": len(settings) * phase["steps"],
            "seconds": stamps[-1] - stamps[0],
            "windows": [b - a for a, b in itertools.pairwise(stamps)],
            "cpu_seconds": (time.process_time_ns() - cpu_ns) / 1e9,
            "loss": loss,
        }

    def parameters(self) -> dict[str, Tensor]:
        """role/module/tensor -> values at the end."""
        roles = {"teacher": self.teacher, "student": self.student, "projector": self.projectors}
        named = {f"{role}/{name}": p.detach() for role, m in roles.items() for name, p in m.named_parameters()}
        names = [name for name, _ in self.student.named_parameters()]
        return named | {f"ema/{n}": a for n, a in zip(names, self.average, strict=True)}


def main() -> None:
    request = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, request["cpus"])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    run = Run(request)
    for line in sys.stdin:
        command = json.loads(line)
        if "save" in command:
            np.savez(command["save"], **{k: v.contiguous().numpy() for k, v in run.parameters().items()})
            told: dict[str, Any] = {}
        else:
            told = run.run(command["phase"], command["first"], command["settings"])
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
