"""Small students and bundles for the tests of Nexus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nexus.bundle.format import Manifest
from nexus.bundle.write import write_bundle
from nexus.model.router import Router
from nexus.model.student import NexusConfig, NexusStudent
from nexus.model.tokenizer import byte_tokenizer

CONTEXT = 96
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models on a busy machine wait for their second thread more than they compute. Imported, it holds for a module."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def student(adapters: Sequence[str] = ("code", "sort", "canary"), seed: int = 1, **config: Any) -> NexusStudent:
    """A small student whose adapters do something."""
    found = NexusStudent.create(NexusConfig(text_config={**SMALL, **config}), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.backbone_parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
        for name in adapters:
            found.add_adapter(name, 4)
            for parameter in found.adapter_parameters(name):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return found


def router() -> Router:
    """Code against lists of digits."""
    texts = ["def f(x): return x", "import os\nclass A:", "3 1 2", "9 8 7 7", "while True: pass", "10 4 6"]
    return Router.fit(texts, [{"code" if any(c.isalpha() for c in text) else "sort": 1.0} for text in texts])


def bundle(path: Path, made: NexusStudent | None = None, **fields: Any) -> Manifest:
    """A bundle with two open capabilities, one of them tier 2, and a gated one."""
    made = made or student()
    fields.setdefault("capabilities", {"sort": {"tier": 2}})
    return write_bundle(path, made, ["code", "sort", "canary"], router(), byte_tokenizer(CONTEXT), fields, {"canary"})
