"""Statements of a probe into instructions.

Responsible for: assignments, `if`, `for`, writes to maps, calls of asynchronous helpers; which variables have a value where;
the widening of their types. Refuses with E8-SYNTAX, in a sentence of its own for each: every statement of Python that a probe
does not have.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from probes import isa
from probes.isa import MapKind, MapSpec
from probes.lang import functions
from probes.lang.calls import Calls
from probes.lang.expressions import Expressions, an
from probes.lang.ir import FILES, Type, Value
from probes.lang.parser import Unit, stored_names

LEAVES_MAX: Final = 32
_REFUSED: Final[dict[type[ast.stmt], tuple[str, str]]] = {
    ast.While: (
        "`while` is refused: it may never end, so the cost of a firing could not be proved",
        "write `for i in range(n):`, and an `if` inside for what should stop early",
    ),
    ast.FunctionDef: ("a function inside probe is refused", "write its lines where they are needed"),
    ast.AsyncFunctionDef: ("a probe is not async", ""),
    ast.ClassDef: ("a probe has no classes", ""),
    ast.Import: ("a probe imports nothing", "its functions are always there: see the reference page"),
    ast.ImportFrom: ("a probe imports nothing", "its functions are always there: see the reference page"),
    ast.Try: ("`try` is refused: nothing in a probe raises", "test before: `if isfinite(e):`, `if n > 0:`"),
    ast.TryStar: ("`try` is refused: nothing in a probe raises", "test before: `if isfinite(e):`, `if n > 0:`"),
    ast.Raise: ("`raise` is refused: a probe cannot stop the step", "count what is wrong in a map"),
    ast.With: ("`with` is refused: a probe opens nothing", ""),
    ast.AsyncWith: ("`with` is refused: a probe opens nothing", ""),
    ast.AsyncFor: ("a probe is not async", "for i in range(n):"),
    ast.Delete: ("`del` is refused: variables and maps last as long as the firing and the probe", ""),
    ast.Global: ("`global` is refused: variables live for one firing", "what has to last goes into a map"),
    ast.Nonlocal: ("`nonlocal` is refused", "what has to last goes into a map"),
    ast.Assert: ("`assert` is refused: a probe cannot stop the step", "count what is wrong in a map"),
    ast.Match: ("`match` is refused", "write if, elif, else"),
    ast.AnnAssign: ("types are found from the values", "write NAME = value"),
    ast.Return: (
        "`return` is refused here: it may only end an `if` of the function's own block",
        "put the lines that follow under an `if`",
    ),
    ast.Continue: (
        "`continue` is refused here: it may only end an `if` of the loop's own block",
        "put the lines that follow under an `if`",
    ),
    ast.Break: (
        "`break` is refused: loops run their full count, which is what the proof of cost counts",
        "put the body under an `if`",
    ),
}


class Statements:
    """Lowering of statements; one object for one pass. `changed` says that a type grew, so another pass is needed."""

    def __init__(self, unit: Unit, types: dict[str, Value]) -> None:
        self.unit = unit
        self.of = Expressions(unit, types)
        self.calls = Calls(self.of)
        self.of.calls = self.calls
        self.block = self.of.block
        self.changed = False
        self.counters: dict[str, int] = {}
        """Counters of the loops that are open, with their lines."""

    def program(self) -> None:
        """The whole body, VARG of the views it reads before it, EXIT after it."""
        body = self.unit.body
        for node in sorted(stored_names(body), key=lambda n: (n.lineno, n.col_offset)):
            self.unit.check_name(node, node.id)
            self.of.stored.setdefault(node.id, node.lineno)
        read = {n.id for s in body for n in ast.walk(s) if isinstance(n, ast.Name)}
        self.block.line = body[0].lineno if body else self.unit.end_line
        for name, number in self.unit.views.items():
            if name in read:
                reg = self.block.emit("VARG", aux=number, of=name)
                self.of.params[name] = Value(Type.VIEW, reg=reg, rank=self.unit.hook_views()[number].rank)
        self.body(structured(self.unit, body, ast.Return))
        self.block.line = self.unit.end_line
        self.block.emit("EXIT")

    def body(self, statements: list[ast.stmt]) -> None:
        """A block of statements."""
        for node in statements:
            self.statement(node)

    def statement(self, node: ast.stmt) -> None:
        """One statement."""
        self.block.line = node.lineno
        match node:
            case ast.Assign(targets=[target]):
                self._assign(node, target)
            case ast.Assign():
                raise self.of.fail(node, "one assignment has one target", "a = 0 and b = 0 on lines of their own")
            case ast.AugAssign():
                self._augmented(node)
            case ast.If():
                self._if(node)
            case ast.For():
                self._for(node)
            case ast.Expr(value=ast.Constant(value=str() | None)) | ast.Pass():
                pass
            case ast.Expr(value=value):
                self._call(node, value)
            case _:
                message, allowed = _REFUSED.get(type(node), ("this statement is not in the language", ""))
                raise self.of.fail(node, message, allowed)

    # --- variables ---------------------------------------------------------------------------------------------------

    def _assign(self, node: ast.Assign, target: ast.expr) -> None:
        match target:
            case ast.Name(id=name):
                self.store(target, name, self.of.value(node.value))
            case ast.Subscript():
                spec = self._map_of(target)
                key = self.of.key(spec, target)
                self._write("MSET", spec, key, self.of.as_float(node.value))
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                self._unpack(node, elements)
            case ast.Attribute():
                raise self.of.fail(target, "nothing has attributes to set", "write into a map: m[key] = e")
            case _:
                raise self.of.fail(target, "this cannot be assigned to", "NAME = e, or m[key] = e")

    def _unpack(self, node: ast.Assign, elements: list[ast.expr]) -> None:
        match node.value:
            case ast.Attribute(value=inner, attr="shape"):
                view = self.of.as_view(inner, ".shape")
            case _:
                raise self.of.fail(node, "only a shape is unpacked", "n, w = x.shape; other values one by one")
        if len(elements) != view.rank or not all(isinstance(e, ast.Name) for e in elements):
            raise self.of.fail(node, f"the shape of a {view.word} has {view.rank} sizes", "one plain name for each")
        for axis, element in enumerate(elements):
            assert isinstance(element, ast.Name), "looked at above"
            self.store(element, element.id, self.of.dim(view, axis))

    def store(self, node: ast.AST, name: str, value: Value) -> None:
        """Give a variable a value; its type grows to hold it."""
        if name in self.counters:
            raise self.of.fail(
                node,
                f"{name} counts the loop of line {self.counters[name]} and cannot be changed inside it",
                "use another variable",
            )
        type_ = self._widen(node, name, value)
        reg = self.register(name)
        self.block.put(self.block.convert(value, type_), reg)
        self.of.assigned.add(name)

    def _widen(self, node: ast.AST, name: str, value: Value) -> Type:
        """The type of a variable after it has been given `value` too."""
        known = self.of.types.get(name)
        if known is None:
            self.of.types[name] = Value(value.type, rank=value.rank)
            return value.type
        if Type.VIEW in {known.type, value.type}:
            if (known.type, known.rank) != (value.type, value.rank):
                raise self.of.fail(
                    node,
                    f"{name} is a {known.word} elsewhere and a {value.word} here",
                    "a variable has one type in the whole probe: use a second name",
                )
        elif value.type > known.type:
            self.of.types[name] = Value(value.type)
            self.of.regs.pop(name, None)
            self.changed = True
        return self.of.types[name].type

    def register(self, name: str) -> int:
        """The virtual register of a variable."""
        if name not in self.of.regs:
            self.of.regs[name] = self.block.register(FILES[self.of.types[name].type], name)
        return self.of.regs[name]

    def _augmented(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Subscript):
            self._augmented_cell(node, node.target)
            return
        if not isinstance(node.target, ast.Name):
            raise self.of.fail(node.target, "this cannot be assigned to", "NAME += e, or m[key] += e")
        load = ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target)
        whole = ast.copy_location(ast.BinOp(load, node.op, node.value), node)
        self.store(node.target, node.target.id, self.of.value(whole))

    # --- maps --------------------------------------------------------------------------------------------------------

    def _map_of(self, target: ast.Subscript) -> MapSpec:
        match target.value:
            case ast.Name(id=name) if name in self.unit.maps:
                return self.unit.maps[name]
            case ast.Name(id=name) if name in self.of.params:
                raise self.of.fail(target, f"{name} is a view of the step and can only be read", "write into a map")
        listed = ", ".join(self.unit.maps) or "none is declared: NAME = map.array(8) outside probe"
        raise self.of.fail(target, "only cells of maps are written", f"maps: {listed}")

    def _write(self, op: str, spec: MapSpec, key: Value, value: Value) -> None:
        self.block.emit(op, self.block.reg(key), self.block.reg(value), aux=self.of.map_number(spec))

    def _augmented_cell(self, node: ast.AugAssign, target: ast.Subscript) -> None:
        spec = self._map_of(target)
        key = self.of.key(spec, target)
        key = key if key.const is not None else Value(key.type, self.block.reg(key))
        match node.op:
            case ast.Add():
                if isinstance(node.value, ast.Constant) and type(node.value.value) is int and node.value.value == 1:
                    self.block.emit("MINC", self.block.reg(key), aux=self.of.map_number(spec))
                else:
                    self._write("MADD", spec, key, self.of.as_float(node.value))
            case ast.Sub():
                negated = self.block.apply("FNEG", self.of.as_float(node.value), type_=Type.FLOAT)
                self._write("MADD", spec, key, negated)
            case _:
                reg = self.block.emit("MGET", self.block.reg(key), aux=self.of.map_number(spec))
                cell = Value(Type.FLOAT, reg)
                right = node.value
                result = self.of.binary(node, node.op, cell, lambda: self.of.scalar(right), target, right)
                self._write("MSET", spec, key, result)

    def _call(self, node: ast.Expr, value: ast.expr) -> None:
        match value:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=method)) if owner in self.unit.maps:
                self._method(value, self.unit.maps[owner], method)
            case ast.Call(func=ast.Name(id=name)) if name in {h.name for h in functions.ASYNC}:
                self._asynchronous(value, isa.HELPER_BY_NAME[name])
            case ast.Call(func=ast.Name(id="print")):
                self.calls.call(value)
            case ast.Yield() | ast.YieldFrom() | ast.Await():
                self.of.value(value)
            case _:
                self.of.value(value)
                raise self.of.fail(node, "this line does nothing with its value", "m[key] = e, m.add(e) or NAME = e")

    def _method(self, node: ast.Call, spec: MapSpec, method: str) -> None:
        fits = [
            form.replace("m.", f"{spec.name}.", 1)
            for form, kinds, _ in functions.METHODS.values()
            if spec.kind in kinds
        ]
        if spec.kind in isa.KEYED:
            fits += [f"{spec.name}[key] = e", f"{spec.name}[key] += e"]
        form, kinds, _ = functions.METHODS.get(method, ("", (), ""))
        if spec.kind not in kinds:
            raise self.of.fail(
                node, f"{spec.name} is {an(spec.kind)} map and has no .{method[:40]}", f"it has {', '.join(fits)}"
            )
        count = form.count(",") + 1
        if len(node.args) != count or node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            raise self.of.fail(
                node, f".{method} takes {count} argument{'s' * (count > 1)}", form.replace("m.", f"{spec.name}.", 1)
            )
        number = self.of.map_number(spec)
        match method:
            case "add":
                self.block.emit("MHIST", b=self.block.reg(self.of.as_float(node.args[0])), aux=number)
            case "emit":
                tag = self.block.reg(self.of.as_int(node.args[0], "the tag"))
                self.block.emit("EMIT", tag, self.block.reg(self.of.as_float(node.args[1])), aux=number)
            case _:
                at = ast.copy_location(ast.Subscript(node.func, node.args[0], ast.Load()), node.args[0])
                key = self.block.reg(self.of.key(spec, at))
                if method == "inc":
                    self.block.emit("MINC", key, aux=number)
                else:
                    self.block.emit("MMAX", key, self.block.reg(self.of.as_float(node.args[1])), aux=number)

    def _asynchronous(self, node: ast.Call, helper: isa.Helper) -> None:
        form = f"{helper.name}({', '.join('xy'[: len(helper.views)])}, into=m) with m = map.results({helper.name!r})"
        match node.keywords:
            case [ast.keyword(arg="into", value=ast.Name(id=name))] if name in self.unit.maps:
                spec = self.unit.maps[name]
            case _:
                raise self.of.fail(node, f"{helper.name} needs the map that takes its figures", form)
        if len(node.args) != len(helper.views):
            raise self.of.fail(node, f"{helper.name} takes {len(helper.views)} views, got {len(node.args)}", form)
        if spec.kind is not MapKind.ARRAY or not spec.per_site or spec.size != len(helper.results):
            needs = f"{len(helper.results)} cells for each site"
            raise self.of.fail(node, f"{spec.name} does not fit the figures of {helper.name}: it needs {needs}", form)
        regs = [view.reg for view in self.calls.helper_views(node, helper)]
        first, second = (*regs, -1, -1)[:2]
        self.block.emit("CALL_ASYNC", first, second, aux=helper.nr, imm=self.of.map_number(spec))

    # --- control -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _branch(self, kept: list[set[str]]) -> Iterator[None]:
        """A block that may not run: what it assigns is noted and taken back."""
        before = set(self.of.assigned)
        yield
        kept.append(self.of.assigned)
        self.of.assigned = before

    def _if(self, node: ast.If) -> None:
        tests = [node.test] if node.orelse else conjuncts(node.test)
        first = self.of.scalar_condition(tests[0])
        if first.const is not None and len(tests) == 1:
            self._decided(node, bool(first.const))
            return
        kept: list[set[str]] = []
        with self._branch(kept):
            self.block.emit("IF", self.block.reg(first))
            for test in tests[1:]:
                self.block.emit("IF", self.block.reg(self.of.scalar_condition(test)))
            self.body(node.body)
        if node.orelse:
            self.block.line = node.orelse[0].lineno
            self.block.emit("ELSE")
            with self._branch(kept):
                self.body(node.orelse)
            self.of.assigned |= kept[0] & kept[1]
        for _ in tests:
            self.block.emit("ENDIF")

    def _decided(self, node: ast.If, taken: bool) -> None:
        """An `if` of a constant: both blocks are checked, one is kept."""
        for body, keep in ((node.body, taken), (node.orelse, not taken)):
            before, outer = set(self.of.assigned), self.block.capture()
            self.body(body)
            code = self.block.release(outer)
            if keep:
                self.block.code += code
            else:
                self.of.assigned = before

    def _for(self, node: ast.For) -> None:
        if node.orelse:
            raise self.of.fail(node.orelse[0], "a loop has no else", "write the lines after the loop")
        if not isinstance(node.target, ast.Name):
            raise self.of.fail(node.target, "a loop has one plain variable", "for i in range(n):")
        name = node.target.id
        if name in self.counters:
            raise self.of.fail(
                node.target, f"{name} already counts the loop of line {self.counters[name]}", "use another name"
            )
        start, count, view = self.calls.iteration(node.iter)
        direct = view is None and start is None
        if direct:
            self._widen(node.target, name, Value(Type.INT))
        if direct and self.of.types[name].type is Type.FLOAT:
            raise self.of.fail(
                node.target,
                f"{name} is a float elsewhere; a counter is a whole number",
                "use another name for one of them",
            )
        before = set(self.of.assigned)
        reg = self.block.emit("FOR", self.block.reg(count), d=self.register(name) if direct else -1)
        self.of.assigned.add(name)
        if view is not None:
            self.store(node.target, name, self.of.pick(view, Value(Type.INT, reg), 0, node.iter))
        elif start is not None:
            self.store(node.target, name, self.block.apply("IADD", Value(Type.INT, reg), start, type_=Type.INT))
        self.counters[name] = node.lineno
        if direct:
            self.of.counted[name] = node.lineno
        self.body(structured(self.unit, node.body, ast.Continue))
        del self.counters[name]
        self.of.assigned = before - ({name} if direct else set())
        self.block.line = node.lineno
        self.block.emit("ENDFOR")


def conjuncts(test: ast.expr) -> list[ast.expr]:
    """`a and b` and `a < b < c` as conditions that are tested one inside the other, so that the first guards the second."""
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            return [part for value in values for part in conjuncts(value)]
        case ast.Compare(left=left, ops=ops, comparators=comparators) if len(ops) > 1:
            chain = [left, *comparators]
            if all(isinstance(middle, ast.Name | ast.Constant) for middle in chain[1:-1]):
                return [
                    ast.copy_location(ast.Compare(a, [op], [b]), test)
                    for a, op, b in zip(chain, ops, chain[1:], strict=False)
                ]
    return [test]


def structured(unit: Unit, body: list[ast.stmt], leave: type[ast.stmt], depth: int = 0) -> list[ast.stmt]:
    """The block without `return` or `continue`: what follows `if c: return` moves into its else."""
    out: list[ast.stmt] = []
    for place, node in enumerate(body):
        rest = body[place + 1 :]
        if isinstance(node, ast.Return) and node.value is not None:
            raise unit.fail(node, "a probe returns nothing", "write into a map")
        if isinstance(node, leave):
            if rest:
                raise unit.fail(rest[0], "this line never runs: the block was left before it", "remove it")
            return out or [ast.copy_location(ast.Pass(), node)]
        if isinstance(node, ast.If):
            yes, no = _leaves(node.body, leave), _leaves(node.orelse, leave)
            if yes and no and rest:
                raise unit.fail(rest[0], "this line never runs: both blocks were left before it", "remove it")
            if (yes or no or not rest) and depth > LEAVES_MAX:
                raise unit.fail(node, "too many blocks inside each other", "join the conditions with `and` and `or`")
            if yes or no or not rest:
                then = node.body if yes else node.body + rest
                other = node.orelse if no else node.orelse + rest
                then, other = (structured(unit, part, leave, depth + 1) for part in (then, other))
                return [*out, ast.copy_location(ast.If(node.test, then, other), node)]
        out.append(node)
    return out


def _leaves(body: list[ast.stmt], leave: type[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], leave)
