"""Sources written to hurt the compiler: each is refused with E8-SYNTAX, within bounded time and memory."""

from __future__ import annotations

import ast
import random
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import isa, lang
from syscalls.errors import RecurosError

HOOK = 'hook("on_forward:student/*")\nm = map.array(8)\n'
BODY = HOOK + "def probe(x):\n"
SECONDS_MAX = 20.0
"""Far above what any of these takes; it catches a loop without end, not a slow machine."""


def expression(text: str) -> str:
    return f"{BODY}    s = {text}\n    m[0] = s\n"


HOSTILE = {
    "parentheses": expression("(" * 5_000 + "1" + ")" * 5_000),
    "brackets": expression("[" * 90 + "1" + "]" * 90),
    "not": expression("not " * 9_000 + "1"),
    "minus": expression("-" * 30_000 + "1"),
    "sum of very many": expression("1" + " + 1" * 9_000),
    "power tower": expression("2" + " ** 2" * 5_000),
    "conditional": expression("1 if 1 else " * 3_000 + "1"),
    "comparison": expression("step" + " < step" * 4_000),
    "and": expression(" and ".join(["x[0, 0]"] * 3_000)),
    "attributes": expression("x" + ".a" * 15_000),
    "calls": expression("sqrt(" * 90 + "1" + ")" * 90),
    "subscripts": expression("x" + "[0]" * 9_000),
    "lambda": expression("lambda: " * 4_000 + "1"),
    "huge integer": expression("9" * 4_000),
    "integer over the limit of digits": expression("9" * 30_000),
    "hex": expression("0x" + "f" * 30_000),
    "complex": expression("1j"),
    "float overflow in an index": f"{BODY}    m[1e999] = 1\n",
    "megabyte": BODY + "    pass\n" * 100_000,
    "statements": BODY + "    m[0] = 1\n" * 2_500,
    "elif": BODY + "    if step:\n        pass\n" + "".join("    elif step:\n        pass\n" for _ in range(900)),
    "nested if": BODY + "".join("    " * (k + 1) + "if step:\n" for k in range(90)) + "    " * 91 + "pass\n",
    "nested for": BODY + "".join(f"{' ' * (k + 1)}for i{k} in range(2):\n" for k in range(19)) + " " * 20 + "pass\n",
    "early returns": BODY + "    if step:\n        return\n" * 900,
    "variables alive": BODY
    + "".join(f"    a{k} = float(step + {k})\n" for k in range(500))
    + "    m[0] = " + " + ".join(f"a{k}" for k in range(40)) + "\n",
    "types in a chain": BODY
    + "".join(f"    a{k} = 0\n" for k in range(300))
    + "    for i in range(9):\n"
    + "".join(f"        a{k} = a{k + 1}\n" for k in range(299))
    + "        a299 = 0.5\n",
    "multiplied generators": expression("sum(" + "sum(1.0 for a in x if " * 12 + "1" + ")" * 12 + " for b in x)"),
    "nul": BODY + "    m[0] = 1\0\n",
    "carriage return": BODY + "    m[0] = 1\r    m[1] = 2\n",
    "form feed": BODY + "    m[0] = 1\f\n",
    "right-to-left override": BODY + "    m[0] = 1  # \u202e harmless\n",
    "zero-width space": BODY + "    m[0\u200b] = 1\n",
    "byte order mark": "\ufeff" + BODY + "    pass\n",
    "line separator": BODY + "    m[0] = 1\u2028    m[1] = 1\n",
    "look-alike name": BODY + "    ѕ = 1\n",
    "mathematical letters": BODY + "    m[0] = \U0001d42c\U0001d42e\U0001d426(x)\n",
    "lone surrogate": BODY + "    m[0] = 1 # \ud800\n",
    "string never closed": BODY + '    m["' + "a" * 30_000,
    "brackets never closed": BODY + "    m[0] = (1 +\n" * 1_000,
    "indentation": BODY + "  m[0] = 1\n      m[1] = 2\n   m[2] = 3\n",
    "escape that warns": BODY + '    m["\\d"] = 1\n',
    "format string": BODY + '    m[f"{x}"] = 1\n',
    "two million maps": 'hook("on_kd_step")\n' + "".join(f"m{k} = map.array(1)\n" for k in range(500)) + "def probe():\n    pass\n",
    "map too large": 'hook("on_kd_step")\nm = map.array(262144, per_site=True)\ndef probe():\n    pass\n',
    "hook too long": f'hook("on_forward:{"a" * 3_000}")\ndef probe(x):\n    pass\n',
    "empty": "",
    "only a docstring": '"""nothing"""\n',
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_source_is_refused_in_bounded_time_and_memory(name: str) -> None:
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises(RecurosError) as caught:
        lang.compile_source(HOSTILE[name], "hostile.py")
    seconds = time.monotonic() - begun
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    error = caught.value
    assert error.code == "E8-SYNTAX"
    assert error.details["line"] >= 1
    assert error.details["column"] >= 1
    assert len(str(error)) < 2_000, "the error itself is small"
    assert seconds < SECONDS_MAX
    assert peak < 256 << 20


@pytest.mark.parametrize(
    "text",
    [
        "on_kd_step" + " { @a = count() }" * 2,
        "on_kd_step { @a = count() } " * 100,
        "on_kd_step {" + "(" * 20_000 + "}",
        "on_kd_step { @a = " + "-" * 20_000 + "1 }",
        "on_kd_step every 99999999999999999999 { @a = count() }",
        "on_kd_step /" + "/" * 20_000 + "{ @a = count() }",
        "on_kd_step { @" + "a" * 20_000 + " = count() }",
        "on_kd_step { @ａ = count() }",
        "on_kd_step { @a = lhist(step, 0, 1, 1e-300) }",
        "on_kd_step { @a = lhist(step, 0, 1e308, 1e-308) }",
        "on_kd_step { @a = lhist(step, -inf, inf, 1) }",
        "{" * 20_000,
        "}" * 20_000,
        "\0",
        "on_kd_step { @a = count()\0 }",
    ],
)
def test_a_hostile_one_liner_is_refused(text: str) -> None:
    begun = time.monotonic()
    with pytest.raises(RecurosError) as caught:
        lang.compile_all(text, "hostile.obpf")
    assert caught.value.code == "E8-SYNTAX"
    assert time.monotonic() - begun < SECONDS_MAX


def compiles_or_refuses(text: str, filename: str) -> bool:
    """True when it compiled; then the program is one that the encoding takes."""
    try:
        programs = lang.compile_all(text, filename)
    except RecurosError as e:
        if e.code != "E8-SYNTAX" or e.details["line"] < 1:
            raise
        return False
    for program in programs:
        assert isa.decode(isa.encode(program)) == program
        assert lang.assemble(lang.disassemble(program)) == program
    return True


@given(st.text(max_size=200), st.sampled_from([".py", ".obpf", ".asm"]))
def test_any_text_compiles_or_is_refused(text: str, suffix: str) -> None:
    compiles_or_refuses(text, f"any{suffix}")


NAMES = ["x", "m", "s", "i", "step", "site", "sum", "mean", "rms", "entropy", "lse", "sqrt", "min", "max", "inf", "cosine", "range",
         "probe", "cka", "h", "ring", "float", "int", "len", "K"]  # fmt: skip


class RandomTrees:
    """Random syntax trees: Python's own grammar, far wider than the language; every third keeps closer to it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tame = seed % 3 == 0

    def name(self) -> str:
        return self.rng.choice(["s", "step", "inf"] if self.tame else NAMES)

    def expression(self, depth: int) -> ast.expr:
        pick = self.rng.random()
        if depth <= 0 or pick < 0.25:
            values = [0, 1, -1, 7, 0.5, 1e300, True, None, "a", b"b", 2**70, 3j, ...]
            value = self.rng.choice(values[:7] if self.tame else values)
            return self.rng.choice([ast.Constant(value), ast.Name(self.name(), ast.Load())])
        inner = lambda: self.expression(depth - 1)  # noqa: E731
        generator = ast.comprehension(ast.Name("g", ast.Store()), inner(), [inner()] if pick > 0.9 else [], 0)
        forms = [
            lambda: ast.BinOp(inner(), self.rng.choice(ast.operator.__subclasses__())(), inner()),
            lambda: ast.UnaryOp(self.rng.choice(ast.unaryop.__subclasses__())(), inner()),
            lambda: ast.BoolOp(self.rng.choice([ast.And(), ast.Or()]), [inner(), inner()]),
            lambda: ast.Compare(inner(), [self.rng.choice(ast.cmpop.__subclasses__())()], [inner()]),
            lambda: ast.IfExp(inner(), inner(), inner()),
            lambda: ast.Call(ast.Name(self.name(), ast.Load()), [inner() for _ in range(self.rng.randrange(3))], []),
            lambda: ast.Call(ast.Name(self.name(), ast.Load()), [ast.GeneratorExp(inner(), [generator])], []),
            lambda: ast.Call(
                ast.Attribute(inner(), self.rng.choice(["add", "emit", "inc"]), ast.Load()), [inner()], []
            ),
            lambda: ast.Subscript(ast.Name(self.name(), ast.Load()), inner(), ast.Load()),
            lambda: ast.Subscript(inner(), ast.Tuple([inner(), ast.Slice()], ast.Load()), ast.Load()),
            lambda: ast.Subscript(inner(), ast.Slice(inner(), inner()), ast.Load()),
            lambda: ast.Attribute(inner(), self.rng.choice(["shape", "size", "T"]), ast.Load()),
            lambda: self.rng.choice([ast.List, ast.Tuple, ast.Set])([inner()]),
            lambda: ast.Lambda(ast.arguments([], [], None, [], [], None, []), inner()),
            lambda: ast.NamedExpr(ast.Name("w", ast.Store()), inner()),
            lambda: ast.ListComp(inner(), [generator]),
            lambda: ast.Yield(inner()),
            lambda: ast.Starred(inner(), ast.Load()),
        ]
        return self.rng.choice(forms[1:5] if self.tame else forms)()

    def target(self) -> ast.expr:
        name = ast.Name(self.rng.choice(["s", "t", "i", "m", "x"]), ast.Store())
        return self.rng.choice([name, name, ast.Subscript(ast.Name("m", ast.Load()), self.expression(1), ast.Store())])

    def block(self, depth: int) -> list[ast.stmt]:
        return [self.statement(depth) for _ in range(self.rng.randrange(1, 4))]

    def statement(self, depth: int) -> ast.stmt:
        expr = self.expression(3)
        forms = [
            lambda: ast.Assign([self.target()], expr),
            lambda: ast.Assign([ast.Name("s", ast.Store())], expr),
            lambda: ast.AugAssign(self.target(), self.rng.choice([ast.Add, ast.Sub, ast.Mult, ast.Div])(), expr),
            lambda: ast.Expr(expr),
            ast.Pass,
        ]
        if depth > 0:
            counted = ast.Call(ast.Name("range", ast.Load()), [ast.Constant(3)], [])
            forms += [
                lambda: ast.If(expr, self.block(depth - 1), self.rng.choice([[], self.block(depth - 1)])),
                lambda: ast.For(ast.Name("i", ast.Store()), counted, self.block(depth - 1), []),
                lambda: ast.For(self.target(), expr, self.block(depth - 1), []),
                lambda: ast.While(expr, self.block(depth - 1), []),
                lambda: ast.Return(self.rng.choice([None, expr])),
                ast.Continue,
                ast.Break,
                lambda: ast.Try(self.block(0), [], [], self.block(0)),
                lambda: ast.Delete([ast.Name("s", ast.Del())]),
            ]
        return self.rng.choice(forms[1:3] if self.tame else forms)()


def random_source(seed: int) -> str:
    made = RandomTrees(seed)
    tree = ast.Module([*made.block(2), *made.block(1)], [])
    text = ast.unparse(ast.fix_missing_locations(tree))
    indented = "\n".join("    " + line for line in text.split("\n"))
    return f"{HOOK}h = map.log2()\nring = map.ring()\nK = 3\ndef probe(x):\n    s = 1\n{indented}\n"


def test_random_syntax_trees_compile_or_are_refused() -> None:
    compiled = sum(compiles_or_refuses(random_source(seed), "random.py") for seed in range(1_500))
    assert compiled >= 20, "the generator reaches the other side too"
