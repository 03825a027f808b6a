"""Turning a prompt into tokens and tokens into text, one at a time.

Responsible for: prompt length, the greedy or sampled choice of a token, stopping, and text that comes out in whole characters. The
same loop serves streaming and not, so that both say the same. Refuses: prompts longer than the context.
"""

from __future__ import annotations

import codecs
import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from nexus.model.tokenizer import byte_letters
from syscalls.errors import RecurosError

HELD_TOKENS_MAX: Final = 16
STOPS_MAX: Final = 8
STOP_LETTERS_MAX: Final = 256
REPLACEMENT: Final = "\ufffd"


@dataclass(frozen=True)
class Choice:
    """How a token is chosen: greedily at temperature 0, else drawn with `seed` from the smallest set of mass `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise RecurosError(
                    "E2-LIMIT", f"{name} is {value!r}; it is from {low:g} to {high:g}", hint="leave it out"
                )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(1 << 63) <= self.seed < 1 << 63:
            raise RecurosError(
                "E2-LIMIT", f"seed is {self.seed!r}; it is a whole number of 64 bits", hint="leave it out"
            )


@dataclass
class Outcome:
    """What a generation came to, filled while it runs. `finish`: "stop" (an end token, or a stop text) or "length"."""

    prompt_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    finish: str = ""


def encode(tokenizer: Any, prompt: str, context: int | None) -> Tensor:
    """Token ids [1, T] of a prompt that fits (E2-LIMIT, E2-USAGE)."""
    if not isinstance(prompt, str):
        raise RecurosError("E2-USAGE", f"a prompt is a text, not {type(prompt).__name__}", hint="give a str")
    try:
        ids = tokenizer(prompt, split_special_tokens=True, verbose=False).input_ids
    except (UnicodeEncodeError, TypeError) as error:
        raise RecurosError("E2-USAGE", "the prompt holds half a surrogate pair, which no encoding has") from error
    if not ids:
        start = getattr(tokenizer, "bos_token_id", None)
        if start is None:
            raise RecurosError(
                "E2-USAGE", "the prompt is empty, and the tokenizer has no token to start with", hint="say something"
            )
        ids = [start]
    if context is not None and len(ids) >= context:
        raise RecurosError(
            "E2-LIMIT",
            f"the prompt has {len(ids)} tokens; the context is {context}, one of which is for the answer",
            hint="shorten the prompt",
        )
    return torch.tensor([ids])


def tokens(
    step: Callable[..., Any], ids: Tensor, choice: Choice, room: int, ends: frozenset[int], outcome: Outcome
) -> Iterator[int]:
    """New tokens, at most `room`; an end token ends it and is not handed out. `step` is the model's forward."""
    draw = torch.Generator().manual_seed(choice.seed)
    past = None
    for _ in range(room):
        out = step(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        token = _choose(out.logits[0, -1], choice, draw)
        if token in ends:
            outcome.finish = "stop"
            return
        outcome.tokens.append(token)
        yield token
        ids = torch.tensor([[token]], device=ids.device)
    outcome.finish = "length"


def _choose(logits: Tensor, choice: Choice, draw: torch.Generator) -> int:
    if choice.temperature == 0.0:
        return int(logits.argmax())
    odds = torch.softmax(logits.float().cpu() / max(choice.temperature, 1e-4), -1)
    if choice.top_p < 1.0:
        ordered, index = odds.sort(descending=True, stable=True)
        kept = ordered.cumsum(-1) - ordered < choice.top_p
        kept[0] = True
        odds = torch.zeros_like(odds).scatter(0, index, ordered * kept)
    if not math.isfinite(float(odds.sum())):
        raise RecurosError("E9-INTEGRITY", "the model's output is not finite", hint="verify the bundle")
    return int(torch.multinomial(odds, 1, generator=draw))


def checked_stops(stop: object) -> tuple[str, ...]:
    """Texts that end an answer (E2-LIMIT)."""
    given = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(given, list | tuple) or len(given) > STOPS_MAX:
        raise RecurosError(
            "E2-LIMIT", f"stop is {stop!r:.60}; it is a text, or at most {STOPS_MAX} of them", hint="fewer"
        )
    if any(not isinstance(text, str) or not 0 < len(text) <= STOP_LETTERS_MAX for text in given):
        raise RecurosError("E2-LIMIT", f"a stop text has 1 to {STOP_LETTERS_MAX} letters", hint="leave empty ones out")
    return tuple(given)


def until(pieces: Generator[str, None, None], stops: tuple[str, ...], outcome: Outcome) -> Generator[str, None, None]:
    """The pieces up to the stop text that is complete first, which is left out. What may be the beginning of one is held back."""
    held = ""
    with contextlib.closing(pieces):
        for piece in pieces:
            held += piece
            _, found = min(((at + len(stop), at) for stop in stops if (at := held.find(stop)) >= 0), default=(0, -1))
            if found >= 0:
                outcome.finish = "stop"
                if found:
                    yield held[:found]
                return
            keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
            if out := held[: len(held) - keep]:
                yield out
            held = held[len(held) - keep :]
    if held:
        yield held


class Text:
    """Text of tokens that arrive one by one; what may still become another character is held back until it cannot.

    Byte-level tokenizers go through an incremental UTF-8 decoder, so that the pieces joined are what decoding all at once gives. Others
    are decoded together with the tokens before, since with them a token's text can depend on its neighbours.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bytes = _ByteLevel.of(tokenizer)
        self._all: list[int] = []
        self._from = self._read = 0

    def push(self, token: int) -> str:
        """What this token adds; often "" inside a character of several bytes."""
        if self._bytes is not None:
            return self._bytes.push(token)
        self._all.append(token)
        return self._rest(hold=len(self._all) - self._read < HELD_TOKENS_MAX)

    def finish(self) -> str:
        """What was held back."""
        return self._bytes.finish() if self._bytes is not None else self._rest(hold=False)

    def _rest(self, *, hold: bool) -> str:
        before = self._text(self._all[self._from : self._read])
        text = self._text(self._all[self._from :])
        if hold and (text.endswith(REPLACEMENT) or len(text) <= len(before)):
            return ""
        self._from, self._read = self._read, len(self._all)
        return text[len(before) :]

    def _text(self, ids: Sequence[int]) -> str:
        found: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found


class _ByteLevel:
    """Tokens as the bytes they stand for."""

    def __init__(self, tokenizer: Any, letters: dict[str, int]) -> None:
        self._tokenizer, self._letters = tokenizer, letters
        self._special = frozenset(tokenizer.all_special_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @classmethod
    def of(cls, tokenizer: Any) -> _ByteLevel | None:
        from tokenizers import decoders

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(getattr(backend, "decoder", None), decoders.ByteLevel):
            return None
        return cls(tokenizer, {letter: byte for byte, letter in byte_letters().items()})

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        letters = self._tokenizer.convert_ids_to_tokens(token) or ""
        try:
            return self._decoder.decode(bytes(self._letters[letter] for letter in letters))
        except KeyError:  # an added token, which is written as itself
            return self._decoder.decode(letters.encode())

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
