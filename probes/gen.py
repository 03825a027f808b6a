"""Writes the reference pages of oBPF: `python -m probes.gen`.

Responsible for: `docs/reference/obpf-isa.md`, from the instruction table, and the parts of `docs/reference/obpf-language.md` between
`<!-- made: NAME -->` and `<!-- end -->`, from the tables of the language; a test holds both against this generator. Refuses: text
of its own about an instruction or a function; what the page should say, the table says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from probes import fixedmath, isa
from probes.isa import Op, Operand
from probes.lang import compiler, functions, oneliner, parser

REFERENCE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference"
_SECTION: Final = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_GROUPS: Final = (
    (0x00, "Control"),
    (0x10, "Constants, moves, the firing"),
    (0x20, "Integers"),
    (0x30, "Floats"),
    (0x50, "Views"),
    (0x60, "Reductions"),
    (0x70, "Maps"),
    (0x80, "Helpers"),
)
_SHORT: Final = {
    Operand.INT: "i",
    Operand.FLOAT: "f",
    Operand.VIEW: "v",
    Operand.MAP: "map",
    Operand.AXIS: "axis",
    Operand.CONTEXT_INT: "name",
    Operand.CONTEXT_FLOAT: "name",
    Operand.ARGUMENT: "view",
    Operand.HELPER: "helper",
    Operand.IMM_INT: "integer",
    Operand.IMM_FLOAT: "double",
    Operand.IMM_MAP: "map",
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    out = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return out + [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]


# --- the instruction set ---------------------------------------------------------------------------------------------

_INTRO = f"""# The instruction set of oBPF

Made from `probes/isa.py` by `python -m probes.gen`. The language above it is on [its own page](obpf-language.md).

A program of ISA version {isa.ISA_VERSION} is at most {isa.INSTRUCTIONS_MAX} instructions of {isa.INSTRUCTION_BYTES} bytes over three
register files: {isa.INT_REGS} saturating 64-bit integers `i0`..`i{isa.INT_REGS - 1}`, {isa.FLOAT_REGS} IEEE doubles
`f0`..`f{isa.FLOAT_REGS - 1}` and {isa.VIEW_REGS} read-only tensor views `v0`..`v{isa.VIEW_REGS - 1}` of at most {isa.RANK_MAX} axes. There
are no jumps: FOR/ENDFOR and IF/ELSE/ENDIF nest, loops at most {isa.NESTING_MAX} deep. Nothing can observe the payload or the sign of a NaN.

    instruction = op u8 | d u8 | a u8 | b u8 | aux i32 | imm 8 bytes        little-endian; imm is i64 or f64 by opcode
    program     = "OBPF" | ISA version u16 | 0 u16 | header length u32 | header (msgpack) | instructions | SHA-256 of all before

Columns that an opcode does not use are 0; bytes that are not exactly what the encoder would have written are refused with
E8-ENCODING. A complete program in assembly, which counts the largest magnitude of each layer's output and how often it is not finite:

    .name absmax
    .hook on_forward:student/blocks.*
    .every 5
    .map layers array 2 per_site fields=largest+nonfinite
        VARG v0, x
        ABSMAX f0, v0
        ICONST i0, 0
        ISFINITE i1, f0
        IF i1
          MMAX i0, f0, @layers
        ELSE
          ICONST i0, 1
          MINC i0, @layers
        ENDIF
        EXIT

The cost of an instruction is in units of about 1 ns; *n* is the number of elements of its view, by the largest sizes of the
contract. The verifier adds them up: a loop is its body times the most rounds it can have.
"""


def _operands(op: Op) -> str:
    columns = [("d", op.d), ("a", op.a), ("b", op.b), ("aux", op.aux), ("imm", op.imm)]
    shown = []
    for name, operand in columns:
        if operand in {Operand.INT, Operand.FLOAT, Operand.VIEW}:
            shown.append(f"{name}:{_SHORT[operand]}" if name != "aux" else f"c:{_SHORT[operand]}")
        elif operand is not Operand.NONE:
            shown.append(_SHORT[operand])
    return ", ".join(shown)


def _cost(op: Op) -> str:
    if op.name in {"CALL", "CALL_ASYNC"}:
        return f"{op.cost}{' + n' if op.per_element else ''} + the helper's"
    return f"{op.cost} + {op.per_element}n" if op.per_element else str(op.cost)


def _opcodes() -> list[str]:
    out: list[str] = []
    ends = [start for start, _ in _GROUPS[1:]] + [0x100]
    for (start, title), end in zip(_GROUPS, ends, strict=True):
        group = [op for op in isa.OPS if start <= op.nr < end]
        rows = [(f"0x{op.nr:02x}", f"`{op.name}`", _operands(op), op.doc, _cost(op)) for op in group]
        out += ["", f"### {title}", "", *_table(("nr", "name", "operands", "meaning", "cost"), rows)]
    return out


def _fixed() -> list[str]:
    def listed(values: Iterable[float]) -> list[str]:
        return [f"    {k:2}  {value.hex()}" for k, value in enumerate(values)]

    doc = (fixedmath.__doc__ or "").split("\n\n")
    formulas = next(part for part in doc if part.lstrip().startswith("exp:"))
    return [
        "",
        "## Reductions in one order",
        "",
        f"A reduction reads its view in C order, every element first made a double, and adds element k into lane k mod {isa.LANES}, in",
        "order, each lane beginning at +0; then lanes 32, 16, 8, 4, 2, 1 apart are folded, `lane[j] += lane[j + stride]`, and lane 0 is",
        "the sum. Nothing is fused or reordered, so the interpreter and the machine code agree bit for bit.",
        "",
        "## exp and log",
        "",
        "Fixed sequences of additions, multiplications, one division and bit operations on doubles, each rounded by itself:",
        "",
        formulas,
        "",
        "LN2_HI, LN2_LO and 1/ln 2 are "
        f"`{fixedmath.LN2_HI.hex()}`, `{fixedmath.LN2_LO.hex()}` and `{fixedmath.INV_LN2.hex()}`.",
        f"An argument of exp is first kept inside [{fixedmath.EXP_LOW:g}, {fixedmath.EXP_HIGH:g}]. Coefficients, lowest power first, of Q:",
        "",
        *listed(fixedmath.EXP_Q),
        "",
        "and of P:",
        "",
        *listed(fixedmath.LOG_P),
    ]


def _hooks() -> list[str]:
    rows = [
        (f"`{hook}`", f"{number}: `{view.name}`", f"[{', '.join(view.dims)}]", view.doc)
        for hook, views in isa.HOOK_VIEWS.items()
        for number, view in enumerate(views)
    ]
    rows += [(f"`{hook}`", "-", "", "no views") for hook, views in isa.HOOK_VIEWS.items() if not views]
    context = [
        *((f"`{name}`", "integer", f"0 to {largest}") for name, largest in isa.CONTEXT_INTS),
        *((f"`{name}`", "float", "NaN where the hook has none") for name in isa.CONTEXT_FLOATS),
    ]
    return [
        *_table(("hook", "view", "sizes", ""), rows),
        "",
        "Equal names of sizes in one hook are equal sizes in every firing. A program of `on_kd_step` that uses `hs` or `ht` fires once",
        "for each mapped pair of layers, its site being the pair; else once for each step.",
        "",
        *_table(("value of the firing", "type", "range"), context),
        "",
        "Largest sizes assumed where no model is known yet (`recuros probe check`); at attach the live model's sizes replace them:",
        ", ".join(f"{name} {size}" for name, size in isa.REFERENCE_DIMS.items()) + ".",
    ]


def _maps() -> list[str]:
    top = isa.HIST_LOG2_LOW + isa.HIST_LOG2_BINS - 1
    rows = [
        ("`array`", "SIZE cells, keys 0 to SIZE - 1", "key must be proved", "yes"),
        ("`hash`", "at most SIZE keys of any value", "a new key in a full one is a counted drop", "no"),
        ("`log2`", f"bins of floor(log2 e) from {isa.HIST_LOG2_LOW} to {top}", "bins of its own for NaN and e <= 0", "yes"),
        ("`linear`", "SIZE equal bins over [low, high)", "bins of its own for NaN, below, above", "yes"),
        ("`ring`", "SIZE entries (step, site, tag, value)", "a full one counts a drop and keeps what it has", "no"),
    ]  # fmt: skip
    return [
        *_table(("kind", "holds", "at its edge", "per site"), rows),
        "",
        f"`per_site`: such a row for each site, {isa.SITES_MAX} at most; the site of the firing chooses it. Cells begin at 0. A map takes",
        f"at most {isa.MAP_CELLS_MAX} cells of 8 bytes, all sites together, and a program has at most {isa.MAPS_MAX} maps. Each map counts",
        "its drops and its NaNs; a NaN is never stored.",
    ]


def _helpers() -> list[str]:
    rows = [
        (
            str(h.nr),
            f"`{h.name}`",
            (", ".join(f"rank {rank}" for rank in h.views) or "none") + (", same rows" if h.same_rows else ""),
            ", ".join(f"`{hook}`" for hook in h.hooks) if set(h.hooks) != set(isa.HOOK_VIEWS) else "all",
            "outside the step" if h.tier is isa.Tier.ASYNC else "inside the step",
            f"{h.cost} + {h.per_element}n",
            h.doc + (f"; figures: {', '.join(h.results)}" if h.results else ""),
        )
        for h in isa.HELPERS
    ]
    return [
        *_table(("nr", "name", "views", "hooks", "runs", "cost", ""), rows),
        "",
        "Each needs the right `read-trace`. A helper that runs outside the step gets copies of its views over a bounded queue; when that",
        "is full, the map that takes its figures counts a drop.",
    ]


def isa_page() -> str:
    """Source of docs/reference/obpf-isa.md."""
    out = [_INTRO.rstrip(), "", "## Hooks and their views", "", *_hooks(), "", "## Maps", "", *_maps()]
    out += ["", "## Helpers", "", *_helpers(), "", "## Instructions", "", "`d` is written, `a`, `b` and `c` are read."]
    return "\n".join([*out, *_opcodes(), *_fixed()]) + "\n"


# --- the language ----------------------------------------------------------------------------------------------------


def _functions() -> list[str]:
    out = _table(
        ("of views", "gives", "", "instruction"),
        ((f"`{f.form}`", f.gives, f.doc, f"`{f.op}`") for f in functions.REDUCTIONS),
    )
    out += [""]
    out += _table(
        ("of numbers", "gives", "", "instruction"),
        ((f"`{f.form}`", f.gives, f.doc, f"`{f.op}`") for f in functions.SCALARS),
    )
    out += [""]
    out += _table(
        ("macro", "gives", "", "stands for"),
        ((f"`{f.form}`", f.gives, f.doc, f"`{f.macro}`") for f in functions.MACROS),
    )
    out += [""]
    return out + _table(
        ("helper", "", "views"),
        (
            (
                f"`{h.name}({', '.join([*'xy'[: len(h.views)], *['into=m'] * (h.tier is isa.Tier.ASYNC)])})`",
                h.doc,
                ", ".join(f"rank {rank}" for rank in h.views) or "none",
            )
            for h in isa.HELPERS
        ),
    )


def _methods() -> list[str]:
    rows = [("`m[key]`", "array, hash", "the cell; 0 for a key that a hash does not hold")]
    rows += [("`m[key] = e`, `m[key] += e`, `m[key] -= e`", "array, hash", "set it, add to it")]
    rows += [(f"`{form}`", ", ".join(kinds), doc) for form, kinds, doc in functions.METHODS.values()]
    return _table(("form", "kinds", ""), rows)


def _aggregates() -> list[str]:
    rows = [(f"`{text.partition(':')[0]}`", text.partition(": ")[2]) for text in functions.AGGREGATES.values()]
    return [
        *_table(("aggregate", ""), rows),
        "",
        f"Maps made for it: `@name[layer]` one row for each site; `@name[head]` an array of {oneliner.HEADS_KEPT} heads; `@name[step]` a",
        f"hash of {oneliner.STEPS_KEPT} steps; any other whole number a hash of {parser.HASH_DEFAULT} keys. `avg`, `min` and `max` keep a",
        "count beside the figure: cell `count` of the same array, or where there is a key a second map `name_count`.",
    ]


def _limits() -> list[str]:
    rows = [
        ("characters of a `.py` or `.obpf` source", parser.SOURCE_CHARS_MAX),
        ("parts of the syntax tree", parser.NODES_MAX),
        ("levels of the syntax tree", parser.TREE_DEPTH_MAX),
        ("one-liners in a file", oneliner.SECTIONS_MAX),
        ("instructions", isa.INSTRUCTIONS_MAX),
        ("loops inside each other", isa.NESTING_MAX),
        ("maps", isa.MAPS_MAX),
        ("whole numbers, floats, views alive at once", f"{isa.INT_REGS}, {isa.FLOAT_REGS}, {isa.VIEW_REGS}"),
        ("passes over the types of variables", compiler.PASSES_MAX),
    ]
    return _table(("limit", ""), ((name, str(value)) for name, value in rows))


SECTIONS: Final = {
    "functions": _functions,
    "methods": _methods,
    "aggregates": _aggregates,
    "limits": _limits,
}


def language_page(page: str) -> str:
    """The language page with its made parts as the tables have them."""

    def made(match: re.Match[str]) -> str:
        return match[1] + "\n".join(SECTIONS[match[2]]()) + "\n" + match[3]

    return _SECTION.sub(made, page)


def main() -> None:
    """Write both pages."""
    (REFERENCE / "obpf-isa.md").write_text(isa_page(), encoding="utf-8")
    path = REFERENCE / "obpf-language.md"
    path.write_text(language_page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
