"""Style that no linter checks, the pinned ABI, and files that are made from others."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from syscalls import abi, gen

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("console", "kernel", "servers", "probes", "kfs", "nexus", "syscalls")
LINES_MAX = 600
GOLDEN = ROOT / "tests" / "golden" / "abi.json"
SOURCES = [*sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")), ROOT / "recuros.py"]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_a_module_says_what_it_is_responsible_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path} has no module docstring"


def test_no_file_is_too_long_to_have_one_subject() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in SOURCES
        if (count := len(path.read_text().splitlines())) > LINES_MAX
    }
    assert not long, f"split these (limit {LINES_MAX} lines): {long}"


def test_nothing_is_left_for_later() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "X" + "XX")
    found = [f"{path}: {word}" for path in SOURCES for word in words if word in path.read_text(encoding="utf-8")]
    assert not found


def table() -> dict[str, Any]:
    """The ABI as data: what two sides of different builds must agree on."""

    def column(arg: abi.Arg) -> list[Any]:
        default = arg.default.hex() if isinstance(arg.default, bytes) else arg.default
        return [arg.name, arg.kind] if arg.required else [arg.name, arg.kind, default]

    def row(r: abi.Row) -> dict[str, Any]:
        return {
            "nr": r.nr,
            "name": r.qualified,
            "args": [column(a) for a in r.args],
            "reply": [column(a) for a in r.reply],
            "rights": abi.right_names(r.right),
            "oneway": r.oneway,
        }

    return {
        "abi": [abi.ABI_MAJOR, abi.ABI_MINOR],
        "rights": {name: int(right) for name, right in abi.RIGHT_NAMES.items()},
        "syscalls": [row(r) for r in abi.SYSCALLS],
        "methods": [row(r) for r in abi.METHODS],
    }


def test_the_abi_is_the_golden_one() -> None:
    """A change here is a change of the ABI: raise its version, then run with UPDATE_GOLDEN=1."""
    if os.environ.get("UPDATE_GOLDEN"):
        lines = json.dumps(table(), indent=1)
        GOLDEN.write_text(lines + "\n", encoding="utf-8")
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == table()


def test_the_stubs_are_those_of_the_table() -> None:
    kept = (ROOT / "syscalls" / "stubs.py").read_text(encoding="utf-8")
    assert ast.dump(ast.parse(kept)) == ast.dump(ast.parse(gen.stubs())), "run: python -m syscalls.gen"


def test_the_reference_page_is_that_of_the_table() -> None:
    kept = (ROOT / "docs" / "reference" / "syscalls.md").read_text(encoding="utf-8")
    assert kept == gen.reference(), "run: python -m syscalls.gen"


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("kernel.__main__", ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich")),
        ("kernel.supervisor", ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich")),
        ("syscalls.client", ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich", "kfs", "kernel")),
        ("syscalls.serve", ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich", "kfs", "kernel")),
        ("recuros", ("torch", "transformers", "numpy", "sklearn", "pydantic", "rich", "kernel")),
        ("kfs.store", ("torch", "transformers", "numpy", "sklearn", "probes")),
        ("kfs.verify", ("torch", "transformers", "numpy", "sklearn", "probes")),
        ("probes.catalogue", ("torch", "transformers", "numpy", "sklearn", "kfs")),
        ("servers.manifest", ("torch", "transformers", "numpy", "sklearn", "kernel")),
    ],
)
def test_an_import_stays_small(module: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(done.stdout.split()) & set(banned)


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
