"""Teachers at work: one at a time, from the run's own copy, with per-item scores and targets over the student's bytes.

Responsible for: loading any causal or encoder family of transformers from a local directory (float32, int8 or NF4), and turning what it
knows into next-byte targets that a byte-level student can learn:
- a byte-level causal teacher: its own logits, token for token;
- a causal teacher with a tokenizer of its own: next-byte probabilities, by summing over the tokens that go on with each byte;
- a classifier: the label's text, byte by byte, weighed by its class probabilities;
- an encoder that embeds: multiple choice by cosine between question and options, as probabilities of the letters.
Refuses: anything else, with the reason; missing or tied-away heads; code that comes with a model.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nexus.app import TeacherTable
from nexus.data.samples import Progress, Samples, item_scores, silent
from nexus.data.sets import LETTERS
from nexus.model.student import find_layers
from nexus.model.tokenizer import EOS, PAD, VOCABULARY
from nexus.quiet import quiet
from servers.models import quantized
from servers.models.directory import check_weights, read_config
from syscalls.errors import RecurosError

CHOICE_TEMPERATURE: Final = 0.05
FLOOR: Final = 1e-9


@dataclass(frozen=True)
class Targets:
    """`top_ids` I16 and `top_logp` F16 [n, T, K]; see nexus.servers.targets."""

    top_ids: NDArray[np.int16]
    top_logp: NDArray[np.float16]


class Teacher(ABC):
    """A loaded teacher. `module` is what the profiler hooks."""

    module: Any

    @property
    def layers(self) -> list[torch.nn.Module]:
        """What the profiler looks at, in order."""
        return find_layers(self.module)

    @property
    def width(self) -> int:
        """Of a layer's output."""
        return int(self.module.config.hidden_size)

    @property
    def heads(self) -> int:
        """Attention heads of a layer; 0 where that is not known."""
        return int(getattr(self.module.config, "num_attention_heads", 0) or getattr(self.module.config, "n_head", 0))

    @abstractmethod
    def log_probs(self, samples: Samples, rows: slice, ids: Tensor, mask: Tensor) -> Tensor:
        """Log probabilities [B, T, VOCABULARY] of the next byte; only positions before a scored one matter."""

    @torch.no_grad()
    def scores(self, samples: Samples, metric: str, progress: Progress = silent, what: str = "") -> NDArray[np.float64]:
        """Per-item scores of the teacher itself, float64 [n]."""
        found = np.zeros(len(samples))
        for rows, ids, mask in samples.batches():
            hit = (self.log_probs(samples, rows, ids, mask).argmax(dim=-1)[:, :-1] == ids[:, 1:]).numpy()
            found[rows] = item_scores(hit, samples.scored[rows][:, 1:], metric)
            progress(what, rows.stop, len(samples))
        return found

    @torch.no_grad()
    def targets(self, samples: Samples, k: int, progress: Progress = silent, what: str = "") -> Targets:
        """The k likeliest next bytes at every position before a scored one."""
        n, width = samples.ids.shape
        top_ids = np.zeros((n, width, k), dtype=np.int16)
        top_logp = np.zeros((n, width, k), dtype=np.float16)
        for rows, ids, mask in samples.batches():
            logp, index = self.log_probs(samples, rows, ids, mask).topk(k, dim=-1)
            used = np.zeros((len(ids), width), dtype=bool)
            used[:, :-1] = samples.scored[rows][:, 1:]
            top_ids[rows] = np.where(used[..., None], index.numpy(), np.arange(k))
            top_logp[rows] = np.where(used[..., None], logp.clamp_min(np.log(FLOOR)).numpy(), np.log(1 / VOCABULARY))
            progress(what, rows.stop, n)
        return Targets(top_ids, top_logp)


class ByteTeacher(Teacher):
    """A causal model whose token n is byte n."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def log_probs(self, samples: Samples, rows: slice, ids: Tensor, mask: Tensor) -> Tensor:
        """Its softmax, cut or padded to the student's vocabulary."""
        logits = self.module(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        if logits.shape[-1] < VOCABULARY:
            logits = torch.nn.functional.pad(logits, (0, VOCABULARY - logits.shape[-1]), value=-30.0)
        return torch.log_softmax(logits[..., :VOCABULARY], dim=-1)


class TokenTeacher(Teacher):
    """A causal model with its own tokens.

    The text is cut as its tokenizer cuts it. Within a token with bytes y_1..y_m, the probability of byte b after y_1..y_j is the mass of
    tokens that begin with y_1..y_j b over the mass of those that are longer than y_1..y_j and begin with it. Other ways of cutting
    the same text are left out.
    """

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self.module, self.tokenizer = module, tokenizer
        self._bytes = token_bytes(tokenizer, int(module.config.vocab_size))
        order = sorted(range(len(self._bytes)), key=lambda i: self._bytes[i])
        self._sorted = [self._bytes[i] for i in order]
        self._order = np.asarray(order)

    def log_probs(self, samples: Samples, rows: slice, ids: Tensor, mask: Tensor) -> Tensor:
        """Row by row; what is not reached is uniform."""
        found = torch.full((*ids.shape, VOCABULARY), float(np.log(1 / VOCABULARY)))
        for i, row in enumerate(ids):
            text = bytes(int(b) for b in row if b < PAD)
            ends = int(mask[i].sum()) > len(text)
            found[i] = self._row(text, ids.shape[1], ends)
        return found

    def _row(self, text: bytes, width: int, ends: bool) -> Tensor:
        out = torch.full((width, VOCABULARY), float(np.log(1 / VOCABULARY)))
        tokens: list[int] = self.tokenizer(text.decode("utf-8", "replace"), add_special_tokens=False).input_ids
        if b"".join(self._bytes[t] for t in tokens) != text:
            raise RecurosError(
                "E2-MODEL",
                "this teacher's tokenizer does not give back the text it was given, so its tokens have no place among bytes",
                hint="use a teacher with a byte-level tokenizer, or teach through a classifier or an encoder",
            )
        start = self.tokenizer.bos_token_id
        given = torch.tensor([[start if start is not None else tokens[0], *tokens]])
        probs = torch.softmax(self.module(input_ids=given, use_cache=False).logits[0].float(), dim=-1).numpy()
        at = 0
        for place, token in enumerate(tokens):
            piece = self._bytes[token]
            for j in range(len(piece)):
                if at > 0:
                    out[at - 1] = self._next(probs[place], piece[:j])
                at += 1
        if ends and at > 0 and at - 1 < width:
            out[at - 1] = FLOOR_END
        return out

    def _next(self, probs: NDArray[np.float32], prefix: bytes) -> Tensor:
        from bisect import bisect_left

        low = bisect_left(self._sorted, prefix)
        high = bisect_left(self._sorted, prefix + b"\xff\xff\xff\xff\xff") if prefix else len(self._sorted)
        mass = np.full(VOCABULARY, FLOOR * FLOOR)
        j = len(prefix)
        index = [self._sorted[i][j] if len(self._sorted[i]) > j else EOS for i in range(low, high)]
        np.add.at(mass, np.asarray(index, dtype=np.int64), probs[self._order[low:high]])
        mass[EOS] = FLOOR * FLOOR
        return torch.from_numpy(np.log(mass / mass.sum()).astype(np.float32))


FLOOR_END: Final = torch.log_softmax(torch.where(torch.arange(VOCABULARY) == EOS, 20.0, 0.0), dim=-1)


class LetterTeacher(Teacher):
    """A teacher that gives probabilities of whole answers; targets are exact at the first scored byte of each."""

    @abstractmethod
    def answers(self, prompts: list[str]) -> tuple[list[bytes], Tensor]:
        """(answer texts, probabilities [B, answers])."""

    def log_probs(self, samples: Samples, rows: slice, ids: Tensor, mask: Tensor) -> Tensor:
        """Bytes of the answers weighed by their probabilities, given the answer's bytes so far; then the end token."""
        part = samples.take(rows)
        texts, probs = self.answers([prompt for prompt, _ in part.texts()])
        found = torch.full((*ids.shape, VOCABULARY), float(np.log(1 / VOCABULARY)))
        for i in range(len(part)):
            first = int(np.flatnonzero(part.scored[i])[0])
            said = [int(t) for t in part.ids[i, first : part.lengths[i]]]
            for j in range(len(said)):
                mass = torch.full((VOCABULARY,), FLOOR)
                for text, p in zip(texts, probs[i], strict=True):
                    tokens = [*text, EOS]
                    if tokens[:j] == said[:j] and j < len(tokens):
                        mass[tokens[j]] += float(p)
                found[i, first + j - 1] = (mass / mass.sum()).log()
        return found


class EmbeddingTeacher(LetterTeacher):
    """An encoder; mean-pooled last hidden states, cosine. The prompts are those of the data kind `choice`."""

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self.module, self.tokenizer = module, tokenizer

    def answers(self, prompts: list[str]) -> tuple[list[bytes], Tensor]:
        """Four letters."""
        texts: list[str] = []
        for prompt in prompts:
            *lines, rest = prompt.split("\n")
            if len(lines) != 1 + len(LETTERS) or len(rest) > 1:
                raise RecurosError(
                    "E2-DATA",
                    "an encoder answers questions of the data kind 'choice' only",
                    hint='data = { kind = "choice" }',
                )
            texts += [lines[0].rstrip("?"), *(line[2:] for line in lines[1:])]
        vectors = self.embed(texts).view(len(prompts), 1 + len(LETTERS), -1)
        cosine = (vectors[:, :1] * vectors[:, 1:]).sum(dim=-1)
        return [letter.encode() for letter in LETTERS], torch.softmax(cosine / CHOICE_TEMPERATURE, dim=-1)

    def embed(self, texts: list[str]) -> Tensor:
        """Unit vectors [n, width]."""
        given = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        hidden = self.module(**given).last_hidden_state.float()
        mask = given["attention_mask"][..., None].float()
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)
        return torch.nn.functional.normalize(pooled, dim=-1)


class ClassifierTeacher(LetterTeacher):
    """A sequence classifier; the answers are its own labels' names."""

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self.module, self.tokenizer = module, tokenizer
        self._labels = [str(module.config.id2label[i]) for i in range(int(module.config.num_labels))]

    def answers(self, prompts: list[str]) -> tuple[list[bytes], Tensor]:
        """Every label."""
        given = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        return [label.encode() for label in self._labels], torch.softmax(self.module(**given).logits.float(), dim=-1)


def load(table: TeacherTable, path: Path) -> Teacher:
    """A teacher from a directory; E2-MODEL with the reason when it cannot teach."""
    if table.mode == "vision":
        from nexus.data.towers import VisionTeacher
        from servers.models.registry import from_checkout

        return VisionTeacher(from_checkout(path).module)
    config = read_config(path)
    check_weights(path)
    names = [str(name) for name in config.get("architectures") or []]
    if table.mode == "causal":
        if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
            raise _refuse(
                path, f"is saved as {names or 'nothing'}, which has no language-model head", 'mode = "encoder"'
            )
        module = _module(path, "AutoModelForCausalLM", table)
        if table.tokenizer == "own":
            return TokenTeacher(module, _tokenizer(path))
        if int(module.config.vocab_size) < 256:
            raise _refuse(path, f"has {module.config.vocab_size} tokens, too few to be bytes", 'tokenizer = "own"')
        return ByteTeacher(module)
    if table.mode == "classifier":
        return ClassifierTeacher(_module(path, "AutoModelForSequenceClassification", table), _tokenizer(path))
    if table.mode == "encoder":
        return EmbeddingTeacher(_module(path, "AutoModel", table), _tokenizer(path))
    raise _refuse(path, f"mode {table.mode!r} is not taught through text", "see docs/how-to/nexus.md")


def _module(path: Path, kind: str, table: TeacherTable) -> Any:
    import transformers
    from safetensors import SafetensorError

    try:
        options = quantized.options(table.precision)
        with quiet():
            module, report = getattr(transformers, kind).from_pretrained(
                str(path),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
                dtype=torch.float32,
                **options,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        first = str(error).strip().split("\n", maxsplit=1)[0][:300]
        raise _refuse(
            path, f"cannot be loaded: {first}", "check that transformers loads it with local_files_only"
        ) from error
    missing = [name for name in report["missing_keys"] if "position_ids" not in name and "pooler" not in name]
    if missing:
        raise _refuse(
            path, f"lacks {len(missing)} tensors, the first is {missing[0]}", "save the teacher with its head"
        )
    module = module.eval().requires_grad_(False)
    if table.precision != "float32" and (reason := quantized.why_not(module)):
        raise _refuse(path, f"does not run in {table.precision} here: {reason}", 'precision = "float32", or "int8"')
    return module


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _refuse(path, f"has no tokenizer that can be read: {error}"[:300], "save it beside the model") from error


def token_bytes(tokenizer: Any, size: int) -> list[bytes]:
    """The bytes of every token; special tokens have none."""
    from nexus.model.tokenizer import byte_letters

    letters = {letter: byte for byte, letter in byte_letters().items()}
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if hasattr(tokenizer, "backend_tokenizer") else {}
    if '"ByteLevel"' not in json.dumps([backend.get("decoder"), backend.get("pre_tokenizer")]):
        raise RecurosError(
            "E2-MODEL",
            "the teacher's tokenizer is not byte-level, so its tokens are not byte strings",
            hint='teach through shared text: mode = "classifier" or "encoder"',
        )
    special = set(tokenizer.all_special_ids)
    found = []
    for i in range(size):
        token = tokenizer.convert_ids_to_tokens(i)
        known = token is not None and i not in special and all(letter in letters for letter in token)
        found.append(bytes(letters[letter] for letter in token) if known else b"")
    return found


def _refuse(path: Path, what: str, hint: str) -> RecurosError:
    return RecurosError("E2-MODEL", f"teacher {path} {what}", hint=hint)
