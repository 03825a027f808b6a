"""The byte tokenizer: token n is byte n; three special tokens follow. Saved, it is an ordinary fast tokenizer directory.

Responsible for: making it. Refuses: reading special tokens out of text (a text's bytes are bytes).
"""

from __future__ import annotations

from typing import Any, Final

PAD: Final = 256
BOS: Final = 257
EOS: Final = 258
VOCABULARY: Final = 259
SPECIALS: Final = {"<|pad|>": PAD, "<|bos|>": BOS, "<|eos|>": EOS}


def byte_letters() -> dict[int, str]:
    """Byte -> the printable letter by which byte-level tokenizers write it: itself where it prints, else 256 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def byte_tokenizer(context: int | None = None) -> Any:
    """A `PreTrainedTokenizerFast` whose ids below 256 are the bytes of the text's UTF-8."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {letter: byte for byte, letter in byte_letters().items()} | SPECIALS
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    pad, bos, eos = SPECIALS
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=inner,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=context or int(1e30),
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
