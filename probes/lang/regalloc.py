"""Choice of machine registers for virtual ones.

Responsible for: liveness over structured control, an interference graph, colouring by simplification (Chaitin 1982, with the
optimistic push of Briggs et al. 1994), and moves made away with by giving both sides one register. Refuses: spilling. There is
no memory to spill to, so a program with too many values alive at once is refused by `Pressure`, which names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from probes import isa
from probes.isa import Instruction, Operand
from probes.lang.ir import REGISTERS, Block, Ins

COUNTS: Final = {Operand.INT: isa.INT_REGS, Operand.FLOAT: isa.FLOAT_REGS, Operand.VIEW: isa.VIEW_REGS}
_MOVES: Final = frozenset({"IMOV", "FMOV", "VMOV"})


@dataclass
class Pressure(Exception):  # noqa: N818 - not an error of its own: the compiler turns it into one
    """Too many values alive at once: of which file, how many, where, and the variables among them."""

    file: Operand
    count: int
    line: int
    names: list[str]


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _successors(code: list[Ins]) -> list[tuple[int, ...]]:
    """Where control goes from each instruction; len(code) is the end."""
    out: list[tuple[int, ...]] = [(pc + 1,) for pc in range(len(code))]
    opened: list[list[int]] = []
    for pc, ins in enumerate(code):
        match ins.op.name:
            case "FOR" | "IF":
                opened.append([pc])
            case "ELSE":
                out[opened[-1][0]] = (opened[-1][0] + 1, pc + 1)
                opened[-1].append(pc)
            case "ENDIF":
                first, *alternative = opened.pop()
                if alternative:
                    out[alternative[0]] = (pc,)
                else:
                    out[first] = (first + 1, pc)
            case "ENDFOR":
                (first,) = opened.pop()
                out[first] = (first + 1, pc + 1)
                out[pc] = (first + 1, pc + 1)
    return out


def _counters(code: list[Ins]) -> dict[int, int]:
    """The counter that each ENDFOR steps, by its place: the body may not write it, so it lives up to there."""
    opened: list[int] = []
    counters: dict[int, int] = {}
    for pc, ins in enumerate(code):
        if ins.op.name == "FOR":
            opened.append(ins.d)
        elif ins.op.name == "ENDFOR":
            counters[pc] = opened.pop()
    return counters


def live_out(code: list[Ins]) -> list[int]:
    """Virtual registers alive after each instruction, as bit masks."""
    following, counters = _successors(code), _counters(code)
    before = [0] * (len(code) + 1)
    after = [0] * len(code)
    changed = True
    while changed:
        changed = False
        for pc in range(len(code) - 1, -1, -1):
            ins = code[pc]
            mask = 0
            for next_pc in following[pc]:
                mask |= before[next_pc]
            after[pc] = mask
            if ins.writes >= 0:
                mask &= ~(1 << ins.writes)
            for read in ins.reads():
                mask |= 1 << read
            if pc in counters:
                mask |= 1 << counters[pc]
            if mask != before[pc]:
                before[pc] = mask
                changed = True
    return after


def allocate(block: Block) -> tuple[tuple[Instruction, ...], tuple[int, ...]]:
    """The instructions with machine registers, moves between equal registers left out, and the source line of each."""
    colours = _colour(block)
    kept = [ins for ins in block.code if ins.op.name not in _MOVES or colours[ins.d] != colours[ins.a]]
    return tuple(_place(ins, colours) for ins in kept), tuple(ins.line for ins in kept)


def _place(ins: Ins, colours: list[int]) -> Instruction:
    def column(operand: Operand, value: int) -> int:
        return colours[value] if operand in REGISTERS and value >= 0 else max(value, 0)

    op = ins.op
    return Instruction(
        op, column(op.d, ins.d), column(op.a, ins.a), column(op.b, ins.b), column(op.aux, ins.aux), ins.imm
    )


def _colour(block: Block) -> list[int]:
    after = live_out(block.code)
    files = {file: sum(1 << reg for reg, of in enumerate(block.files) if of is file) for file in REGISTERS}
    _check(block, after, files)
    beside = [0] * len(block.files)
    partners: list[list[int]] = [[] for _ in block.files]
    used = 0
    for ins, alive in zip(block.code, after, strict=True):
        used |= sum(1 << reg for reg in set(ins.reads()))
        if ins.writes < 0:
            continue
        used |= 1 << ins.d
        other = alive & files[block.files[ins.d]] & ~(1 << ins.d)
        if (
            ins.op.name == "FOR"
        ):  # the bound keeps its register: what the verifier knows of it then stays true in the body
            other |= 1 << ins.a
        if ins.op.name in _MOVES:
            other &= ~(1 << ins.a)
            partners[ins.d].append(ins.a)
            partners[ins.a].append(ins.d)
        beside[ins.d] |= other
        for reg in _bits(other):
            beside[reg] |= 1 << ins.d
    return _select(block, _order(block, beside, used), beside, partners, after)


def _check(block: Block, after: list[int], files: dict[Operand, int]) -> None:
    """Refuse more values alive at one place than there are registers."""
    for file, mask in files.items():
        counts = [
            ((alive | (1 << ins.d if ins.writes >= 0 else 0)) & mask)
            for ins, alive in zip(block.code, after, strict=True)
        ]
        worst = max(range(len(counts)), key=lambda pc: counts[pc].bit_count(), default=-1)
        if worst >= 0 and counts[worst].bit_count() > COUNTS[file]:
            raise _pressure(block, file, worst, counts[worst])


def _pressure(block: Block, file: Operand, pc: int, alive: int) -> Pressure:
    names = sorted({block.names[reg] for reg in _bits(alive) if block.names[reg]})
    return Pressure(file, alive.bit_count(), block.code[pc].line, names)


def _order(block: Block, beside: list[int], used: int) -> list[int]:
    """Registers in the order in which they are given a colour: the easy ones last."""
    left, stack = used, []
    waiting = _bits(used)
    while waiting:
        easy = [reg for reg in waiting if (beside[reg] & left).bit_count() < COUNTS[block.files[reg]]]
        chosen = easy or [max(waiting, key=lambda reg: (beside[reg] & left).bit_count())]
        for reg in chosen:
            left &= ~(1 << reg)
        stack += chosen
        gone = set(chosen)
        waiting = [reg for reg in waiting if reg not in gone]
    return stack[::-1]


def _select(
    block: Block, order: list[int], beside: list[int], partners: list[list[int]], after: list[int]
) -> list[int]:
    colours = [-1] * len(block.files)
    for reg in order:
        taken = {colours[other] for other in _bits(beside[reg])}
        wished = [colours[other] for other in partners[reg] if colours[other] >= 0]
        file = block.files[reg]
        free = [c for c in (*wished, *range(COUNTS[file])) if c not in taken]
        if not free:
            pc = next(pc for pc, ins in enumerate(block.code) if ins.writes == reg)
            near = beside[reg] | 1 << reg
            raise _pressure(block, file, pc, near & (after[pc] | 1 << reg))
        colours[reg] = free[0]
    return colours
