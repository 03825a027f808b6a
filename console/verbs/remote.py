"""Remote operators: make a key for one, show one's key."""

from __future__ import annotations

from pathlib import Path

import click

from console.context import Context
from console.verb import noun, verb

remote = noun("remote", "Operators on other machines: keys, and where they connect.")


@verb(
    "key",
    "Make FILE with a new pair of keys for the runtime at --address, or show the public key of one that exists.",
    examples=(
        "recuros remote key me.toml --address tcp://10.0.0.5:7600 --server 'KEY'",
        "recuros remote key me.toml",
        "recuros remote key me.toml --json",
    ),
    exits=(5,),
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--address", default="", metavar="tcp://HOST:PORT", help="Of the runtime: `recuros remote show` there.")
@click.option("--server", default="", metavar="KEY", help="The runtime's public key: `recuros remote show` there.")
def key(ctx: Context, file: Path, address: str, server: str) -> None:
    """Print what [remote] allow of the runtime's manifest must list."""
    from syscalls.remote import load_card, make_card

    card = make_card(file, address, server) if address or server else load_card(file)
    ctx.emit(
        {"schema": "recuros.remote.key/v1", "file": str(file), "address": card.address, "public": card.public},
        card.public,
    )


@verb(
    "show",
    "Where the runtime listens for remote operators, and its public key.",
    examples=("recuros remote show", "recuros remote show --json", "recuros remote show --run runs/first"),
    exits=(1, 3, 124),
)
def show(ctx: Context) -> int:
    """Print address and key."""
    with ctx.client() as client:
        at = client.status()["status"]["kernel"].get("remote", {})
    text = f"address  {at['address']}\nkey      {at['key']}" if at else "no remote operators: [remote] listen is empty"
    ctx.emit({"schema": "recuros.remote.show/v1", "remote": at}, text)
    return 0 if at else 1


remote.add_command(key)
remote.add_command(show)
