"""Teachers that the pilot makes itself: small byte-level Llama-like models, trained on a capability's own data.

Responsible for: weights in a directory of safetensors that stands for a user's original, the same for the same seed.
Refuses: to overwrite an original; distillation (that is the runtime's).
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nexus.data.samples import Progress, Samples, silent
from nexus.model.tokenizer import BOS, EOS, PAD, VOCABULARY, byte_tokenizer
from nexus.quiet import quiet


@dataclass(frozen=True)
class Recipe:
    """Sizes and length of training of a made teacher."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    steps: int = 400
    batch: int = 32
    lr: float = 3e-3


def make_teacher(
    path: Path, recipe: Recipe, samples: Samples, context: int, seed: int, progress: Progress = silent
) -> None:
    """Train on `samples` and save under `path`; an original that is there stays. Seeded; the caller's generators are kept."""
    if (path / "config.json").is_file():
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits whatever the number of cores, and no slower at these sizes
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = _fresh(recipe, context)
            _train(module, recipe, samples, progress, path.name)
    finally:
        torch.set_num_threads(threads)
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with quiet():
        module.save_pretrained(part)
    byte_tokenizer(context).save_pretrained(part)
    os.rename(part, path)


def _fresh(recipe: Recipe, context: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=recipe.width,
            intermediate_size=recipe.width * 8 // 3 // 8 * 8,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def _train(module: Any, recipe: Recipe, samples: Samples, progress: Progress, name: str) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    order = torch.Generator().manual_seed(torch.initial_seed())
    module.train()
    for step in range(recipe.steps):
        pick = torch.randint(0, len(samples), (recipe.batch,), generator=order).numpy()
        ((_, ids, mask),) = samples.take(pick).batches(recipe.batch)
        scored = torch.from_numpy(samples.scored[pick])
        warm = min(1.0, (step + 1) / 20)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        loss = answer_loss(module(input_ids=ids, attention_mask=mask).logits, ids, scored)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 9 or step + 1 == recipe.steps:
            progress(f"make {name}", step + 1, recipe.steps)
    module.eval()


def answer_loss(logits: Tensor, ids: Tensor, scored: Tensor) -> Tensor:
    """Mean cross-entropy over the scored tokens, in nats."""
    targets = torch.where(scored[:, 1:], ids[:, 1:], -100)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
