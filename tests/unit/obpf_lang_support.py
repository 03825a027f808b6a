"""A second reading of the probe language: an interpreter of the syntax tree by the reference page, and random programs for it.

It shares nothing with the compiler: types, arithmetic and reductions are written again, slowly. Maps are `probes.cells`, exp and
log `probes.fixedmath`, which have tests of their own.
"""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from probes import fixedmath, isa
from probes.cells import Cells
from probes.vm import Firing

LOW, HIGH = -(2**63), 2**63 - 1


def sat(value: int) -> int:
    return LOW if value < LOW else HIGH if value > HIGH else value


def lane_sum(values: list[float]) -> float:
    lanes = [0.0] * 64
    for k, value in enumerate(values):
        lanes[k % 64] += value
    for stride in (32, 16, 8, 4, 2, 1):
        for j in range(stride):
            lanes[j] += lanes[j + stride]
    return lanes[0]


def fmin(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if a == b:
        return a if math.copysign(1, a) < 0 else b
    return min(a, b)


def fmax(a: float, b: float) -> float:
    return -fmin(-a, -b)


def divide(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64(a) / np.float64(b))


def doubles(view: np.ndarray[Any, Any]) -> list[float]:
    return [float(v) for v in view.reshape(-1)]


def largest(values: list[float]) -> float:
    best = -math.inf
    for value in values:
        best = fmax(best, value)
    return best


def smallest(values: list[float]) -> float:
    best = math.inf
    for value in values:
        best = fmin(best, value)
    return best


REDUCE: dict[str, Any] = {
    "sum": lambda v: lane_sum(doubles(v)),
    "sumsq": lambda v: lane_sum([e * e for e in doubles(v)]),
    "absmax": lambda v: fmax(0.0, largest([abs(e) for e in doubles(v)])),
    "mean": lambda v: divide(lane_sum(doubles(v)), float(v.size)),
    "min": lambda v: smallest(doubles(v)),
    "max": lambda v: largest(doubles(v)),
    "dot": lambda v, w: lane_sum([a * b for a, b in zip(doubles(v), doubles(w), strict=True)]),
    "count_gt": lambda v, t: sum(e > t for e in doubles(v)),
    "count_nonfinite": lambda v: sum(not math.isfinite(e) for e in doubles(v)),
}
INT_CALLS = {"int", "len", "count_gt", "count_nonfinite", "isfinite", "isnan", "bool"}


class Reading:
    """One program, interpreted. `constants` and maps come from its declarations."""

    def __init__(
        self, tree: ast.Module, maps: tuple[isa.MapSpec, ...], views: dict[str, Any], firing: Firing, cells: Cells
    ) -> None:
        (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        self.body = function.body
        self.maps = {spec.name: number for number, spec in enumerate(maps)}
        self.views, self.firing, self.cells = views, firing, cells
        self.kinds: dict[str, bool] = {}
        self.values: dict[str, Any] = {}
        for _ in range(20):
            self._kinds(self.body)

    def run(self) -> None:
        self.block(self.body)

    # --- which variables are floats ---

    def _kinds(self, body: list[ast.stmt]) -> None:
        for node in ast.walk(ast.Module(body, [])):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.kinds[name] = self.kinds.get(name, False) or self.is_float(value)
                case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                    grown = self.is_float(value) or isinstance(op, ast.Div)
                    self.kinds[name] = self.kinds.get(name, False) or grown
                case ast.For(target=ast.Name(id=name)):
                    self.kinds.setdefault(name, False)

    def is_float(self, node: ast.expr) -> bool:
        match node:
            case ast.Constant(value=value):
                return isinstance(value, float)
            case ast.Name(id=name):
                return self.kinds.get(name, name in {"temperature", "sparsity", "inf"})
            case ast.BinOp(left=left, op=op, right=right):
                return (
                    isinstance(op, ast.Div)
                    or self.is_float(left)
                    or (not isinstance(op, ast.Pow) and self.is_float(right))
                )
            case ast.UnaryOp(op=op, operand=operand):
                return not isinstance(op, ast.Not) and self.is_float(operand)
            case ast.IfExp(body=body, orelse=orelse):
                return self.is_float(body) or self.is_float(orelse)
            case ast.Call(func=ast.Name(id="abs" | "clip"), args=args):
                return any(self.is_float(a) for a in args)
            case ast.Call(func=ast.Name(id="min" | "max"), args=[_, _, *_] as args):
                return any(self.is_float(a) for a in args)
            case ast.Call(func=ast.Name(id="floor"), args=[inner]):
                return self.is_float(inner)
            case ast.Call(func=ast.Name(id=name)):
                return name not in INT_CALLS
            case ast.Subscript(value=ast.Attribute(attr="shape")) | ast.Attribute(attr="size"):
                return False
            case ast.Subscript():
                return True
        return False

    # --- statements ---

    class Leave(Exception):  # noqa: N818
        pass

    def block(self, body: list[ast.stmt]) -> None:
        for node in body:
            self.statement(node)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.values[name] = self.held(name, self.eval(value))
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name), slice=key)], value=value):
                self.cells.set(self.maps[name], int(self.eval(key)), float(self.eval(value)), self.firing.site)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                self.values[name] = self.held(name, self.arithmetic(op, self.values[name], self.eval(value)))
            case ast.AugAssign(target=ast.Subscript(value=ast.Name(id=name), slice=key), op=op, value=value):
                sign = {ast.Add: 1.0, ast.Sub: -1.0}[type(op)]
                given = float(self.eval(value))
                self.cells.add(self.maps[name], int(self.eval(key)), given if sign > 0 else -given, self.firing.site)
            case ast.If(test=test, body=body, orelse=orelse):
                self.block(body if self.eval(test) else orelse)
            case ast.For(target=ast.Name(id=name), iter=ast.Call(args=args), body=body):
                low, high = (0, self.eval(args[0])) if len(args) == 1 else (self.eval(args[0]), self.eval(args[1]))
                for k in range(max(0, sat(high - low))):
                    self.values[name] = sat(low + k)
                    self.block(body)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method), args=args)):
                self.method(self.maps[name], method, [self.eval(a) for a in args])
            case _:
                raise AssertionError(ast.dump(node))

    def held(self, name: str, value: Any) -> Any:
        return float(value) if self.kinds[name] else value

    def method(self, number: int, method: str, given: list[Any]) -> None:
        if method == "add":
            self.cells.hist(number, float(given[0]), self.firing.site)
        elif method == "emit":
            self.cells.emit(number, int(given[0]), float(given[1]), self.firing.step, self.firing.site)
        elif method == "inc":
            self.cells.add(number, int(given[0]), 1.0, self.firing.site)
        else:
            self.cells.raise_to(number, int(given[0]), float(given[1]), self.firing.site)

    # --- expressions ---

    def eval(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                if name in self.values:
                    return self.values[name]
                return (
                    self.views[name]
                    if name in self.views
                    else math.inf
                    if name == "inf"
                    else getattr(self.firing, name)
                )
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=exponent)):
                base = self.eval(left)
                square = self.arithmetic(ast.Mult(), base, base)
                return square if exponent == 2 else self.arithmetic(ast.Mult(), square, base)
            case ast.BinOp(left=left, op=op, right=right):
                return self.arithmetic(op, self.eval(left), self.eval(right))
            case ast.UnaryOp(op=op, operand=operand):
                value = self.eval(operand)
                match op:
                    case ast.Not():
                        return not value
                    case ast.Invert():
                        return ~int(value)
                    case ast.UAdd():
                        return +value
                return -value if isinstance(value, float) else sat(-int(value))
            case ast.BoolOp(op=op, values=values):
                found = [bool(self.eval(v)) for v in values]
                return all(found) if isinstance(op, ast.And) else any(found)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                chain = [self.eval(left), *map(self.eval, comparators)]
                return all(self.compare(op, a, b) for a, op, b in zip(chain, ops, chain[1:], strict=False))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                value = self.eval(body) if self.eval(test) else self.eval(orelse)
                return float(value) if self.is_float(node) else value
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name(id=name), attr="shape"), slice=ast.Constant(value=axis)
            ):
                return self.views[name].shape[axis]
            case ast.Subscript(value=ast.Name(id=name), slice=key) if name in self.maps:
                return self.cells.get(self.maps[name], int(self.eval(key)), self.firing.site)
            case ast.Subscript(value=value, slice=key):
                return self.element(self.eval(value), key)
            case ast.Attribute(value=value, attr="size"):
                return int(self.eval(value).size)
            case ast.Call(func=ast.Name(id=name), args=args):
                return self.call(name, args)
        raise AssertionError(ast.dump(node))

    def element(self, view: Any, key: ast.expr) -> Any:
        if isinstance(key, ast.Slice):
            low = 0 if key.lower is None else self.eval(key.lower)
            high = view.shape[0] if key.upper is None else self.eval(key.upper)
            low, high = (min(max(v, 0), view.shape[0]) for v in (low, high))
            return view[low : max(low, high)]
        parts = key.elts if isinstance(key, ast.Tuple) else [key]
        index = tuple(slice(None) if isinstance(p, ast.Slice) else int(self.eval(p)) for p in parts)
        assert all(isinstance(p, slice) or 0 <= p < n for p, n in zip(index, view.shape, strict=False)), "guarded"
        found = view[index]
        return float(found) if np.ndim(found) == 0 else found

    def arithmetic(self, op: ast.operator, a: Any, b: Any) -> Any:
        if isinstance(op, ast.Div):
            return divide(float(a), float(b))
        if isinstance(a, float) or isinstance(b, float):
            with np.errstate(all="ignore"):
                x, y = np.float64(a), np.float64(b)
                return float({ast.Add: x + y, ast.Sub: x - y, ast.Mult: x * y}[type(op)])
        a, b = int(a), int(b)
        match op:
            case ast.Add():
                return sat(a + b)
            case ast.Sub():
                return sat(a - b)
            case ast.Mult():
                return sat(a * b)
            case ast.FloorDiv():
                return sat(a // b) if b else 0
            case ast.Mod():
                return a % b if b else a
            case ast.BitAnd():
                return a & b
            case ast.BitOr():
                return a | b
        return a ^ b

    def compare(self, op: ast.cmpop, a: Any, b: Any) -> bool:
        if isinstance(a, float) or isinstance(b, float):
            a, b = float(a), float(b)
        found = {ast.Lt: a < b, ast.Gt: a > b, ast.LtE: a <= b, ast.GtE: a >= b, ast.Eq: a == b, ast.NotEq: a != b}
        return bool(found[type(op)])

    def call(self, name: str, args: list[ast.expr]) -> Any:
        if name in {"sum", "mean", "min", "max"} and len(args) == 1:
            if isinstance(args[0], ast.GeneratorExp):
                return self.folded(name, list(self.generated(args[0])))
            if isinstance(args[0], ast.Call):
                return self.folded(name, list(self.rows(args[0])))
        given = [self.eval(a) for a in args]
        if given and isinstance(given[0], np.ndarray):
            return self.of_views(name, given)
        return self.of_numbers(name, given)

    def of_views(self, name: str, given: list[Any]) -> Any:
        view = given[0]
        match name:
            case "rms":
                return self.root(divide(REDUCE["sumsq"](view), float(view.size)))
            case "norm":
                return self.root(REDUCE["sumsq"](view))
            case "var" | "std":
                mean = REDUCE["mean"](view)
                value = fmax(
                    self.arithmetic(ast.Sub(), divide(REDUCE["sumsq"](view), float(view.size)), mean * mean), 0.0
                )
                return value if name == "var" else self.root(value)
            case "len":
                return view.shape[0]
        return REDUCE[name](*given)

    def root(self, value: float) -> float:
        return math.sqrt(value) if value >= 0 else math.nan

    def of_numbers(self, name: str, given: list[Any]) -> Any:
        match name:
            case "sqrt":
                return self.root(float(given[0]))
            case "exp":
                return fixedmath.exp(float(given[0]))
            case "log":
                return fixedmath.log(float(given[0]))
            case "isnan":
                return float(given[0]) != float(given[0])
            case "isfinite":
                return math.isfinite(given[0])
            case "bool":
                return bool(given[0])
            case "float":
                return float(given[0])
            case "int":
                if isinstance(given[0], float):
                    if given[0] != given[0]:
                        return 0
                    return sat(int(given[0])) if math.isfinite(given[0]) else (HIGH if given[0] > 0 else LOW)
                return int(given[0])
            case "floor":
                if isinstance(given[0], float) and math.isfinite(given[0]):
                    return math.copysign(float(math.floor(given[0])), given[0])
                return given[0]
            case "abs":
                return abs(given[0]) if isinstance(given[0], float) else sat(abs(int(given[0])))
            case "clip":
                return self.extreme("min", [self.extreme("max", given[:2]), given[2]])
        return self.extreme(name, given)

    def extreme(self, name: str, given: list[Any]) -> Any:
        if any(isinstance(g, float) for g in given):
            best = float(given[0])
            for value in given[1:]:
                best = (fmin if name == "min" else fmax)(best, float(value))
            return best
        return (min if name == "min" else max)(int(g) for g in given)

    def folded(self, name: str, values: list[float]) -> float:
        if name in {"min", "max"}:
            return smallest(values) if name == "min" else largest(values)
        total = 0.0
        for value in values:
            total = self.arithmetic(ast.Add(), total, value)
        return total if name == "sum" else divide(total, float(len(values)))

    def generated(self, node: ast.GeneratorExp) -> Iterator[float]:
        (part,) = node.generators
        assert isinstance(part.target, ast.Name)
        source: Any = self.eval(part.iter) if isinstance(part.iter, ast.Name) else None
        count = len(source) if source is not None else self.eval(part.iter.args[0])  # type: ignore[attr-defined]
        for k in range(max(0, count)):
            self.values[part.target.id] = k if source is None else source[k]
            if all(self.eval(test) for test in part.ifs):
                yield float(self.eval(node.elt))
        self.values.pop(part.target.id, None)

    def rows(self, node: ast.Call) -> Iterator[float]:
        assert isinstance(node.func, ast.Name)
        given = [self.eval(a) for a in node.args]
        views = [g for g in given if isinstance(g, np.ndarray)]
        for index in np.ndindex(*views[0].shape[:-1]):
            row = [g[index] if isinstance(g, np.ndarray) else g for g in given]
            yield float(self.of_views(node.func.id, row))


# --- random programs ---------------------------------------------------------------------------------------------------

DECLARED = """hook("on_forward:student/*")
cells = map.array(8, per_site=True)
table = map.hash(4)
sizes = map.log2()
bins = map.linear(-2.0, 2.0, 5)
events = map.ring(6)
"""


class Writer:
    """Writes a program of the language that never indexes without a guard. Names: i* whole, f* float, b* conditions."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ints = ["step", "site", "firing", "x.shape[0]", "x.shape[1]", "x.size", "len(x)"]
        self.floats = ["temperature"]
        self.loops = 0

    def source(self) -> str:
        lines = ["i0 = 3", f"f0 = {self.number()}", "b0 = True"]
        self.ints += ["i0"]
        self.floats += ["f0"]
        lines += [line for _ in range(self.rng.randrange(2, 7)) for line in self.statement(2)]
        return DECLARED + "def probe(x):\n" + "".join(f"    {line}\n" for line in lines)

    def number(self) -> str:
        return self.rng.choice(["0.0", "1.5", "-0.25", "1e308", "-1e-300", "inf", "3.0", "-0.0", "0.1"])

    def whole(self) -> str:
        return self.rng.choice(
            ["0", "1", "2", "-1", "5", "7", "-3", "9223372036854775807", "-9223372036854775808", "True"]
        )

    def int(self, depth: int) -> str:
        if depth <= 0:
            return self.rng.choice([self.whole(), self.rng.choice(self.ints)])
        a, b = self.int(depth - 1), self.int(depth - 1)
        op = self.rng.choice(["+", "-", "*", "//", "%", "&", "|", "^"])
        forms = [
            f"({a} {op} {b})",
            f"(-{a})",
            f"(~{a})",
            f"abs({a})",
            f"min({a}, {b})",
            f"clip({a}, -5, {b})",
            f"int({self.float(depth - 1)})",
            f"({a} if {self.bool(depth - 1)} else {b})",
            f"count_gt(x, {self.float(depth - 1)})",
            "count_nonfinite(x)",
            f"({a}) ** 2",
        ]
        return self.rng.choice(forms)

    def float(self, depth: int) -> str:
        if depth <= 0:
            return self.rng.choice([self.number(), self.rng.choice(self.floats)])
        a, b = self.float(depth - 1), self.float(depth - 1)
        either = self.rng.choice([a, self.int(depth - 1)])
        self.loops += 1
        g = f"g{self.loops}"
        row = self.rng.choice([f"rms({g})", f"{g}[0]", f"len({g}) * 2"])
        forms = [
            f"({a} {self.rng.choice('+-*/')} {either})",
            f"({self.int(depth - 1)} / {either})",
            f"(-{a})",
            f"max({a}, {either}, {b})",
            f"clip({a}, -1.0, 1)",
            f"{self.rng.choice(['sqrt', 'exp', 'log', 'floor', 'abs'])}({a})",
            f"({a} if {self.bool(depth - 1)} else {either})",
            f"float({self.int(depth - 1)})",
            f"{self.rng.choice(['sum', 'sumsq', 'absmax', 'mean', 'min', 'max', 'rms', 'norm', 'var', 'std'])}(x)",
            f"{self.rng.choice(['sum', 'mean', 'min', 'max'])}({self.rng.choice(['rms', 'sum', 'absmax', 'mean', 'std'])}(x))",
            f"{self.rng.choice(['sum', 'mean', 'max'])}({row} for {g} in x if len({g}) > 0)",
            f"sum({g} * {a} for {g} in range(4))",
            f"sum(x[max({self.int(0)}, 0):max({self.int(0)}, 0)])",
            "dot(x, x)",
            f"cells[{self.rng.randrange(8)}]",
            f"table[{self.int(0)}]",
        ]
        return self.rng.choice(forms)

    def bool(self, depth: int) -> str:
        if depth <= 0:
            return self.rng.choice(["True", "b0", "step > 2", "site == 0", "f0 < 1.0", "i0"])
        a, b = self.bool(depth - 1), self.bool(depth - 1)
        op = self.rng.choice(["<", "<=", "==", "!=", ">", ">="])
        forms = [
            f"({a} and {b})",
            f"({a} or {b} or {self.bool(0)})",
            f"(not {a})",
            f"({self.int(depth - 1)} {op} {self.rng.choice([self.int(0), self.float(0)])})",
            f"({self.float(depth - 1)} {op} {self.float(0)} {op} {self.int(0)})",
            f"isfinite({self.float(depth - 1)})",
            f"isnan({self.float(depth - 1)})",
            f"bool({self.float(depth - 1)})",
            f"({self.int(0)} >= 0 and {self.int(0)} < 3)",
        ]
        return self.rng.choice(forms)

    def statement(self, depth: int) -> list[str]:
        forms = [self.assign, self.assign, self.store, self.store]
        if depth > 0:
            forms += [lambda: self.branch(depth), lambda: self.loop(depth), self.element]
        return self.rng.choice(forms)()

    def assign(self) -> list[str]:
        pick = self.rng.randrange(5)
        if pick == 0:
            return [f"i0 = {self.int(2)}"]
        if pick == 1:
            return [f"b0 = {self.bool(2)}"]
        if pick == 2:
            return [f"f0 {self.rng.choice(['+=', '-=', '*=', '/='])} {self.rng.choice([self.float(1), self.int(1)])}"]
        return [f"f0 = {self.rng.choice([self.float(2), self.int(2)])}"]

    def store(self) -> list[str]:
        value = self.rng.choice([self.float(2), self.int(2), self.bool(1)])
        key = self.rng.randrange(8)
        return [
            self.rng.choice(
                [
                    f"cells[{key}] = {value}",
                    f"cells[{key}] {self.rng.choice(['+=', '-='])} {value}",
                    f"cells[{key}] += 1",
                    f"cells.inc({key})",
                    f"cells.raise_to({key}, {value})",
                    f"table[{self.int(1)}] += {value}",
                    f"sizes.add({value})",
                    f"bins.add({value})",
                    f"events.emit({self.int(1)}, {value})",
                ]
            )
        ]

    def block(self, depth: int) -> list[str]:
        return ["    " + line for _ in range(self.rng.randrange(1, 3)) for line in self.statement(depth - 1)]

    def branch(self, depth: int) -> list[str]:
        lines = [f"if {self.bool(2)}:", *self.block(depth)]
        for _ in range(self.rng.randrange(2)):
            lines += [f"elif {self.bool(1)}:", *self.block(depth)]
        return lines + (["else:", *self.block(depth)] if self.rng.random() < 0.5 else [])

    def loop(self, depth: int) -> list[str]:
        self.loops += 1
        name = f"k{self.loops}"
        bound = self.rng.choice(["x.shape[0]", "3", "i0 % 4", "1, 4", f"clip({self.int(1)}, 0, 3)"])
        self.ints.append(name)
        lines = [f"for {name} in range({bound}):", *self.block(depth)]
        self.ints.remove(name)
        return lines

    def element(self) -> list[str]:
        a, b = self.int(1), self.int(1)
        return [
            f"i1 = {a}",
            f"i2 = {b}",
            "if 0 <= i1 < x.shape[0] and 0 <= i2 and i2 < x.shape[1]:",
            f"    f0 = {self.rng.choice(['x[i1, i2]', 'x[i1][i2]', 'sum(x[i1])', 'rms(x[:, i2])', 'x[:, i2][i1]'])}",
        ]
