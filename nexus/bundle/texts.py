"""The texts inside a bundle that people read.

Responsible for: README.md and the note that stands as LICENSE where the caller gives none. Refuses: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

LICENCE_NOTE: Final = (
    "No licence was given when this bundle was written. Nothing is granted by it; ask whoever gave it to you,\n"
    "and see the licence notes of its teachers in manifest.json under lineage.\n"
)
LOADER_NOTE: Final = 'Without RecurOS: `python nexus.pyz generate "a prompt"`, `python nexus.pyz serve`, or put `nexus.pyz` on `sys.path`.'
BACKBONE_NOTE: Final = (
    'The backbone alone is an ordinary model: `AutoModelForCausalLM.from_pretrained("this/directory/backbone")`.'
)


def readme(name: str, capabilities: Mapping[str, Mapping[str, Any]], scheme: str = "none") -> str:
    """A bundle's README.md."""
    rows = [
        f"| {key} | {entry['rank'] or 'backbone'} | {entry['tier']} | {'yes' if entry['gated'] else 'no'} |"
        for key, entry in capabilities.items()
    ]
    return "\n".join(
        [
            f"# {name}",
            "",
            "A student model with one adapter a capability. It needs torch, transformers and safetensors, no runtime and no teacher.",
            "",
            "| capability | adapter rank | tier | gated |",
            "|---|---|---|---|",
            *rows,
            "",
            "```python",
            "from nexus import NexusModel",
            "",
            'model = NexusModel.load("this/directory", device="cpu")',
            'print(model.generate("a prompt"))  # the router chooses; or capability="..."',
            "```",
            "",
            LOADER_NOTE,
            BACKBONE_NOTE
            if scheme == "none"
            else f"Its backbone is quantized ({scheme}); plain transformers cannot load it.",
            "A gated capability answers only to `generate(..., capability=NAME, enable_uncensored=True)`.",
            "`manifest.json` lists every file with its SHA-256; `verify_report.json` is what the gate measured.",
            "",
        ]
    )
