"""What the peers' models are watched with: the program `rms` on the blocks' outputs, and the same figures by torch operations.

Responsible for: `hosted`, our side, with the bytes that it takes, and `figures`, the peer's side. Shapes of the model: LAYERS blocks of
WIDTH, BATCH x TOKENS tokens, one thread; GPT-2 of Hugging Face with random weights, nothing is downloaded.
"""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from probes import library
from probes.hooks import Dispatcher
from probes.library.attached import BuiltIn
from tests.bench.peers._serve import compiler

PROG = "builtin:rms,every=1"
LAYERS, WIDTH, HEADS, WORDS, BATCH, TOKENS = 6, 256, 8, 1000, 8, 128


def gpt2() -> GPT2LMHeadModel:
    """The model, from one seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, vocab_size=WORDS, n_positions=TOKENS, bos_token_id=1, eos_token_id=1
    )
    return GPT2LMHeadModel(config).eval()


def tokens() -> Tensor:
    """[BATCH, TOKENS]."""
    return torch.randint(0, WORDS, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))


def figures(x: Tensor) -> tuple[float, float, int]:
    """Sum of squares, largest magnitude and non-finite count of a hidden state, as `rms` has them."""
    return float(x.double().square().sum()), float(x.abs().max()), int((~torch.isfinite(x)).sum())


@dataclass
class Hosted:
    """A model under our dispatcher. `bytes`: Python objects, maps and machine code of the attached program; `installed`: of the sites."""

    dispatcher: Dispatcher
    program: BuiltIn
    sites: int
    bytes: int
    installed: int
    steps: int = 0

    def step(self) -> None:
        """Before a forward pass."""
        self.steps += 1
        self.dispatcher.step(self.steps)


def hosted(model: nn.Module, hook: str, folder: str, run: object) -> Hosted:
    """Install the dispatcher on `model`, run it once for the sizes, and attach `rms` to `hook`."""
    assert callable(run)
    made = compiler(folder, library.compile(PROG))
    spare = library.build(
        PROG, 0, {"rows": BATCH * TOKENS, "width": WIDTH}, compiler=made
    )  # what every attachment shares
    spare.close()
    run()
    gc.collect()
    tracemalloc.start()
    dispatcher = Dispatcher(on_evict=_evicted)
    dispatcher.install("student", model)
    installed = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    dispatcher.step(0)
    run()
    _, dims, _ = dispatcher.match(hook)
    gc.collect()
    tracemalloc.start()
    program = library.build(PROG, 0, dims, compiler=made)
    sites = dispatcher.attach(1, hook, program)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] + program._image.bytes
    tracemalloc.stop()
    if len(sites) != LAYERS or program.backend != "jit":
        raise SystemExit(
            f"{hook} gave {len(sites)} sites, {LAYERS} were wanted; backend {program.backend}: {program.reason}"
        )
    return Hosted(dispatcher, program, len(sites), taken, installed)


def _evicted(probe_id: int, reason: str) -> None:
    raise AssertionError(f"evicted: {reason}")


def require_same(program: BuiltIn, wanted: list[tuple[float, float, int]]) -> None:
    """Both sides have the same figures of the same pass, or the comparison says nothing."""
    layers = list(program.summary()["layers"].values())
    for layer, (square, largest, _) in zip(layers, wanted, strict=True):
        rms = (square / (BATCH * TOKENS * WIDTH)) ** 0.5
        if abs(layer["rms"] - rms) > 1e-6 * rms or abs(layer["absmax"] - largest) > 1e-6 * largest:
            raise SystemExit(f"figures differ: {layer} here, rms {rms}, largest {largest} there")
