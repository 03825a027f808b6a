"""A plain text file for causal language modelling, cut into chunks of seq-len tokens.

Responsible for: reading, tokenising and chunking. Refuses: an empty file, bytes that are not UTF-8 under a text tokenizer,
text too short to give every split a chunk.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servers.dataset import tokens
from servers.dataset.rows import path_of
from servers.dataset.table import Columns, Table, content_digest, data_error, split_by_content

BLOCK_CHARS: Final = 1 << 16
"""Text handed to the tokenizer at a time; blocks end at a line's end, where tokenizers do not join tokens."""


def load(data: dict[str, Any], model: dict[str, Any]) -> Table:
    """Chunks "input_ids" I32 [n, T] of the file; the last one may be shorter (two tokens at least)."""
    path = path_of(data)
    raw = path.read_bytes()
    if not raw.strip():
        raise data_error(f"{path} is empty", "give a text file with content")
    length = tokens.seq_len_of(data, model)
    tokenizer = tokens.tokenizer_of(data, model)
    stream = ids_of(str(path), raw, tokenizer)
    table, lengths = chunked(stream, length, tokenizer.pad_id)
    what = f"{path} ({len(stream)} tokens in chunks of {length})"
    index = split_by_content([content_digest(chunk.tobytes()) for chunk in table], data, what)
    splits: dict[str, Columns] = {
        name: {"input_ids": table[rows], "lengths": lengths[rows]} for name, rows in index.items()
    }
    return Table(splits, "causal-lm", 0)


def chunked(stream: NDArray[np.int32], length: int, pad_id: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Chunks I32 [n, length] and their lengths I64 [n]; a last lone token is left out, since it predicts nothing."""
    chunks = -(-len(stream) // length)
    if chunks and len(stream) - (chunks - 1) * length < 2:
        chunks -= 1
    table = np.full((chunks, length), pad_id, dtype=np.int32)
    used = min(len(stream), chunks * length)
    table.reshape(-1)[:used] = stream[:used]
    lengths = np.full(chunks, length, dtype=np.int64)
    if chunks:
        lengths[-1] = used - (chunks - 1) * length
    return table, lengths


def ids_of(path: str, raw: bytes, tokenizer: tokens.Tokenizer) -> NDArray[np.int32]:
    """The token ids of a file's bytes; E2-DATA names the line that is not UTF-8."""
    if tokenizer.name == "bytes":
        return np.frombuffer(raw, dtype=np.uint8).astype(np.int32)
    return _token_ids(path, raw, tokenizer)


def _token_ids(path: str, raw: bytes, tokenizer: tokens.Tokenizer) -> NDArray[np.int32]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise data_error(
            f"{path}:{line}: byte {error.start} is not UTF-8", 'convert the file, or set data.tokenizer = "bytes"'
        ) from error
    blocks: list[str] = []
    start = 0
    while start < len(text):
        newline = text.find("\n", start + BLOCK_CHARS)
        end = len(text) if newline < 0 else newline + 1
        blocks.append(text[start:end])
        start = end
    parts = [np.asarray(ids, dtype=np.int32) for ids in tokens.encode_all(tokenizer, blocks, special=False)]
    return np.concatenate(parts)
