"""From text to token ids.

Responsible for: the teacher's own tokenizer file, or plain bytes; and what the model's config says about the ids it takes.
Refuses: a missing or unreadable tokenizer, a vocabulary or a length beyond the model's. Torch-free: only the config and the
tokenizer file are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servers.dataset.table import data_error
from servers.models.directory import context_of, read_config

ROLES: Final = ("teacher", "student")
BYTE_VOCABULARY: Final = 256
SEQ_LEN_DEFAULT: Final = 128
ENCODE_ROWS: Final = 1024
"""Texts handed to the tokenizer at a time, so that memory stays flat on large files."""
CAUSAL_ENDINGS: Final = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Tokenizer:
    """`encode(texts, special)` gives one list of ids per text; `special` adds the tokenizer's own start and end tokens."""

    name: str
    vocabulary: int
    pad_id: int
    encode: Callable[[Sequence[str], bool], list[list[int]]]


def tokenizer_of(data: dict[str, Any], model: dict[str, Any]) -> Tokenizer:
    """The tokenizer the manifest names: "teacher" (default), "bytes", or the path of a tokenizer.json or its directory."""
    choice = str(data.get("tokenizer") or "teacher")
    config = model_config(model)
    pad = config.get("pad_token_id")
    pad_id = pad if isinstance(pad, int) and pad >= 0 else 0
    if choice == "bytes":
        made = Tokenizer("bytes", BYTE_VOCABULARY, pad_id, lambda texts, _: [list(t.encode()) for t in texts])
    else:
        made = _from_file(_tokenizer_path(choice, model), pad_id)
    for role in ROLES:
        takes = role_config(model, role).get("vocab_size")
        if isinstance(takes, int) and made.vocabulary > takes:
            raise data_error(
                f"tokenizer {made.name} has {made.vocabulary} ids, the {role}'s vocab_size is {takes}",
                "use the tokenizer that was saved with the teacher, and a student with its vocab_size",
            )
    return made


def _tokenizer_path(choice: str, model: dict[str, Any]) -> Path:
    if choice == "teacher":
        directory = str((model.get("teacher") or {}).get("path") or "")
        if not directory:
            raise data_error(
                "the teacher has no directory to take a tokenizer from", 'data.tokenizer = "bytes" or a path'
            )
        choice = directory
    path = Path(choice).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise data_error(
            f"no tokenizer at {path}", 'save one with tokenizer.save_pretrained, or data.tokenizer = "bytes"'
        )
    return path


def _from_file(path: Path, pad_id: int) -> Tokenizer:
    # The library's own thread pool would take the learner's core.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer as Fast

    try:
        fast = Fast.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every unreadable file
        raise data_error(f"tokenizer {path} cannot be read: {error}", "save the tokenizer again") from error
    fast.no_truncation()
    fast.no_padding()

    def encode(texts: Sequence[str], special: bool) -> list[list[int]]:
        return [encoding.ids for encoding in fast.encode_batch(list(texts), add_special_tokens=special)]

    return Tokenizer(str(path), int(fast.get_vocab_size(with_added_tokens=True)), pad_id, encode)


def encode_all(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> list[list[int]]:
    """Every text, in blocks."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), ENCODE_ROWS):
        ids += tokenizer.encode(texts[start : start + ENCODE_ROWS], special)
    return ids


def seq_len_of(data: dict[str, Any], model: dict[str, Any]) -> int:
    """data.seq-len, at least 2 and within the positions of teacher and student."""
    length = int(data.get("seq_len") or SEQ_LEN_DEFAULT)
    if length < 2:
        raise data_error(f"data.seq-len = {length} is below 2", "a sequence needs a token and the next one")
    for role in ROLES:
        most = context_of(role_config(model, role))
        if most is not None and length > most:
            raise data_error(
                f"data.seq-len = {length} is longer than the {role}'s context of {most} tokens",
                f"set data.seq-len = {most} or less, or use a model with more positions",
            )
    return length


def role_config(model: dict[str, Any], role: str) -> dict[str, Any]:
    """config.json of a role, or the config in its spec; {} for a built-in model."""
    spec = model.get(role) or {}
    if isinstance(spec.get("config"), dict):
        return dict(spec["config"])
    return read_config(Path(str(spec["path"])).expanduser()) if spec.get("path") else {}


def model_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config of the teacher, else of the student; {} for built-in models."""
    return role_config(model, "teacher") or role_config(model, "student")


def task_of(data: dict[str, Any], model: dict[str, Any]) -> str:
    """ "classify" or "causal-lm": what the manifest says, else what the teacher was saved as, else "classify"."""
    named = data.get("task") or (model.get("teacher") or {}).get("task")
    if named:
        if named not in ("classify", "causal-lm"):
            raise data_error(f"data.task = {named!r} is unknown", '"classify" or "causal-lm"')
        return str(named)
    architectures = model_config(model).get("architectures") or []
    return "causal-lm" if any(str(a).endswith(CAUSAL_ENDINGS) for a in architectures) else "classify"


def model_classes(model: dict[str, Any]) -> int | None:
    """How many classes the teacher (else the student) tells apart; None when its spec does not say."""
    for role in ("teacher", "student"):
        classes = (model.get(role) or {}).get("classes")
        if isinstance(classes, int):
            return classes
    config = model_config(model)
    if isinstance(config.get("id2label"), dict):
        return len(config["id2label"])
    if isinstance(config.get("num_labels"), int):
        return int(config["num_labels"])
    return 2 if config else None  # transformers' default when a config names neither


def model_label_ids(model: dict[str, Any]) -> dict[str, int]:
    """The teacher's own label names, where it was saved with some; {} otherwise, or where they only count (LABEL_0, ...)."""
    labels = model_config(model).get("label2id")
    if not isinstance(labels, dict):
        return {}
    found = {str(name): int(i) for name, i in labels.items() if isinstance(i, int)}
    return {} if all(name == f"LABEL_{i}" for name, i in found.items()) else found
