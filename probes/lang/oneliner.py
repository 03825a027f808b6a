"""One-liners, in the spirit of bpftrace: what to fold, into what, by which key.

    HOOK [every N] [/condition/] { statement; ... }

A statement is `@name[key] = aggregate`, or `name = expression`; expressions are those of a probe file. Several one-liners may
follow each other, each a program of its own; `#` begins a comment.
Responsible for: `parse_all`, which writes each one as the `Unit` that the compiler takes: maps chosen by aggregate and key, the
loop over heads, the guards against NaN. Refuses with E8-SYNTAX: other statements, keys that an aggregate cannot have.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Final

from probes import isa
from probes.isa import MapKind, MapSpec
from probes.lang import functions
from probes.lang.parser import (
    HASH_DEFAULT,
    RING_DEFAULT,
    SOURCE_CHARS_MAX,
    Unit,
    number,
    refuse_lookalikes,
    set_hook,
    stem,
    syntax_tree,
)
from probes.lang.position import Text, checked
from syscalls.errors import RecurosError

SECTIONS_MAX: Final = 64
STEPS_KEPT: Final = 1_024
HEADS_KEPT: Final = 128
BINS_MAX: Final = 4_096
FORM: Final = "HOOK [every N] [/condition/] { @name[key] = aggregate; ... }"
_HEAD: Final = re.compile(r"[^\s{}]+")
_EVERY: Final = re.compile(r"every\s+([0-9]{1,9})(?![0-9A-Za-z_])")
_SIGIL: Final = re.compile(r"@(?=[A-Za-z])")
_MARK: Final = "_"
"""`@name` is read as `_name`, of the same width so that columns stay; variables may therefore not begin with it."""


@dataclass(frozen=True)
class _Section:
    """One one-liner: where its parts are in the text."""

    start: int
    hook: str
    every: int
    condition: tuple[int, int]
    body: tuple[int, int]
    end: int


def parse_all(text: str, filename: str) -> list[Unit]:
    """The programs of a `.obpf` source."""
    source = checked(text, filename, SOURCE_CHARS_MAX)
    plain = _without_comments(source.text)
    found: list[Unit] = []
    at = _skip(plain, 0)
    while at < len(plain):
        if len(found) == SECTIONS_MAX:
            raise _error(source, at, f"more than {SECTIONS_MAX} one-liners in one file", "use several files")
        section = _section(source, plain, at)
        found.append(_Program(source, plain, section, len(found)).unit)
        at = _skip(plain, section.end)
    if not found:
        raise source.error("there is no one-liner", 1, 1, FORM)
    return found


def _error(source: Text, at: int, message: str, allowed: str = FORM) -> RecurosError:
    line, column = _place(source.text, at)
    return source.error(message, line, column, allowed)


def _place(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1


def _without_comments(text: str) -> str:
    """The text with comments blanked, so that places stay."""
    return re.sub(r"#[^\n]*", lambda match: " " * len(match[0]), text)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _section(source: Text, text: str, start: int) -> _Section:
    match = _HEAD.match(text, start)
    if match is None:
        raise _error(source, start, "a one-liner begins with its hook")
    at = _skip(text, match.end())
    every = 1
    if cadence := _EVERY.match(text, at):
        every = int(cadence[1])
        if not 1 <= every <= isa.EVERY_MAX:
            raise _error(source, at, f"every {every}: it must be 1 to {isa.EVERY_MAX} steps")
        at = _skip(text, cadence.end())
    opening = text.find("{", at)
    if opening < 0:
        raise _error(source, at if at < len(text) else start, "the one-liner has no { block }")
    condition = (at, at)
    if text.startswith("/", at):
        closing = text.rfind("/", at + 1, opening)
        if closing < 0:
            raise _error(source, at, "the condition has no closing /", "/condition/ before the block")
        if text[closing + 1 : opening].strip():
            raise _error(source, closing + 1, "only the block follows the condition")
        condition = (at + 1, closing)
    elif text[at:opening].strip():
        raise _error(source, at, f"{text[at:opening].strip()[:40]!r} is not expected here")
    end = text.find("}", opening)
    if end < 0:
        raise _error(source, opening, "the block is not closed", "end it with }")
    return _Section(start, match[0], every, condition, (opening + 1, end), end + 1)


class _Program:
    """One one-liner written as a unit."""

    def __init__(self, source: Text, text: str, section: _Section, place: int) -> None:
        self.source, self.text, self.section = source, text, section
        name = stem(source.filename)
        self.unit = Unit(
            source,
            name if place == 0 else f"{name[: isa.NAME_CHARS_MAX - 4]}_{place + 1}",
            every=section.every,
            aliases={"layer": "site"},
            kept=source.text,
        )
        self.has_heads = False
        anchor = ast.Name("hook", lineno=_place(text, section.start)[0], col_offset=0)
        anchor.col_offset = _place(text, section.start)[1] - 1
        set_hook(self.unit, anchor, section.hook)
        self.unit.views = {view.name: number for number, view in enumerate(self.unit.hook_views())}
        self.unit.body = self._body()
        self.unit.end_line = _place(text, section.end)[0]

    def fail(self, node: ast.AST, message: str, allowed: str = FORM) -> RecurosError:
        return self.unit.fail(node, message, allowed)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _pieces(self) -> list[tuple[int, int]]:
        """Statements of the block: split at `;` and newlines outside brackets."""
        start, end = self.section.body
        pieces, depth, begin = [], 0, start
        for at in range(start, end):
            char = self.text[at]
            depth += (char in "([") - (char in ")]")
            if char == ";" or (char == "\n" and depth <= 0):
                pieces.append((begin, at))
                begin = at + 1
        pieces.append((begin, end))
        trimmed = [(_skip(self.text[:b], a), b) for a, b in pieces]
        return [(a, b) for a, b in trimmed if a < b]

    def _statement(self, start: int, end: int) -> ast.stmt:
        found = self._at(start, _SIGIL.sub(_MARK, self.text[start:end].rstrip()))
        if len(found) != 1:
            raise _error(self.source, start, "one statement was expected", "@name[key] = aggregate")
        return found[0]

    def _at(self, start: int, code: str) -> list[ast.stmt]:
        """`code` parsed, with the lines and columns it has at `start` of the source."""
        line, column = _place(self.text, start)
        refuse_lookalikes(Text(code, self.source.filename))
        tree = syntax_tree(self.source, code, line, column)
        prefix = len(self.source.lines[line - 1][: column - 1].encode())
        for node in ast.walk(tree):
            if getattr(node, "lineno", 0) == line and hasattr(node, "col_offset"):
                node.col_offset += prefix
        return tree.body

    # --- writing -----------------------------------------------------------------------------------------------------

    def _body(self) -> list[ast.stmt]:
        whole: list[ast.stmt] = []
        pieces = self._pieces()
        if not pieces:
            raise _error(self.source, self.section.body[0], "the block is empty", "@name = count()")
        self.has_heads = any(re.search(r"\bhead\b", self.text[a:b]) for a, b in [*pieces, self.section.condition])
        for start, end in pieces:
            whole += self._lowered(self._statement(start, end))
        start, end = self.section.condition
        if start < end:
            whole = self._conditioned(start, end, whole)
        return self._over_heads(whole) if self.has_heads else whole

    def _conditioned(self, start: int, end: int, body: list[ast.stmt]) -> list[ast.stmt]:
        start = _skip(self.text, start)
        found = self._at(start, self.text[start:end].rstrip()) if start < end else []
        match found:
            case [ast.Expr(value=test)]:
                self._plain(test)
                return [ast.copy_location(ast.If(test, body, []), test)]
        raise _error(self.source, start, "the condition is not one expression", "/step > 100/")

    def _over_heads(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """The block for each head: `attn` is that head's part, [batch, queries, keys]."""
        anchor = body[0]
        if self.unit.hook.partition(":")[0] != "on_attention":
            raise self.fail(anchor, "head exists at on_attention only", "keys here: layer, step, or an expression")
        for statement in body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and node.id == "attn":
                    node.id = "_attn"
        text = "for head in range(attn.shape[1]):\n    _attn = attn[:, head]"
        (loop,) = _written(text, anchor)
        assert isinstance(loop, ast.For), "written above"
        loop.body += body
        return [loop]

    def _lowered(self, node: ast.stmt) -> list[ast.stmt]:
        match node:
            case ast.Assign(targets=[ast.Name(id=name) as target]) if not name.startswith(_MARK):
                if name in {"layer", "head"}:
                    raise self.fail(target, f"{name} is a value of the firing", "choose another name")
                self._plain(node.value)
                return [node]
            case ast.Assign(targets=[ast.Name(id=name)]):
                return self._aggregate(node, name[1:], [], node.value)
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name), slice=key)]) if name.startswith(_MARK):
                keys = list(key.elts) if isinstance(key, ast.Tuple) else [key]
                return self._aggregate(node, name[1:], keys, node.value)
        listed = "; ".join(functions.AGGREGATES.values())
        raise self.fail(node, "a statement is @name[key] = aggregate, or name = expression", f"aggregates: {listed}")

    def _plain(self, node: ast.AST) -> None:
        """Refuse what looks like a map inside an expression."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id.startswith(_MARK):
                raise self.fail(
                    part, f"@{part.id[1:64]} is written here, never read", "variables begin with a letter: r = rms(x)"
                )

    def _aggregate(self, node: ast.Assign, name: str, keys: list[ast.expr], value: ast.expr) -> list[ast.stmt]:
        for part in (*keys, value):
            self._plain(part)
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,55}", name):
            raise self.fail(node, f"@{name[:64]} is no name of a map", "a-z, 0-9 and _, at most 56 characters")
        word, arguments = "last", [value]
        match value:
            case ast.Call(func=ast.Name(id=called), args=args) if called in functions.AGGREGATES:
                if value.keywords or any(isinstance(a, ast.Starred) for a in args):
                    raise self.fail(value, f"{called} takes plain arguments", functions.AGGREGATES[called])
                word, arguments = called, list(args)
            case ast.Call(func=ast.Name(id=called)) if called in {h.name for h in functions.ASYNC}:
                return self._asynchronous(node, name, keys, value)
        wanted = {"count": 0, "lhist": 4}.get(word, 1)
        if len(arguments) != wanted:
            raise self.fail(value, f"{word} takes {wanted} argument{'s' * (wanted != 1)}", functions.AGGREGATES[word])
        key = self._key(node, keys, word)
        loops: list[ast.comprehension] = []
        if arguments and isinstance(arguments[0], ast.GeneratorExp):
            loops, arguments[0] = arguments[0].generators, arguments[0].elt
        return self._inside(node, loops, self._update(node, name, word, key, arguments))

    def _inside(self, node: ast.stmt, loops: list[ast.comprehension], body: list[ast.stmt]) -> list[ast.stmt]:
        """`hist(e for r in x)`: the update for each r."""
        for loop in reversed(loops):
            for test in reversed(loop.ifs):
                body = [ast.copy_location(ast.If(test, body, []), node)]
            body = [ast.copy_location(ast.For(loop.target, loop.iter, body, []), node)]
        return body

    def _key(self, node: ast.stmt, keys: list[ast.expr], word: str) -> _Key:
        names = [k.id if isinstance(k, ast.Name) else "" for k in keys]
        rest = [k for k, name in zip(keys, names, strict=True) if name != "layer"]
        per_site = "layer" in names
        if len(keys) - len(rest) > 1 or len(rest) > 1:
            raise self.fail(node, "a key is layer, one other value, or layer and head", "@name[layer, head]")
        if not rest:
            return _Key(per_site, None, MapKind.ARRAY, 1, "")
        if word in {"hist", "lhist"}:
            raise self.fail(rest[0], f"{word} is kept for each layer at most", f"@name[layer] = {word}(...)")
        inner = names[keys.index(rest[0])]
        if word == "emit":
            if per_site:
                raise self.fail(rest[0], "a ring's entries have their layer anyway", "@name[tag] = emit(e)")
            return _Key(False, rest[0], MapKind.RING, RING_DEFAULT, "tag")
        if inner == "head":
            return _Key(per_site, rest[0], MapKind.ARRAY, HEADS_KEPT, "head")
        if per_site:
            raise self.fail(rest[0], "beside layer a key can only have head", "@name[layer, head], or @name[step]")
        return _Key(False, rest[0], MapKind.HASH, STEPS_KEPT if inner == "step" else HASH_DEFAULT, inner or "key")

    def _map(self, node: ast.AST, name: str, key: _Key, fields: tuple[str, ...] = ()) -> None:
        label = key.label
        size = key.size if key.inner is not None else max(1, len(fields))
        spec = MapSpec(name, key.kind, size, key.per_site, label=label, fields=fields if key.inner is None else ())
        self.unit.declare(node, spec, f"@{name}")

    def _update(self, node: ast.Assign, name: str, word: str, key: _Key, arguments: list[ast.expr]) -> list[ast.stmt]:
        """The statements of one aggregate, and its maps."""
        if word == "hist":
            self.unit.declare(node, MapSpec(name, MapKind.LOG2, 1, key.per_site), f"@{name}")
            return self._filled(name, "_m.add(_e)", node, arguments[0])
        if word == "lhist":
            self.unit.declare(node, self._linear(node, name, key, arguments), f"@{name}")
            return self._filled(name, "_m.add(_e)", node, arguments[0])
        if word == "emit":
            self.unit.declare(node, MapSpec(name, MapKind.RING, RING_DEFAULT, label="tag"), f"@{name}")
            return self._filled(name, "_m.emit(_k, _e)", node, arguments[0], key.inner)
        if word in {"count", "sum", "last"}:
            self._map(node, name, key, (word,))
            code = {"count": "_m[_k] += 1", "sum": "_m[_k] += _e", "last": "_m[_k] = _e"}[word]
            return self._filled(name, code, node, arguments[0] if arguments else None, key.inner)
        return self._counted(node, name, word, key, arguments[0])

    def _counted(self, node: ast.Assign, name: str, word: str, key: _Key, value: ast.expr) -> list[ast.stmt]:
        """avg, min, max: a figure with the number of values in it; a NaN counts in neither."""
        figure, count, held = "_m[_k]", "_n[_k]", f"_{name}_e"
        if key.inner is None:
            self._map(node, name, key, ("sum" if word == "avg" else word, "count"))
            count = "_m[1]"
        else:
            self._map(node, name, key)
            self._map(node, f"{name}_count", key)
        if word == "avg":
            code = f"{held} = _e\n{figure} += {held}\nif {held} == {held}:\n    {count} += 1"
        else:
            code = (
                f"{held} = _e\nif {held} == {held}:\n"
                f"    {figure} = {word}({figure}, {held}) if {count} > 0 else {held}\n"
                f"    {count} += 1\nelse:\n    {figure} += {held}"
            )
        return self._filled(name, code, node, value, key.inner)

    def _filled(
        self, name: str, code: str, node: ast.stmt, value: ast.expr | None, key: ast.expr | None = None
    ) -> list[ast.stmt]:
        """`code` with the map for `_m` (`_n`: its counts), the value for `_e` and the key, or 0, for `_k`."""
        holes: dict[str, ast.expr] = {"_k": key or ast.copy_location(ast.Constant(0), node)}
        for hole, of in (("_m", name), ("_n", f"{name}_count")):
            holes[hole] = ast.copy_location(ast.Name(f"@{of}", ast.Load()), node)
        if value is not None:
            holes["_e"] = value
        return _written(code, node, holes)

    def _linear(self, node: ast.Assign, name: str, key: _Key, arguments: list[ast.expr]) -> MapSpec:
        low, high, step = (float(number(self.unit, a)) for a in arguments[1:])
        bins = round((high - low) / step) if step > 0 and abs(high - low) < step * BINS_MAX * 2 else 0
        if not 1 <= bins <= BINS_MAX or abs(low + bins * step - high) > 1e-6 * abs(high - low):
            raise self.fail(
                node,
                f"lhist from {low:g} to {high:g} by {step:g}: the step must divide the range into 1 to {BINS_MAX} bins",
                functions.AGGREGATES["lhist"],
            )
        return MapSpec(name, MapKind.LINEAR, bins, key.per_site, low, high)

    def _asynchronous(self, node: ast.Assign, name: str, keys: list[ast.expr], call: ast.Call) -> list[ast.stmt]:
        assert isinstance(call.func, ast.Name), "the caller looked"
        if keys and not (len(keys) == 1 and isinstance(keys[0], ast.Name) and keys[0].id == "layer"):
            raise self.fail(node, f"{call.func.id} keeps its figures for each layer", f"@{name} = {call.func.id}(...)")
        helper = isa.HELPER_BY_NAME[call.func.id]
        results = helper.results
        self.unit.declare(node, MapSpec(name, MapKind.ARRAY, len(results), per_site=True, fields=results), f"@{name}")
        into = ast.keyword("into", ast.copy_location(ast.Name(f"@{name}", ast.Load()), call))
        whole = ast.copy_location(ast.Call(call.func, call.args, [*call.keywords, into]), call)
        return [ast.copy_location(ast.Expr(whole), node)]


@dataclass(frozen=True)
class _Key:
    """How a map is keyed: by site, and by `inner`, in a map of `kind` and `size`."""

    per_site: bool
    inner: ast.expr | None
    kind: MapKind
    size: int
    label: str


def _written(code: str, place: ast.AST, holes: dict[str, ast.expr] | None = None) -> list[ast.stmt]:
    """Statements of our own, at the place of the statement they come from."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return (holes or {}).get(node.id, node)

    tree = ast.parse(code)
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            ast.copy_location(node, place)
    return list(Fill().visit(tree).body)
