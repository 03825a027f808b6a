"""Writes the reference pages of the command line: `python -m console.gen`.

Responsible for: `docs/reference/commands.md`, from the commands themselves, and `docs/reference/errors.md`, from the table of
codes; a test holds both against this generator. Refuses: text of its own about a verb; what a page should say, the verb says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from console.main import VERBS, cli
from console.verb import EXITS, Verb
from syscalls.errors import CODES, RecurosError

REFERENCE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference"


def verbs() -> Iterator[tuple[str, Verb]]:
    """Every verb with its path ("probe attach"), in the order of the help page."""
    root = click.Context(cli, info_name="recuros")
    for name in VERBS:
        command = cli.get_command(root, name)
        if command is not None:
            yield from _below(name, command)


def _below(path: str, command: click.Command) -> Iterator[tuple[str, Verb]]:
    """The verbs of a command: itself, or those of a noun, which may hold nouns."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _below(f"{path} {name}", inner)
    elif isinstance(command, Verb):
        yield path, command
    else:
        raise TypeError(f"recuros {path} was not declared by console.verb.verb")


def commands() -> str:
    """Source of docs/reference/commands.md."""
    out = [
        "# Commands",
        "",
        "Made from the commands themselves by `python -m console.gen`. `recuros VERB --help` prints the same.",
        "",
        "Data goes to stdout, messages to stderr. Options that every verb takes, before it or after it:",
        "",
        "| option | |",
        "|---|---|",
        *_options(cli, click.Context(cli, info_name="recuros")),
    ]
    for path, command in verbs():
        out += ["", f"## {path}", "", command.help or "", "", *_page(path, command)]
    return "\n".join(out) + "\n"


def _page(path: str, command: Verb) -> list[str]:
    ctx = click.Context(command, info_name=f"recuros {path}")
    out = ["```", f"recuros {path} {' '.join(command.collect_usage_pieces(ctx))}", "```", ""]
    if rows := _options(command, ctx):
        out += ["| option | |", "|---|---|", *rows, ""]
    out += ["Examples:", "", "```", *command.examples, "```", ""]
    exits = ", ".join(f"{code} {EXITS[code]}" for code in command.exits)
    return [*out, f"Right: {command.right or 'none'}. Exit status: {exits}."]


def _options(command: click.Command, ctx: click.Context) -> list[str]:
    """A row of the table for each option that the help page shows."""
    rows = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record is not None and not {"--help", "--version"}.intersection(param.opts):
            name, text = (part.replace("|", "\\|") for part in record)
            rows.append(f"| `{name}` | {text} |")
    return rows


def errors() -> str:
    """Source of docs/reference/errors.md."""
    out = [
        "# Errors and exit statuses",
        "",
        "Made from `syscalls/errors.py` by `python -m console.gen`.",
        "",
        "An error is one line on stderr, `error[CODE]: what is wrong, with its numbers`, and where there is one a second line,",
        "`try: the way out`. The number in the code is the exit status of the command. Through the library the same error is",
        "raised as `recuros.RecurosError` with `code`, `message`, `hint`, `details` and `exit_status`.",
        "",
        "| exit status | means | codes |",
        "|---|---|---|",
    ]
    by_exit: dict[int, list[str]] = {}
    for code in CODES:
        by_exit.setdefault(RecurosError(code, "").exit_status, []).append(code)
    for status in sorted({*EXITS, *by_exit}):
        codes = ", ".join(f"`{code}`" for code in by_exit.get(status, []))
        out.append(f"| {status} | {EXITS[status]} | {codes} |")
    out += ["", "| code | means |", "|---|---|"]
    out += [f"| `{code}` | {CODES[code]} |" for status in sorted(by_exit) for code in by_exit[status]]
    return "\n".join(out) + "\n"


def main() -> None:
    """Write both pages."""
    (REFERENCE / "commands.md").write_text(commands(), encoding="utf-8")
    (REFERENCE / "errors.md").write_text(errors(), encoding="utf-8")


if __name__ == "__main__":
    main()
