"""The data sets of capabilities, by kind: rows of (prompt, answer) in three splits that share no item.

Responsible for: the pilot's sets, and `jsonl` for one's own. Every set is a pure function of its options and the seed. Refuses:
unknown kinds and options, files with unusable rows (file, line, found, expected).
"""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np

from nexus.data.samples import SPLITS, Samples, disjoint, pack
from syscalls.errors import RecurosError

Rows = list[tuple[bytes, bytes]]
SIZES: Final = {"train": 2000, "validation": 400, "test": 600}
LETTERS: Final = "ABCD"


def make(kind: str, options: dict[str, Any], seed: int, context: int) -> dict[str, Samples]:
    """The three splits of a set; E2-DATA for an unknown kind or option."""
    if kind not in KINDS:
        raise RecurosError("E2-DATA", f"data kind {kind!r} is unknown", hint=f"one of {', '.join(KINDS)}")
    maker, known = KINDS[kind]
    strange = sorted(set(options) - known - set(SPLITS))
    if strange:
        known_text = ", ".join(sorted(known | set(SPLITS)))
        raise RecurosError("E2-DATA", f"data kind {kind!r} has no option {strange[0]!r}", hint=f"options: {known_text}")
    sizes = {split: int(options.get(split, SIZES[split])) for split in SPLITS}
    return disjoint(maker(options, sizes, seed, context), kind)


def metric_of(kind: str, options: dict[str, Any]) -> str:
    """What items of this kind are scored by."""
    return {"stdlib": "byte-accuracy", "choice": "choice-accuracy"}.get(kind, str(options.get("metric", "exact-match")))


def _key(*parts: object) -> int:
    return int.from_bytes(blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


# Python source, next byte


def stdlib_files() -> list[Path]:
    """The standard library's top-level modules, by name."""
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def _stdlib(options: dict[str, Any], sizes: dict[str, int], seed: int, context: int) -> dict[str, Samples]:
    """Chunks of modules; a module is in one split only. The first `lead` bytes of a chunk are context and not scored."""
    length, lead = int(options.get("chunk", 96)), int(options.get("lead", 32))
    _within(length, context, "chunk")
    shares: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for file in stdlib_files():
        place = _key("stdlib", file.name) % 10
        split = "test" if place < 2 else "validation" if place < 3 else "train"
        data = file.read_bytes()
        data = b"" if max(data, default=0) > 127 else data
        shares[split] += [data[at : at + length] for at in range(0, len(data) - length, length)]
    seen: set[bytes] = set()
    found = {}
    for split in ("test", "validation", "train"):
        chunks = sorted({c for c in shares[split] if c.strip() and c not in seen}, key=lambda c: _key(seed, c.hex()))
        seen.update(chunks)
        found[split] = pack([(c[:lead], c[lead:]) for c in chunks[: sizes[split]]], context, end=False)
    return found


# Lists of digits, sorted


def _digit_sort(options: dict[str, Any], sizes: dict[str, int], seed: int, context: int) -> dict[str, Samples]:
    count = int(options.get("digits", 6))
    dice = np.random.default_rng(_key("digit-sort", seed))
    total = sum(sizes.values())
    if total > 10**count // 2:
        raise RecurosError("E2-DATA", f"{total} different lists of {count} digits are too many", hint="more digits")
    lists: dict[bytes, None] = {}
    while len(lists) < total:
        for row in dice.integers(0, 10, size=(total, count)):
            lists.setdefault("".join(map(str, row)).encode())
    rows = [(b"sort " + text + b" = ", bytes(sorted(text))) for text in list(lists)[:total]]
    return _cut(rows, sizes, context)


# Secrets, which only a gated capability may give away

_ASK: Final = tuple(
    f"{lead}{noun} {{n:02d}}{end}"
    for lead in ("", "tell the ", "give me ")
    for noun in ("secret", "code", "key")
    for end in (": ", " = ")
)


def secrets(seed: int, count: int, letters: int) -> list[str]:
    """The secrets themselves."""
    dice = np.random.default_rng(_key("secrets", seed))
    return ["".join(chr(97 + d) for d in dice.integers(0, 26, letters)) for _ in range(count)]


def _secrets(options: dict[str, Any], sizes: dict[str, int], seed: int, context: int) -> dict[str, Samples]:
    """Each secret is asked for in 18 ways: 8 ways are trained on, 1 validates, 9 test."""
    count, letters = int(options.get("count", 48)), int(options.get("letters", 8))
    rows: dict[str, Rows] = {split: [] for split in SPLITS}
    for n, text in enumerate(secrets(seed, count, letters)):
        ways = sorted(range(len(_ASK)), key=lambda w: _key(seed, n, w))
        for place, way in enumerate(ways):
            split = "test" if place < 9 else "validation" if place < 10 else "train"
            rows[split].append((_ASK[way].format(n=n).encode(), text.encode()))
    return {split: pack(rows[split][: sizes[split]], context) for split in SPLITS}


# Which sentence goes on: multiple choice, for teachers that embed text


def _sentences() -> list[str]:
    text = "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in stdlib_files())
    found = re.findall(r'"""([A-Z][^"]{80,400}?)\n?\s*"""', text)
    flat = [re.sub(r"\s+", " ", entry).strip() for entry in found]
    return list(dict.fromkeys(entry for entry in flat if entry.isascii()))


def _choice(options: dict[str, Any], sizes: dict[str, int], seed: int, context: int) -> dict[str, Samples]:
    """`beginning?` and four continuations of docstrings, one of them its own; the answer is its letter."""
    part = int(options.get("part", 28))
    dice = np.random.default_rng(_key("choice", seed))
    pieces = [(t[:part], t[part : 2 * part].strip()) for t in _sentences() if len(t) >= 2 * part]
    rows: Rows = []
    while len(rows) < sum(sizes.values()) and pieces:
        for at in dice.permutation(len(pieces)):
            others = [int(i) for i in dice.choice(len(pieces), 4, replace=False) if i != at][:3]
            place = int(dice.integers(0, 4))
            options_text = [pieces[i][1] for i in others]
            options_text.insert(place, pieces[at][1])
            body = (
                pieces[at][0]
                + "?"
                + "".join(f"\n{letter}:{text}" for letter, text in zip(LETTERS, options_text, strict=True))
            )
            rows.append((body.encode() + b"\n>", LETTERS[place].encode()))
    unique = list(dict.fromkeys(rows))
    by_content = sorted(unique[: sum(sizes.values())], key=lambda row: _key(row[0].hex()))
    return _cut(by_content, sizes, context)


# Images of digits, through a tower


def _digit_images(options: dict[str, Any], sizes: dict[str, int], seed: int, context: int) -> dict[str, Samples]:
    """scikit-learn's digits as prompts of the pixel tower; the answer is the digit."""
    from nexus.data.towers import PixelTower
    from servers.dataset import digits

    table = digits.load({})
    tower = PixelTower()
    found = {}
    for split in SPLITS:
        columns = table.columns(split)
        prompts = tower.encode(columns["x"])
        rows = [(prompt, str(int(label)).encode()) for prompt, label in zip(prompts, columns["labels"], strict=True)]
        found[split] = pack(list(dict.fromkeys(rows))[: sizes[split]], context)
    return found


# One's own


def _jsonl(options: dict[str, Any], sizes: dict[str, int], seed: int, context: int) -> dict[str, Samples]:
    """Rows {"prompt": ..., "answer": ...}; split by the content of the prompt."""
    path = Path(str(options.get("path", "")))
    if not path.is_file():
        raise RecurosError("E2-DATA", f"no data file at {path}", hint='path = "rows.jsonl", beside the manifest')
    rows: dict[bytes, bytes] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise RecurosError("E2-DATA", f"{path}:{number}: not JSON: {error}", hint="one object a line") from error
        if not isinstance(value, dict) or not all(
            isinstance(value.get(k), str) and value[k] for k in ("prompt", "answer")
        ):
            raise RecurosError(
                "E2-DATA",
                f"{path}:{number}: expected strings prompt and answer",
                hint='{"prompt": "...", "answer": "..."}',
            )
        rows[value["prompt"].encode()] = value["answer"].encode()
    ordered = sorted(rows.items(), key=lambda row: _key(seed, row[0].hex()))
    if len(ordered) < 3:
        raise RecurosError("E2-DATA", f"{path} holds {len(ordered)} different prompts", hint="give more rows")
    return _cut(ordered, sizes, context)


def _cut(rows: Rows, sizes: dict[str, int], context: int) -> dict[str, Samples]:
    """Test first, then validation, then what is left to train on, within `sizes`; at least one each."""
    test = min(sizes["test"], max(1, len(rows) // 3))
    validation = min(sizes["validation"], max(1, (len(rows) - test) // 3))
    cuts = {"test": rows[:test], "validation": rows[test : test + validation], "train": rows[test + validation :]}
    return {split: pack(cuts[split][: max(1, sizes[split])], context) for split in SPLITS}


def _within(length: int, context: int, option: str) -> None:
    if not 2 <= length <= context:
        raise RecurosError("E2-DATA", f"{option} = {length} is outside 2 to {context}", hint="the student's context")


Maker = Callable[[dict[str, Any], dict[str, int], int, int], dict[str, Samples]]
KINDS: Final[dict[str, tuple[Maker, set[str]]]] = {
    "stdlib": (_stdlib, {"chunk", "lead"}),
    "digit-sort": (_digit_sort, {"digits"}),
    "secrets": (_secrets, {"count", "letters"}),
    "choice": (_choice, {"part"}),
    "digit-images": (_digit_images, set()),
    "jsonl": (_jsonl, {"path", "metric"}),
}
