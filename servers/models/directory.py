"""What a Hugging Face model directory says about itself, read without torch or transformers.

Responsible for: its config, whether its safetensors files are all there and complete, and the longest sequence it takes. So the
launcher refuses a bad directory before any process starts, and the dataset server never imports torch. Refuses: a directory
that is none, a config that names no model_type, weights in pickle formats, weights that were cut off; each is E2-MODEL.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from syscalls.errors import RecurosError

WEIGHT_FILES: Final = ("model.safetensors", "model.safetensors.index.json")
HEADER_BYTES_MAX: Final = 100_000_000
"""The limit of the safetensors format itself."""
CONTEXT_KEYS: Final = ("max_position_embeddings", "n_positions", "max_seq_len")
OFFSET_TYPES: Final = frozenset(
    ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "data2vec-text", "xmod")
)
"""Architectures that count positions from pad_token_id + 1, so that many of their embeddings are never reached."""


def read_config(path: Path) -> dict[str, Any]:
    """The config of a model directory (or a config file) as a dict, or E2-MODEL with what is missing."""
    file = path / "config.json" if not path.is_file() else path
    if not path.exists():
        raise _error(f"model directory {path} does not exist", "give the path of a local Hugging Face model directory")
    if not file.is_file():
        raise _error(
            f"{path} is not a model directory: missing config.json", "give a directory written by model.save_pretrained"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _error(f"{file} cannot be read: {error}", "save the model again") from error
    if not isinstance(values, dict) or not values.get("model_type"):
        raise _error(f"{file} names no model_type", "use a config written by transformers")
    return values


def check_weights(path: Path) -> None:
    """Refuse a directory without safetensors weights, or with a file that is missing or shorter than its header says."""
    present = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if not present:
        found = sorted(p.name for p in path.glob("*.bin"))
        extra = f"; it has {', '.join(found)}, a pickle format that is never loaded" if found else ""
        raise _error(
            f"model directory {path} has no weights: missing {' or '.join(WEIGHT_FILES)}{extra}",
            "save it with model.save_pretrained(directory), which writes safetensors",
        )
    for file in present[:1] if present[0].suffix == ".safetensors" else _shards(present[0]):
        _check_complete(file)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _error(f"{index} cannot be read: {error}", "save or copy the model again") from error
    return [index.parent / str(name) for name in names]


def _check_complete(file: Path) -> None:
    """The format: 8 bytes of header length, the header as JSON, then the tensors without gaps."""
    way_out = "save or copy the model again; the file must be whole"
    if not file.is_file():
        raise _error(f"weights {file} cannot be loaded: the file is missing", way_out)
    size = file.stat().st_size
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_BYTES_MAX):
            raise _error(f"weights {file} cannot be loaded: {size} bytes are less than its header needs", way_out)
        try:
            header = json.loads(source.read(length))
            ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _error(f"weights {file} cannot be loaded: its header is not one of safetensors", way_out) from error
    if size != needed:
        raise _error(
            f"weights {file} cannot be loaded: it has {size} bytes, its header describes {needed}; it was cut off or changed",
            way_out,
        )


def context_of(config: dict[str, Any]) -> int | None:
    """The longest sequence, in tokens, that this config has positions for; None when it does not say."""
    for key in CONTEXT_KEYS:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            if config.get("model_type") in OFFSET_TYPES:
                pad = config.get("pad_token_id")
                return value - 1 - (pad if isinstance(pad, int) else 1)
            return value
    return None


def _error(message: str, hint: str) -> RecurosError:
    return RecurosError("E2-MODEL", message, hint=hint)
