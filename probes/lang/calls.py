"""Calls in a probe's expressions: reductions, functions of numbers, macros, helpers, and loops hidden in them.

Responsible for: every function of `functions.py`; `sum`, `mean`, `min` and `max` of a generator, or of a function of views,
which is then taken for each vector along the last axis. Refuses with E8-SYNTAX: other names, other argument counts, ranks that
a function cannot take.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable
from typing import Final

from probes import isa
from probes.isa import Operand
from probes.lang import functions
from probes.lang.expressions import Expressions
from probes.lang.ir import Type, Value
from syscalls.errors import RecurosError

_FOLDS: Final = frozenset({"sum", "mean", "min", "max"})
_UNITS: Final = {"sum": 0.0, "mean": 0.0, "min": math.inf, "max": -math.inf}
_FORMS: Final = {f.name: f.form for f in (*functions.SCALARS, *functions.MACROS, *functions.REDUCTIONS)} | {
    h.name: f"{h.name}({', '.join('xy'[: len(h.views)])})" for h in functions.INLINE
}
_INSTEAD: Final = {
    "print": "emit numbers into a ring: events = map.ring(256), events.emit(tag, e)",
    "round": "floor(e + 0.5)",
    "pow": "e ** 2, or exp(k * log(e))",
    "softmax": "entropy_logits, kl_logits and lse work on logits as they are",
    "enumerate": "for i in range(x.shape[0]):",
    "zip": "for i in range(x.shape[0]): and index both",
    "log2": "log(e) / log(2.0) is log(e) * 1.4426950408889634",
    "tanh": "1.0 - 2.0 / (exp(2.0 * e) + 1.0)",
    "probe": "a probe does not call itself: recursion has no bound that can be proved; write a for loop",
}
_REFUSED_CALLS: Final = frozenset({"probe"})


class Calls:
    """Lowering of calls, on top of `Expressions`."""

    def __init__(self, expressions: Expressions) -> None:
        self.of = expressions
        self.block = expressions.block

    def call(self, node: ast.Call) -> Value:
        """The value of a call."""
        match node.func:
            case ast.Name(id=name):
                pass
            case ast.Attribute(value=ast.Name(id=owner)) if owner in self.of.unit.maps:
                raise self.of.fail(node, "a map's method gives no value", "write it on a line of its own")
            case ast.Attribute(value=ast.Name(id="map")):
                raise self.of.fail(node, "maps are declared outside probe, once", "NAME = map.array(8) at the top")
            case _:
                raise self.of.fail(node, "only functions of the language can be called", self._listed())
        if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            raise self.of.fail(node, f"{name} takes plain arguments", _FORMS.get(name, ""))
        if name in self.of.stored or name in self.of.local:
            raise self.of.fail(node, f"{name} is a variable here", "choose another name for it")
        if name in _FOLDS:
            return self._fold(node, name)
        if name in functions.REDUCTION_OPS:
            return self._reduction(node, name)
        if name in _HANDLERS:
            arguments, handler = _HANDLERS[name]
            self._arity(node, name, arguments)
            return handler(self, node)
        helper = isa.HELPER_BY_NAME.get(name)
        if helper is not None and helper.tier is not isa.Tier.ASYNC:
            return self._helper(node, helper)
        raise self._unknown(node, name)

    def _listed(self) -> str:
        return f"functions: {', '.join(sorted(functions.NAMES - {h.name for h in functions.ASYNC}))}"

    def _unknown(self, node: ast.Call, name: str) -> RecurosError:
        if name in {h.name for h in functions.ASYNC}:
            return self.of.fail(
                node,
                f"{name} runs outside the step and gives no value here",
                f"m = map.results({name!r}) outside probe, and {name}(..., into=m) on a line of its own",
            )
        if name == "range":
            return self.of.fail(node, "range stands only in a for loop", "for i in range(n):")
        if name in _REFUSED_CALLS:
            return self.of.fail(node, "recursion is refused", _INSTEAD[name])
        close = difflib.get_close_matches(name, functions.NAMES, n=3)
        instead = _INSTEAD.get(name) or (f"there are: {', '.join(close)}" if close else self._listed())
        return self.of.fail(node, f"no function {name[:64]}", instead)

    def _arity(self, node: ast.Call, name: str, count: int) -> None:
        if len(node.args) != count:
            form = _FORMS.get(name, name)
            raise self.of.fail(node, f"{name} takes {count} argument{'s' * (count != 1)}, got {len(node.args)}", form)

    # --- reductions --------------------------------------------------------------------------------------------------

    def _reduction(self, node: ast.Call, name: str) -> Value:
        op = isa.BY_NAME[functions.REDUCTION_OPS[name]]
        pair = op.b is not Operand.NONE
        self._arity(node, name, 2 if pair else 1)
        first = self._vector(node.args[0], name)
        second = -1
        if op.b is Operand.VIEW:
            other = self._vector(node.args[1], name)
            if other.rank != first.rank:
                raise self.of.fail(
                    node, f"{name} takes views of one shape, got a {first.word} and a {other.word}", _FORMS[name]
                )
            second = other.reg
        elif op.b is Operand.FLOAT:
            second = self.block.reg(self.of.as_float(node.args[1]))
        return self.reduce(op.name, first, second)

    def reduce(self, op: str, view: Value, second: int = -1) -> Value:
        """A reduction instruction; `second` is its other register, if it has one."""
        type_ = Type.INT if isa.BY_NAME[op].d is Operand.INT else Type.FLOAT
        return Value(type_, reg=self.block.emit(op, view.reg, max(second, 0)), temporary=True)

    def _vector(self, node: ast.expr, name: str) -> Value:
        view = self.of.as_view(node, name)
        if name in functions.VECTOR_ONLY and view.rank != 1:
            raise self.of.fail(
                node,
                f"{name} takes a vector, this is a {view.word}",
                f"for every row: mean({name}(...)); for one: {name}(x[i], ...)",
            )
        return view

    def _helper(self, node: ast.Call, helper: isa.Helper) -> Value:
        self._arity(node, helper.name, len(helper.views))
        regs = [view.reg for view in self.helper_views(node, helper)]
        reg = self.block.emit("CALL", regs[0], regs[1] if len(regs) > 1 else -1, aux=helper.nr)
        return Value(Type.FLOAT, reg=reg, temporary=True)

    def helper_views(self, node: ast.Call, helper: isa.Helper) -> list[Value]:
        """The views of a helper's call, of the ranks it takes."""
        views = []
        for argument, rank in zip(node.args, helper.views, strict=True):
            view = self.of.as_view(argument, helper.name)
            if view.rank != rank:
                raise self.of.fail(argument, f"{helper.name} takes a view of rank {rank}, this is a {view.word}")
            views.append(view)
        return views

    # --- sum, mean, min, max -----------------------------------------------------------------------------------------

    def _fold(self, node: ast.Call, name: str) -> Value:
        match node.args:
            case [ast.GeneratorExp() as generator]:
                return self._generator(name, generator)
            case [ast.Call(func=ast.Name(id=inner)) as call] if inner in functions.OF_VIEWS:
                return self._row_by_row(name, call)
            case [argument]:
                return self.reduce(functions.REDUCTION_OPS[name], self.of.as_view(argument, name))
            case [_, _, *_] if name in {"min", "max"}:
                return self._extreme(name, [self.of.scalar(a) for a in node.args])
        raise self.of.fail(node, f"{name} takes a view", f"{name}(x), {name}(f(r) for r in x)")

    def _extreme(self, name: str, values: list[Value]) -> Value:
        is_float = any(v.type is Type.FLOAT for v in values)
        if is_float:
            values = [self.block.to_float(v) for v in values]
        op = {"min": ("IMIN", "FMIN"), "max": ("IMAX", "FMAX")}[name][is_float]
        result = values[0]
        for value in values[1:]:
            result = self.block.apply(op, result, value, type_=Type.FLOAT if is_float else Type.INT)
        return result

    def _row_by_row(self, name: str, call: ast.Call) -> Value:
        """`mean(f(x))`: f of every vector along the last axis of its views."""
        views = [(place, self.of.value(a)) for place, a in enumerate(call.args)]
        walked = [(place, v) for place, v in views if v.type is Type.VIEW]
        ranks = {v.rank for _, v in walked}
        if ranks == {1} or len(ranks) != 1:
            what = "gives one number" if ranks == {1} else "needs views of one rank"
            raise self.of.fail(
                call, f"{name} has nothing to walk over: {ast.unparse(call.func)} {what} here", f"{name}(x)"
            )
        hidden = {f" {place}": v for place, v in walked}
        arguments: list[ast.expr] = list(call.args)
        for place, _ in walked:
            arguments[place] = ast.copy_location(ast.Name(f" {place}", ast.Load()), call.args[place])
        inner = ast.copy_location(ast.Call(call.func, arguments, []), call)
        return self._accumulate(name, lambda done: self._walk(hidden, ranks.pop(), lambda: done(self.of.scalar(inner))))

    def _walk(self, views: dict[str, Value], rank: int, done: Callable[[], None]) -> None:
        """Loops over all axes but the last; `done` runs inside with the rows bound to the hidden names."""
        outer = dict(self.of.local)
        self.of.local |= views
        if rank == 1:
            done()
        else:
            first = next(iter(views.values()))
            counter = self.block.emit("FOR", self.block.reg(self.of.dim(first, 0)))
            rows = {
                name: Value(Type.VIEW, reg=self.block.emit("ROW", view.reg, counter), rank=rank - 1)
                for name, view in views.items()
            }
            self._walk(rows, rank - 1, done)
            self.block.emit("ENDFOR")
        self.of.local = outer

    def _generator(self, name: str, node: ast.GeneratorExp) -> Value:
        return self._accumulate(name, lambda done: self.loops(node.generators, lambda: done(self.of.scalar(node.elt))))

    def loops(self, generators: list[ast.comprehension], done: Callable[[], None]) -> None:
        """The `for ... in ... if ...` parts of a generator around `done`."""
        if not generators:
            done()
            return
        first, *rest = generators
        outer = dict(self.of.local)
        if first.is_async or not isinstance(first.target, ast.Name):
            raise self.of.fail(first.target, "a generator has one plain variable", "sum(f(r) for r in x)")
        self._loop_head(first.target, first.iter)
        for condition in first.ifs:
            self.block.emit("IF", self.block.reg(self.of.scalar_condition(condition)))
        self.loops(rest, done)
        for _ in first.ifs:
            self.block.emit("ENDIF")
        self.block.emit("ENDFOR")
        self.of.local = outer

    def _loop_head(self, target: ast.Name, source: ast.expr) -> None:
        if meaning := self.of.unit.meaning(target.id):
            raise self.of.fail(target, f"{target.id} is already {meaning}", "choose another name")
        start, count, view = self.iteration(source)
        counter = self.block.emit("FOR", self.block.reg(count), of=target.id)
        value = Value(Type.INT, reg=counter)
        if view is not None:
            value = self.of.pick(view, value, 0, source)
        elif start is not None:
            value = self.block.apply("IADD", value, start, type_=Type.INT)
        self.of.local[target.id] = Value(value.type, value.reg, rank=value.rank)

    def iteration(self, node: ast.expr) -> tuple[Value | None, Value, Value | None]:
        """What a `for` runs over: (start or None for 0, number of turns, the view whose rows it takes or None)."""
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
            view = self.of.value(node)
            if view.type is not Type.VIEW:
                raise self.of.fail(node, "a loop runs over a range or a view", "for i in range(n):, for r in x:")
            return None, self.of.dim(view, 0), view
        form = "for i in range(n):, or range(a, b)"
        if node.keywords or not 1 <= len(node.args) <= 2:
            raise self.of.fail(node, "range takes one or two whole numbers; it has no step", form)
        values = [self.of.as_int(a, "a bound of range") for a in node.args]
        if len(values) == 1:
            return None, values[0], None
        low = values[0] if values[0].const is not None else Value(Type.INT, self.block.reg(values[0]))
        return low, self.block.apply("ISUB", values[1], low, type_=Type.INT), None

    def _accumulate(self, name: str, body: Callable[[Callable[[Value], None]], None]) -> Value:
        """A running sum, mean, smallest or largest over what `body` gives out, in order, from the unit of the operation."""
        total = self.block.emit("FCONST", imm=_UNITS[name])
        count = self.block.emit("FCONST", imm=0.0) if name == "mean" else -1
        op = {"sum": "FADD", "mean": "FADD", "min": "FMIN", "max": "FMAX"}[name]

        def take(value: Value) -> None:
            self.block.emit(op, total, self.block.reg(self.block.to_float(value)), d=total)
            if count >= 0:
                self.block.emit("FADD", count, self.block.emit("FCONST", imm=1.0), d=count)

        body(take)
        if count < 0:
            return Value(Type.FLOAT, reg=total)
        return Value(Type.FLOAT, reg=self.block.emit("FDIV", total, count), temporary=True)

    # --- functions of numbers and macros -----------------------------------------------------------------------------

    def _float_function(self, node: ast.Call) -> Value:
        op = {"sqrt": "FSQRT", "exp": "FEXP", "log": "FLOG"}[_name(node)]
        return self.block.apply(op, self.of.as_float(node.args[0]), type_=Type.FLOAT)

    def _floor(self, node: ast.Call) -> Value:
        value = self.of.scalar(node.args[0])
        return self.block.apply("FFLOOR", value, type_=Type.FLOAT) if value.type is Type.FLOAT else value

    def _abs(self, node: ast.Call) -> Value:
        value = self.of.scalar(node.args[0])
        is_float = value.type is Type.FLOAT
        return self.block.apply("FABS" if is_float else "IABS", value, type_=max(value.type, Type.INT))

    def _to_int(self, node: ast.Call) -> Value:
        value = self.of.scalar(node.args[0])
        if value.type is Type.FLOAT:
            return self.block.apply("F2I", value, type_=Type.INT)
        return Value(Type.INT, value.reg, value.const, temporary=value.temporary)

    def _to_float(self, node: ast.Call) -> Value:
        return self.of.as_float(node.args[0])

    def _to_bool(self, node: ast.Call) -> Value:
        return self.of.truth(self.of.scalar(node.args[0]))

    def _isfinite(self, node: ast.Call) -> Value:
        return self.block.apply("ISFINITE", self.of.as_float(node.args[0]), type_=Type.BOOL)

    def _isnan(self, node: ast.Call) -> Value:
        value = self.of.as_float(node.args[0])
        held = value if value.const is not None else Value(Type.FLOAT, self.block.reg(value))
        return self.block.apply("FNE", held, held, type_=Type.BOOL)

    def _clip(self, node: ast.Call) -> Value:
        value, low, high = (self.of.scalar(a) for a in node.args)
        return self._extreme("min", [self._extreme("max", [value, low]), high])

    def _len(self, node: ast.Call) -> Value:
        return self.of.dim(self.of.as_view(node.args[0], "len"), 0)

    def _norm(self, node: ast.Call) -> Value:
        return self.block.apply("FSQRT", self._sumsq(self.of.as_view(node.args[0], "norm")), type_=Type.FLOAT)

    def _rms(self, node: ast.Call) -> Value:
        view = self.of.as_view(node.args[0], "rms")
        return self.block.apply("FSQRT", self._per_element(self._sumsq(view), view), type_=Type.FLOAT)

    def _var(self, node: ast.Call) -> Value:
        view = self.of.as_view(node.args[0], _name(node))
        square = self._per_element(self._sumsq(view), view)
        mean = Value(Type.FLOAT, reg=self.block.emit("MEAN", view.reg))
        of_mean = self.block.apply("FMUL", mean, mean, type_=Type.FLOAT)
        difference = self.block.apply("FSUB", square, of_mean, type_=Type.FLOAT)
        result = self.block.apply("FMAX", difference, Value(Type.FLOAT, const=0.0), type_=Type.FLOAT)
        return self.block.apply("FSQRT", result, type_=Type.FLOAT) if _name(node) == "std" else result

    def _sumsq(self, view: Value) -> Value:
        return self.reduce("SUMSQ", view)

    def _per_element(self, value: Value, view: Value) -> Value:
        return self.block.apply("FDIV", value, self.block.to_float(self.of.size(view)), type_=Type.FLOAT)


def _name(node: ast.Call) -> str:
    assert isinstance(node.func, ast.Name), "the caller looked"
    return node.func.id


_HANDLERS: Final[dict[str, tuple[int, Callable[[Calls, ast.Call], Value]]]] = {
    "sqrt": (1, Calls._float_function),
    "exp": (1, Calls._float_function),
    "log": (1, Calls._float_function),
    "floor": (1, Calls._floor),
    "abs": (1, Calls._abs),
    "isfinite": (1, Calls._isfinite),
    "int": (1, Calls._to_int),
    "float": (1, Calls._to_float),
    "bool": (1, Calls._to_bool),
    "isnan": (1, Calls._isnan),
    "clip": (3, Calls._clip),
    "len": (1, Calls._len),
    "norm": (1, Calls._norm),
    "rms": (1, Calls._rms),
    "var": (1, Calls._var),
    "std": (1, Calls._var),
}
