"""Writes the typed stubs and the reference page from the table: `python -m syscalls.gen`.

Responsible for: `syscalls/stubs.py` and `docs/reference/syscalls.md`; a test holds both against this generator.
"""

from __future__ import annotations

from pathlib import Path

from syscalls import abi

_PY = {
    "int": "int",
    "float": "float",
    "str": "str",
    "bytes": "bytes",
    "bool": "bool",
    "list": "list[Any]",
    "map": "dict[str, Any]",
    "page": "int",
    "any": "Any",
}


def stubs() -> str:
    """Source of syscalls/stubs.py."""
    out = [
        '"""Typed stubs of every syscall, made from the table by `python -m syscalls.gen`. Do not edit."""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import Any",
        "",
        "from syscalls.peer import Peer",
        "",
        "",
        "class Stubs(Peer):",
        '    """One method a syscall; replies are dicts of the reply columns."""',
    ]
    for row in abi.SYSCALLS:
        if row.name in ("hello", "call"):
            continue
        args = "".join(f", {a.name}: {_PY[a.kind]}" + ("" if a.required else f" = {a.default!r}") for a in row.args)
        star = ", *" if args else ""
        out += ["", f"    def {row.name}(self{star}{args}) -> dict[str, Any]:", f'        """{row.doc}"""']
        passed = "".join(f", {a.name}={a.name}" for a in row.args)
        out.append(f'        return self.syscall("{row.name}"{passed})')
    return "\n".join(out) + "\n"


def reference() -> str:
    """Source of docs/reference/syscalls.md."""
    out = [
        "# Syscalls and server methods",
        "",
        f"Made from `syscalls/abi.py` by `python -m syscalls.gen`; ABI {abi.ABI_MAJOR}.{abi.ABI_MINOR}.",
        "A column with `=` has that default. `page` columns are page handles of the caller.",
        "",
        "## Syscalls",
        "",
        "| nr | name | arguments | reply | right | |",
        "|---|---|---|---|---|---|",
    ]
    out += [_line(row, ", ".join(abi.right_names(row.right)) or "-") for row in abi.SYSCALLS]
    out += ["", "## Server methods", "", "| nr | method | arguments | reply | right | |", "|---|---|---|---|---|---|"]
    out += [_line(row, ", ".join(abi.right_names(row.right)) or "endpoint") for row in abi.METHODS]
    out += ["", "## Rights", "", ", ".join(f"`{name}`" for name in abi.RIGHT_NAMES), ""]
    return "\n".join(out)


def _line(row: abi.Row, right: str) -> str:
    args = ", ".join(f"{a.name}: {a.kind}" + ("" if a.required else f" = {a.default!r}") for a in row.args)
    reply = ", ".join(f"{a.name}: {a.kind}" for a in row.reply) or ("none (one-way)" if row.oneway else "")
    cells = [f"`{row.qualified}`", args, reply, right, row.doc]
    return f"| {row.nr} | " + " | ".join(c.replace("|", "or") for c in cells) + " |"


def main() -> None:
    """Write both files."""
    root = Path(__file__).resolve().parent.parent
    (root / "syscalls" / "stubs.py").write_text(stubs(), encoding="utf-8")
    (root / "docs" / "reference" / "syscalls.md").write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
