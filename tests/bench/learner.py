"""What hosting costs a training loop: steps per second under the runtime over those of the same loop in plain PyTorch.

Hosted time runs from a stretch's first window.grant to its last window.commit, as the ledger has them, so grants, staging, durable
snapshots, commits, IPC and waiting for policies are all in it. The plain loop runs the same windows on the same core with the
same losses, data order, optimizer, bits and threads, and writes one torch.save a window.

All loops of a size are alive at once and take turns of a second or two: the runtime is paused between windows while a plain loop
runs, and the other way round, so that what else the machine does falls on all of them. A ratio pairs a hosted stretch with the
mean of the two plain stretches of its round; those two are the A/A control.

    make bench PART=learner [COUNT=rounds]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kfs.records import RecordKind
from servers.manifest_tables import Manifest, MlpSpec, PatchSpec
from syscalls.errors import RecurosError
from tests.bench import _hosted, _learner_shares
from tests.bench._hosted import Plain, Session, Span
from tests.bench._rows import Rows

ROUNDS = 16
EXTRAS_EVERY = 3
WINDOWS_MAX = 5_000
PEER = "plain PyTorch loop, same bits, one torch.save a window"
PROBES_TARGET = ">= 0.93"
TIGHT_WINDOWS = 24
TIGHT_SHARES = (1.02, 0.97, 0.9, 0.75, 0.5)


@dataclass(frozen=True)
class Size:
    """A pair of models and the ratio that is asked for at its size: micro-steps of about 8 ms, 50 ms and more, 0.5 ms and more.

    How long a step really takes on the machine is a row of its own: the longer, the easier the ratio.
    """

    name: str
    target: str
    teacher: tuple[int, ...] | None  # layers, width, heads; of a perceptron layers, width; None: the app's own
    student: tuple[int, ...] | None
    batch: int
    stretch_s: float
    window_ms: int
    rounds_share: float = 1.0
    extras: bool = False


SIZES = (
    Size("8 ms steps, the digits app's models", ">= 0.95", None, None, 32, 1.8, 4_000, extras=True),
    Size("50 ms steps, larger models", ">= 0.98", (6, 96, 4), (4, 64, 4), 80, 6.0, 20_000, rounds_share=0.4),
    Size("0.5 ms steps, perceptrons without hints", ">= 0.8", (2, 64), (1, 32), 16, 0.8, 4_000),
)


@dataclass
class Samples:
    """loop -> round -> stretch, and what was found at the end."""

    spans: dict[str, dict[int, Span]] = field(default_factory=dict)
    missed: int = 0
    compared: int = 0
    wrong: list[str] = field(default_factory=list)

    def against_plain(self, loop: str, value: Callable[[Span], float]) -> list[float]:
        """A figure of a loop in each round over the mean of that round's two plain stretches."""
        plain = zip(self.spans["first"].values(), self.spans["second"].values(), strict=True)
        return [
            2 * value(s) / (value(a) + value(b)) for s, (a, b) in zip(self.spans[loop].values(), plain, strict=True)
        ]

    def hosted_against(self, loop: str) -> list[float]:
        """Rates of the hosted loop over those of another, in the rounds that have the other."""
        return [self.spans["hosted"][number].rate / span.rate for number, span in self.spans[loop].items()]

    def quiet_window(self, *loops: str) -> float:
        """Lower quartile of the seconds from one window's end to the next one's: what others disturbed is above it."""
        windows = [w for loop in loops for span in self.spans[loop].values() for w in span.windows]
        return statistics.quantiles(windows, n=4, method="inclusive")[0]


def manifest_of(size: Size, *, probes: bool) -> Manifest:
    """The digits app's distillation, long enough for any number of rounds, with the size's models."""
    manifest = _hosted.app("digits")
    manifest.phase = [manifest.phase[1].model_copy(update={"windows": WINDOWS_MAX, "end": ""})]
    for role, shape in (("teacher", size.teacher), ("student", size.student)):
        if shape is not None:
            sizes = dict(zip(("layers", "width", "heads"), shape, strict=False))
            perceptron = len(shape) == 2
            made = MlpSpec(kind="mlp", **sizes) if perceptron else PatchSpec(kind="patch", **sizes)
            setattr(manifest.model, role, made)
            manifest.kd.alpha = 0.0 if perceptron else manifest.kd.alpha
    manifest.data.batch = size.batch
    window = manifest.window
    window.budget_ms, window.period_ms, window.deadline_ms = size.window_ms * 3 // 4, size.window_ms, size.window_ms
    if not probes:
        manifest.probe = []
    return manifest


def measure(size: Size, rounds: int, folder: Path) -> Samples:
    """Interleaved rounds of one size; plain loops run the windows that the hosted loop ran in the round before."""
    bare = manifest_of(size, probes=False)
    samples = Samples()
    with contextlib.ExitStack() as stack:
        hosted = stack.enter_context(Session(bare, folder / "hosted"))
        behind = hosted.first_pause() + hosted.stretch(size.stretch_s)
        probed = None
        if size.extras:
            probed = stack.enter_context(Session(manifest_of(size, probes=True), folder / "probed"))
            probed.first_pause()
            probed.stretch(size.stretch_s)
        plains = {name: stack.enter_context(Plain(bare, folder)) for name in ("first", "second")}
        if size.extras:
            plains["unsaved"] = stack.enter_context(Plain(bare, folder, checkpoint=False))
            plains["textbook"] = stack.enter_context(Plain(bare, folder, loop="textbook"))
        assert hosted.ledger is not None
        for loop in plains.values():
            loop.windows(hosted.ledger, behind)
        behind = hosted.stretch(size.stretch_s)
        for number in range(rounds):
            order = ["first", "hosted", "second", *(["probed"] if size.extras else [])]
            if size.extras and number % EXTRAS_EVERY == 0:
                order += ["unsaved", "textbook"]
            ahead: list[int] = []
            turn = number % len(order)
            for name in [*order[turn:], *order[:turn]][:: 1 if number % 2 else -1]:
                if name == "hosted":
                    ahead = hosted.stretch(size.stretch_s)
                    span = hosted.span(ahead)
                elif name == "probed":
                    assert probed is not None
                    span = probed.span(probed.stretch(size.stretch_s))
                else:
                    span = plains[name].windows(hosted.ledger, behind)
                samples.spans.setdefault(name, {})[number] = span
            behind = ahead
        plains["first"].windows(hosted.ledger, behind)
        samples.compared, samples.wrong = plains["first"].differing(hosted.ledger, behind[-1])
        for session in filter(None, (hosted, probed)):
            samples.missed += session.runtime.status()["windows"]["missed"]
            session.runtime.halt("now")
    return samples


def report(rows: Rows, size: Size, samples: Samples) -> None:
    """The rows of one size."""
    name = size.name
    hosted = ["hosted", *(["probed"] if size.extras else [])]
    for loop, what, target in zip(
        hosted, ("", " with the app's probes every 25 steps"), (size.target, PROBES_TARGET), strict=False
    ):
        rows.add(f"{name}: hosted{what} / plain, steps/s", samples.against_plain(loop, _rate), target, peer=PEER)
        rows.add(
            f"{name}: hosted{what} / plain, by the lower quartile of all windows",
            samples.quiet_window("first", "second") / samples.quiet_window(loop),
            peer=PEER,
            note="windows that other processes disturbed fall out on both sides",
        )
        rows.add(
            f"{name}: hosted{what} / plain, by CPU time",
            samples.against_plain(loop, lambda span: span.steps / span.cpu_seconds),
            peer=PEER,
            note="learner's process against the plain loop's: waiting is not in it, time taken by other processes neither",
        )
    control = [a.rate / b.rate for a, b in zip(*(samples.spans[n].values() for n in ("first", "second")), strict=True)]
    rows.add(f"{name}: A/A control, plain / plain", control, peer="itself")
    if size.extras:
        for loop, peer in (
            ("unsaved", "plain PyTorch loop without checkpoints"),
            ("textbook", "AdamW(model.parameters()), clip_grad_norm_, one torch.save a window"),
        ):
            rows.add(f"{name}: hosted / {loop} loop, steps/s", samples.hosted_against(loop), peer=peer)
    plain_ms = [1e3 / span.rate for loop in ("first", "second") for span in samples.spans[loop].values()]
    rows.add(f"{name}: plain step", plain_ms, unit="ms")
    note = f"{samples.compared} numbers of teacher, student, moving average and projectors{_some(samples.wrong)}"
    rows.add(
        f"{name}: parameters equal the plain loop's, bit for bit", not samples.wrong, "== True", peer=PEER, note=note
    )
    rows.add(f"{name}: windows missed in the timed runs", samples.missed, "== 0")


def _rate(span: Span) -> float:
    return span.rate


def whole_app(rows: Rows, folder: Path) -> float:
    """The digits app as it is from boot to the end of its plan: bits, misses, seconds and memory. Returns a teaching window's ms."""
    manifest = _hosted.app("digits")
    with Session(manifest, folder / "app") as session:
        status, seconds = session.finish()
    ledger = session.read()
    with Plain(manifest, folder) as plain:
        spans = {p.name: plain.windows(ledger, ledger.phase(i)) for i, p in enumerate(manifest.phase)}
        count, wrong = plain.differing(ledger, max(ledger.commits))
    note = f"{count} numbers of teacher, student, moving average and projectors, all phases{_some(wrong)}"
    rows.add(
        "digits app: final parameters equal the plain loop's, bit for bit", not wrong, "== True", peer=PEER, note=note
    )
    windows = status["windows"]
    rows.add("digits app: windows missed at the default reservation", windows["missed"], "== 0", note=f"{windows}")
    rows.add("digits app: boot to the end of the drain", seconds, "<= 120", unit="s")
    rows.add("digits app: kernel process, resident", status["kernel"]["rss_bytes"] / 1e6, "<= 40", unit="MB")
    for index, (name, span) in enumerate(spans.items()):
        value = ledger.span(ledger.phase(index)).rate / span.rate
        rows.add(f"digits app: {name}, hosted / plain, steps/s", value, peer=PEER, note="one run, not interleaved")
    cpu = {s["name"]: s["cpu_ns"] / 1e9 for s in status["servers"]} | {"kernel": status["kernel"]["cpu_ns"] / 1e9}
    for name, spent in sorted(cpu.items()):
        share = spent / sum(cpu.values())
        rows.add(
            f"digits app: CPU seconds of {name}",
            spent,
            unit="s",
            note=f"{share:.1%} of the runtime's, imports included",
        )
    return 1e3 * statistics.median(ledger.span(ledger.phase(0)).windows)


def tight(rows: Rows, folder: Path, window_ms: float) -> None:
    """Deadlines ever shorter than a window, until some are missed: every miss is a rollback, and every rollback is exact."""
    manifest = _hosted.app("digits")
    manifest.phase = [manifest.phase[0].model_copy(update={"windows": TIGHT_WINDOWS})]
    manifest.app.eval_every = 0
    window, misses = manifest.window, []
    for share in TIGHT_SHARES:
        deadline_ms = max(2, round(window_ms * share))
        window.budget_ms, window.deadline_ms, window.period_ms = deadline_ms * 9 // 10, deadline_ms, deadline_ms
        ledger, stopped = _until_done_or_stopped(manifest, folder / f"tight{deadline_ms}")
        misses, rollbacks = ledger.of(RecordKind.WINDOW_MISS), ledger.of(RecordKind.WINDOW_ROLLBACK)
        if misses:
            break
    counted = f"{len(misses)} missed, {len(rollbacks)} rolled back, {len(ledger.commits)} committed"
    note = f"deadline {deadline_ms} ms, {stopped}: {counted}"
    rows.add("tight deadline: windows missed", len(misses), "> 0", note=note)
    rows.add("tight deadline: rollbacks minus misses", len(rollbacks) - len(misses), "== 0", note=note)
    exact = bool(rollbacks) and all(r.args["exact"] for r in rollbacks)
    rows.add("tight deadline: every rollback exact by digest", exact, "== True", note=note)


def _until_done_or_stopped(manifest: Manifest, run: Path) -> tuple[_hosted.Ledger, str]:
    """Too many misses in a row end a plan; what happened until then counts all the same."""
    with Session(manifest, run) as session:
        try:
            session.finish()
        except RecurosError as error:
            session.runtime.halt("now")
            return session.read(), f"until the plan was stopped with {error.code}"
        return session.read(), "to the end of the plan"


def _some(wrong: list[str]) -> str:
    return f"; {len(wrong)} tensors differ, first {wrong[0]}" if wrong else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=ROUNDS, help="interleaved rounds of each size")
    parser.add_argument("--seconds", type=int, help="not used: a round has its own length")
    parser.add_argument(
        "--only", default="", help="sizes whose name holds this text; the part's file is then not written"
    )
    options = parser.parse_args()
    context = {"seeds": [_hosted.app("digits").app.seed], "load_before": round(os.getloadavg()[0], 2)}
    rows = Rows("learner", f"make bench PART=learner COUNT={options.count}", context)
    if options.only in "shares of a step, teacher cache":
        _learner_shares.shares(rows, 20 * options.count)
        _learner_shares.teacher_cache(rows, max(2, options.count // 2))
    with tempfile.TemporaryDirectory(prefix="recuros-bench-") as name:
        if not options.only:
            tight(rows, Path(name), whole_app(rows, Path(name)))
        for number, size in enumerate(SIZES):
            if options.only in size.name:
                folder = Path(name) / str(number)
                folder.mkdir()
                report(rows, size, measure(size, max(2, round(options.count * size.rounds_share)), folder))
    if not options.only:
        rows.write()


if __name__ == "__main__":
    main()
