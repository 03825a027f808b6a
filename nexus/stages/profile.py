"""Stage 2: what each teacher's capability is made of, and how much room an adapter needs for it.

Responsible for: profiles/ and the capacity plan. Key layers by pilot ablation; moments of their outputs by probes on the teacher's
hooks; the smallest rank whose patch-in holds on held-out items; heads, channel groups and perturbations by what they cost; the
overlap of teachers by canonical correlations. Refuses: to write a raw activation; a coefficient file holds one mean and one variance a
component.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from kfs.records import RecordKind
from nexus.app import CapabilityTable
from nexus.context import Context, read_json, write_json
from nexus.data import teachers
from nexus.data.samples import Samples
from nexus.model.student import find_layers
from nexus.model.tokenizer import PAD
from nexus.profiler import causal, protected
from nexus.profiler.covariance import (
    CovarianceProbe,
    IncrementalProbe,
    Moments,
    PairProbe,
    Rows,
    canonical,
    rank_of,
    rsa,
    spectrum,
)
from nexus.stages.scope import max_rank, restore
from probes.hooks import Dispatcher
from syscalls.errors import RecurosError

RANK_DEFAULT: Final = 24
VERIFY_ITEMS: Final = 50
LARGE: Final = 5_000_000
"""Parameters above which causal tests use the pilot's items only."""
OVERLAP: Final = 0.9
WEIGHTS: Final = {causal.NON_NEGOTIABLE: 5.0, causal.RECOVERABLE: 2.0, causal.DISCARDABLE: 1.0}
WEIGHT_HIGH: Final = 10.0


def planned_rank(ctx: Context, capability: str) -> dict[str, Any]:
    """{"rank", "layers"} of the capacity plan, or the app's own start rank."""
    table = ctx.app.capability(capability)
    path = ctx.paths.profiles / "adapter_capacity_plan.json"
    plan = read_json(path).get(capability, {}) if path.is_file() else {}
    rank = table.start_rank or int(plan.get("rank", RANK_DEFAULT))
    return {"rank": rank, "layers": list(range(ctx.app.table.student.layers))}


def measured_rank(ctx: Context, capability: str) -> int:
    """What the capacity plan says, whatever rank the app starts with; 0 without a plan."""
    path = ctx.paths.profiles / "adapter_capacity_plan.json"
    return int(read_json(path).get(capability, {}).get("rank", 0)) if path.is_file() else 0


def profile(ctx: Context) -> None:
    """Profile what is not profiled, then plan."""
    fresh = [c for c in ctx.live() if 2 not in ctx.cap(c.name).done]
    for capability in fresh:
        with ctx.stage(2, capability.name) as work:
            figures = Profile(ctx, capability).run()
            work.figures = figures
            work.wrote([ctx.paths.profiles / capability.teacher / capability.name])
    if not fresh and 2 in ctx.state.stages:
        return
    with ctx.stage(2) as work:
        plan, subspaces = _plans(ctx)
        overlap = _overlaps(ctx)
        for name, row in plan.items():
            row["shares_with"] = sorted(
                b if a == name else a for (a, b), found in overlap.items() if name in (a, b) and found["cca"] >= OVERLAP
            )
        root = ctx.paths.profiles
        write_json(root / "adapter_capacity_plan.json", plan)
        write_json(root / "protected_subspaces.json", subspaces)
        write_json(
            root / "manifest.json",
            {"overlap": {f"{a}/{b}": found for (a, b), found in overlap.items()}, "capabilities": sorted(plan)},
        )
        work.wrote([root / n for n in ("adapter_capacity_plan.json", "protected_subspaces.json", "manifest.json")])
        work.figures = {name: row["rank"] for name, row in plan.items()}


@dataclass
class Profile:
    """One teacher on one capability."""

    ctx: Context
    capability: CapabilityTable

    def run(self) -> dict[str, Any]:
        """Write profiles/TEACHER/CAPABILITY; the figures of the record."""
        ctx, name, options = self.ctx, self.capability.name, self.ctx.app.table.profiling
        table = ctx.app.teacher(self.capability.teacher)
        self.teacher = teachers.load(table, restore(ctx, table))
        self.metric = ctx.metric(name)
        self.folder: Path = ctx.paths.profiles / table.id / name
        self.folder.mkdir(parents=True, exist_ok=True)
        data = ctx.data(name)
        size = sum(p.numel() for p in self.teacher.module.parameters())
        causal_items = options.pilot_items if size > LARGE else options.items
        self.seen = data["train"].head(options.items)
        self.held = data["validation"].head(causal_items)
        self.pilot = data["validation"].head(options.pilot_items)
        self.layers = self.teacher.layers
        self.base = self.score(self.held)
        losses, keys = self.key_layers(options.key_layers)
        moments = self.moments(keys)
        found = {layer: self.spectral(layer, moments[layer], losses[layer]) for layer in keys}
        heads = self.heads(keys)
        write_json(self.folder / "heads_importance.json", heads)
        write_json(self.folder / "perturbations.json", self.perturbations(keys))
        self.verify_outputs(data["validation"].head(VERIFY_ITEMS))
        rank = max(row["rank"] for row in found.values())
        classes = [h["class"] for h in heads]
        return {
            "layers": len(self.layers),
            "key_layers": keys,
            "rank": rank,
            "score": round(self.base, 4),
            "items": len(self.held),
            "tokens": moments[keys[0]].n,
            "non_negotiable": classes.count(causal.NON_NEGOTIABLE),
        }

    def score(self, samples: Samples) -> float:
        """Mean score of the teacher as it is now."""
        return float(self.teacher.scores(samples, self.metric).mean())

    def points(self, samples: Samples, base: float, change: AbstractContextManager[None]) -> float:
        """Points of score that a change costs."""
        with change:
            return round(100 * (base - self.score(samples)), 3)

    def key_layers(self, count: int) -> tuple[list[float], list[int]]:
        """Points lost by skipping each layer, on pilot items; the layers that cost most, in order."""
        base = self.score(self.pilot)
        losses = []
        for n, layer in enumerate(self.layers):
            losses.append(self.points(self.pilot, base, causal.skipped(layer)))
            self.ctx.progress(f"profile {self.capability.name}", n + 1, len(self.layers))
        best = sorted(range(len(losses)), key=lambda n: (-losses[n], n))[:count]
        return losses, sorted(best)

    def moments(self, keys: list[int]) -> dict[int, Moments]:
        """Moments of the key layers' outputs at content positions of the seen items, by probes on the teacher's hooks."""
        rows = Rows()
        probes = {layer: CovarianceProbe(rows) for layer in keys}
        incremental: dict[int, IncrementalProbe] = {}
        if self.ctx.app.table.profiling.method == "incremental-pca":
            incremental = {layer: IncrementalProbe(rows, min(64, self.teacher.width - 1)) for layer in keys}
        with hooked(self.teacher.module, {**{self.name_of(n): p for n, p in probes.items()}}) as dispatcher:
            for n, (layer, probe) in enumerate(incremental.items()):
                dispatcher.attach(1000 + n, f"on_forward:teacher/{self.name_of(layer)}", probe)
            for step, (where, ids, mask) in enumerate(self.seen.batches()):
                dispatcher.step(step)
                rows.keep = mask.bool() if isinstance(self.teacher, teachers.ByteTeacher) else None
                with torch.no_grad():
                    self.teacher.log_probs(self.seen, where, ids, mask)
        self.incremental = incremental
        return {layer: probe.moments for layer, probe in probes.items() if probe.moments is not None}

    def name_of(self, layer: int) -> str:
        """A layer's module path."""
        wanted = self.layers[layer]
        return str(next(name for name, module in self.teacher.module.named_modules() if module is wanted))

    def spectral(self, layer: int, moments: Moments, lost: float) -> dict[str, Any]:
        """Basis, coefficients and meta of a key layer; its rank is what patch-in says."""
        mean = moments.mean()
        if layer in self.incremental:
            pca = self.incremental[layer].pca
            variances, basis = np.asarray(pca.explained_variance_), np.asarray(pca.components_)
        else:
            variances, basis = spectrum(moments.covariance())
        rank, tried = self.patch_in(layer, mean, basis)
        kept = basis[:rank].astype(np.float16)
        np.savez_compressed(self.folder / f"layer_{layer}_basis.npz", basis=kept, mean=mean.astype(np.float16))
        spread = variances[:rank].astype(np.float32)
        np.savez_compressed(self.folder / f"layer_{layer}_coeffs.npz", mean=np.zeros(rank, np.float16), variance=spread)
        meta = {
            "layer": layer,
            "name": self.name_of(layer),
            "width": self.teacher.width,
            "rank": rank,
            "rank_97": rank_of(variances, 0.97),
            "points_lost_when_skipped": lost,
            "class": causal.classed(lost),
            "tokens": moments.n,
            "method": self.ctx.app.table.profiling.method,
            "patch_in": tried,
        }
        write_json(self.folder / f"layer_{layer}_meta.json", meta)
        return meta

    def patch_in(
        self, layer: int, mean: NDArray[np.float64], basis: NDArray[np.float64]
    ) -> tuple[int, list[dict[str, Any]]]:
        """The smallest k, by bisection, whose patch-in flips few enough predictions of held-out items; loop 2->2 raises the ceiling."""
        plain = self.log_probs()
        tried: list[dict[str, Any]] = []
        ceiling = min(len(basis), max(8, self.teacher.width // 2))
        if not self._passes(layer, mean, basis, ceiling, plain, tried) and ceiling < len(basis):
            args = {
                "edge": "2->2",
                "capability": self.capability.name,
                "attempt": self.ctx.cap(self.capability.name).attempt,
                "reason": f"layer {layer}: patch-in of {ceiling} directions flips more than {self.flips_max:g}",
                "change": {"k": len(basis), "layer": layer},
            }
            self.ctx.ledger.append(RecordKind.NEXUS_LOOP, args)
            ceiling = len(basis)
        low, high = 1, ceiling
        while low < high:
            middle = (low + high) // 2
            if self._passes(layer, mean, basis, middle, plain, tried):
                high = middle
            else:
                low = middle + 1
        return high, sorted(tried, key=lambda row: int(row["k"]))

    @property
    def flips_max(self) -> float:
        """Share of predictions that patch-in may change."""
        return self.ctx.app.table.profiling.flips_max

    def _passes(
        self,
        layer: int,
        mean: NDArray[np.float64],
        basis: NDArray[np.float64],
        k: int,
        plain: list[torch.Tensor],
        tried: list[dict[str, Any]],
    ) -> bool:
        """Paired: flips of the likeliest byte per item, plus 1.64 standard errors of their mean over items."""
        with causal.patched(self.layers[layer], mean, basis[:k]):
            now = self.log_probs()
        flips = np.asarray(
            [float((a.argmax(-1) != b.argmax(-1)).float().mean()) for a, b in zip(plain, now, strict=True)]
        )
        kl = float(np.mean([float((a.exp() * (a - b)).sum(-1).mean()) for a, b in zip(plain, now, strict=True)]))
        upper = float(flips.mean() + 1.64 * flips.std() / math.sqrt(len(flips)))
        tried.append({"k": k, "flips": round(float(flips.mean()), 5), "upper": round(upper, 5), "kl": round(kl, 6)})
        return upper <= self.flips_max

    @torch.no_grad()
    def log_probs(self) -> list[torch.Tensor]:
        """Of each held-out item, at the positions before its scored bytes; in memory only."""
        found = []
        for rows, ids, mask in self.held.batches():
            logp = self.teacher.log_probs(self.held, rows, ids, mask)
            for i, scored in enumerate(self.held.scored[rows]):
                found.append(logp[i, np.flatnonzero(scored) - 1].clone())
        return found

    def heads(self, keys: list[int]) -> list[dict[str, Any]]:
        """Causal importance of each head and each group of channels of the key layers."""
        count, rows = self.teacher.heads, []
        for layer in keys:
            for kind, module, groups in protected.groups(self.layers[layer], count):
                if module is None or not groups or not protected.inputs(module):
                    continue
                for n in range(groups):
                    start, stop = protected.columns(module, groups, n)
                    lost = self.points(self.held, self.base, causal.masked(module, start, stop))
                    rows.append(
                        {"layer": layer, "kind": kind, "index": n, "points_lost": lost, "class": causal.classed(lost)}
                    )
        return rows

    def perturbations(self, keys: list[int]) -> dict[str, float]:
        """Points lost to disturbed inputs, weights and a matrix of half its rank."""
        seed, held = self.ctx.app.seed, self.held
        found = {f"token dropout {share:g}": self._changed(causal.dropped(held, share, seed)) for share in (0.1, 0.2)}
        found["typos 10 %"] = self._changed(causal.typos(held, 0.1, seed))
        if self.ctx.app.teacher(self.capability.teacher).precision == "float32":
            found["weight noise 5 %"] = self.points(held, self.base, causal.noisy(self.teacher.module, 0.05, seed))
            for layer in keys:
                module = causal.part_of(self.layers[layer], causal.MLP_OUT, attention=False)
                change = causal.low_rank(module, 0.5) if module is not None else nullcontext()
                found[f"layer {layer} feed-forward at half rank"] = self.points(held, self.base, change)
        return found

    def _changed(self, samples: Samples) -> float:
        return round(100 * (self.base - self.score(samples)), 3)

    @torch.no_grad()
    def verify_outputs(self, samples: Samples) -> None:
        """The teacher's own output on 50 items, as text: its likeliest byte at each scored position, given what stands before it."""
        scores = self.teacher.scores(samples, self.metric)
        said: list[str] = []
        for rows, ids, mask in samples.batches():
            best = self.teacher.log_probs(samples, rows, ids, mask).argmax(dim=-1)
            for i, scored in enumerate(samples.scored[rows]):
                tokens = best[i, np.flatnonzero(scored) - 1].tolist()
                said.append(bytes(t for t in tokens if t < PAD).decode("utf-8", "replace"))
        with (self.folder / "verify_outputs.jsonl").open("w", encoding="utf-8") as file:
            for (prompt, answer), score, output in zip(samples.texts(), scores, said, strict=True):
                row = {"prompt": prompt, "answer": answer, "output": output, "teacher_score": float(score)}
                file.write(json.dumps(row) + "\n")


@contextmanager
def hooked(module: Any, programs: dict[str, Any]) -> Iterator[Dispatcher]:
    """A dispatcher on a teacher with a program on each named layer; one that is evicted is an error."""

    def evicted(number: int, reason: str) -> None:
        raise RecurosError("E9-INTEGRITY", f"profiling probe {number} was evicted: {reason}", hint="report this")

    dispatcher = Dispatcher(evicted)
    dispatcher.install("teacher", module)
    try:
        for number, (name, program) in enumerate(programs.items(), start=1):
            dispatcher.attach(number, f"on_forward:teacher/{name}", program)
        yield dispatcher
    finally:
        dispatcher.uninstall("teacher")


def _plans(ctx: Context) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Capacity of each adapter, and the components that it must not lose."""
    plan: dict[str, Any] = {}
    subspaces: list[dict[str, Any]] = []
    for capability in ctx.live():
        folder = ctx.paths.profiles / capability.teacher / capability.name
        metas = [read_json(p) for p in sorted(folder.glob("layer_*_meta.json"))]
        if not metas:
            continue
        ranks = {str(m["layer"]): m["rank"] for m in metas}
        heads = read_json(folder / "heads_importance.json")
        reserved = sum(h["class"] == causal.NON_NEGOTIABLE for h in heads)
        rank = min(max_rank(ctx), max(ranks.values()))
        plan[capability.name] = {"rank": rank, "by_layer": ranks, "reserved_channels": min(rank // 2, reserved)}
        for row in [
            *heads,
            *({**m, "kind": "layer", "index": 0, "points_lost": m["points_lost_when_skipped"]} for m in metas),
        ]:
            if row["class"] == causal.DISCARDABLE:
                continue
            high = row["points_lost"] > 5 * causal.POINTS[0]
            weight = WEIGHT_HIGH if high and row["class"] == causal.NON_NEGOTIABLE else WEIGHTS[row["class"]]
            kept = {key: row[key] for key in ("layer", "kind", "index", "points_lost", "class")}
            subspaces.append({"capability": capability.name, **kept, "loss_weight": weight})
    return plan, subspaces


def _overlaps(ctx: Context) -> dict[tuple[str, str], dict[str, float]]:
    """Of the last layers of every two byte-level teachers, on shared text: {"cca": mean of the ten largest canonical correlations over
    positions, "rsa": representational similarity over items}."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    byte_level = [
        c for c in ctx.live() if (t := ctx.app.teacher(c.teacher)).mode == "causal" and t.tokenizer == "bytes"
    ]
    shared = next((c for c in byte_level if not c.gated), None)
    if shared is None:
        return found
    samples = ctx.data(shared.name)["validation"].head(ctx.app.table.profiling.items)
    for i, a in enumerate(byte_level):
        for b in byte_level[i + 1 :]:
            pair = [ctx.app.teacher(t.teacher) for t in (a, b)]
            if pair[0].id == pair[1].id:
                continue
            found[(a.name, b.name)] = _overlap([teachers.load(t, restore(ctx, t)) for t in pair], samples)
    return found


def _overlap(pair: list[teachers.Teacher], samples: Samples) -> dict[str, float]:
    means: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    rows = Rows()
    probes = [PairProbe(rows) for _ in pair]
    moments: Moments | None = None
    width = 0
    names = []
    for teacher in pair:
        last = find_layers(teacher.module)[-1]
        names.append(next(n for n, m in teacher.module.named_modules() if m is last))
    with (
        hooked(pair[0].module, {names[0]: probes[0]}) as first,
        hooked(pair[1].module, {names[1]: probes[1]}) as second,
    ):
        for step, (where, ids, mask) in enumerate(samples.batches()):
            rows.keep = mask.bool()
            for teacher, dispatcher in zip(pair, (first, second), strict=True):
                dispatcher.step(step)
                with torch.no_grad():
                    teacher.log_probs(samples, where, ids, mask)
            a, b = probes[0].last, probes[1].last
            if a is None or b is None:
                continue
            width = a.shape[1]
            both = torch.cat((a, b), dim=1)
            moments = Moments(both.shape[1]) if moments is None else moments
            moments.add(both)
            lengths = mask.sum(1).tolist()
            for kept, values in zip(means, (a, b), strict=True):
                kept += [item.mean(0) for item in torch.split(values, lengths)]
    if moments is None:
        return {"cca": 0.0, "rsa": 0.0}
    cca = float(canonical(moments.covariance(), width)[:10].mean())
    first_means, second_means = (torch.stack(kept).double().numpy() for kept in means)
    return {"cca": round(cca, 4), "rsa": round(rsa(first_means, second_means), 4)}
