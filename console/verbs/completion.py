"""`recuros completion`: a script for bash, zsh or fish."""

from __future__ import annotations

import click

from console.complete import SCRIPTS
from console.context import Context
from console.verb import verb


@verb(
    "completion",
    "Print a completion script for a shell: verbs, options, and the ids of probes, servers and snapshots that are there.",
    examples=(
        "recuros completion bash > ~/.recuros.bash",
        "recuros completion zsh > ~/.zfunc/_recuros",
        "recuros completion fish > ~/.config/fish/completions/recuros.fish",
    ),
)
@click.argument("shell", type=click.Choice(list(SCRIPTS)))
def completion(ctx: Context, shell: str) -> None:
    """The script asks `recuros` itself at each key; it holds no list of verbs that could age."""
    ctx.emit(
        {"schema": "recuros.completion.script/v1", "shell": shell, "script": SCRIPTS[shell]}, SCRIPTS[shell].rstrip()
    )
