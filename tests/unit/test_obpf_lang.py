"""The probe language: case files, what constructs mean when run, one-liners, and the pages that describe it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes import gen, isa, lang, verifier, vm
from probes.cells import Cells, read
from probes.lang import functions
from syscalls.errors import RecurosError

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases" / "obpf" / "lang"
REFUSE = sorted((CASES / "refuse").iterdir())
ACCEPT = sorted((CASES / "accept").iterdir())
PAGES = [ROOT / "docs" / "reference" / "obpf-language.md", ROOT / "docs" / "how-to" / "write-a-probe.md"]
RIGHTS = ("read-trace", "attach-probe")


def verified(program: isa.Bytecode) -> verifier.Certificate:
    return verifier.verify(program, isa.Contract(program.hook_kind), RIGHTS)


def compiled(body: str, hook: str = "on_forward:*", views: str = "x", maps: str = "m = map.array(8)\n") -> isa.Bytecode:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").split("\n"))
    return lang.compile_source(f'hook("{hook}")\n{maps}\ndef probe({views}):\n{lines}', "body.py")


def fire(
    program: isa.Bytecode, *views: np.ndarray[Any, Any] | None, cells: Cells | None = None, **context: Any
) -> Cells:
    """Verify and run once; every program of these tests is one that could be attached."""
    verified(program)
    cells = cells or Cells(program.maps)
    given = [None if v is None else vm.View(np.asarray(v)) for v in views]
    given += [None] * (len(isa.HOOK_VIEWS[program.hook_kind]) - len(given))
    vm.run(program, given, vm.Firing(**context), cells)
    return cells


def cell(cells: Cells, key: int, number: int = 0, site: int = 0) -> float:
    return cells.get(number, key, site)


def counted(cells: Cells, name: str) -> float:
    """Everything in the bins of a histogram that is not per site."""
    return float(sum(read(cells.buffer)["maps"][name]["counts"]))


# --- case files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REFUSE, ids=lambda p: p.name)
def test_a_source_outside_the_language_is_refused_at_its_place(path: Path) -> None:
    """The first line of the file says where, and how the sentence begins."""
    text = path.read_text(encoding="utf-8")
    match = re.match(r"# error (\d+):(\d+) (.+)\n", text)
    assert match is not None
    with pytest.raises(RecurosError) as caught:
        lang.compile_all(text, path.name)
    error = caught.value
    assert error.code == "E8-SYNTAX"
    assert error.exit_status == 8
    assert (error.details["line"], error.details["column"]) == (int(match[1]), int(match[2]))
    assert error.message.startswith(f"{path.name}:{match[1]}:{match[2]}: {match[3]}")
    assert_caret(error, text, int(match[1]), int(match[2]))


def assert_caret(error: RecurosError, text: str, line: int, column: int) -> None:
    """The hint says what is allowed, then shows the line with a caret under the column."""
    *allowed, shown, caret = error.hint.split("\n")
    assert allowed
    assert all(allowed)
    assert caret.strip() == "^"
    assert len(caret) - len("    ^") == min(column - 1, 100)
    assert shown[4:24].isprintable()
    assert text.split("\n")[line - 1][:10].isprintable() is False or shown[4:14] == text.split("\n")[line - 1][:10]


def test_there_are_cases_of_every_form() -> None:
    assert len(REFUSE) >= 200
    assert {p.suffix for p in REFUSE} == {p.suffix for p in ACCEPT} == set(lang.SUFFIXES)


@pytest.mark.parametrize("path", ACCEPT, ids=lambda p: p.name)
def test_an_accepted_source_compiles_and_verifies(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    programs = lang.compile_all(text, path.name)
    assert programs == lang.compile_all(text, path.name), "the same text gives the same bytes"
    for program in programs:
        verified(program)
        assert isa.decode(isa.encode(program)) == program
        assert lang.assemble(lang.disassemble(program)) == program
        assert len(program.lines) == len(program.code)
        assert all(1 <= line <= len(text.split("\n")) for line in program.lines)


def test_the_languages_import_nothing_heavy() -> None:
    code = "import sys, probes.lang; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(done.stdout.split()) & {"torch", "numpy", "llvmlite", "transformers", "sklearn", "scipy", "click"}


def test_another_suffix_is_no_language() -> None:
    with pytest.raises(RecurosError, match="suffix"):
        lang.compile_source("x", "probe.txt")


# --- what constructs mean ----------------------------------------------------------------------------------------------


def test_continue_and_return_leave_out_what_follows() -> None:
    program = compiled("""
for i in range(6):
    if i == 1:
        m[0] += 10
        continue
    if i > 3:
        continue
    else:
        m[1] += 1
    m[0] += 1
if m[0] > 100:
    m[2] = 1
    return
m[3] = 1
if m[3] > 0:
    return
else:
    m[4] = 1
m[5] = 1
""")
    cells = fire(program, np.zeros((1, 1)))
    assert [cell(cells, k) for k in range(6)] == [13.0, 3.0, 0.0, 1.0, 0.0, 0.0]


def test_views_can_be_kept_in_variables_and_walked() -> None:
    x = np.arange(12.0).reshape(3, 4)
    program = compiled("""
best = -inf
for row in x:
    part = row[1:3]
    for v in part:
        m[0] += v
    part = row
    best = max(best, sum(part))
m[1] = best
if x.shape[1] > 2:
    m[2] = sum(x[:, 2])
r = x[1:]
m[3] = r.shape[0]
m[4] = x.size
n, w = x.shape
m[5] = n * 10 + w
""")
    cells = fire(program, x)
    assert [cell(cells, k) for k in range(6)] == [x[:, 1:3].sum(), 38.0, x[:, 2].sum(), 2.0, 12.0, 34.0]


def test_attention_is_indexed_by_any_leading_axes() -> None:
    a = np.random.default_rng(1).random((2, 3, 4, 5))
    program = compiled(
        """
for b in range(attn.shape[0]):
    for h in range(attn.shape[1]):
        m[0] += sum(attn[b, h])
        m[1] += sum(attn[:, h][b])
        for q in range(attn.shape[2]):
            m[2] += sum(attn[b, h, q])
for k in range(attn.shape[3]):
    m[3] += sum(attn[..., k])
m[4] = mean(sum(attn))
""",
        "on_attention",
        "attn",
    )
    cells = fire(program, a)
    assert [cell(cells, k) for k in range(4)] == pytest.approx([a.sum()] * 4)
    assert cell(cells, 4) == pytest.approx(a.sum(-1).mean())


def test_a_condition_guards_the_index_after_it() -> None:
    program = compiled("""
hit = x.shape[0] > 2 and sum(x[2]) > 0.0
m[0] = hit
either = x.shape[0] <= 2 or sum(x[2]) > 0.0
m[2] = either
""")
    assert cell(fire(program, np.ones((3, 1))), 0) == 1.0
    short = fire(program, np.ones((2, 1)))
    assert (cell(short, 0), cell(short, 2)) == (0.0, 1.0)


def test_a_variable_is_as_wide_as_anything_assigned_to_it() -> None:
    program = compiled("""
s = 0
t = True
for i in range(3):
    s = t
    t = t + 1
    s += 0.5
m[0] = s / 2
m[1] = t
""")
    cells = fire(program, np.zeros((1, 1)))
    assert (cell(cells, 0), cell(cells, 1)) == (1.75, 4.0)


def test_registers_are_used_again_when_their_value_is_dead() -> None:
    lines = [f"a{k} = mean(x) + {k}.0\nm[0] += a{k}" for k in range(200)]
    program = compiled("\n".join(lines))
    assert max(i.d for i in program.code if i.op.d is isa.Operand.FLOAT) < 4
    verified(program)


def test_a_loop_keeps_its_bound_and_counter_apart() -> None:
    program = compiled("for i in range(x.shape[0]):\n    m[0] += i\nfor i in range(3):\n    m[1] += i")
    assert all(i.d != i.a for i in program.code if i.op.name == "FOR")
    assert cell(fire(program, np.zeros((4, 1))), 0) == 6.0


def test_constants_fold_by_the_rules_of_the_machine() -> None:
    program = compiled("m[0] = 7 // 0 + 7 % 0 + -7 // 2\nm[1] = 1.0 / 0.0\nm[2] = 9223372036854775807 + 1 - 1")
    assert {i.op.name for i in program.code} <= {"ICONST", "FCONST", "MSET", "EXIT", "I2F"}
    cells = fire(program, np.zeros((1, 1)))
    assert [cell(cells, k) for k in range(3)] == [3.0, float("inf"), float(2**63 - 2)]


def test_an_if_of_a_constant_keeps_one_block_and_checks_both() -> None:
    program = compiled("if ON:\n    m[0] = 1\nelse:\n    m[1] = 1", maps="m = map.array(8)\nON = True\n")
    assert "IF" not in {i.op.name for i in program.code}
    with pytest.raises(RecurosError, match="no variable"):
        compiled("if False:\n    m[0] = nowhere")


@pytest.mark.parametrize("macro", functions.MACROS, ids=lambda f: f.name)
def test_a_macro_is_the_expression_it_stands_for(macro: functions.Function) -> None:
    setup = "e = temperature\nlow = -1.0\nhigh = 2.0\n"
    result = [
        fire(compiled(f"{setup}m[0] = {text}"), np.eye(3) + 0.5, temperature=0.7) for text in (macro.form, macro.macro)
    ]
    assert repr(cell(result[0], 0)) == repr(cell(result[1], 0))


@pytest.mark.parametrize("function", [*functions.REDUCTIONS, *functions.SCALARS], ids=lambda f: f.form)
def test_a_function_is_the_instruction_that_the_table_names(function: functions.Function) -> None:
    vector = function.name in functions.VECTOR_ONLY
    form = re.sub(r"\by\b", "teacher[i]" if vector else "teacher", function.form)
    form = re.sub(r"\bx\b", "student[i]" if vector else "student", form).replace(", ...", "")
    form = re.sub(r"\b(a|b|e)\b", "temperature", form) if function in functions.SCALARS or "e)" in form else form
    form = "float(step)" if function.form == "float(e)" else form
    body = f"for i in range(student.shape[0]):\n    m[0] = {form}" if vector else f"m[0] = {form}"
    program = compiled(body, "on_kd_step", "student, teacher")
    assert function.op in {i.op.name for i in program.code}
    verified(program)


# --- one-liners --------------------------------------------------------------------------------------------------------


def one(text: str) -> isa.Bytecode:
    return lang.compile_source(text, "line.obpf")


def test_aggregates_fold_over_firings() -> None:
    program = one(
        "on_forward { @n = count(); @s = sum(mean(x)); @a = avg(mean(x)); @lo = min(mean(x)); @hi = max(mean(x)); @z = mean(x) }"
    )
    cells = Cells(program.maps)
    values = [-3.0, -5.0, float("nan"), -4.0]
    for value in values:
        fire(program, np.full((2, 2), value), cells=cells)
    at = {spec.name: number for number, spec in enumerate(program.maps)}
    assert cell(cells, 0, at["n"]) == 4.0
    assert cell(cells, 0, at["s"]) == -12.0
    assert [cell(cells, k, at["a"]) for k in (0, 1)] == [-12.0, 3.0], "a NaN is in neither sum nor count"
    assert [cell(cells, k, at["lo"]) for k in (0, 1)] == [-5.0, 3.0]
    assert [cell(cells, k, at["hi"]) for k in (0, 1)] == [-3.0, 3.0], "the largest of negative values is no 0"
    assert cell(cells, 0, at["z"]) == -4.0
    maps = read(cells.buffer)["maps"]
    assert [maps[name]["nans"] for name in ("s", "a", "lo", "hi", "z")] == [1] * 5


def test_layer_is_the_site() -> None:
    program = one("on_forward:* { @n[layer] = count(); @id[layer] = last(layer) }")
    cells = Cells(program.maps)
    for site in (0, 3, 3):
        fire(program, np.ones((1, 1)), cells=cells, site=site, sites=4)
    assert [cell(cells, 0, 0, site) for site in range(4)] == [1.0, 0.0, 0.0, 2.0]
    assert cell(cells, 0, 1, 3) == 3.0


def test_head_runs_the_block_for_each_head() -> None:
    a = np.random.default_rng(2).random((2, 3, 4, 5)).astype(np.float32)
    program = one("on_attention:student/** /head != 1/ { @s[layer, head] = sum(sum(attn)); @n[head] = count() }")
    cells = fire(program, a, site=2)
    wide = a.astype(np.float64)
    assert [cell(cells, h, 0, 2) for h in range(3)] == pytest.approx([wide[:, 0].sum(), 0.0, wide[:, 2].sum()])
    assert [cell(cells, h, 1) for h in range(3)] == [1.0, 0.0, 1.0]


def test_a_generator_inside_an_aggregate_counts_each() -> None:
    program = one(
        "on_forward { @h = hist(absmax(row) for row in x if absmax(row) > 1.5); @n = sum(mean(row) for row in x) }"
    )
    cells = fire(program, np.diag([1.0, 2.0, 3.0, 5.0]))
    assert counted(cells, "h") == 3
    assert cell(cells, 0, 1) == 11.0 / 4


def test_a_file_of_several_one_liners_is_several_programs() -> None:
    text = "# first\non_kd_step { @a = count() }\n\non_forward:h.* every 7 { @rms[layer] = hist(rms(x)) }  # second\n"
    first, second = lang.compile_all(text, "/some/where/pair.obpf")
    assert (first.name, first.every, second.name, second.every) == ("pair", 1, "pair_2", 7)
    assert second.hook == "on_forward:h.*"
    assert set(second.lines) == {4}
    assert lang.compile_source(text, "pair.obpf") == first


def test_a_map_may_be_called_like_a_function_or_a_view() -> None:
    program = one("on_forward { @x = last(sum(x)); @sum = last(2.0); @step[step] = count(); @map = count() }")
    cells = fire(program, np.ones((2, 3)), step=5)
    assert (cell(cells, 0, 0), cell(cells, 0, 1), cell(cells, 5, 2)) == (6.0, 2.0, 1.0)


# --- pages -------------------------------------------------------------------------------------------------------------


def blocks() -> list[tuple[str, str, str]]:
    """(page, suffix, program) for each program of the pages."""
    suffixes = {"python": ".py", "bpftrace": ".obpf", "asm": ".asm"}
    found = []
    for page in PAGES:
        for kind, text in re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            if kind in suffixes:
                found.append((page.name, suffixes[kind], text))
    return found


@pytest.mark.parametrize(("page", "suffix", "text"), blocks())
def test_every_program_of_the_pages_compiles_and_verifies(page: str, suffix: str, text: str) -> None:
    for program in lang.compile_all(text, f"page{suffix}"):
        verified(program)


def test_the_language_page_opens_with_a_program_of_each_form() -> None:
    kinds = re.findall(r"```(\w+)\n", PAGES[0].read_text(encoding="utf-8"))
    assert kinds[:3] == ["python", "bpftrace", "asm"]


def test_the_made_parts_of_the_pages_are_those_of_the_tables() -> None:
    page = (ROOT / "docs" / "reference" / "obpf-isa.md").read_text(encoding="utf-8")
    assert page == gen.isa_page(), "run: python -m probes.gen"
    page = PAGES[0].read_text(encoding="utf-8")
    assert page == gen.language_page(page), "run: python -m probes.gen"
    assert set(re.findall(r"<!-- made: (\w+) -->", page)) == gen.SECTIONS.keys()


def test_the_isa_page_has_every_opcode_and_its_program_assembles() -> None:
    page = gen.isa_page()
    for op in isa.OPS:
        assert f"| 0x{op.nr:02x} | `{op.name}` |" in page
        assert gen._cell(op.doc) in page
    example = re.search(r"(?:^    (?:\.name absmax).*\n)(?:^    .*\n)+", page, re.MULTILINE)
    assert example is not None
    verified(lang.assemble(example[0]))


def test_the_error_that_the_how_to_shows_is_the_real_one() -> None:
    page = PAGES[1].read_text(encoding="utf-8")
    shown = re.search(r"```\n(error\[E8-SYNTAX\].*?)```", page, re.DOTALL)
    assert shown is not None
    with pytest.raises(RecurosError) as caught:
        lang.compile_source(
            'hook("on_kd_step")\nm = map.array(1)\n\n\ndef probe():\n    while step:\n        m[0] += 1\n', "drift.py"
        )
    assert str(caught.value) == shown[1].rstrip("\n")
