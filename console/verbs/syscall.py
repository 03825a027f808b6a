"""Any syscall by name, and the table of all of them."""

from __future__ import annotations

import json
from typing import Any

import click

from console.context import Context, Table, no_such
from console.verb import changes, verb
from syscalls.errors import RecurosError


@verb(
    "syscall",
    "Make the syscall NAME with arguments KEY=VALUE; lists and maps are JSON. --list prints the table.",
    examples=(
        "recuros syscall --list",
        "recuros syscall rl_set_kd temperature=3 mix=0.7 --dry-run",
        """recuros syscall rl_gate_samples criteria='{"drop_low": 0.1}'""",
    ),
    right="the syscall's own, see --list",
    exits=(1, 3, 4, 5, 6, 7, 8, 9, 75, 124),
)
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--list", "list_", is_flag=True, help="All syscalls with their arguments and rights; needs no runtime.")
@click.option(
    "--cap", type=click.IntRange(1), default=1, metavar="SLOT", help="The capability to use [1: the session's own]."
)
@changes()
def syscall(
    ctx: Context, name: str | None, arguments: tuple[str, ...], list_: bool, cap: int, reason: str, dry_run: bool
) -> None:
    """Parse the arguments by the table, call, print the reply."""
    from syscalls import abi

    if list_:
        _list(ctx)
        return
    if name is None:
        raise RecurosError("E2-USAGE", "no syscall was named", hint="recuros syscall --list")
    row = abi.SYSCALL_BY_NAME.get(name)
    if row is None:
        raise no_such("syscall", name, list(abi.SYSCALL_BY_NAME))
    values = parse(row, arguments)
    with ctx.client() as client:
        if (reason or dry_run) and cap != 1:
            raise RecurosError(
                "E2-USAGE", "--reason and --dry-run go with the session's own capability, not with --cap"
            )
        if reason or dry_run:
            answer = client.change(name, reason=reason, dry_run=dry_run, **values)
        else:
            answer = client.syscall(name, slot=cap, **values)
    ctx.emit({"schema": f"recuros.syscall.{name}/v1", **answer})


def parse(row: Any, arguments: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE texts to typed values by the row's columns; E2-USAGE names the argument that does not fit."""
    kinds = {arg.name: arg.kind for arg in row.args}
    values: dict[str, Any] = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals or key not in kinds:
            raise RecurosError("E2-USAGE", f"{row.name} takes no argument {text!r}", hint=row.usage())
        try:
            values[key] = _value(kinds[key], value)
        except ValueError:
            raise RecurosError(
                "E2-USAGE", f"{row.name}: {key}={value!r:.80} is not of type {kinds[key]}", hint=row.usage()
            ) from None
    row.bind(values)
    return values


def _value(kind: str, text: str) -> Any:
    if kind in ("int", "page"):
        return int(text, 0)
    if kind == "float":
        return float(text)
    if kind == "bool":
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(text)
        return text.lower() in ("true", "1", "yes")
    if kind == "bytes":
        return bytes.fromhex(text)
    if kind in ("list", "map"):
        value = json.loads(text)
        if not isinstance(value, list if kind == "list" else dict):
            raise ValueError(text)
        return value
    return text


def _list(ctx: Context) -> None:
    from syscalls import abi

    rows = [
        {
            "nr": row.nr,
            "name": row.name,
            "usage": row.usage(),
            "right": ", ".join(abi.right_names(row.right)),
            "reply": [f"{arg.name}: {arg.kind}" for arg in row.reply],
            "doc": row.doc,
        }
        for row in abi.SYSCALLS
    ]
    columns = {"nr": "NR", "usage": "SYNOPSIS", "right": "RIGHT", "reply": "REPLY", "doc": "WHAT"}
    ctx.emit({"schema": "recuros.syscall.list/v1", "syscalls": rows}, Table(rows, columns, wide=("reply", "doc")))
