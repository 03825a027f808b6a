"""What probes cost: every row of "Numbers to reach" of the oBPF page, against plain PyTorch, nnsight, TransformerLens and numba.

Process CPU time of one thread. The cases of a row take turns call by call, in an order drawn anew each time, in one process and on
one model, whose hooks are exchanged between turns; a ratio or a difference is of one round, the spread that of the rounds. Each
row that is judged has an A/A control: the plain case twice. Where the control's quartiles are further apart than half of the margin
that the target allows, the row says "not resolved" instead of a verdict. Attaching is timed by the wall, because the compiler is
another process.

    make bench PART=probes [COUNT=rounds]        python -m tests.bench.probes --quick (a smoke run: rounds that say nothing)
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from probes import catalogue, isa, jit_host, library
from probes.certificate import Certificate
from probes.hooks import Dispatcher
from probes.jit import Compiler, MemoryCache
from probes.program import Context
from probes.runtime import Loaded
from probes.verifier import Verification, verify
from tests.bench import _probes_sources as sources
from tests.bench import _probes_steps as steps
from tests.bench._probes_peers import Peer, PeerError
from tests.bench._probes_time import RESIDUE_US, Samples, more, over, resolved, rounds
from tests.bench._rows import Rows

ROUNDS = 21
PLAIN = "the same step without the dispatcher"
HOOKS = "plain PyTorch hooks, same figures by torch operations"


@dataclass(frozen=True)
class Scale:
    """How often: rounds of every row; calls of each case in a round, by how long a call is."""

    rounds: int = ROUNDS
    long: int = 10
    short: int = 100
    tiny: int = 2_000
    windows: int = 8
    attaches: int = 5


QUICK = Scale(rounds=3, long=2, short=5, tiny=100, windows=1, attaches=1)


@dataclass
class Bench:
    """The rows, how often, and the compiler that all of them use."""

    rows: Rows
    scale: Scale
    compiler: Compiler

    def against(self, row: str, found: Samples, case: str, target: str = "", *, peer: str = PLAIN) -> None:
        """A row of a case's time over that of "plain", judged if "a/a" over "plain" is narrow enough for the target's margin."""
        margin = float(target.rsplit(maxsplit=1)[-1]) - 1 if target else 0.0
        clear = not target or resolved(over(found, "a/a", "plain"), margin)
        self.rows.add(row, over(found, case, "plain"), target, peer=peer, resolved=clear)

    def control(self, row: str, found: Samples) -> None:
        """The row of the A/A control."""
        self.rows.add(f"{row}: A/A control", over(found, "a/a", "plain"), peer="itself")


# --- a firing ------------------------------------------------------------------------------------------------------------


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def fixed(bench: Bench) -> None:
    """A call of a module that does nothing: bare, with an empty site, with a program that is not due, with one that fires."""
    program, x = sources.compiled(sources.NOTHING), torch.ones(1, 4)
    bench.compiler.compile(isa.encode(program))
    names = ("bare", "a/a", "empty", "not due", "one")
    layers: dict[str, nn.Module] = {}
    for name in names:
        module = nn.Sequential(Identity())
        layers[name] = module[0]
        if name in ("bare", "a/a"):
            continue
        dispatcher = Dispatcher(on_evict=steps.evicted)
        dispatcher.install("student", module)
        dispatcher.step(0)
        module(x)
        if name != "empty":
            every = 2 if name == "not due" else 1
            loaded = sources.load(program, {"rows": 1, "width": 4}, bench.compiler, every=every)
            dispatcher.attach(1, "on_forward:**", loaded)
        dispatcher.step(1)
    body = sources.load(program, {"rows": 1, "width": 4}, bench.compiler)
    context = Context("on_forward", "student/0", 0, {"output": x})
    cases: dict[str, Callable[[], object]] = {name: lambda layer=layers[name]: layer(x) for name in names}
    cases["body"] = lambda: body.fire(context)
    with torch.no_grad():
        found = rounds(cases, bench.scale.rounds, 20, bench.scale.tiny // 20)
    rows, control = bench.rows, more(found, "a/a", "bare")
    rows.add("call of a module: A/A control", control, unit="ns", peer="itself")
    rows.add("site without a program, a firing", more(found, "empty", "bare"), unit="ns")
    rows.add("program that is not due, a firing", more(found, "not due", "bare"), unit="ns")
    one_us = [ns / 1e3 for ns in more(found, "one", "bare")]
    clear = resolved([ns / 1e3 for ns in control], 5)
    rows.add("fixed cost of a firing, machine code", one_us, "<= 5", unit="us", peer="bare call", resolved=clear)
    rows.add("of which the program's own part", [ns / 1e3 for ns in found["body"]], unit="us")


def reductions(bench: Bench) -> None:
    """Sum of squares in the fixed order against np.einsum over the same memory, in double from float32 as programs add."""
    x = torch.randn(sources.ROWS, sources.WIDTH, generator=torch.Generator().manual_seed(0))
    program = sources.compiled(sources.SUMSQ)
    bench.compiler.compile(isa.encode(program))
    loaded = sources.load(program, {"rows": len(x), "width": x.shape[1]}, bench.compiler)
    loaded.fire(Context("on_forward", "site", 0, {"output": x}))
    array = x.numpy()
    fire: Callable[[], object] = lambda: loaded._image.fire(loaded._address)  # noqa: E731
    found = rounds(
        {
            "plain": fire,
            "a/a": fire,
            "double": lambda: np.einsum("ij,ij->", array, array, dtype=np.float64),
            "single": lambda: np.einsum("ij,ij->", array, array),
        },
        bench.scale.rounds,
        bench.scale.short // 5,
        5,
    )
    name, clear = "fixed-order sum of squares, 1024 x 256 float32", resolved(over(found, "a/a", "plain"), 1.0)
    bench.control(name, found)
    peer = "np.einsum that adds in double too"
    bench.rows.add(f"{name}: times faster", over(found, "double", "plain"), ">= 2", peer=peer, resolved=clear)
    peer = "np.einsum in single precision, another figure"
    bench.rows.add(f"{name}: times faster than in single precision", over(found, "single", "plain"), peer=peer)


# --- steps ---------------------------------------------------------------------------------------------------------------


def twelve(bench: Bench, scale: steps.Scale, target: str, calls: int) -> None:
    """Training steps with twelve programs at twelve sites, every step."""
    made = steps.Training(scale)
    found = rounds(
        {
            "plain": made.case(made.step),
            "a/a": made.case(made.step),
            "empty": made.case(made.step, lambda: made.host((), bench.compiler, 1)),
            "probes": made.case(made.step, lambda: made.host(steps.TWELVE, bench.compiler, 1)),
            "hooks": made.case(made.step, lambda: steps.hooked(made)),
        },
        bench.scale.rounds,
        calls,
    )
    name, count = scale.name, len(list(made.student.parameters()))
    note = (
        f"an empty list of gradient hooks stays on each of {count} parameters once one was there, in the plain step too: "
        f"about {count * RESIDUE_US:.0f} us of it"
    )
    bench.rows.add(f"{name}: plain", [ns / 1e6 for ns in found["plain"]], unit="ms", note=note)
    bench.control(name, found)
    bench.against(f"{name}: dispatcher at every site, no program", found, "empty")
    bench.against(f"{name}: 12 probes every step", found, "probes", target)
    bench.against(f"{name}: 12 sites with plain hooks every step", found, "hooks", peer=f"{PLAIN}; {HOOKS}")
    theirs, clear = statistics.median(more(found, "hooks", "plain")), not_lost(found, "hooks")
    values = [ns / theirs for ns in more(found, "probes", "plain")]
    bench.rows.add(f"{name}: added time, probes / plain hooks", values, peer=HOOKS, resolved=clear)


def not_lost(found: Samples, case: str, share: float = 1.0) -> bool:
    """Whether the control sees half of `share` of what a case takes beyond the plain one."""
    typical = statistics.median(more(found, case, "plain"))
    return typical > 0 and resolved(more(found, "a/a", "plain"), typical * share)


def suite(bench: Bench) -> None:
    """Windows of 25 steps with every built-in at all its sites, once a window; their asynchronous helpers' work is in it.

    A round is as many windows as it takes for the built-ins that look at every eighth window's end to have looked once.
    """
    made = steps.Training(steps.APP)
    found = rounds(
        {
            "plain": made.case(made.window),
            "a/a": made.case(made.window),
            "probes": made.case(made.window, lambda: made.host(steps.suite(), bench.compiler, steps.EVERY)),
        },
        bench.scale.rounds,
        bench.scale.windows,
    )
    name = f"{steps.APP.name}, windows of {steps.EVERY}"
    bench.rows.add(f"{name}: plain step", [ns / 1e6 / steps.EVERY for ns in found["plain"]], unit="ms")
    bench.control(name, found)
    count = len(catalogue.BUILTINS)
    bench.against(f"{name}: all {count} built-ins every {steps.EVERY} steps", found, "probes", "<= 1.05")


# --- before a firing -----------------------------------------------------------------------------------------------------


def programs() -> Iterator[tuple[str, isa.Bytecode, bytes]]:
    """The library's and the benchmark's own."""
    for name in catalogue.names():
        program = library.compile(f"{catalogue.PREFIX}{name}")
        yield f"{catalogue.PREFIX}{name}", program, isa.encode(program)
    for name, text in sources.SOURCES.items():
        program = sources.compiled(text)
        yield name, program, isa.encode(program)


def verified(program: isa.Bytecode, contract: isa.Contract, digest: str) -> Certificate:
    """As the kernel does it: the program's digest is known from its bytes."""
    verification = Verification(program, contract, sources.RIGHTS, program_digest=digest)
    certificate = verification.step(isa.VISITS_MAX)
    assert certificate is not None
    return certificate


def verification(bench: Bench) -> None:
    """Microseconds a visit of each program, and the visits of the one that takes most."""
    cases: dict[str, Callable[[], object]] = {}
    visits: dict[str, int] = {}
    for name, program, data in programs():
        contract, digest = isa.Contract(program.hook_kind, {}), isa.digest(data)
        visits[name] = verified(program, contract, digest).visits
        cases[name] = lambda p=program, c=contract, d=digest: verified(p, c, d)
    found = rounds(cases, max(3, bench.scale.rounds // 3), 2)
    # Each program weighs as much as it takes: the time of all over the visits of all.
    whole_us = [sum(values) / 1e3 / sum(visits.values()) for values in zip(*found.values(), strict=True)]
    bench.rows.add(f"verification of {len(cases)} programs, a visit", whole_us, "<= 5", unit="us")
    slowest = max(cases, key=lambda name: statistics.median(found[name]) / visits[name])
    bench.rows.add(
        "verification of the slowest program, a visit",
        [ns / 1e3 / visits[slowest] for ns in found[slowest]],
        unit="us",
        note=slowest,
    )
    most = max(visits, key=lambda name: visits[name])
    bench.rows.add("visits of the program that takes most", visits[most], f"<= {isa.VISITS_MAX}", note=most)
    bench.rows.add("visit budget", isa.VISITS_MAX, "== 16384")


class Forgetful(MemoryCache):
    """Keeps nothing."""

    def get(self, key: str) -> None:
        """A miss."""
        return


def attached(
    data: bytes, certificate: bytes, contract: isa.Contract, compiler: Compiler, hook: str, model: nn.Module
) -> float:
    """Milliseconds by the wall from the stored bytes to a program at its site, as the learner attaches it."""
    dispatcher = Dispatcher(on_evict=steps.evicted)
    dispatcher.install("student", model)
    begun = time.perf_counter()
    program = isa.decode(data)
    held = Certificate.decode(certificate)
    held.check(data, contract, sources.RIGHTS)
    digest = isa.digest(data)
    loaded = Loaded(program, held, contract, digest=digest, rights=sources.RIGHTS, compiler=compiler)
    dispatcher.attach(1, hook, loaded)
    while loaded.backend != "jit":
        compiler.compile(data)
        loaded.upgrade()
        assert not compiler.unavailable, compiler.unavailable
    spent = 1e3 * (time.perf_counter() - begun)
    dispatcher.uninstall("student")
    return spent


def attaching(bench: Bench) -> None:
    """Each built-in with its machine code in the cache, and with the compiler's worker up but nothing in any cache."""
    kept, cold = MemoryCache(), Compiler(Forgetful())
    cold.wait_ready()
    wheres = {
        "on_forward": "on_forward:blocks.0",
        "on_attention": "on_attention:blocks.0.attn",
        "on_grad": "on_grad:head.weight",
    }
    model, cached_ms, cold_ms = steps.Training(steps.TOY).student, {}, {}
    try:
        for name, program, data in programs():
            contract = isa.Contract(program.hook_kind, {})
            certificate = verify(program, contract, sources.RIGHTS).encode()
            key, digest = jit_host.cache_key(isa.digest(data)), isa.digest(data)
            bench.compiler.compile(data)
            image = bench.compiler.cache.get(key)
            assert image is not None
            kept.put(key, image)
            hook = wheres.get(program.hook_kind, program.hook_kind)
            for _ in range(bench.scale.attaches):
                cold.forget(digest)
                fresh = Compiler(kept)
                cached_ms.setdefault(name, []).append(attached(data, certificate, contract, fresh, hook, model))
                cold_ms.setdefault(name, []).append(attached(data, certificate, contract, cold, hook, model))
                fresh.close()
    finally:
        cold.close()
    note = "until machine code runs; before that the interpreter does, and no step waits"
    for what, found, target, said in (("cached", cached_ms, "<= 5", ""), ("cold", cold_ms, "<= 60", note)):
        medians = {name: statistics.median(values) for name, values in found.items()}
        bench.rows.add(f"attach, {what} machine code", list(medians.values()), target, unit="ms", note=said)
        worst = max(medians, key=lambda name: medians[name])
        bench.rows.add(f"attach, {what} machine code, slowest program", found[worst], unit="ms", note=worst)


# --- peers ---------------------------------------------------------------------------------------------------------------


def numba(bench: Bench, folder: Path) -> None:
    """Each program of SOURCES over the faster of its hand-written kernels."""
    made = [sources.compiled(text) for text in sources.SOURCES.values()]
    sources.images(bench.compiler, folder, *made)
    with Peer("numba", str(folder)) as peer:
        found = peer.rounds(bench.scale.rounds, max(2, bench.scale.short // 10), 3)
    for name, kinds in peer.info["programs"].items():
        fastest = min(kinds, key=lambda kind: statistics.median(found[f"{name}: {kind}"]))
        clear = resolved(over(found, f"{name}: a/a", f"{name}: ours"), 0.10)
        said = f"numba {peer.info['version']}, {fastest} (the fastest of: {', '.join(kinds)})"
        values = over(found, f"{name}: ours", f"{name}: {fastest}")
        bench.rows.add(f"machine code / numba by hand: {name}", values, "<= 1.1", peer=said, resolved=clear)


def nnsight(bench: Bench, folder: Path) -> None:
    """Added time of the same figures of the same blocks."""
    sources.images(bench.compiler, folder, library.compile("builtin:rms,every=1"))
    with Peer("nnsight", str(folder)) as peer:
        found = peer.rounds(bench.scale.rounds, bench.scale.long // 2)
    said = f"nnsight {peer.info['version']}, figures saved out of a trace"
    name = "GPT-2 of 6 blocks, forward pass"
    bench.rows.add(f"{name}: plain", [ns / 1e6 for ns in found["plain"]], unit="ms")
    bench.control(name, found)
    added(bench, f"{name}: added time, rms of 6 blocks", found, "peer", "", said)


def transformer_lens(bench: Bench, folder: Path) -> None:
    """Added time and memory against run_with_cache."""
    sources.images(bench.compiler, folder, library.compile("builtin:rms,every=1"))
    with Peer("transformer_lens", str(folder)) as peer:
        found = peer.rounds(bench.scale.rounds, bench.scale.long // 2)
    info = peer.info
    said = f"TransformerLens {info['version']}, run_with_cache"
    name = "TransformerBridge of 6 blocks, forward pass"
    bench.rows.add(f"{name}: plain", [ns / 1e6 for ns in found["plain"]], unit="ms")
    bench.control(name, found)
    row = f"{name}: added time, rms of 6 blocks"
    added(bench, row, found, "peer", "<= 0.1", f"{said} of all names, then the same figures")
    added(bench, f"{row}, the cache alone", found, "only what is cached", "", f"{said} of all names, no figures")
    added(bench, f"{row}, only their names", found, "names_filter", "", f"{said} of those names, then the same figures")
    note = (
        f"{info['our_bytes']} bytes of program, maps and machine code against {info['peer_bytes']} of cached tensors; the sites of "
        f"the whole model, there whether a probe is attached or not, take {info['installed_bytes']} more"
    )
    bench.rows.add(f"{name}: added memory", info["our_bytes"] / info["peer_bytes"], "<= 0.001", peer=said, note=note)


def added(bench: Bench, row: str, found: Samples, case: str, target: str, peer: str) -> None:
    """Ours over theirs, both beyond the plain pass; judged where the control sees half of what the target allows us."""
    ours, theirs = more(found, "ours", "plain"), more(found, case, "plain")
    typical = statistics.median(theirs)
    bench.rows.add(f"{row}: theirs", [ns / 1e6 for ns in theirs], unit="ms", peer=peer)
    bench.rows.add(f"{row}: ours", [ns / 1e6 for ns in ours], unit="ms", peer=peer)
    # Over the median of theirs: a round's own difference may be near nothing, and a ratio of two such says nothing.
    clear = not_lost(found, case, float(target.rsplit(maxsplit=1)[-1]) if target else 1.0)
    bench.rows.add(f"{row}: ours / theirs", [ns / typical for ns in ours], target, peer=peer, resolved=clear)


def against_peers(bench: Bench, folder: Path) -> None:
    """The rows of each peer, or one that says why there are none."""
    for name, measure in (("numba", numba), ("nnsight", nnsight), ("transformer_lens", transformer_lens)):
        try:
            measure(bench, folder)
        except PeerError as e:
            bench.rows.add(f"{name}: not compared", "-", peer=name, note=str(e))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=ROUNDS, help="rounds of each row")
    parser.add_argument("--seconds", type=int, help="not used: a round has its own length")
    parser.add_argument("--quick", action="store_true", help="a smoke run; the part's file is then not written")
    parser.add_argument(
        "--only", default="", help="a part by the name of its function; the part's file is then not written"
    )
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale(rounds=max(3, options.count))
    torch.set_num_threads(1)
    context = {"seeds": [0], "load_before": round(os.getloadavg()[0], 2)}
    rows = Rows("probes", f"make bench PART=probes COUNT={scale.rounds}", context)
    bench = Bench(rows, scale, Compiler())
    with tempfile.TemporaryDirectory(prefix="recuros-bench-") as folder:
        parts: dict[str, Callable[[], None]] = {
            "fixed": lambda: fixed(bench),
            "reductions": lambda: reductions(bench),
            "verification": lambda: verification(bench),
            "attaching": lambda: attaching(bench),
            "large": lambda: twelve(bench, steps.LARGE, "<= 1.02", scale.long),
            "toy": lambda: twelve(bench, steps.TOY, "<= 1.1", scale.short),
            "suite": lambda: suite(bench),
            "peers": lambda: against_peers(bench, Path(folder)),
        }
        for name, part in parts.items():
            if options.only in ("", name):
                part()
    bench.compiler.close()
    if not (options.quick or options.only):
        rows.write()


if __name__ == "__main__":
    main()
