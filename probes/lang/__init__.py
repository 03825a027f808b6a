"""The languages of oBPF programs, from text to bytecode; standard library and the instruction table only.

Responsible for: `compile_source` and `compile_all` by a file's suffix, `assemble` and `disassemble`. A source is parsed, never executed.
Refuses with E8-SYNTAX, giving line, column and what is allowed: whatever is not in the language. It judges no safety.

    .py     restricted Python: hook(...), maps, `def probe(...)`
    .obpf   one-liners: HOOK [every N] [/condition/] { @name[key] = count(); ... }
    .asm    text assembly
"""

from __future__ import annotations

from probes.isa import Bytecode
from probes.lang.asm import assemble, disassemble
from probes.lang.compiler import compile_unit
from probes.lang.oneliner import parse_all
from probes.lang.parser import parse
from probes.lang.position import Text

__all__ = ["SUFFIXES", "assemble", "compile_all", "compile_source", "disassemble"]

SUFFIXES = (".py", ".obpf", ".asm")


def compile_source(text: str, filename: str) -> Bytecode:
    """The program of a source; of a file of several one-liners, the first. E8-SYNTAX otherwise."""
    return compile_all(text, filename)[0]


def compile_all(text: str, filename: str) -> list[Bytecode]:
    """Every program of a source: one, but for a file of several one-liners."""
    if filename.endswith(".py"):
        return [compile_unit(parse(text, filename))]
    if filename.endswith(".asm"):
        return [assemble(text, filename)]
    if filename.endswith(".obpf"):
        return [compile_unit(unit) for unit in parse_all(text, filename)]
    raise Text("", filename).error("the suffix says no language", 1, 1, f"sources end in {', '.join(SUFFIXES)}")
