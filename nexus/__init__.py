"""Applications on top of the runtime: clients of it, and above everything but the console.

Responsible for: `from nexus import NexusModel`, which imports the bundle loader (torch, transformers, safetensors) when it is asked
for and not before, so that verbs which only name this package stay fast. Refuses: importing the pipeline or anything of the runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexus.bundle.load import NexusModel

__all__ = ["NexusModel"]


def __getattr__(name: str) -> Any:
    """The loader, when it is named."""
    if name == "NexusModel":
        from nexus.bundle.load import NexusModel

        return NexusModel
    raise AttributeError(f"module 'nexus' has no attribute {name!r}")
