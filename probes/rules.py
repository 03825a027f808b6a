"""The rules that a program must keep, each a method of its own, and the sentence that says which was broken and what to do.

Responsible for: every single check of the verifier and its message: source line, register, what is known of it, the way out.
The walk through the program, which decides when a rule is asked, is `verifier.Verification`.
Refuses: nothing by itself; a method that returns has found its rule kept. A rule that speaks of numbers (bounds, keys, trips,
cost) may be asked while a loop's head is still a guess that is too wide; its error then waits until the guess is settled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from probes import isa
from probes.abstract import Float, Int, bound_text
from probes.states import Head, State, View
from syscalls.errors import RecurosError

COST_MAX: Final = 4_000_000_000
"""Units of one firing, about four seconds: nothing that belongs inside a training step. What a window holds is the scheduler's
to say, at attach; this bounds what it is asked."""
TRIPS_MAX: Final = 1 << 24
"""Rounds of one loop."""
BLOCKS_MAX: Final = 32
"""Blocks within blocks, loops and conditions together; loops alone nest at most `isa.NESTING_MAX` deep."""

RULES: Final[dict[str, str]] = {
    "hook": "the program is for the hook of the contract",
    "structure": "blocks open and close in pairs, and the program ends with EXIT outside of all of them",
    "nesting": f"loops nest at most {isa.NESTING_MAX} deep, blocks of all kinds {BLOCKS_MAX}",
    "unreachable": "no instruction follows EXIT in its block",
    "undefined": "a register is written, on every way to it, before it is read",
    "counter": "the body of a loop does not write the loop's counter",
    "argument": "the hook has the view",
    "axis": "the view has the axis",
    "rank": "the view has as many axes as the instruction needs",
    "bounds": "an index is at least 0 and below the size of that very axis",
    "shape": "views taken element by element have equal shapes",
    "map": "the map is declared",
    "map-kind": "the map is of the kind that the instruction works on",
    "map-key": "a key of an array is at least 0 and below its size",
    "helper": "the helper exists, and is called the way it runs: CALL inside the step, CALL_ASYNC outside",
    "tier": "the helper's tier is allowed",
    "helper-hook": "the helper may be called from this hook",
    "right": "the rights that the helper needs are held",
    "helper-shape": "the helper gets as many views, of such ranks and shapes, as it takes",
    "helper-map": "results of a helper outside the step land in a per-site array with a cell for each",
    "trips": f"a loop runs at most {TRIPS_MAX} rounds",
    "cost": f"a firing costs at most {COST_MAX} units",
    "visits": f"the verifier looks at no more than {isa.VISITS_MAX} instructions, repeats included",
}

_KINDS: Final[dict[str, tuple[isa.MapKind, ...]]] = {
    **dict.fromkeys(("MGET", "MSET", "MADD", "MINC", "MMAX"), (isa.MapKind.ARRAY, isa.MapKind.HASH)),
    "MHIST": (isa.MapKind.LOG2, isa.MapKind.LINEAR),
    "EMIT": (isa.MapKind.RING,),
}
_LINE_CHARS_MAX: Final = 80


class Rejected(RecurosError):  # noqa: N818 - the verdict, not a mistake of ours
    """E8-VERIFY. details: rule ("E8-VERIFY:<rule>"), pc, line (0 when the program keeps no lines)."""

    def __init__(self, rule: str, pc: int, line: int, message: str, hint: str) -> None:
        details = {"rule": f"E8-VERIFY:{rule}", "pc": pc, "line": line}
        super().__init__("E8-VERIFY", message, hint=hint, details=details)

    @property
    def rule(self) -> str:
        """The rule, such as `E8-VERIFY:bounds`."""
        return str(self.details["rule"])


@dataclass
class Branch:
    """An IF that is open: how its other way begins, or, after ELSE, how the first one ended."""

    pc: int
    outer_cost: int
    other: State | None
    first_cost: int = 0
    has_else: bool = False


@dataclass
class Loop:
    """A FOR that is open. `guessed`: its head is wider than what was seen; `waiting`: the first error since then."""

    pc: int
    outer_cost: int
    counter: int
    bound: Int
    trips: int
    head: Head
    rounds: int = 0
    guessed: bool = False
    retried: bool = False
    waiting: Rejected | None = None
    settled: tuple[State | None, State | None, int] | None = field(default=None)
    """Head, end and cost of the body that held before the retry."""


class Rules:
    """The checks. Each raises `Rejected`, or returns."""

    def __init__(self, program: isa.Bytecode, contract: isa.Contract, rights: Collection[str], tiers: isa.Tier) -> None:
        self.program = program
        self.contract = contract
        self.rights = tuple(sorted(set(rights)))
        self.tiers = tiers
        self.pc = 0
        self.visits = 0
        self.stack: list[Branch | Loop] = []
        self.state: State | None = State.empty()
        self._loops = 0

    @property
    def here(self) -> State:
        """The state at `pc`, which is reached."""
        assert self.state is not None
        return self.state

    # --- refusing ------------------------------------------------------------------------------------------------------
    def refuse(self, rule: str, what: str, hint: str, pc: int | None = None) -> NoReturn:
        """Raise `Rejected` for the instruction at `pc`, the current one if None."""
        raise self._rejected(rule, what, hint, pc)

    def refuse_later(self, error: Rejected) -> None:
        """Raise `error`, or keep it while the head of a loop around it is a guess."""
        for frame in reversed(self.stack):
            if isinstance(frame, Loop) and frame.guessed:
                frame.waiting = frame.waiting or error
                return
        raise error

    def _rejected(self, rule: str, what: str, hint: str, pc: int | None = None) -> Rejected:
        pc = min(self.pc if pc is None else pc, len(self.program.code) - 1)
        line = self.program.lines[pc] if self.program.lines else 0
        return Rejected(rule, pc, line, f"{self._place(pc, line)}: {what}", hint)

    def _place(self, pc: int, line: int) -> str:
        op = self.program.code[pc].op.name
        if not line:
            return f"instruction {pc} ({op})"
        rows = self.program.source.split("\n", line)
        text = rows[line - 1].strip() if line <= len(rows) else ""
        text = "".join(c for c in text if c.isprintable())[:_LINE_CHARS_MAX]
        return f"line {line}, `{text}` ({op})" if text else f"line {line}, instruction {pc} ({op})"

    # --- the program's form --------------------------------------------------------------------------------------------
    def check_hook(self) -> None:
        """The program is written for the contract's hook."""
        if self.program.hook_kind != self.contract.hook:
            self.refuse(
                "hook",
                f"the program is for {self.program.hook_kind}, and was to be attached to {self.contract.hook}, which hands out other views",
                f"attach it to a {self.program.hook_kind} hook, or change its hook(...) line",
                0,
            )

    def check_reached(self, op: str) -> None:
        """Nothing but the end of its block follows EXIT."""
        if op in ("ELSE", "ENDIF", "ENDFOR") or (op == "EXIT" and self.pc == len(self.program.code) - 1):
            return
        self.refuse(
            "unreachable",
            "nothing gets here: every way to it has ended the firing before",
            "remove what follows the return, or return on one of the ways only",
        )

    def check_opener(self, op: str, fits: bool) -> None:
        """ELSE, ENDIF and ENDFOR belong to the block that is open."""
        if not fits:
            frame = self.stack[-1] if self.stack else None
            what = (
                "no block is open"
                if frame is None
                else f"the block open here is the {self.program.code[frame.pc].op.name} of instruction {frame.pc}"
            )
            self.refuse(
                "structure",
                f"{op} closes nothing: {what}",
                "close each FOR with ENDFOR and each IF with ENDIF, innermost first",
            )

    def check_closed(self) -> None:
        """At the end no block is open."""
        if self.stack:
            pc = self.stack[-1].pc
            op = self.program.code[pc].op.name
            self.refuse("structure", f"the block that {op} opens is never closed", f"add END{op}", pc)

    def check_ends(self) -> None:
        """The last instruction is EXIT."""
        if self.program.code[-1].op.name != "EXIT":
            self.refuse("structure", "the program does not end with EXIT", "end it with EXIT, outside of every block")

    def check_nesting(self, loop: bool) -> None:
        """Room for one more block."""
        if loop and self._loops >= isa.NESTING_MAX:
            self.refuse(
                "nesting",
                f"this loop is number {self._loops + 1} within another; the limit is {isa.NESTING_MAX}",
                "use a reduction (sum, max, dot ...) for the innermost axis: it is faster too",
            )
        if len(self.stack) >= BLOCKS_MAX:
            self.refuse("nesting", f"more than {BLOCKS_MAX} blocks are open", "split the program into several probes")

    def check_visits(self) -> None:
        """The verifier's own budget; asked when it is used up."""
        self.refuse(
            "visits",
            f"the verifier gave up here after looking at {isa.VISITS_MAX} instructions: loops within loops that change "
            "variables from round to round make it look at them again and again",
            "nest fewer loops, set variables inside the loop that uses them, or split the program into several probes",
        )

    # --- registers -----------------------------------------------------------------------------------------------------
    def check_defined(self, file: str, register: int) -> None:
        """A register that is read holds a value; asked when it does not."""
        kind = {"i": "integer", "f": "float", "v": "view"}[file]
        ways = ", or with a different number of axes on different ways" if file == "v" else ""
        self.refuse(
            "undefined",
            f"the {kind} register {file}{register} is read here, but not every way to this place has written it{ways}",
            "give the variable a value before the `if` or the loop that sets it; a loop's counter ends with its loop",
        )

    def check_counter(self, register: int, counters: Sequence[int]) -> None:
        """The register is not the counter of a loop that is open."""
        if register in counters:
            self.refuse(
                "counter",
                f"i{register} counts the rounds of a loop around this place and may not be written in it",
                "use another variable inside the loop",
            )

    # --- views ---------------------------------------------------------------------------------------------------------
    def check_argument(self, number: int) -> None:
        """The hook hands out a view of that number."""
        views = self.contract.views
        if number >= len(views):
            listed = ", ".join(f"{v.name}" for v in views) or "none"
            self.refuse(
                "argument",
                f"{self.contract.hook} has no view number {number}; it has {len(views)}",
                f"views of this hook: {listed}",
            )

    def check_axis(self, view: View, axis: int) -> None:
        """The view has the axis."""
        if axis >= len(view.dims):
            self.refuse(
                "axis",
                f"{view.text} has {_axes(len(view.dims))}, so there is no {view.text}.shape[{axis}]",
                f"the axes are 0 to {len(view.dims) - 1}",
            )

    def check_rank(self, view: View, least: int, most: int = isa.RANK_MAX) -> None:
        """The view has enough axes, and not too many."""
        rank = len(view.dims)
        if least <= rank <= most:
            return
        op = self.program.code[self.pc].op.name
        needs = f"{least}" if least == most else f"{least} or more"
        hint = (
            "take a row with x[i] until one axis is left"
            if rank > most
            else "x[i] of a vector is a number: use it as one"
        )
        self.refuse("rank", f"{view.text} has {_axes(rank)}; {op} needs {needs}", hint)

    def check_not_negative(self, what: str, register: int, value: Int) -> None:
        """An index or a key is never negative."""
        if value.low < 0:
            self.refuse_later(
                self._rejected(
                    "bounds" if what == "index" else "map-key",
                    f"the {what} (register i{register}) may be negative: it is in {_interval(value)}",
                    f"negative ones do not count from the end; use max({what}, 0) or test `if {what} >= 0:` first",
                )
            )

    def check_below(self, view: View, axis: int, register: int, value: Int) -> None:
        """An index is below the size of the axis, whatever the size is."""
        size = view.dims[axis]
        k = self.here.below(value, size)
        if k is None or k < 1:
            shape = f"{view.text}.shape[{axis}]"
            low, high = self.here.size(size)
            other = [f"{known.name}" for known in value.facts if known is not size]
            told = f"; it is only known to be bounded by {other[0]}, a different size" if other else ""
            self.refuse_later(
                self._rejected(
                    "bounds",
                    f"the index (register i{register}) is not proved to be below {shape}: it is in {_interval(value)}, "
                    f"and that size is anything from {low} to {high}{told}",
                    f"loop with `for i in range({shape}):`, or test `if i < {shape}:` first",
                )
            )

    def check_same_shape(self, a: View, b: View) -> None:
        """Both views have as many axes, and each axis is equally long."""
        if len(a.dims) != len(b.dims):
            self.refuse(
                "shape",
                f"{a.text} has {_axes(len(a.dims))} and {b.text} has {len(b.dims)}",
                "take a row of the larger one",
            )
        for axis in range(len(a.dims)):
            if not self._equal(a, b, axis):
                self.refuse(
                    "shape",
                    f"{a.text}.shape[{axis}] and {b.text}.shape[{axis}] are not proved equal: "
                    f"{self._size(a, axis)} and {self._size(b, axis)}",
                    "use views of the same size in every firing, or cut both with the same slice",
                )

    def _equal(self, a: View, b: View, axis: int) -> bool:
        p, q = a.dims[axis], b.dims[axis]
        if p is q:
            return True
        low, high = self.here.size(p)
        return low == high and (low, high) == self.here.size(q)

    def _size(self, view: View, axis: int) -> str:
        low, high = self.here.size(view.dims[axis])
        return f"{view.dims[axis].name} ({low})" if low == high else f"{view.dims[axis].name} ({low} to {high})"

    # --- maps ----------------------------------------------------------------------------------------------------------
    def check_map(self, number: int) -> None:
        """The map is declared."""
        if number >= len(self.program.maps):
            self.refuse(
                "map",
                f"there is no map number {number}; the program declares {len(self.program.maps)}",
                "declare it: name = map.array(8)",
            )

    def check_map_kind(self, op: str, spec: isa.MapSpec) -> None:
        """The instruction works on that kind of map."""
        if spec.kind not in _KINDS[op]:
            self.refuse(
                "map-kind",
                f"{spec.name} is {'an' if spec.kind == 'array' else 'a'} {spec.kind} map; {op} works on {' and '.join(_KINDS[op])}",
                "arrays and hashes take m[key] = v, histograms m.add(v), rings m.emit(tag, v)",
            )

    def check_key(self, spec: isa.MapSpec, register: int, value: Int) -> None:
        """A key of an array is below its size."""
        if value.high >= spec.size:
            self.refuse_later(
                self._rejected(
                    "map-key",
                    f"the key (register i{register}) is in {_interval(value)}; {spec.name} has keys 0 to {spec.size - 1}",
                    f"use min(key, {spec.size - 1}), make the array larger, or use a hash, which takes any key",
                )
            )

    # --- helpers -------------------------------------------------------------------------------------------------------
    def check_helper(self, number: int, tier: isa.Tier) -> None:
        """The helper exists and runs in the tier of the instruction."""
        helper = isa.HELPER_BY_NR.get(number)
        names = ", ".join(h.name for h in isa.HELPERS if h.tier is tier)
        if helper is None:
            self.refuse("helper", f"there is no helper number {number}", f"helpers for this instruction: {names}")
        if helper.tier is not tier:
            where, op = (
                ("outside the step", "CALL_ASYNC") if helper.tier is isa.Tier.ASYNC else ("inside the step", "CALL")
            )
            self.refuse("helper", f"{helper.name} runs {where}", f"use {op}; helpers for this instruction: {names}")

    def check_tier(self, helper: isa.Helper) -> None:
        """The tier is allowed."""
        if helper.tier > self.tiers:
            self.refuse(
                "tier",
                f"{helper.name} is of tier {helper.tier.name.lower()}, and only {self.tiers.name.lower()} is allowed here",
                "write it with plain instructions, or have the program verified for a higher tier",
            )

    def check_helper_hook(self, helper: isa.Helper) -> None:
        """The hook may call it."""
        if self.contract.hook not in helper.hooks:
            self.refuse(
                "helper-hook",
                f"{helper.name} cannot be called from {self.contract.hook}",
                f"its hooks: {', '.join(helper.hooks)}",
            )

    def check_right(self, helper: isa.Helper) -> None:
        """Whoever attaches the program holds the helper's rights."""
        missing = [right for right in helper.rights if right not in self.rights]
        if missing:
            self.refuse(
                "right",
                f"{helper.name} needs the right {', '.join(missing)}; held: {', '.join(self.rights) or 'none'}",
                "ask the operator for it, or leave the call out",
            )

    def check_helper_views(self, helper: isa.Helper, views: Sequence[View], unused: int) -> None:
        """Ranks and rows are what the helper takes; the column it does not use is 0."""
        if unused:
            self.refuse(
                "helper-shape",
                f"{helper.name} takes {('no view', 'one view')[len(helper.views)]}, and v{unused} is given beyond",
                "leave it out",
            )
        for view, rank in zip(views, helper.views, strict=True):
            if len(view.dims) != rank:
                self.refuse(
                    "helper-shape",
                    f"{helper.name} takes a view of {_axes(rank)}; {view.text} has {len(view.dims)}",
                    "take a row, or the whole view",
                )
        if helper.same_rows and not self._equal(views[0], views[1], 0):
            a, b = views
            self.refuse(
                "helper-shape",
                f"{helper.name} needs as many rows on both sides; {a.text} has {self._size(a, 0)} and {b.text} {self._size(b, 0)}",
                "give it views of the same rows",
            )

    def check_helper_map(self, helper: isa.Helper, spec: isa.MapSpec) -> None:
        """The map holds what the helper writes."""
        if spec.kind is not isa.MapKind.ARRAY or not spec.per_site or spec.size != len(helper.results):
            found = f"{spec.kind} of {spec.size}{' per site' if spec.per_site else ''}"
            self.refuse(
                "helper-map",
                f"{helper.name} writes {', '.join(helper.results)} into a per-site array of {len(helper.results)}; {spec.name} is: {found}",
                f"declare map.array({len(helper.results)}, per_site=True)",
            )

    # --- time ----------------------------------------------------------------------------------------------------------
    def check_trips(self, register: int, bound: Int) -> int:
        """Rounds of a loop, at most."""
        if bound.high > TRIPS_MAX:
            self.refuse_later(
                self._rejected(
                    "trips",
                    f"the loop may run {bound_text(bound.high)} rounds: its bound (register i{register}) is in {_interval(bound)}; "
                    f"the limit is {TRIPS_MAX}",
                    "bound it by a shape, `range(x.shape[0])`, or with `range(min(n, 1000))`",
                )
            )
        return max(0, min(bound.high, TRIPS_MAX))

    def check_cost(self, cost: int, pc: int, what: str) -> None:
        """A firing that costs this much is affordable."""
        if cost > COST_MAX:
            self.refuse_later(
                self._rejected(
                    "cost",
                    f"{what} costs up to {cost} units (about {cost / 1e9:.3g} s); the limit of a firing is {COST_MAX}",
                    "use a reduction instead of a loop over elements, look at fewer rows, or bound the loop with min(n, ...)",
                    pc,
                )
            )


def _axes(rank: int) -> str:
    return f"{rank} axis" if rank == 1 else f"{rank} axes"


def _interval(value: Int | Float) -> str:
    if isinstance(value, Int) and value.low == value.high:
        return f"[{bound_text(value.low)}]"
    return f"[{bound_text(value.low)}, {bound_text(value.high)}]" if isinstance(value, Int) else repr(value)
