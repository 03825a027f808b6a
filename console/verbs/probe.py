"""Probes: list, attach, detach, and read their maps while the learner runs."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from console.context import Context, Table, plain
from console.verb import noun, verb

FIRST: Final = ("id", "hook", "program", "prog", "every")

probe = noun("probe", "Attach, read and detach probes.")


@verb(
    "ls",
    "Attached probes with their counters; --sites lists the hook sites, --programs what can be attached.",
    examples=("recuros probe ls", "recuros probe ls --sites", "recuros probe ls --programs"),
    exits=(3, 124),
)
@click.option("--sites", is_flag=True, help="The hook sites of the running models instead.")
@click.option("--programs", is_flag=True, help="The built-in programs instead; needs no runtime.")
def ls(ctx: Context, sites: bool, programs: bool) -> None:
    """Print one row a probe, site or program."""
    if programs:
        _programs(ctx)
        return
    with ctx.client() as client:
        answer = client.probe_list()
    if sites:
        rows = [site if isinstance(site, dict) else {"site": site} for site in answer["sites"]]
        ctx.emit(
            {"schema": "recuros.probe.sites/v1", "sites": rows},
            Table(rows, {k: k.upper() for k in _keys(rows)}, key="site"),
        )
        return
    rows = answer["probes"]
    there = _keys(rows)
    keys = sorted(there, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    table = Table(
        rows, {k: k.upper().replace("_", " ") for k in keys}, wide=("sites",), key="id", empty="no probe is attached"
    )
    ctx.emit({"schema": "recuros.probe.ls/v1", "probes": rows}, table)


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict)))


def _programs(ctx: Context) -> None:
    from probes.catalogue import BUILTINS, PREFIX

    rows = [
        {
            "prog": PREFIX + b.name,
            "hooks": list(b.hooks),
            "parameters": sorted(b.params),
            "rights": list(b.rights),
            "doc": b.doc,
        }
        for b in BUILTINS.values()
    ]
    columns = {"prog": "PROGRAM", "hooks": "HOOKS", "parameters": "PARAMETERS", "rights": "RIGHTS", "doc": "WHAT"}
    ctx.emit(
        {"schema": "recuros.probe.programs/v1", "programs": rows}, Table(rows, columns, wide=("rights",), key="prog")
    )


@verb(
    "attach",
    "Attach PROGRAM at HOOK of the running learner.",
    examples=(
        "recuros probe attach builtin:rms 'on_forward:student/blocks.*'",
        "recuros probe attach builtin:cka on_kd_step --every 10",
        "recuros probe attach builtin:ece,bins=10 on_kd_step --json",
    ),
    right="attach-probe",
    exits=(3, 4, 5, 8, 75, 124),
)
@click.argument("program")
@click.argument("hook")
@click.option("--every", type=click.IntRange(0), default=0, metavar="STEPS", help="Cadence [the program's own].")
def attach(ctx: Context, program: str, hook: str, every: int) -> None:
    """Attach and print the id."""
    with ctx.client() as client:
        answer = client.rl_attach_probe(hook=hook, prog=program, every=every)
    ctx.changed("recuros.probe.attach/v1", answer, f"probe {answer['id']} at {len(answer['sites'])} sites")


@verb(
    "detach",
    "Detach probe ID.",
    examples=("recuros probe detach 3", "recuros probe detach 3 --json", "recuros --run runs/first probe detach 1"),
    right="attach-probe",
    exits=(3, 4, 5, 124),
)
@click.argument("probe_id", metavar="ID", type=int)
def detach(ctx: Context, probe_id: int) -> None:
    """Detach."""
    with ctx.client() as client:
        answer = client.rl_detach_probe(id=probe_id)
    ctx.changed("recuros.probe.detach/v1", answer, f"probe {probe_id} detached")


@verb(
    "stats",
    "Read the maps of probe ID while the learner runs.",
    examples=("recuros probe stats 1", "recuros probe stats 1 --json", "recuros probe stats 2 --timeout 5"),
    right="read-trace",
    exits=(3, 4, 5, 124),
)
@click.argument("probe_id", metavar="ID", type=int)
def stats(ctx: Context, probe_id: int) -> None:
    """Print the maps, a line a figure."""
    with ctx.client() as client:
        maps = client.probe_read(id=probe_id)["maps"]
    lines = [f"{name}  {value}" for name, value in _leaves(plain(maps))]
    ctx.emit(
        {"schema": "recuros.probe.stats/v1", "id": probe_id, "maps": maps}, "\n".join(lines) or "its maps are empty"
    )


def _leaves(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested maps as dotted names; lists of numbers stay on one line."""
    if isinstance(value, dict):
        return [leaf for key, below in value.items() for leaf in _leaves(below, f"{name}.{key}" if name else str(key))]
    return [(name, f"{value:.6g}" if isinstance(value, float) else json.dumps(value))]


for _command in (ls, attach, detach, stats):
    probe.add_command(_command)
