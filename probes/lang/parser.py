"""From text to a checked syntax tree: the restricted Python of a probe file.

Responsible for: `parse`, which gives a `Unit`: hook, cadence, maps, constants, the views the probe reads and the body of its
function, still as `ast` nodes. The source is parsed with the standard library and never executed. Bounded: text, nesting and
the number of nodes are limited before anything walks the tree.
Refuses with E8-SYNTAX: whatever is not one of the module-level forms below.

    "docstring"                         NAME = number
    hook("HOOK", every=N)               NAME = map.KIND(...)
    def probe(view, ...): body
"""

from __future__ import annotations

import ast
import io
import math
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from probes import isa, sites
from probes.isa import MapKind, MapSpec
from probes.lang import functions
from probes.lang.asm import check_map
from probes.lang.position import Text, checked
from syscalls.errors import RecurosError

SOURCE_CHARS_MAX: Final = 40_000
NODES_MAX: Final = 30_000
TREE_DEPTH_MAX: Final = 60
EVERY_DEFAULT: Final = 1
HASH_DEFAULT: Final = 256
RING_DEFAULT: Final = 1_024


@dataclass
class Unit:
    """A parsed program. `views`: number of the hook's view by parameter; `aliases`: other names of context values."""

    source: Text
    name: str
    hook: str = ""
    every: int = EVERY_DEFAULT
    maps: dict[str, MapSpec] = field(default_factory=dict)
    constants: dict[str, int | float | bool] = field(default_factory=dict)
    views: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    body: list[ast.stmt] = field(default_factory=list)
    end_line: int = 1
    kept: str = ""

    def fail(self, node: ast.AST, message: str, allowed: str = "") -> RecurosError:
        """E8-SYNTAX at a node."""
        line, offset = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        return self.source.error(message, line, self.source.column(line, offset), allowed)

    def hook_views(self) -> tuple[isa.ViewSpec, ...]:
        """The views of the hook."""
        return isa.HOOK_VIEWS[self.hook.partition(":")[0]]

    def declare(self, node: ast.AST, spec: MapSpec, word: str) -> None:
        """Add a map under the word that the source has for it; E8-SYNTAX when it is over a limit or the word is taken."""
        self.check_name(node, word)
        check_map(spec, lambda message: self.fail(node, message))
        if len(self.maps) == isa.MAPS_MAX:
            raise self.fail(node, f"more than {isa.MAPS_MAX} maps", "several cells of one map may take their place")
        self.maps[word] = spec

    def check_name(self, node: ast.AST, name: str) -> None:
        """Refuse a name that already means something."""
        meaning = self.meaning(name)
        if meaning:
            raise self.fail(node, f"{name} is already {meaning}", "choose another name")

    def meaning(self, name: str) -> str:
        """What a reserved or declared name stands for, or ''."""
        if name in self.maps:
            return "a map"
        if name in self.constants:
            return "a constant of the module"
        if name in self.views:
            return "a view of the hook"
        if name in functions.NAMES:
            return "a function of the language"
        if name in functions.CONTEXT or name in isa.CONTEXT_FLOATS or name in self.aliases:
            return "a value of the firing"
        if name in {"inf", "map", "hook", "probe"}:
            return "a word of the language"
        return ""


def stem(filename: str) -> str:
    """The name of a program: its file's name without folder and suffix."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return (last.rpartition(".")[0] or last)[: isa.NAME_CHARS_MAX] or "probe"


def syntax_tree(source: Text, code: str, line: int = 1, column: int = 1) -> ast.Module:
    """`ast.parse` within bounds. `code` begins at this line and column of the source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code, type_comments=False)
    except SyntaxError as e:
        row, offset = e.lineno or 1, max(1, e.offset or 1)
        place = (row + line - 1, offset + (column - 1 if row == 1 else 0))
        raise source.error(f"not Python: {e.msg}", *place, "a probe is a small Python function") from e
    except (MemoryError, RecursionError) as e:
        raise source.error("nested too deeply", line, 1, f"at most {TREE_DEPTH_MAX} levels") from e
    except ValueError as e:
        raise source.error(f"not Python: {str(e)[:80]}", line) from e
    ast.increment_lineno(tree, line - 1) if line > 1 else None
    _bound(source, tree)
    return tree


def _bound(source: Text, tree: ast.Module) -> None:
    """Refuse a tree too deep or too large for a recursive walk."""
    count = 0
    stack: list[tuple[ast.AST, int, ast.AST]] = [(tree, 0, tree)]
    while stack:
        node, depth, place = stack.pop()
        place = node if hasattr(node, "lineno") else place
        count += 1
        if depth > TREE_DEPTH_MAX or count > NODES_MAX:
            line = getattr(place, "lineno", 1)
            what = f"over {NODES_MAX} parts" if count > NODES_MAX else f"nested over {TREE_DEPTH_MAX} levels deep"
            raise source.error(
                f"the source is too large: {what}",
                line,
                source.column(line, getattr(place, "col_offset", 0)),
                "write it in several steps, or as several probes",
            )
        stack += [(child, depth + 1, place) for child in ast.iter_child_nodes(node)]


def refuse_lookalikes(source: Text) -> None:
    """Names are plain ASCII: Python would read some other letters as if they were."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
            if token.type == tokenize.NAME and not token.string.isascii():
                raise source.error(
                    f"the name {token.string[:40]!r} is not plain ASCII",
                    token.start[0],
                    token.start[1] + 1,
                    "names are a-z, A-Z, 0-9 and _",
                )
    except (tokenize.TokenError, IndentationError) as e:
        raise source.error("not Python: it ends in the middle of something", len(source.lines)) from e


def parse(text: str, filename: str) -> Unit:
    """The program of a `.py` probe file."""
    source = checked(text, filename, SOURCE_CHARS_MAX)
    tree = syntax_tree(source, source.text)
    refuse_lookalikes(source)
    unit = Unit(source, stem(filename), kept=source.text)
    function: ast.FunctionDef | None = None
    for node in tree.body:
        match node:
            case ast.FunctionDef():
                if function is not None:
                    raise unit.fail(
                        node,
                        "a file has one function, probe",
                        "write the lines where they are needed, or a second file",
                    )
                function = node
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.Expr(value=ast.Call(func=ast.Name(id="hook"))):
                _hook(unit, node.value)  # type: ignore[arg-type]
            case ast.Assign(targets=[ast.Name(id=name)]):
                _declaration(unit, node, name)
            case _:
                _refuse_module_level(unit, node)
    if not unit.hook:
        raise source.error(
            "the file names no hook", 1, 1, f'begin with hook("on_forward:student/blocks.*"); hooks: {_hooks()}'
        )
    if function is None:
        raise source.error("the file has no `def probe(...):`", 1, 1, _parameters(unit))
    _function(unit, function)
    return unit


def _hooks() -> str:
    return ", ".join(isa.HOOK_VIEWS)


def _parameters(unit: Unit) -> str:
    listed = ", ".join(view.name for view in unit.hook_views())
    if not listed:
        return f"def probe(): {unit.hook} has no views"
    return f"def probe({listed}): the parameters are views of {unit.hook}, any of these"


def _refuse_module_level(unit: Unit, node: ast.stmt) -> NoReturn:
    message = {
        ast.Import: "a probe imports nothing",
        ast.ImportFrom: "a probe imports nothing",
        ast.ClassDef: "a probe has no classes",
        ast.AsyncFunctionDef: "a probe is not async",
    }.get(type(node), "this cannot stand outside the function")
    allowed = 'outside the function: hook("..."), NAME = map.KIND(...), NAME = number, def probe(...)'
    raise unit.fail(node, message, allowed)


def _hook(unit: Unit, call: ast.Call) -> None:
    if unit.hook:
        raise unit.fail(call, "the file names a hook twice", "one file is one program of one hook")
    match call.args:
        case [ast.Constant(value=str(hook))]:
            set_hook(unit, call.args[0], hook)
        case _:
            raise unit.fail(call, "hook() takes one string", 'hook("on_forward:student/blocks.*", every=5)')
    for key in call.keywords:
        if key.arg != "every":
            raise unit.fail(key.value, f"hook() has no {key.arg or '**'}", 'hook("on_kd_step", every=10)')
        unit.every = whole(unit, key.value, "every", 1, isa.EVERY_MAX)


def set_hook(unit: Unit, node: ast.AST, hook: str) -> None:
    """Take over a hook string; E8-SYNTAX says which hooks exist."""
    try:
        hook.encode()
        sites.parse(hook)
    except UnicodeEncodeError as e:
        raise unit.fail(node, "the hook has characters that no text may hold") from e
    except RecurosError as e:
        raise unit.fail(node, e.message, e.hint or f"hooks: {_hooks()}") from e
    unit.hook = hook


def number(unit: Unit, node: ast.AST) -> int | float | bool:
    """A number written out, with its sign, or a constant of the module."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            value = node.operand.value  # type: ignore[attr-defined]
            return limited(unit, node, -value)
        case ast.Constant(value=int() | float()):
            return limited(unit, node, node.value)
        case ast.Name(id="inf"):
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return -math.inf
        case ast.Name(id=name) if name in unit.constants:
            return unit.constants[name]
    raise unit.fail(node, "this has to be a number written out", "for example 8, 0.5 or -1e-3")


def limited(unit: Unit, node: ast.AST, value: Any) -> int | float | bool:
    """A literal within 64 bits."""
    if isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and isa.I64_MIN <= value <= isa.I64_MAX:
        return value
    raise unit.fail(node, "this whole number does not fit 64 bits", "write it as a float, for example 1e30")


def whole(unit: Unit, node: ast.AST, what: str, low: int, high: int) -> int:
    """A whole number within bounds."""
    value = number(unit, node)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise unit.fail(node, f"{what} = {value}; it must be a whole number from {low} to {high}")
    return value


def _declaration(unit: Unit, node: ast.Assign, name: str) -> None:
    unit.check_name(node, name)
    match node.value:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="map"), attr=kind)) as call:
            unit.declare(node, _map(unit, call, name, kind), name)
        case value:
            unit.constants[name] = number(unit, value)


_MAP_FORMS: Final = {
    "array": 'map.array(8), map.array(8, per_site=True), map.array(fields=("a", "b"))',
    "hash": "map.hash(64)",
    "log2": "map.log2(), map.log2(per_site=True)",
    "linear": "map.linear(low, high, bins)",
    "ring": "map.ring(256)",
    "results": 'map.results("cka"): an array for each site that takes the figures of an asynchronous helper',
}


def _map(unit: Unit, call: ast.Call, name: str, kind: str) -> MapSpec:
    if kind not in _MAP_FORMS:
        raise unit.fail(call, f"no map.{kind}", f"there are: {', '.join(f'map.{k}' for k in _MAP_FORMS)}")
    positional = {"linear": ["low", "high", "bins"], "results": ["helper"], "log2": []}.get(kind, ["size"])
    given: dict[str, ast.expr] = dict(zip(positional, call.args, strict=False))
    allowed = {*positional, "label"} | ({"fields"} if kind == "array" else set())
    allowed |= {"per_site"} if kind in {"array", "log2", "linear"} else set()
    for key in call.keywords:
        if key.arg not in allowed or key.arg in given:
            raise unit.fail(key.value, f"map.{kind} takes no {key.arg or '**'} here", _MAP_FORMS[kind])
        given[key.arg] = key.value
    if len(call.args) > len(positional) or any(isinstance(a, ast.Starred) for a in call.args):
        raise unit.fail(call, f"map.{kind} takes {len(positional)} values", _MAP_FORMS[kind])
    fields = _fields(unit, kind, given)
    return MapSpec(
        name=name,
        kind=MapKind.ARRAY if kind == "results" else MapKind(kind),
        size=_size(unit, call, kind, given, len(fields)),
        per_site=kind == "results" or _flag(unit, given.get("per_site")),
        low=float(_required(unit, call, kind, given, "low")) if kind == "linear" else 0.0,
        high=float(_required(unit, call, kind, given, "high")) if kind == "linear" else 0.0,
        label=_string(unit, given["label"]) if "label" in given else "",
        fields=fields,
    )


def _required(unit: Unit, call: ast.Call, kind: str, given: dict[str, ast.expr], name: str) -> int | float:
    if name not in given:
        raise unit.fail(call, f"map.{kind} needs {name}", _MAP_FORMS[kind])
    return number(unit, given[name])


def _size(unit: Unit, call: ast.Call, kind: str, given: dict[str, ast.expr], fields: int) -> int:
    name = "bins" if kind == "linear" else "size"
    if name in given:
        return whole(unit, given[name], name, 1, isa.MAP_CELLS_MAX)
    if fields:
        return fields
    default = {"hash": HASH_DEFAULT, "ring": RING_DEFAULT, "log2": 1}.get(kind)
    if default is None:
        raise unit.fail(call, f"map.{kind} needs {name}", _MAP_FORMS[kind])
    return default


def _fields(unit: Unit, kind: str, given: dict[str, ast.expr]) -> tuple[str, ...]:
    if kind == "results":
        node = given.get("helper")
        name = _string(unit, node) if node is not None else ""
        found = [h.results for h in functions.ASYNC if h.name == name]
        if not found:
            listed = ", ".join(h.name for h in functions.ASYNC)
            raise unit.fail(node or ast.Name("helper"), f"no asynchronous helper {name!r}", f"there are: {listed}")
        return found[0]
    match given.get("fields"):
        case None:
            return ()
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_string(unit, element) for element in elements)
        case node:
            raise unit.fail(node, "fields are names", 'fields=("sum", "count")')


def _string(unit: Unit, node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)) if text.isprintable():
            return text
    raise unit.fail(node, "this has to be a plain string")


def _flag(unit: Unit, node: ast.expr | None) -> bool:
    match node:
        case None:
            return False
        case ast.Constant(value=bool(value)):
            return value
    raise unit.fail(node, "per_site is True or False")


def _function(unit: Unit, node: ast.FunctionDef) -> None:
    arguments = node.args
    if node.name != "probe":
        raise unit.fail(node, f"the function is called {node.name}", "call it probe: `def probe(...):`")
    if node.decorator_list or node.returns is not None:
        raise unit.fail(node, "probe takes no decorator and no annotation", "def probe(...):")
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults or arguments.posonlyargs:
        raise unit.fail(node, "the parameters of probe are plain names of views", _parameters(unit))
    known = {view.name: number for number, view in enumerate(unit.hook_views())}
    for argument in arguments.args:
        if argument.arg not in known:
            raise unit.fail(argument, f"{unit.hook} has no view {argument.arg!r}", _parameters(unit))
        if argument.annotation is not None:
            raise unit.fail(argument, "parameters have no annotation", _parameters(unit))
        unit.check_name(argument, argument.arg)
        unit.views[argument.arg] = known[argument.arg]
    unit.body = node.body
    unit.end_line = node.end_lineno or node.lineno


def stored_names(body: list[ast.stmt]) -> Iterator[ast.Name]:
    """Every variable that the body assigns, generators' own left out."""
    stack: list[ast.AST] = list(body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.GeneratorExp):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node
        stack += ast.iter_child_nodes(node)
