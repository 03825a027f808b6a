"""TransformerLens: run_with_cache as it is called, with the figures then computed from the cache, beside `rms` on the same blocks.

The model is a TransformerBridge round a GPT-2 with random weights; ours is hooked on the same bridge's own hook points.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
import transformer_lens
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

from tests.bench._probes_time import Hooks, Turn
from tests.bench.peers import _watch
from tests.bench.peers._serve import serve

NAMES = [f"blocks.{layer}.hook_resid_post" for layer in range(_watch.LAYERS)]


def bridge() -> Any:
    """The model; its tokenizer knows the words t0, t1, ..., because the bridge wants one."""
    words = Tokenizer(models.WordLevel({f"t{n}": n for n in range(_watch.WORDS)}, unk_token="t0"))
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t1", eos_token="t1", pad_token="t2", unk_token="t0"
    )
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        made = PreTrainedTokenizerFast.from_pretrained(folder)
        return TransformerBridge.boot_transformers("gpt2", hf_model=_watch.gpt2(), tokenizer=made)


def main() -> None:
    model = bridge()
    bare = Hooks(model)
    x = _watch.tokens()
    torch.set_grad_enabled(False)

    def all_names() -> list[tuple[float, float, int]]:
        cache = model.run_with_cache(x)[1]
        return [_watch.figures(cache[name]) for name in NAMES]

    def chosen() -> list[tuple[float, float, int]]:
        cache = model.run_with_cache(x, names_filter=NAMES)[1]
        return [_watch.figures(cache[name]) for name in NAMES]

    bare.fork()
    watched = _watch.hosted(model, "on_forward:student/blocks.*.hook_out", sys.argv[1], lambda: model(x))

    def probed() -> None:
        watched.step()
        model(x)

    probed()
    ours = Hooks(model)
    bare.put()
    _watch.require_same(watched.program, all_names())
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.run_with_cache(x)[1].values()}
    serve(
        {
            "plain": Turn(lambda: model(x), bare.put),
            "a/a": Turn(lambda: model(x), bare.put),
            "peer": Turn(all_names, bare.put),
            "only what is cached": Turn(lambda: model.run_with_cache(x), bare.put),
            "names_filter": Turn(chosen, bare.put),
            "ours": Turn(probed, ours.put),
        },
        {
            "version": getattr(transformer_lens, "__version__", "4"),
            "peer_bytes": sum(held.values()),
            "our_bytes": watched.bytes,
            "installed_bytes": watched.installed,
            "sites": watched.sites,
        },
    )


if __name__ == "__main__":
    main()
