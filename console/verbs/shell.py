"""The shell: the command line's own verbs over one connection.

Responsible for: reading lines (with history and completion on a terminal), running each through the same parser, and stopping a script at
its first error. Refuses: verbs that would nest (shell, boot in the foreground is fine: it ends with its report).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from typing import Any

from console.context import Context
from console.verb import verb
from syscalls.errors import RecurosError

LEAVE = ("exit", "quit")


@verb(
    "shell",
    "The same verbs over one connection; a script on stdin stops at its first error.",
    examples=("recuros shell", "recuros shell --run runs/first", "recuros shell < script"),
    exits=(1, 3, 4, 5, 6, 7, 8, 9, 75, 124, 130),
)
def shell(ctx: Context) -> int:
    """Read, run, repeat; the exit status of a script is that of its last line."""
    interactive = sys.stdin.isatty()
    status = 0
    for line in _prompted(ctx) if interactive else sys.stdin:
        words = _split(ctx, line)
        if words is None:
            status = 2
        elif words and words[0] in LEAVE:
            break
        elif words:
            status = _one(ctx, words)
        if status and not interactive:
            ctx.message(f"stopped at: {line.strip()}")
            return status
    _drop(ctx)
    return 0 if interactive else status


def _split(ctx: Context, line: str) -> list[str] | None:
    """Words as a POSIX shell reads them, comments left out; None when quotes do not match."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        ctx.message(str(RecurosError("E2-USAGE", f"{line.strip()!r:.80}: {error}", hint="close the quote")))
        return None
    return words[1:] if words[:1] == ["recuros"] else words


def _one(ctx: Context, words: list[str]) -> int:
    """Run one line with a copy of the global options, over the shared connection when there is one."""
    from console.main import run

    if words[0] == "shell":
        ctx.message(str(RecurosError("E2-USAGE", "this is the shell already", hint="exit")))
        return 2
    _connect(ctx)
    status = run(words, ctx.for_line())
    if status in (3, 124) or words[0] in ("boot", "halt"):
        _drop(ctx)  # the runtime may be another one now
    return status


def _connect(ctx: Context) -> None:
    if ctx.shared is None:
        from recuros import connect

        try:
            ctx.shared = connect(ctx.run, timeout_s=ctx.timeout_s)
        except RecurosError:
            ctx.shared = None  # verbs that need a runtime say so themselves; the others work without


def _drop(ctx: Context) -> None:
    if ctx.shared is not None:
        ctx.shared.close()
        ctx.shared = None


def _prompted(ctx: Context) -> Iterator[str]:
    """Lines from a terminal with history and completion of verbs."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import NestedCompleter
    from prompt_toolkit.history import InMemoryHistory

    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(), completer=NestedCompleter.from_nested_dict(_words())
    )
    while True:
        try:
            yield session.prompt(_prompt(ctx))
        except EOFError:
            return
        except KeyboardInterrupt:
            continue


def _words() -> dict[str, Any]:
    """Verbs and the verbs below them, for completion."""
    import click

    from console.main import VERBS, cli

    words: dict[str, Any] = dict.fromkeys(LEAVE)
    root = click.Context(cli)
    for name in VERBS:
        command = cli.get_command(root, name)
        words[name] = dict.fromkeys(command.commands) if isinstance(command, click.Group) else None
    return words


def _prompt(ctx: Context) -> str:
    """Where the runtime is: `digits@23 gen1>`, or `down>`."""
    _connect(ctx)
    if ctx.shared is None:
        return "down> "
    try:
        status = ctx.shared.status()["status"]
    except RecurosError:
        _drop(ctx)
        return "down> "
    return f"{status.get('app')}@{status.get('done_windows', 0)} gen{status.get('generation', 0)}> "
