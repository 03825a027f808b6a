"""Expressions of a probe into instructions.

Responsible for: numbers, names, arithmetic, comparisons, conditions and indexing; the types of values (see the reference page).
Refuses with E8-SYNTAX, in a sentence of its own for each: every expression of Python that a probe does not have.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from probes import isa
from probes.isa import MapSpec
from probes.lang import functions
from probes.lang.ir import Block, Ins, Type, Value
from probes.lang.parser import Unit, limited
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from probes.lang.calls import Calls

_ARITHMETIC: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.Add: ("IADD", "FADD"),
    ast.Sub: ("ISUB", "FSUB"),
    ast.Mult: ("IMUL", "FMUL"),
}
_INTEGER: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.FloorDiv: ("IDIV", "// takes whole numbers: write floor(a / b)"),
    ast.Mod: ("IMOD", "% takes whole numbers: write a - floor(a / b) * b"),
    ast.BitAnd: ("IAND", "& takes whole numbers"),
    ast.BitOr: ("IOR", "| takes whole numbers"),
    ast.BitXor: ("IXOR", "^ takes whole numbers"),
}
_COMPARE: Final[dict[type[ast.cmpop], tuple[str, str, bool]]] = {
    ast.Lt: ("ILT", "FLT", False),
    ast.Gt: ("ILT", "FLT", True),
    ast.LtE: ("ILE", "FLE", False),
    ast.GtE: ("ILE", "FLE", True),
    ast.Eq: ("IEQ", "FEQ", False),
    ast.NotEq: ("INE", "FNE", False),
}
"""Integer and float instruction, and whether the operands change places."""
_REFUSED: Final[dict[type[ast.expr], tuple[str, str]]] = {
    ast.Lambda: ("a probe has no lambda", "write the expression where it is needed"),
    ast.Dict: ("a probe has no dictionaries", "declare a map: NAME = map.hash(64)"),
    ast.Set: ("a probe has no sets", "declare a map: NAME = map.hash(64)"),
    ast.List: ("a probe has no lists", "declare a map: NAME = map.array(8), or use one variable for each number"),
    ast.Tuple: ("a probe has no tuples", "use one variable for each number; `n, w = x.shape` is the only unpacking"),
    ast.ListComp: ("a probe has no lists", "use a generator inside sum, mean, min or max: sum(f(r) for r in x)"),
    ast.SetComp: ("a probe has no sets", "use a generator inside sum, mean, min or max"),
    ast.DictComp: ("a probe has no dictionaries", "declare a map: NAME = map.hash(64)"),
    ast.GeneratorExp: ("a generator stands only inside sum, mean, min or max", "sum(f(r) for r in x)"),
    ast.Await: ("a probe is not async", ""),
    ast.Yield: ("a probe yields nothing", "write into a map, or emit into a ring"),
    ast.YieldFrom: ("a probe yields nothing", "write into a map, or emit into a ring"),
    ast.JoinedStr: ("a probe has no strings", "write numbers into a map; the reader of the map puts words to them"),
    ast.NamedExpr: (":= is not in the language", "assign on a line of its own"),
    ast.Starred: ("* does not unpack here", "name each value"),
}
_INDEX_OPS: Final = frozenset({"ROW", "COL", "HEAD", "LD", "FOR"})


class Expressions:
    """Lowering of expressions; one object for one pass over one program. `calls` lowers function calls."""

    calls: Calls

    def __init__(self, unit: Unit, types: dict[str, Value]) -> None:
        self.unit = unit
        self.block = Block()
        self.types = types
        """Type of each variable as far as it is known; `reg` is meaningless."""
        self.regs: dict[str, int] = {}
        self.params: dict[str, Value] = {}
        self.local: dict[str, Value] = {}
        """Variables of generators, and rows that a function walks over."""
        self.assigned: set[str] = set()
        self.stored: dict[str, int] = {}
        """Line of the first assignment of each variable."""
        self.counted: dict[str, int] = {}
        """Line of the latest loop that each counter has counted."""

    def fail(self, node: ast.AST, message: str, allowed: str = "") -> RecurosError:
        """E8-SYNTAX at a node."""
        return self.unit.fail(node, message, allowed)

    # --- by kind of node ---------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Value:
        """The value of an expression, a view included."""
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.UnaryOp():
                return self._unary(node)
            case ast.BinOp():
                return self._binary(node)
            case ast.BoolOp():
                return self._bool(node)
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp():
                return self._conditional(node)
            case ast.Subscript():
                return self._subscript(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self.calls.call(node)
        message, allowed = _REFUSED.get(type(node), ("this expression is not in the language", ""))
        raise self.fail(node, message, allowed)

    def scalar(self, node: ast.expr) -> Value:
        """The value of an expression that has to be a number."""
        value = self.value(node)
        if value.type is Type.VIEW:
            raise self.fail(
                node,
                "a view stands where a number has to be",
                "take an element, x[i, j], or a figure of it, for example rms(x); views take no arithmetic",
            )
        return value

    def as_float(self, node: ast.expr) -> Value:
        """The value of an expression as a float."""
        return self.block.to_float(self.scalar(node))

    def as_int(self, node: ast.expr, what: str) -> Value:
        """The value of an expression that has to be a whole number."""
        value = self.scalar(node)
        if value.type is Type.FLOAT:
            why = ""
            if isinstance(node, ast.Name) and node.id in self.stored:
                why = f": {node.id} is a float because it is assigned one; a variable has one type in the whole probe"
            raise self.fail(node, f"{what} must be a whole number, this is a float{why}", "write int(...)")
        return value

    def as_view(self, node: ast.expr, what: str) -> Value:
        """The value of an expression that has to be a view."""
        value = self.value(node)
        if value.type is not Type.VIEW:
            names = ", ".join(v.name for v in self.unit.hook_views()) or "none"
            raise self.fail(
                node, f"{what} takes a view, this is {an(value.word)}", f"views of {self.unit.hook}: {names}"
            )
        return value

    def _constant(self, node: ast.Constant) -> Value:
        match node.value:
            case bool(truth):
                return Value(Type.BOOL, const=int(truth))
            case int(whole):
                return Value(Type.INT, const=int(limited(self.unit, node, whole)))
            case float(number):
                return Value(Type.FLOAT, const=number)
            case str() | bytes():
                raise self.fail(node, "a probe has no strings", 'the one place for a string is a field: m["sum"]')
        raise self.fail(
            node, f"{str(node.value)[:20]} is no number of a probe", "numbers are ints, floats, True, False"
        )

    def _name(self, node: ast.Name, name: str) -> Value:
        if name in self.local:
            return self.local[name]
        if name in self.stored:
            return self._variable(node, name)
        if name in self.params:
            return self.params[name]
        if name in self.unit.constants:
            constant = self.unit.constants[name]
            return Value(type_of(constant), const=constant)
        context = self.unit.aliases.get(name, name)
        if context in functions.CONTEXT:
            reg = self.block.emit("CTXI", aux=functions.CONTEXT.index(context))
            return Value(Type.INT, reg=reg, temporary=True)
        if context in isa.CONTEXT_FLOATS:
            reg = self.block.emit("CTXF", aux=isa.CONTEXT_FLOATS.index(context))
            return Value(Type.FLOAT, reg=reg, temporary=True)
        if name == "inf":
            return Value(Type.FLOAT, const=math.inf)
        raise self._unknown(node, name)

    def _variable(self, node: ast.Name, name: str) -> Value:
        if name not in self.assigned and name in self.counted:
            line = self.counted[name]
            raise self.fail(
                node, f"{name} counts the loop of line {line} and has no value after it", "keep it: last = i"
            )
        if name not in self.assigned:
            raise self.fail(
                node,
                f"{name} may have no value here: line {self.stored[name]} does not always run before",
                f"give it a value first, for example {name} = 0.0 at the top",
            )
        known = self.types[name]
        return Value(known.type, reg=self.regs[name], rank=known.rank)

    def _unknown(self, node: ast.Name, name: str) -> RecurosError:
        if name in self.unit.maps:
            return self.fail(node, f"{name} is a map", f"read a cell: {name}[key]")
        if name in functions.NAMES:
            return self.fail(node, f"{name} is a function", f"call it: {name}(...)")
        views = [view.name for view in self.unit.hook_views()]
        if name in views:
            return self.fail(node, f"{name} is a view that probe does not take", f"def probe({name}, ...):")
        known = [*self.unit.views, *self.stored, *self.unit.constants, *functions.CONTEXT, *isa.CONTEXT_FLOATS]
        known = [word for word in (*known, *self.unit.aliases) if not word.startswith("_")]
        close = difflib.get_close_matches(name, known, n=3) or known[:12]
        return self.fail(node, f"no variable {name[:64]}", f"there are: {', '.join(close)}")

    def _unary(self, node: ast.UnaryOp) -> Value:
        match node.op:
            case ast.USub():
                if isinstance(node.operand, ast.Constant) and type(node.operand.value) is int:
                    return Value(Type.INT, const=int(limited(self.unit, node, -node.operand.value)))
                value = self.scalar(node.operand)
                is_float = value.type is Type.FLOAT
                return self.block.apply("FNEG" if is_float else "INEG", value, type_=max(value.type, Type.INT))
            case ast.UAdd():
                value = self.scalar(node.operand)
                return Value(max(value.type, Type.INT), value.reg, value.const, temporary=value.temporary)
            case ast.Not():
                return self.negate(self.scalar(node.operand))
        value = self.as_int(node.operand, "the operand of ~")
        return self.block.apply("IXOR", value, Value(Type.INT, const=-1), type_=Type.INT)

    def _binary(self, node: ast.BinOp) -> Value:
        if isinstance(node.op, ast.Pow):
            return self._power(node)
        if isinstance(node.op, ast.LShift | ast.RShift):
            raise self.fail(node, "shifts are not in the language", "write a * 2 or a // 2")
        if isinstance(node.op, ast.MatMult):
            raise self.fail(node, "@ is not in the language", "dot(x, y) is the sum of the products of two views")
        return self.binary(
            node, node.op, self.scalar(node.left), lambda: self.scalar(node.right), node.left, node.right
        )

    def binary(
        self,
        node: ast.AST,
        op: ast.operator,
        left: Value,
        later: Callable[[], Value],
        at_left: ast.AST,
        at_right: ast.AST,
    ) -> Value:
        """An arithmetic operation; `later` gives the right operand."""
        right = later()
        kind = type(op)
        if kind is ast.Div:
            return self.block.apply("FDIV", self.block.to_float(left), self.block.to_float(right), type_=Type.FLOAT)
        if kind in _ARITHMETIC:
            for_int, for_float = _ARITHMETIC[kind]
            if Type.FLOAT in {left.type, right.type}:
                return self.block.apply(
                    for_float, self.block.to_float(left), self.block.to_float(right), type_=Type.FLOAT
                )
            return self.block.apply(for_int, left, right, type_=Type.INT)
        if kind in _INTEGER:
            name, sentence = _INTEGER[kind]
            for value, at in ((left, at_left), (right, at_right)):
                if value.type is Type.FLOAT:
                    raise self.fail(at, sentence.partition(":")[0] + ", this is a float", sentence.partition(": ")[2])
            both_bool = left.type is right.type is Type.BOOL and kind in {ast.BitAnd, ast.BitOr, ast.BitXor}
            return self.block.apply(name, left, right, type_=Type.BOOL if both_bool else Type.INT)
        raise self.fail(node, "this operation has no form that assigns", "NAME = ... on a line of its own")

    def _power(self, node: ast.BinOp) -> Value:
        match node.right:
            case ast.Constant(value=2 | 3 as exponent) if type(exponent) is int:
                base = self.scalar(node.left)
                name, type_ = ("FMUL", Type.FLOAT) if base.type is Type.FLOAT else ("IMUL", Type.INT)
                held = base if base.const is not None else Value(base.type, self.block.reg(base))
                result = self.block.apply(name, held, held, type_=type_)
                return self.block.apply(name, result, held, type_=type_) if exponent == 3 else result
        raise self.fail(node, "** takes the exponents 2 and 3 only", "write exp(e * log(a)) for another power")

    # --- conditions --------------------------------------------------------------------------------------------------

    def truth(self, value: Value) -> Value:
        """A number as a condition: not 0."""
        if value.type is Type.FLOAT:
            return self.block.apply("FNE", value, Value(Type.FLOAT, const=0.0), type_=Type.BOOL)
        if value.type is Type.INT:
            return self.block.apply("INE", value, Value(Type.INT, const=0), type_=Type.BOOL)
        return value

    def negate(self, value: Value) -> Value:
        """1 where the value is 0."""
        if value.type is Type.FLOAT:
            return self.block.apply("FEQ", value, Value(Type.FLOAT, const=0.0), type_=Type.BOOL)
        return self.block.apply("IEQ", value, Value(Type.INT, const=0), type_=Type.BOOL)

    def _bool(self, node: ast.BoolOp) -> Value:
        value = self.truth(self.scalar(node.values[0]))
        for operand in node.values[1:]:
            value = self._both(value, operand, isinstance(node.op, ast.And))
        return value

    def _both(self, left: Value, node: ast.expr, is_and: bool) -> Value:
        """`left and node`; node is evaluated under a condition where it indexes, so that `left` may guard it."""
        outer = self.block.capture()
        right = self.truth(self.scalar(node))
        inner = self.block.release(outer)
        if not any(ins.op.name in _INDEX_OPS for ins in inner) or left.const is not None:
            self.block.code += inner
            return self.block.apply("IAND" if is_and else "IOR", left, right, type_=Type.BOOL)
        result = self.block.register(isa.Operand.INT)
        self.block.put(Value(left.type, left.reg), result)
        guard = result if is_and else self.block.reg(self.negate(Value(Type.BOOL, result)))
        self.block.emit("IF", guard)
        self._splice(inner, right, result)
        self.block.emit("ENDIF")
        return Value(Type.BOOL, reg=result)

    def _splice(self, code: list[Ins], value: Value, result: int) -> None:
        self.block.code += code
        self.block.put(value, result)

    def _compare(self, node: ast.Compare) -> Value:
        left, at_left = self.scalar(node.left), node.left
        result: Value | None = None
        for op, operand in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _COMPARE:
                word = {ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not"}[type(op)]
                raise self.fail(at_left, f"{word!r} is not in the language", "compare numbers: < <= == != >= >")
            right = self.scalar(operand)
            one = self._comparison(op, left, right)
            result = one if result is None else self.block.apply("IAND", result, one, type_=Type.BOOL)
            left = right
        assert result is not None, "a comparison has an operand"
        return result

    def _comparison(self, op: ast.cmpop, left: Value, right: Value) -> Value:
        for_int, for_float, swapped = _COMPARE[type(op)]
        if Type.FLOAT in {left.type, right.type}:
            name, left, right = for_float, self.block.to_float(left), self.block.to_float(right)
        else:
            name = for_int
        return self.block.apply(name, *((right, left) if swapped else (left, right)), type_=Type.BOOL)

    def _conditional(self, node: ast.IfExp) -> Value:
        test = self.block.reg(self.scalar_condition(node.test))
        outer = self.block.capture()
        yes = self.scalar(node.body)
        yes_code = self.block.release(outer)
        outer = self.block.capture()
        no = self.scalar(node.orelse)
        no_code = self.block.release(outer)
        type_ = max(yes.type, no.type)
        result = self.block.register(isa.Operand.FLOAT if type_ is Type.FLOAT else isa.Operand.INT)
        self.block.emit("IF", test)
        for code, value, word in ((yes_code, yes, "ELSE"), (no_code, no, "ENDIF")):
            self.block.code += code
            self.block.put(self.block.convert(value, type_), result)
            self.block.emit(word)
        return Value(type_, reg=result)

    def scalar_condition(self, node: ast.expr) -> Value:
        """A condition for IF: an int or bool as it is, a float compared with 0."""
        value = self.scalar(node)
        return self.truth(value) if value.type is Type.FLOAT else value

    # --- views and maps ----------------------------------------------------------------------------------------------

    def _attribute(self, node: ast.Attribute) -> Value:
        if node.attr == "size":
            return self.size(self.as_view(node.value, ".size"))
        if node.attr == "shape":
            raise self.fail(node, "x.shape is not one number", "x.shape[0], or n, w = x.shape")
        raise self.fail(node, f"no attribute .{node.attr[:40]}", "views have .shape[k] and .size; maps have methods")

    def size(self, view: Value) -> Value:
        """Number of elements of a view."""
        total = self.dim(view, 0)
        for axis in range(1, view.rank):
            total = self.block.apply("IMUL", total, self.dim(view, axis), type_=Type.INT)
        return total

    def dim(self, view: Value, axis: int) -> Value:
        """Size of a view along an axis."""
        return Value(Type.INT, reg=self.block.emit("DIM", view.reg, aux=axis), temporary=True)

    def _subscript(self, node: ast.Subscript) -> Value:
        match node.value:
            case ast.Attribute(value=inner, attr="shape"):
                return self._shape(node, inner)
            case ast.Name(id=name) if name in self.unit.maps and name not in self.local:
                spec = self.unit.maps[name]
                key = self.key(spec, node)
                reg = self.block.emit("MGET", self.block.reg(key), aux=self.map_number(spec))
                return Value(Type.FLOAT, reg=reg, temporary=True)
        view = self.value(node.value)
        if view.type is not Type.VIEW:
            raise self.fail(node, f"{an(view.word)} has no elements", "views and maps are indexed")
        return self._index(view, node)

    def map_number(self, spec: MapSpec) -> int:
        """The number of a declared map."""
        return list(self.unit.maps.values()).index(spec)

    def key(self, spec: MapSpec, node: ast.Subscript) -> Value:
        """The key of `m[key]`."""
        if spec.kind not in isa.KEYED:
            form = next(form for form, kinds, _ in functions.METHODS.values() if spec.kind in kinds)
            raise self.fail(
                node,
                f"{spec.name} is {an(spec.kind)} map: it has no cells to index",
                form.replace("m.", f"{spec.name}.", 1),
            )
        match node.slice:
            case ast.Constant(value=str(field)):
                if field not in spec.fields:
                    listed = ", ".join(spec.fields) or "none: give it fields=(...)"
                    raise self.fail(node.slice, f"{spec.name} has no field {field[:64]!r}", f"fields: {listed}")
                return Value(Type.INT, const=spec.fields.index(field))
            case ast.Slice() | ast.Tuple():
                raise self.fail(node.slice, "a map has one key, a whole number", f"{spec.name}[key]")
        return self.as_int(node.slice, "the key of a map")

    def _shape(self, node: ast.Subscript, inner: ast.expr) -> Value:
        view = self.as_view(inner, ".shape")
        match node.slice:
            case ast.Constant(value=int(axis)) if type(axis) is int and axis < view.rank:
                return self.dim(view, axis)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(back))) if 0 < back <= view.rank:
                return self.dim(view, view.rank - back)
        raise self.fail(node.slice, f"the axis must be a constant from 0 to {view.rank - 1}", "x.shape[0]")

    def _index(self, view: Value, node: ast.Subscript) -> Value:
        items = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        dots = [place for place, item in enumerate(items) if _is_dots(item)]
        if len(dots) > 1 or len(items) - len(dots) > view.rank:
            raise self.fail(node, f"{len(items)} indices for {an(view.word)}", "one for each axis at most")
        if dots:
            fill: list[ast.expr] = [ast.Slice() for _ in range(view.rank - len(items) + 1)]
            items[dots[0] : dots[0] + 1] = fill
        axis = 0
        for item in items:
            if isinstance(item, ast.Slice):
                view = self._slice(view, item, axis, node)
                axis += 1
            else:
                view = self.pick(view, self._position(item), axis, item)
        return view

    def _position(self, item: ast.expr) -> Value:
        value = self.as_int(item, "an index")
        if value.const is not None and value.const < 0:
            raise self.fail(
                item, "an index counts from the front", "for the last: `n = x.shape[0]`, and under `if n > 0:` x[n - 1]"
            )
        return value

    def pick(self, view: Value, index: Value, axis: int, node: ast.AST) -> Value:
        """One position along an axis: a view of one rank less, or an element."""
        reg = self.block.reg(index)
        if view.rank == 1:
            return Value(Type.FLOAT, reg=self.block.emit("LD", view.reg, reg), temporary=True)
        if axis == 0:
            name = "ROW"
        elif axis == view.rank - 1:
            name = "COL"
        elif axis == 1:
            name = "HEAD"
        else:
            raise self.fail(
                node, f"axis {axis} cannot be indexed while those before it are kept", "index the earlier axes first"
            )
        return Value(Type.VIEW, reg=self.block.emit(name, view.reg, reg), rank=view.rank - 1, temporary=True)

    def _slice(self, view: Value, item: ast.Slice, axis: int, node: ast.AST) -> Value:
        if item.step is not None:
            raise self.fail(item.step, "a slice has no step", "x[a:b]")
        if item.lower is None and item.upper is None:
            return view
        if axis:
            raise self.fail(node, "only the first axis is sliced", "x[a:b]; the other axes take a whole number or :")
        low = self._position(item.lower) if item.lower is not None else Value(Type.INT, const=0)
        high = self._position(item.upper) if item.upper is not None else self.dim(view, 0)
        low_reg, high_reg = self.block.reg(low), self.block.reg(high)
        reg = self.block.emit("SLICE", view.reg, low_reg, aux=high_reg)
        return Value(Type.VIEW, reg=reg, rank=view.rank, temporary=True)


def type_of(constant: bool | int | float) -> Type:
    """The type of a constant."""
    if isinstance(constant, bool):
        return Type.BOOL
    return Type.INT if isinstance(constant, int) else Type.FLOAT


def _is_dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def an(word: str) -> str:
    """The word with its article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
