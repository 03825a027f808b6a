"""Probe programs on the command line, as far as no runtime is needed, and how maps are drawn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import console.main as console
from console import maps as drawn
from console.verbs.probe_maps import _entries, _follow
from probes import isa, lang
from probes.cells import Cells, read
from probes.isa import MapKind, MapSpec

KEYS = ["schema", "ok", "instructions", "cost", "visits", "error"]
ERROR_KEYS = ["code", "line", "pc", "message", "hint"]
GOOD = """hook("on_forward:student/blocks.*", every=5)
mean_rms = map.array(1, per_site=True)


def probe(x):
    mean_rms[0] += sqrt(sumsq(x) / (x.shape[0] * x.shape[1]))
"""
TOO_MANY_KEYS = """hook("on_forward:student/blocks.*")
cells = map.array(4)


def probe(x):
    for i in range(x.shape[0]):
        cells[i] = 1.0
"""
ONE_LINER = "on_forward:student/blocks.* { @rms[layer] = hist(rms(x)) }"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, text: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def check(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    status = console.run(["probe", "check", *args, "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    document: dict[str, Any] = json.loads(captured.out)
    assert list(document) == KEYS
    assert document["schema"] == "recuros.probe.check/v1"
    assert document["ok"] is (status == 0)
    assert (document["error"] is None) is (status == 0)
    if document["error"] is not None:
        assert list(document["error"]) == ERROR_KEYS
        assert document["error"]["message"]
        assert document["error"]["hint"]
    return status, document


def test_a_good_program_is_ok_with_its_figures(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, document = check(capsys, write("good.py", GOOD))
    assert status == 0
    program = lang.compile_source(GOOD, "good.py")
    assert document["instructions"] == len(program.code)
    assert document["cost"] > isa.REFERENCE_DIMS["rows"] * isa.REFERENCE_DIMS["width"]
    assert document["visits"] >= len(program.code)


def test_every_form_of_a_program_is_taken(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    program = lang.compile_source(GOOD, "good.py")
    for file in (
        write("good.py", GOOD),
        write("good.asm", lang.disassemble(program)),
        write("good.obpfc", isa.encode(program)),
        write("good.bin", isa.encode(program)),
        write("layers.obpf", ONE_LINER),
        ONE_LINER,
    ):
        assert check(capsys, file)[0] == 0, file


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("syntax.py", b"def probe(:\n", "E8-SYNTAX"),
        ("empty.py", b"", "E8-SYNTAX"),
        ("while.py", GOOD.replace("    mean", "    while True:\n        mean").encode(), "E8-SYNTAX"),
        ("words.txt", b"nothing of the kind", "E8-SYNTAX"),
        ("noise.py", bytes(range(256)), "E8-SYNTAX"),
        ("noise.bin", b"\xff\xfe\x00\x01", "E8-SYNTAX"),
        ("nul.py", b"\0" * 100, "E8-SYNTAX"),
        ("large.py", b"#" * (2 << 20), "E8-SYNTAX"),
        ("broken.obpf", b"on_forward:h.* { @a = ", "E8-SYNTAX"),
        ("broken.asm", b"FROB f0\n", "E8-SYNTAX"),
        ("text.obpfc", b"on_forward", "E8-ENCODING"),
        ("magic.obpfc", b"OBPF", "E8-ENCODING"),
        ("future.obpfc", isa.encode(lang.compile_source(GOOD, "x.py")).replace(b"OBPF\x01", b"OBPF\x09", 1), "E9-VERSION"),
        ("cut.obpfc", isa.encode(lang.compile_source(GOOD, "x.py"))[:-1], "E8-ENCODING"),
    ],
)  # fmt: skip
def test_what_is_no_program_exits_8_with_the_same_document(
    name: str, data: bytes, code: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = check(capsys, write(name, data))
    assert status == 8
    assert document["error"]["code"] == code
    assert document["instructions"] is document["cost"] is document["visits"] is None


def test_what_the_verifier_refuses_names_rule_line_and_instruction(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write("keys.py", TOO_MANY_KEYS)
    status, document = check(capsys, file)
    assert status == 8
    error = document["error"]
    assert error["code"].startswith("E8-VERIFY:")
    assert error["line"] == 7
    assert error["pc"] >= 0
    assert document["instructions"] > 0
    assert console.run(["probe", "check", file]) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error[E8-VERIFY]" in captured.err
    assert "try: " in captured.err


@pytest.mark.parametrize("name", ["nowhere.py", ".", "a\0b.py", "x" * 5000])
def test_a_file_that_cannot_be_read_exits_4(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["probe", "check", name, "--json"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error[E4-NOENT]" in captured.err


def test_options_of_check_are_checked(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("good.py", GOOD)
    assert check(capsys, file, "--hook", "on_forward:teacher/**", "--tier", "pure", "--rights", "read-trace")[0] == 0
    assert check(capsys, file, "--hook", "on_kd_step")[0] == 8
    assert console.run(["probe", "check", file, "--rights", "everything"]) == 2
    assert "attach-probe" in capsys.readouterr().err
    assert console.run(["probe", "check", file, "--tier", "kernel"]) == 2
    assert console.run(["probe", "check", file, "--hook", "on_moon:x"]) == 4
    assert "on_forward" in capsys.readouterr().err


def test_dump_is_the_same_program_again(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["probe", "dump", write("good.py", GOOD)]) == 0
    text = capsys.readouterr().out
    assert lang.assemble(text) == lang.compile_source(GOOD, "good.py")


def test_show_has_source_assembly_and_what_was_proved(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("good.py", GOOD)
    assert console.run(["probe", "show", file]) == 0
    out = capsys.readouterr().out
    for part in ("def probe(x):", "SUMSQ", "cost: ", "sha256:"):
        assert part in out
    assert console.run(["probe", "show", file, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    program = lang.compile_source(GOOD, "good.py")
    assert document["program"]["digest"] == "sha256:" + isa.digest(isa.encode(program))


def test_check_imports_neither_torch_nor_the_runtime_and_is_quick(write: Any) -> None:
    file = write("good.py", GOOD)
    code = (
        "import sys, time; began = time.process_time(); from console.main import run; run(['probe', 'check', sys.argv[1]]);"
        "print(time.process_time() - began); print(*{m.partition('.')[0] for m in sys.modules})"
    )
    took = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
        *_, seconds, modules = done.stdout.splitlines()
        took.append(float(seconds))
        banned = {"torch", "numpy", "transformers", "pydantic", "rich", "kernel", "kfs", "zmq", "llvmlite"}
        assert not banned & set(modules.split())
    assert min(took) < 0.3


@pytest.mark.parametrize("line", [["load"], ["attach"], ["attach", "--every", "3"]])
def test_a_program_that_does_not_compile_never_reaches_the_runtime(
    line: list[str], write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.run(["probe", *line, write("bad.py", "nothing")]) == 8
    assert "error[E8-SYNTAX]" in capsys.readouterr().err
    assert console.run(["probe", *line, write("good.py", GOOD)]) == 3
    assert "error[E3-DOWN]" in capsys.readouterr().err


def test_a_builtin_needs_a_hook(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(["probe", "attach", "builtin:rms"]) == 2
    assert "needs a hook" in capsys.readouterr().err


# --- maps ---------------------------------------------------------------------------------------------------------------


MAPS = (
    MapSpec("rms", MapKind.LOG2, per_site=True),
    MapSpec("share", MapKind.LINEAR, 4, low=0.0, high=1.0),
    MapSpec("sums", MapKind.ARRAY, 2, fields=("sum", "count")),
    MapSpec("heads", MapKind.ARRAY, 3, label="head"),
    MapSpec("keys", MapKind.HASH, 4),
    MapSpec("ring", MapKind.RING, 4),
)


def filled() -> Cells:
    cells = Cells(MAPS, sites=("student/blocks.0", "student/blocks.1"))
    for value in (0.3, 0.3, 0.6, 3.0, float("nan"), -1.0):
        cells.hist(0, value, 1)
        cells.hist(1, value, 0)
    cells.add(2, 0, 1.5, 0)
    cells.add(2, 1, 2.0, 0)
    cells.set(3, 2, 7.0, 0)
    cells.set(4, 12345, 9.0, 0)
    for step in range(6):
        cells.emit(5, 1, step / 2, step, 1)
    return cells


def test_maps_are_drawn_with_names_bars_and_drops() -> None:
    text = "\n".join(drawn.lines_of(read(filled().buffer)))
    assert "@rms  log2" in text
    assert "student/blocks.1:" in text
    assert "[2^-2, 2^-1)  2 |@@@@" in text
    assert "NaN" in text
    assert "[0.25, 0.5)" in text
    assert ">= 1" in text
    assert "sum    1.5" in text
    assert "head[2]  7" in text
    assert "12345  9" in text
    assert "@ring  ring, 2 drops" in text
    assert "step 3  site 1  tag 1  1.5" in text


def test_empty_maps_say_so() -> None:
    text = "\n".join(drawn.lines_of(read(Cells(MAPS).buffer)))
    assert text.count("nothing yet") >= 3


def test_maps_of_another_shape_are_dotted_names() -> None:
    assert drawn.lines_of({"fired": 3, "summary": {"x": 0.5}}) == ["fired  3", "summary.x  0.5"]


def test_following_shows_each_ring_entry_once_and_each_changed_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = filled()
    lines = [line for line, _ in _entries(read(cells.buffer))]
    assert len(lines) == 4
    assert lines[0] == "@ring  step 0  student/blocks.1  tag 1  0"
    monkeypatch.setattr(time, "sleep", lambda seconds: cells.add(2, 1, 1.0, 0))
    follow = _follow(lambda: read(cells.buffer), 0.01, rings=False)
    seen: list[tuple[str, dict[str, Any]]] = []
    for line, document in follow:
        seen.append((line, document))
        if document["delta"] == "+1" and document["value"] == "3":
            break
    assert seen[-1][0].startswith("@sums.values[1]  +1  3")
