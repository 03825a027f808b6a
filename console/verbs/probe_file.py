"""Probe programs on this side: check one, show it, write it out as assembly."""

from __future__ import annotations

from typing import Any, Final

import click

from console import programs
from console.context import Context
from console.verb import verb
from syscalls.errors import RecurosError

SCHEMA: Final = "recuros.probe.check/v1"


def _rights(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    from syscalls.abi import RIGHT_NAMES

    names = tuple(name.strip() for name in value.split(",") if name.strip())
    for name in names:
        if name not in RIGHT_NAMES:
            raise click.BadParameter(f"{name!r} is no right; rights: {', '.join(sorted(RIGHT_NAMES))}", ctx, param)
    return names


@verb(
    "check",
    "Compile and verify the program(s) in FILE (.py, .obpf, .asm, .obpfc) or in a one-liner, without a runtime.",
    examples=(
        "recuros probe check rms.py",
        "recuros probe check rms.py --json",
        "recuros probe check layers.obpf --hook 'on_forward:student/blocks.*' --tier pure",
    ),
    exits=(4, 8),
)
@click.argument("file")
@click.option("--hook", default="", metavar="HOOK", help="Verify it for this hook [the program's own].")
@click.option(
    "--rights", default=",".join(programs.RIGHTS), callback=_rights, metavar="NAMES",
    help="Rights of whoever would attach it [attach-probe,read-trace].",
)  # fmt: skip
@click.option("--tier", type=click.Choice(programs.TIERS), default="async", help="What it may reach [async].")
def check(ctx: Context, file: str, hook: str, rights: tuple[str, ...], tier: str) -> int:
    """Exit 0 or 8; the document says the same."""
    instructions: int | None = None
    try:
        found = programs.compile_name(file)
        instructions = sum(len(program.code) for program in found)
        proved = [programs.certify(program, hook=hook, rights=rights, tier=tier) for program in found]
    except RecurosError as error:
        if error.exit_status != 8 and error.code != "E9-VERSION":
            raise
        return _refused(ctx, file, instructions, error)
    cost, visits = sum(c.cost for c in proved), sum(c.visits for c in proved)
    document = {
        "schema": SCHEMA, "ok": True, "instructions": instructions, "cost": cost, "visits": visits, "error": None
    }  # fmt: skip
    names = ", ".join(f"{program.name} at {hook or program.hook}" for program in found)
    ctx.emit(
        document,
        f"ok: {names}: {instructions} instructions, at most {cost} units a firing at the reference sizes"
        f" (a unit is about 1 ns), {visits} visits",
    )
    return 0


def _refused(ctx: Context, file: str, instructions: int | None, error: RecurosError) -> int:
    details = error.details
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "ok": False,
        "instructions": instructions,
        "cost": None,
        "visits": None,
        "error": {
            "code": str(details.get("rule") or error.code),
            "line": details.get("line"),
            "pc": details.get("pc"),
            "message": error.message,
            "hint": error.hint,
        },
    }
    if ctx.output in ("table", "wide"):
        where = "" if error.message.startswith(file) or "{" in file else f"{file}: "
        click.echo(str(RecurosError(error.code, where + error.message, hint=error.hint)), err=True)
    else:
        ctx.emit(document)
    return 8


@verb(
    "show",
    "Show a program: source, assembly, certificate; of an attached probe (ID) also its sites and cost.",
    examples=("recuros probe show 3", "recuros probe show rms.py", "recuros probe show sha256:1f2e3d4c --json"),
    exits=(3, 4, 8, 124),
)
@click.argument("what", metavar="ID|FILE|sha256:HEX")
def show(ctx: Context, what: str) -> None:
    """Print everything that is known of it."""
    from probes import isa, lang

    local = not (what.isdigit() or what.startswith(programs.DIGEST_PREFIX))
    loaded = [
        programs.Loaded(p, isa.digest(isa.encode(p)), {}) for p in programs.compile_name(what)
    ] if local else [programs.fetch(ctx, what)]  # fmt: skip
    for one in loaded:
        document: dict[str, Any] = {"schema": "recuros.probe.show/v1", "probe": one.probe or None, "program": None}
        lines = [f"{key}: {value}" for key, value in _row(one.probe)]
        if one.program is not None:
            program, certificate = one.program, programs.certify(one.program)
            assembly = lang.disassemble(program)
            document["program"] = {
                "name": program.name,
                "digest": programs.DIGEST_PREFIX + one.digest,
                "hook": program.hook,
                "every": program.every,
                "instructions": len(program.code),
                "cost": certificate.cost,
                "visits": certificate.visits,
                "source": program.source,
                "assembly": assembly,
            }
            facts = {k: v for k, v in document["program"].items() if k not in ("source", "assembly")}
            lines += [f"{key}: {value}" for key, value in facts.items()]
            lines += ["", *program.source.rstrip("\n").split("\n"), "", *assembly.rstrip("\n").split("\n")]
        ctx.emit(document, "\n".join(lines))


def _row(probe: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (key, ", ".join(value) if isinstance(value, list) else value)
        for key, value in probe.items()
        if value not in ("", None)
    ]


@verb(
    "dump",
    "Write a program as assembly; what is printed can be edited, checked and loaded again.",
    examples=("recuros probe dump 3", "recuros probe dump rms.py > rms.asm", "recuros probe dump sha256:1f2e3d4c"),
    exits=(3, 4, 8, 124),
)
@click.argument("what", metavar="ID|FILE|sha256:HEX")
def dump(ctx: Context, what: str) -> None:
    """Print the assembly."""
    from probes import lang

    if what.isdigit() or what.startswith(programs.DIGEST_PREFIX):
        program = programs.fetch(ctx, what).program
        if program is None:
            raise RecurosError(
                "E4-NOENT", f"probe {what} is a built-in and has no bytecode", hint="recuros probe ls --programs"
            )
        found = [program]
    else:
        found = programs.compile_name(what)
    text = "\n".join(lang.disassemble(program) for program in found)
    ctx.emit({"schema": "recuros.probe.dump/v1", "assembly": text}, text.rstrip("\n"))
