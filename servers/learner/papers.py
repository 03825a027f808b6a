"""The papers of a run: everything a replay or a checkout needs that is neither in a snapshot nor in a record.

Responsible for: one JSON object a run (settings, phases, data, environment, digests of the sources) and the tokenizer's files,
stored with the first window and named by every commit, so that a store is complete by itself. Refuses: to store data sets or
anything outside the files a tokenizer is loaded from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from servers.learner.provenance import code_files
from servers.learner.state import Leaf, blob_of

VERSION: Final = 1
KIND: Final = "report"
SETTINGS: Final = ("app", "seed", "deterministic", "model", "data", "policy", "phases")
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
FILE_BYTES_MAX: Final = 64 << 20

Extras = dict[str, tuple[str, Leaf]]
"""Object id -> (kind, leaf) of what is staged beside a snapshot."""


def papers_of(config: Mapping[str, Any], env: Mapping[str, str], code: str) -> tuple[str, Extras]:
    """The id of the papers, and the objects to store: the papers themselves and every file that they name."""
    extras: Extras = {}
    files: dict[str, str] = {}
    for path in _tokenizer_files(config):
        data = path.read_bytes()
        leaf = Leaf("U8", (len(data),), memoryview(data))
        files[path.name] = leaf.id
        extras[leaf.id] = (KIND, leaf)
    document = {
        "version": VERSION,
        **{key: config[key] for key in SETTINGS if key in config},
        "env": dict(env),
        "code": {"digest": code, "files": code_files()},
        "files": files,
    }
    leaf = blob_of(document)
    return leaf.id, {**extras, leaf.id: (KIND, leaf)}


def _tokenizer_files(config: Mapping[str, Any]) -> list[Path]:
    """The tokenizer's files that the run reads, in a fixed order; none where texts are read as bytes or are images."""
    choice = str((config.get("data") or {}).get("tokenizer") or "teacher")
    if choice == "bytes":
        return []
    model = config.get("model") or {}
    if choice == "teacher":
        choice = next((str(p) for r in ("teacher", "student") if (p := (model.get(r) or {}).get("path"))), "")
    if not choice:
        return []
    path = Path(choice).expanduser()
    folder = path if path.is_dir() else path.parent
    found = [folder / name for name in TOKENIZER_FILES]
    return [file for file in found if file.is_file() and file.stat().st_size <= FILE_BYTES_MAX]
