"""What hosting costs a training loop: steps per second under the runtime over those of the same loop in plain PyTorch.

Hosted time runs from the first window.grant of a phase to its last window.commit, as the ledger has them, so grants, staging,
durable snapshots, commits, IPC and waiting for policies are all in it. The plain loop runs on the same core with the same losses,
data order, optimizer, bits and threads, and writes one torch.save a window. Rounds alternate plain / hosted / plain / hosted with
probes; a ratio pairs a hosted run with the mean of the two plain runs of its round, and those two are the A/A control.

    make bench PART=learner [COUNT=rounds]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servers.manifest_tables import Manifest, PatchSpec
from tests.bench import _hosted
from tests.bench._hosted import Hosted, Span
from tests.bench._rows import Rows, ratios

ROUNDS = 5
PHASE = "distil"
PEER = "plain PyTorch loop, same bits, one torch.save a window"
PROBES_TARGET = ">= 0.93"


@dataclass(frozen=True)
class Size:
    """A pair of models whose micro-step takes about `name`, and the ratio that the spec asks for at that size."""

    name: str
    target: str
    teacher: tuple[int, int, int] | None  # layers, width, heads; None: the app's own
    student: tuple[int, int, int] | None
    batch: int
    windows: int
    window_ms: int
    probes: bool = False


SIZES = (
    Size("digits app, step of about 8 ms", ">= 0.95", None, None, 64, 20, 4_000, probes=True),
    Size("step of 50 ms and more", ">= 0.98", (6, 96, 4), (4, 64, 4), 128, 6, 20_000),
    Size("toy, step of about 1 ms", ">= 0.8", (1, 8, 1), (1, 8, 1), 4, 40, 4_000),
)


@dataclass
class Samples:
    """The runs of one size; `first`, `second`: the plain runs of each round."""

    hosted: list[Span] = field(default_factory=list)
    probed: list[Span] = field(default_factory=list)
    first: list[Span] = field(default_factory=list)
    second: list[Span] = field(default_factory=list)
    unsaved: list[Span] = field(default_factory=list)
    textbook: list[Span] = field(default_factory=list)
    missed: int = 0
    shares: dict[str, list[float]] = field(default_factory=dict)

    def plain(self, value: Callable[[Span], float]) -> list[float]:
        """The mean of the two plain runs of each round."""
        return [(value(a) + value(b)) / 2 for a, b in zip(self.first, self.second, strict=True)]


def manifest_of(size: Size, *, probes: bool) -> Manifest:
    """The digits app cut to one window of the teacher and a distillation of `size.windows`, with the size's models."""
    manifest = _hosted.app("digits")
    teach, distil, _ = manifest.phase
    manifest.phase = [
        teach.model_copy(update={"windows": 1}),
        distil.model_copy(update={"windows": size.windows, "end": ""}),
    ]
    for role, shape in (("teacher", size.teacher), ("student", size.student)):
        if shape is not None:
            layers, width, heads = shape
            setattr(manifest.model, role, PatchSpec(kind="patch", layers=layers, width=width, heads=heads))
    manifest.data.batch = size.batch
    window = manifest.window
    window.budget_ms, window.period_ms, window.deadline_ms = size.window_ms * 3 // 4, size.window_ms, size.window_ms
    if not probes:
        manifest.probe = []
    return manifest


class Bench:
    """Runs in a scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def host(self, manifest: Manifest) -> Hosted:
        """A hosted run in a run directory of its own."""
        self.count += 1
        return _hosted.host(manifest, self.folder / f"run{self.count}")

    def measure(self, size: Size, rounds: int) -> Samples:
        """Interleaved rounds of one size."""
        bare, probed = manifest_of(size, probes=False), manifest_of(size, probes=True)
        like = self.host(bare)  # warms the page cache up, and gives the plain loop its policy settings
        samples = Samples()
        for _ in range(rounds):
            samples.first.append(self.plain(bare, like))
            self.add(samples, samples.hosted, self.host(bare))
            samples.second.append(self.plain(bare, like))
            if size.probes:
                self.add(samples, samples.probed, self.host(probed))
                samples.textbook.append(self.plain(bare, like, loop="textbook"))
            samples.unsaved.append(self.plain(bare, like, checkpoint=False))
        return samples

    def plain(self, manifest: Manifest, like: Hosted, **options: Any) -> Span:
        """The plain loop's distillation."""
        return _hosted.plain(manifest, like, self.folder, **options)[PHASE]

    def add(self, samples: Samples, to: list[Span], run: Hosted) -> None:
        """Keep a hosted run's distillation; its misses count whatever phase they fell into."""
        to.append(run.phases[PHASE])
        samples.missed += run.status["windows"]["missed"]
        total = sum(run.servers_cpu.values())
        for name, seconds in run.servers_cpu.items():
            samples.shares.setdefault(name, []).append(seconds / total)


def report(rows: Rows, size: Size, samples: Samples) -> None:
    """The rows of one size."""
    plain = samples.plain(lambda span: span.rate)
    rows.add(f"{size.name}: hosted / plain, steps/s", ratios([s.rate for s in samples.hosted], plain), size.target, peer=PEER)
    if samples.probed:
        probed = ratios([s.rate for s in samples.probed], plain)
        rows.add(f"{size.name}: with the app's probes every 25 steps / plain", probed, PROBES_TARGET, peer=PEER)
    first, second = ([s.rate for s in spans] for spans in (samples.first, samples.second))
    rows.add(f"{size.name}: A/A control, plain / plain", ratios(first, second), peer="itself")
    quiet = ratios([1 / _quiet(s) for s in samples.hosted], samples.plain(lambda span: 1 / _quiet(span)))
    rows.add(
        f"{size.name}: the same by each run's lower-quartile window",
        quiet,
        peer=PEER,
        note="windows that other processes disturbed fall out on both sides",
    )
    cpu = ratios(samples.plain(lambda span: span.cpu_seconds), [s.cpu_seconds for s in samples.hosted])
    rows.add(f"{size.name}: the same by the learner's CPU time", cpu, peer=PEER, note="waiting is not in it")
    rows.add(
        f"{size.name}: hosted / plain that saves nothing",
        ratios([s.rate for s in samples.hosted], [s.rate for s in samples.unsaved]),
        peer="plain PyTorch loop without checkpoints",
    )
    if samples.textbook:
        rows.add(
            f"{size.name}: hosted / textbook loop",
            ratios([s.rate for s in samples.hosted], [s.rate for s in samples.textbook]),
            peer="AdamW(model.parameters()), clip_grad_norm_, one torch.save a window",
        )
    rows.add(f"{size.name}: plain step", [1e3 * s.seconds / s.steps for s in samples.first + samples.second], unit="ms")
    rows.add(f"{size.name}: windows missed in the timed runs", samples.missed, "== 0")


def _quiet(span: Span) -> float:
    return statistics.quantiles(span.windows, n=4, method="inclusive")[0]


def whole_app(rows: Rows, bench: Bench) -> None:
    """The digits app from boot to report, with its bits, its misses and its memory."""
    manifest = _hosted.app("digits")
    run = bench.host(manifest)
    plain = _hosted.plain(manifest, run, bench.folder, keep=True)
    count, wrong = _hosted.differing(run, bench.folder)
    rows.add(
        "digits app: final parameters equal those of the plain loop, bit for bit",
        not wrong,
        "== True",
        peer=PEER,
        note=f"{count} numbers of teacher, student, moving average and projectors" + _some(wrong),
    )
    windows = run.status["windows"]
    rows.add("digits app: windows missed at the default reservation", windows["missed"], "== 0", note=f"{windows}")
    rows.add("digits app: boot to the end of the drain", run.seconds, "<= 120", unit="s")
    kernel_mb = run.status["kernel"]["rss_bytes"] / 1e6
    rows.add("digits app: kernel process, resident", kernel_mb, "<= 40", unit="MB")
    for phase, span in run.phases.items():
        rows.add(f"digits app: {phase}, hosted / plain, steps/s, one run", span.rate / plain[phase].rate, peer=PEER)
    total = sum(run.servers_cpu.values())
    for name, seconds in sorted(run.servers_cpu.items()):
        rows.add(f"digits app: CPU seconds of {name}", seconds, unit="s", note=f"{seconds / total:.1%} of the runtime's")


def _some(wrong: list[str]) -> str:
    return f"; {len(wrong)} tensors differ, first {wrong[0]}" if wrong else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=ROUNDS, help="interleaved rounds of each size")
    parser.add_argument("--seconds", type=int, help="not used: a round has a fixed number of steps")
    parser.add_argument("--only", default="", help="sizes whose name holds this text; the part's file is then not written")
    options = parser.parse_args()
    context = {"seeds": [_hosted.app("digits").app.seed], "load_before": _hosted.loadavg(), "nice": os.nice(0)}
    rows = Rows("learner", f"make bench PART=learner COUNT={options.count}", context)
    with tempfile.TemporaryDirectory(prefix="recuros-bench-") as name:
        bench = Bench(Path(name))
        if not options.only:
            whole_app(rows, bench)
        for size in SIZES:
            if options.only in size.name:
                report(rows, size, bench.measure(size, options.count))
    if not options.only:
        rows.write()


if __name__ == "__main__":
    main()
