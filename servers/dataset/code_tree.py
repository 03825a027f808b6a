"""A tree of source files for causal language modelling; whole files are held out, so no model sees a part of what it is judged on.

Responsible for: the files in the order of their paths, tokenised and cut into chunks of seq-len tokens that never cross a file.
Refuses: a folder without such files, files that are not UTF-8 under a text tokenizer (or skips them, by `on-error`). Hidden
files and folders, links and files over 1 MiB are not read. Without a path: the standard library of the running Python.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.dataset import text, tokens
from servers.dataset.rows import Errors
from servers.dataset.table import Columns, Table, content_digest, data_error, split_by_content
from syscalls.errors import RecurosError

FILE_BYTES_MAX: Final = 1 << 20
SUFFIXES_DEFAULT: Final = (".py",)
NOT_LIBRARY: Final = ("site-packages", "dist-packages", "__pycache__")

Chunks = tuple[NDArray[np.int32], NDArray[np.int64]]


def load(data: dict[str, Any], model: dict[str, Any]) -> Table:
    """Chunks "input_ids" I32 [n, T] of the files, split by file: equal files share a split."""
    root = Path(str(data["path"])).expanduser() if data.get("path") else Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise data_error(f"no folder at {root}", "relative paths start at the manifest's directory")
    suffixes = tuple(str(s) for s in data.get("suffixes") or SUFFIXES_DEFAULT)
    tokenizer, length, errors = tokens.tokenizer_of(data, model), tokens.seq_len_of(data, model), Errors.of(data)
    digests: list[bytes] = []
    chunks: list[Chunks] = []
    for file in files(root, suffixes):
        raw = file.read_bytes()
        try:
            made = text.chunked(text.ids_of(str(file), raw, tokenizer), length, tokenizer.pad_id)
        except RecurosError as error:
            errors.wrong(error)
            continue
        if len(made[0]):
            digests.append(content_digest(raw))
            chunks.append(made)
    if not chunks:
        raise data_error(f"{root} holds no file with content and an ending of {', '.join(suffixes)}", "data.suffixes")
    index = split_by_content(digests, data, f"{root} ({len(chunks)} files)")
    splits = {name: _joined([chunks[i] for i in chosen]) for name, chosen in index.items()}
    notes = {"skipped": errors.skipped, "files": len(chunks)}
    return Table(splits, "causal-lm", 0, (), notes, tuple(errors.problems))


def _joined(parts: list[Chunks]) -> Columns:
    return {
        "input_ids": np.concatenate([table for table, _ in parts]),
        "lengths": np.concatenate([lengths for _, lengths in parts]),
    }


def files(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Regular files below `root` with such an ending, in the order of their relative paths."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NOT_LIBRARY]
        for name in names:
            path = Path(folder) / name
            if name.endswith(suffixes) and not name.startswith(".") and not path.is_symlink():
                found.append((path.relative_to(root).as_posix(), path))
    for _, path in sorted(found):
        if path.is_file() and path.stat().st_size <= FILE_BYTES_MAX:
            yield path
