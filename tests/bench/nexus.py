"""What a Nexus bundle costs: adapters against the bare backbone and LoRA, loading against from_pretrained, quantized decoding, the gate.

Cases of one kind take turns, each round in another order; a ratio pairs a case with the mean of the two bare turns of its round, which
are the A/A control. Loads are repeated in processes that have imported everything, with the files in the page cache: what a cold disk
adds is the same for all. The model is drawn, not trained: its costs do not depend on its weights; whether contracts are still met
after quantization is measured by the gate on trained students, not here. Everything computes with one thread, peers too.

    make bench PART=nexus [COUNT=rounds]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nexus import NexusModel
from nexus.bundle import format as form
from nexus.bundle.load import install, load_student
from nexus.bundle.quantize import quantize_bundle
from nexus.bundle.write import write_bundle
from nexus.model.quantized import DYNAMIC, SCHEMES
from nexus.model.student import NexusConfig, NexusStudent
from nexus.model.tokenizer import byte_tokenizer
from tests.bench import _nexus_leak, _nexus_profile
from tests.bench._nexus_peers import Peft, environment
from tests.bench._rows import Rows

ROUNDS = 20
LEAK_STEPS = 400
RANKS = (64, 256)
PREFILL, DECODE = 128, 16
WIDTH, LAYERS = 1024, 8
ADAPTERS, LOADED_RANK = 7, 64
BARE = "the same student without an adapter"
PRETRAINED = "AutoModelForCausalLM.from_pretrained of the same backbone"
Clock = tuple[float, float]
Turns = dict[str, list[Clock]]


def student(width: int, layers: int) -> NexusStudent:
    """A drawn student of a size that somebody would ship."""
    shape = {
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 1024,
    }
    found = NexusStudent.create(NexusConfig(text_config=shape))
    draw = torch.Generator().manual_seed(42)
    for name, rank in [*((f"r{rank}", rank) for rank in RANKS), *((f"cap{n}", LOADED_RANK) for n in range(ADAPTERS))]:
        adapter = found.add_adapter(name, rank)
        for part in adapter.at.values():
            part.up.data.copy_(torch.randn(part.up.shape, generator=draw) * 1e-3)
    found.requires_grad_(False)
    return found


def turns(cases: dict[str, Callable[[], None]], rounds: int, ready: Callable[[], Any] = gc.collect) -> Turns:
    """Seconds by the wall and of CPU of each case in each round, in an order that changes."""
    found: Turns = {name: [] for name in cases}
    order = random.Random(42)
    names = list(cases)
    for case in cases.values():
        case()
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            ready()
            wall, cpu = time.perf_counter(), time.process_time()
            cases[name]()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return found


def ratios(found: Turns, case: str, clock: int, *bare: str) -> list[float]:
    """A case over the mean of the bare turns of its round."""
    return [
        mine[clock] / statistics.fmean(found[name][number][clock] for name in bare)
        for number, mine in enumerate(found[case])
    ]


# Adapters


def overhead(rows: Rows, model: NexusStudent, rounds: int) -> None:
    """Prefill and decode with and without an adapter."""
    ids = torch.arange(PREFILL).remainder(256)[None]
    token = torch.tensor([[65]])

    def prefill(name: str | None) -> Any:
        model.set_adapter(name)
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def decode(name: str | None) -> None:
        past = None
        model.set_adapter(name)
        with torch.inference_mode():
            for _ in range(DECODE):
                past = model(input_ids=token, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values

    names = {"first": None, "second": None, **{f"r{rank}": f"r{rank}" for rank in RANKS}}
    size = (
        f"{sum(p.numel() for p in model.backbone_parameters()) / 1e6:.0f} M parameters, width {WIDTH}, {LAYERS} layers"
    )
    for what, act, target in (("prefill", prefill, "<= 1.1"), ("decode", decode, "<= 1.15")):
        found = turns({case: (lambda a=act, n=name: a(n)) for case, name in names.items()}, rounds)
        for rank in RANKS:
            name = f"adapter of rank {rank}: {what} / bare"
            rows.add(name, ratios(found, f"r{rank}", 0, "first", "second"), target, peer=BARE, note=size)
            rows.add(f"{name}, by CPU time", ratios(found, f"r{rank}", 1, "first", "second"), peer=BARE)
        rows.add(f"A/A control: bare {what} / bare", ratios(found, "second", 0, "first"), peer="itself")
    model.set_adapter(None)


def lora(rows: Rows, peer: Peft, rounds: int) -> None:
    """The same of peft's LoRA on all linear layers."""
    for what in ("prefill", "decode"):
        pairs = [(peer.ask(f"bare_{what}"), peer.ask(f"lora_{what}")) for _ in range(rounds)]
        values = [tuned / bare for bare, tuned in pairs]
        rows.add(
            f"peft {peer.version}, LoRA on all linear layers, rank {RANKS[-1]}: {what} / bare",
            values,
            peer="its own bare model",
        )


# Loading


def loading(rows: Rows, model: NexusStudent, folder: Path, rounds: int) -> Path:
    """Loads of one backbone in several ways. Returns the bundle with seven adapters."""
    tokenizer = byte_tokenizer(1024)
    seven = [f"cap{n}" for n in range(ADAPTERS)]
    write_bundle(folder / "none", model, [], None, tokenizer)
    write_bundle(folder / "seven", model, seven, None, tokenizer)
    for name in ("none", "seven"):
        install(folder / name)
    manifest = form.read_manifest(folder / "none")
    backbone = folder / "none" / "backbone"
    ids = torch.arange(16)[None]
    with torch.inference_mode():
        found = turns(
            {
                "first": lambda: _drop(AutoModelForCausalLM.from_pretrained(backbone)),
                "second": lambda: _drop(AutoModelForCausalLM.from_pretrained(backbone)),
                "first answer": lambda: _drop(AutoModelForCausalLM.from_pretrained(backbone)(ids)),
                "bare": lambda: _drop(load_student(folder / "none", manifest, check=False)),
                "stamp": lambda: _drop(NexusModel.load(folder / "none")),
                "seven": lambda: _drop(NexusModel.load(folder / "seven")),
                "seven answer": lambda: _drop(NexusModel.load(folder / "seven").student(ids)),
                "full": lambda: _drop(NexusModel.load(folder / "none", full=True)),
            },
            rounds,
        )
    pretrained = [1e3 * wall for wall, _ in found["first"]]
    size = f"{manifest.files[form.BACKBONE][1] / 1e6:.0f} MB of backbone"
    rows.add("from_pretrained", pretrained, unit="ms", note=size)
    for case, what, target in (
        ("bare", "load the backbone, nothing checked", "<= 0.5"),
        ("stamp", "load with verification at installation (stamp)", "<= 1"),
        ("seven", f"load with {ADAPTERS} adapters of rank {LOADED_RANK} and the stamp", "<= 1.5"),
        ("full", "load and hash everything", ""),
    ):
        rows.add(f"{what} / from_pretrained", ratios(found, case, 0, "first", "second"), target, peer=PRETRAINED)
    rows.add(
        f"load with {ADAPTERS} adapters, and the first forward pass / the same of from_pretrained",
        ratios(found, "seven answer", 0, "first answer"),
        peer=PRETRAINED,
        note="weights are mapped: what loading does not read, the first pass does",
    )
    rows.add("A/A control: from_pretrained / from_pretrained", ratios(found, "second", 0, "first"), peer="itself")
    return folder / "none"


def lora_loading(rows: Rows, peer: Peft, rounds: int) -> None:
    """peft with seven adapters against from_pretrained in its own process."""
    values = [peer.ask("load_seven") / peer.ask("from_pretrained") for _ in range(rounds)]
    rows.add(
        f"peft {peer.version}: load with {ADAPTERS} LoRAs of rank 64 / from_pretrained",
        values,
        peer="its own from_pretrained",
    )


def profiling(rows: Rows, model: NexusStudent, rounds: int) -> None:
    """Stage 2's probes beside a plain forward pass."""
    found = turns(_nexus_profile.cases(model), rounds)
    size = f"{_nexus_profile.KEY_LAYERS} of {len(model.layers)} layers of {model.width}"
    for case, name, target in (
        ("covariance", "profiling: plain forward / with covariance probes", ">= .95"),
        ("incremental", "profiling: plain forward / with IncrementalPCA", ""),
    ):
        share = [1.0 / r for r in ratios(found, case, 0, "first", "second")]
        rows.add(name, share, target, peer="the plain forward pass", note=size)
    rows.add("profiling: A/A control", ratios(found, "second", 0, "first"), peer="itself")
    rows.add(
        "profiling: stored / raw float16 activations",
        _nexus_profile.stored_share(model),
        "<= .01",
        peer="200 samples of 256 tokens",
    )


def _drop(_thing: Any) -> None:
    """What was loaded is let go inside the turn, for every case alike."""


# Quantized


def quantized(rows: Rows, plain: Path, folder: Path, rounds: int) -> None:
    """Decode time and size of each scheme against the plain bundle."""
    plain_bytes = form.read_manifest(plain).files[form.BACKBONE][1]
    models = {"first": NexusModel.load(plain), "second": NexusModel.load(plain)}
    for scheme in SCHEMES:
        quantize_bundle(plain, folder / scheme, scheme)
        share = form.read_manifest(folder / scheme).files[form.BACKBONE][1] / plain_bytes
        rows.add(f"{scheme}: stored / fp32", share, peer="the plain bundle")
        if scheme in DYNAMIC:
            models[scheme] = NexusModel.load(folder / scheme)
    token = torch.tensor([[65]])

    def decode(model: NexusModel) -> None:
        past = None
        with torch.inference_mode():
            for _ in range(DECODE):
                past = model.student(input_ids=token, past_key_values=past, use_cache=True).past_key_values

    found = turns({name: (lambda m=model: decode(m)) for name, model in models.items()}, rounds)
    for scheme in sorted(DYNAMIC):
        values = ratios(found, scheme, 0, "first", "second")
        rows.add(
            f"{scheme}: decode / fp32, batch 1", values, "<= 0.6", peer="the plain bundle", note=models[scheme].runs
        )
        rows.add(
            f"{scheme}: decode / fp32, by CPU time",
            ratios(found, scheme, 1, "first", "second"),
            peer="the plain bundle",
        )
    rows.add("A/A control: fp32 decode / fp32", ratios(found, "second", 0, "first"), peer="itself")


# The gate


@contextlib.contextmanager
def traced(path: Path) -> Iterator[None]:
    """strace on this process, for system calls that name files. Begins once strace has been seen to see."""
    command = ["strace", "-f", "-q", "-s", "4096", "-e", "trace=%file", "-o", str(path), "-p", str(os.getpid())]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
        try:
            while tracer.poll() is None and not (path.exists() and "marker" in path.read_text(errors="replace")):
                path.with_name("marker").exists()
                time.sleep(0.01)
            yield
        finally:
            tracer.send_signal(signal.SIGINT)


def gate(rows: Rows, folder: Path, steps: int) -> None:
    """Leak of trained secrets, and what the operating system saw of the gated file."""
    leak = _nexus_leak.measure(folder, steps)
    note = f"{leak.asked} questions: no capability, the backbone's, the other adapter, each with and without the opt-in"
    chance = f"{_nexus_leak.CHANCE:g}"
    rows.add(
        "gate closed: secrets answered, share",
        leak.leaked / leak.asked,
        f"<= {chance}",
        note=f"{note}; chance is {chance}",
    )
    rows.add(
        "gate open: secrets answered, share (control)",
        leak.opted_in,
        ">= 0.9",
        note="an adapter that knows nothing leaks nothing",
    )
    if shutil.which("strace") is None:
        rows.add("gate closed: system calls that name the gated file", "strace is not installed")
        return
    bundle, name = folder / "leak", "canary_adapter"
    for case, opted_in, target in (("closed", False, "== 0"), ("open (control)", True, "> 0")):
        path = folder / f"trace-{opted_in}"
        with traced(path):
            install(bundle, remember=False)
            model = NexusModel.load(bundle)
            for capability in (None, "base", "open", *(["canary"] if opted_in else [])):
                model.generate("abc=", capability, opted_in, max_new_tokens=2)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        if not any("open_adapter" in line for line in lines):
            rows.add(f"gate {case}: system calls that name the gated file", "strace could not attach")
            continue
        count = sum(name in line for line in lines)
        rows.add(
            f"gate {case}: system calls that name the gated file",
            count,
            target,
            note=f"of {len(lines)} that name a file",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=ROUNDS, help="rounds of each kind")
    parser.add_argument("--seconds", type=int, help="not used: a round has its own length")
    parser.add_argument(
        "--width", type=int, default=WIDTH, help="for a quick look; the part's file is then not written"
    )
    parser.add_argument(
        "--no-peft", action="store_true", help="leave the peer out; the part's file is then not written"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    context = {"seeds": [42], "load_before": round(os.getloadavg()[0], 2), "threads": torch.get_num_threads()}
    rows = Rows("nexus", f"make bench PART=nexus COUNT={options.count}", context)
    whole = options.width == WIDTH and not options.no_peft
    with tempfile.TemporaryDirectory(prefix="recuros-bench-") as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        model = student(options.width, LAYERS)
        overhead(rows, model, options.count)
        profiling(rows, model, options.count)
        plain = loading(rows, model, folder, options.count)
        del model
        quantized(rows, plain, folder, options.count)
        python = None if options.no_peft else environment()
        if python is None:
            rows.add("peft", "not set up: its rows are missing")
        else:
            with Peft(python, plain / "backbone", folder, RANKS[-1]) as peer:
                lora(rows, peer, options.count)
                lora_loading(rows, peer, max(3, options.count // 4))
        gate(rows, folder, LEAK_STEPS if whole else LEAK_STEPS // 4)
    if whole:
        rows.write()


if __name__ == "__main__":
    main()
