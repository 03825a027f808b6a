"""peft's side of the benchmark of Nexus: LoRA on all linear layers, and loading a model with seven adapters.

    peft_lora.py BACKBONE FOLDER RANK        a case a line on stdin -> {"seconds": s} a line on stdout

Imports nothing of the project: its environment has peft and what peft needs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

PREFILL, DECODE, ADAPTERS = 128, 16, 7
SEVEN_RANK = 64


def lora(model: Any, rank: int) -> Any:
    """A model with a LoRA whose output counts."""
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def prefill(model: Any) -> Any:
    ids = torch.arange(PREFILL).remainder(256)[None]
    return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values


def decode(model: Any, past: Any) -> None:
    token = torch.tensor([[65]])
    for _ in range(DECODE):
        past = model(input_ids=token, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values


def main() -> None:
    backbone, folder, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    bare = AutoModelForCausalLM.from_pretrained(backbone).eval()
    tuned = lora(AutoModelForCausalLM.from_pretrained(backbone), rank)
    small = lora(AutoModelForCausalLM.from_pretrained(backbone), SEVEN_RANK)
    for number in range(ADAPTERS):
        small.save_pretrained(folder / f"lora{number}")
    del small

    def load_seven() -> None:
        model = AutoModelForCausalLM.from_pretrained(backbone)
        model = peft.PeftModel.from_pretrained(model, folder / "lora0", adapter_name="a0")
        for number in range(1, ADAPTERS):
            model.load_adapter(folder / f"lora{number}", adapter_name=f"a{number}")

    print(json.dumps({"version": peft.__version__}), file=answers, flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            case = line.strip()
            model = tuned if case.startswith("lora") else bare
            past = prefill(model) if case.endswith("decode") else None
            gc.collect()
            start = time.perf_counter()
            if case.endswith("prefill"):
                prefill(model)
            elif case.endswith("decode"):
                decode(model, past)
            elif case == "from_pretrained":
                AutoModelForCausalLM.from_pretrained(backbone)
            elif case == "load_seven":
                load_seven()
            print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
