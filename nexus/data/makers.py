"""Teachers that a run makes itself, on a capability's own data: small byte-level Llama-like models, and a small image classifier.

Responsible for: weights in a directory of safetensors that stands for a user's original, the same for the same seed.
Refuses: to overwrite an original; distillation (that is the runtime's).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    path: Path,
    recipe: Recipe,
    samples: Samples,
    context: int,
    seed: int,
    progress: Progress = silent,
    *,
    vision: bool = False,
) -> None:
    """Train on `samples` and save under `path`; an original that is there stays. Seeded; the caller's generators are kept."""
    if (path / "config.json").is_file():
        return
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits whatever the number of cores, and no slower at these sizes
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if vision:
                _make_vision(part, recipe, samples, progress, path.name)
            else:
                _make_causal(part, recipe, samples, context, progress, path.name)
    finally:
        torch.set_num_threads(threads)
    os.rename(part, path)


def _make_causal(part: Path, recipe: Recipe, samples: Samples, context: int, progress: Progress, name: str) -> None:
    module = _fresh(recipe, context)

    def loss_of(pick: NDArray[np.int64]) -> Tensor:
        ((_, ids, mask),) = samples.take(pick).batches(recipe.batch)
        logits = module(input_ids=ids, attention_mask=mask).logits
        return answer_loss(logits, ids, torch.from_numpy(samples.scored[pick]))

    _train(module, recipe, len(samples), loss_of, progress, name)
    with quiet():
        module.save_pretrained(part)
    byte_tokenizer(context).save_pretrained(part)


def _make_vision(part: Path, recipe: Recipe, samples: Samples, progress: Progress, name: str) -> None:
    """A patch classifier on the images that the prompts hold, in the form that `recuros kfs checkout` writes."""
    from safetensors.torch import save_file

    from nexus.data.towers import PixelTower
    from servers.models.patch import PatchConfig, PatchModel

    tower, texts = PixelTower(), samples.texts()
    images = torch.from_numpy(tower.decode([prompt for prompt, _ in texts]))
    labels = torch.tensor([tower.labels.decode(answer) for _, answer in texts])
    model = PatchModel(PatchConfig(layers=recipe.layers, width=recipe.width, heads=recipe.heads))
    module = model.module

    def loss_of(pick: NDArray[np.int64]) -> Tensor:
        return functional.cross_entropy(module(images[pick])[0], labels[pick], label_smoothing=0.1)

    _train(module, recipe, len(labels), loss_of, progress, name)
    part.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, str(part / "model.safetensors"))
    (part / "config.json").write_text(json.dumps({"architecture": model.architecture}) + "\n", encoding="utf-8")


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


def _train(
    module: Any,
    recipe: Recipe,
    size: int,
    loss_of: Callable[[NDArray[np.int64]], Tensor],
    progress: Progress,
    name: str,
) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    order = torch.Generator().manual_seed(torch.initial_seed())
    module.train()
    for step in range(recipe.steps):
        pick = torch.randint(0, size, (recipe.batch,), generator=order).numpy()
        warm = min(1.0, (step + 1) / 20)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        loss = loss_of(pick)
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
