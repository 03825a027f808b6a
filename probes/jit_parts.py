"""The modules of the run-time library and what each of them calls.

Responsible for: one list of all library modules, complete with attributes and declarations, and the modules that a text of IR
needs, directly or through others. A module is compiled once per worker; programs are linked with the finished code.
Refuses: names that no module defines.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from probes import jit_ir, jit_lanes, jit_lib

_PARTS: Final = {**jit_lib.PARTS, **jit_lanes.PARTS}
_HEAD: Final = re.compile(r"^define hidden (.*?@(\w+)\(.*?\)) #0 {$", re.MULTILINE)
_NAME: Final = re.compile(r"@(\w+)\b(?!\.)")
_ARGUMENT: Final = re.compile(r" %\w+")


@lru_cache(maxsize=1)
def _bodies() -> dict[str, str]:
    return {name: text() for name, text in _PARTS.items()}


@lru_cache(maxsize=1)
def _heads() -> dict[str, tuple[str, str]]:
    """Of each function its module and its declaration."""
    found = {}
    for part, text in _bodies().items():
        for head, name in _HEAD.findall(text):
            found[name] = (part, f"declare hidden {_ARGUMENT.sub('', head)}")
    return found


def _called(text: str) -> list[str]:
    """Library functions that a text names and does not define, sorted."""
    defined = {name for _, name in _HEAD.findall(text)}
    return sorted({name for name in _NAME.findall(text) if name in _heads()} - defined)


def complete(text: str) -> str:
    """A module of its own: the text, declarations of the library functions it calls, and the attributes."""
    return "\n".join([text, *(_heads()[name][1] for name in _called(text)), jit_ir.ATTRIBUTES, ""])


def names() -> list[str]:
    """Every module, sorted."""
    return sorted(_PARTS)


def part(name: str) -> str:
    """One module of the library, complete."""
    return complete(_bodies()[name])


def needed(text: str) -> list[str]:
    """The modules that a text calls, directly or through others, sorted."""
    found: set[str] = set()
    todo = [text]
    while todo:
        for name in _called(todo.pop()):
            owner = _heads()[name][0]
            if owner not in found:
                found.add(owner)
                todo.append(_bodies()[owner])
    return sorted(found)
