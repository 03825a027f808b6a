"""Capabilities: who may do what."""

from __future__ import annotations

import click

from console.context import Context, Table
from console.verb import noun, verb

cap = noun("cap", "Capabilities: who may do what.")


@verb(
    "ls",
    "Capabilities of a PRINCIPAL, or of this session: slot, kind, object, rights.",
    examples=("recuros cap ls", "recuros cap ls learner", "recuros cap ls observer --json"),
    exits=(3, 4, 5, 124),
)
@click.argument("principal", default="")
def ls(ctx: Context, principal: str) -> None:
    """Print one row a capability."""
    with ctx.client() as client:
        rows = client.cap_list(principal=principal)["caps"]
    columns = {
        "slot": "SLOT",
        "kind": "KIND",
        "object": "OBJECT",
        "rights": "RIGHTS",
        "badge": "BADGE",
        "parent": "PARENT",
    }
    table = Table(rows, columns, wide=("badge", "parent"), key="slot", empty="no capability")
    ctx.emit({"schema": "recuros.cap.ls/v1", "principal": principal, "caps": rows}, table)


cap.add_command(ls)
