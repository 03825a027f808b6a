"""Errors of the probe languages: one sentence, its place, the line with a caret, and what is allowed instead.

Responsible for: `Text`, a source that has passed the checks every form shares (size, characters that cannot be seen), and
the E8-SYNTAX errors made from it. Refuses: nothing of the languages themselves.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from syscalls.errors import RecurosError

SHOWN_CHARS_MAX: Final = 100
"""Characters of a source line that an error shows, around the place it speaks of."""
_PLAIN: Final = frozenset("\n\t")
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


@dataclass(frozen=True)
class Text:
    """A source text with its file name. Lines and columns count from 1, columns in characters."""

    text: str
    filename: str = "probe"

    @cached_property
    def lines(self) -> list[str]:
        """The lines, split at newlines only."""
        return self.text.split("\n")

    def error(self, message: str, line: int, column: int = 1, allowed: str = "") -> RecurosError:
        """E8-SYNTAX at a place; `allowed` says what to write instead."""
        shown = self._excerpt(line, column)
        hint = "\n".join(part for part in (allowed or "see the line:", shown) if part)
        details = {"line": line, "column": column}
        return RecurosError("E8-SYNTAX", f"{self.filename}:{line}:{column}: {message}", hint=hint, details=details)

    def column(self, line: int, byte_offset: int) -> int:
        """The column of a UTF-8 byte offset in a line, as `ast` gives it."""
        if not 1 <= line <= len(self.lines):
            return 1
        return len(self.lines[line - 1].encode()[:byte_offset].decode(errors="ignore")) + 1

    def _excerpt(self, line: int, column: int) -> str:
        if not 1 <= line <= len(self.lines):
            return ""
        whole = self.lines[line - 1].expandtabs(1)
        start = max(0, min(column - 1, len(whole)) - SHOWN_CHARS_MAX // 2)
        cut = "".join(c if c.isprintable() else "?" for c in whole[start : start + SHOWN_CHARS_MAX])
        return f"    {cut}\n    {' ' * max(0, column - 1 - start)}^"


def checked(text: str, filename: str, chars_max: int) -> Text:
    """The text with newlines in one form; E8-SYNTAX when it is too long or has characters that a reader cannot see."""
    text = text.replace("\r\n", "\n")
    if len(text) > chars_max:
        raise Text("", filename).error(
            f"the source has {len(text)} characters; the limit is {chars_max}",
            1,
            allowed="a probe is small: split it into several probes",
        )
    source = Text(text, filename)
    at = next((at for at, char in enumerate(text) if _unseen(char)), -1)
    if at < 0:
        return source
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    raise source.error(
        f"character U+{ord(text[at]):04X} cannot be seen by a reader",
        line,
        column,
        "remove it; spaces, tabs and newlines are the only blanks a source may have",
    )


def _unseen(char: str) -> bool:
    return char not in _PLAIN and not " " <= char <= "~" and unicodedata.category(char) in _UNSEEN
