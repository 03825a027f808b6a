"""Probes: list, load, attach and detach; see `probe_file` and `probe_maps` for the rest of the noun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from console import programs, watched
from console.context import Context, Table
from console.verb import changes, noun, verb
from console.verbs.probe_file import check, dump, show
from console.verbs.probe_maps import stats, trace
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from probes.isa import Bytecode
    from syscalls.client import Client

FIRST: Final = ("id", "hook", "program", "backend", "every", "fired", "cost_ns", "drops", "evicted", "owner")
WIDE: Final = ("sites", "prog", "object", "total_ns", "units", "window_cost_ns", "reason")
BUILTIN: Final = "builtin:"

probe = noun("probe", "Attach, read and detach probes.")


@verb(
    "ls",
    "Attached probes with their counters; --sites lists the hook sites, --programs the built-ins, --loaded the programs.",
    examples=("recuros probe ls", "recuros probe ls --sites", "recuros probe ls --programs"),
    exits=(3, 124),
)
@click.option("--sites", is_flag=True, help="The hook sites of the running models instead.")
@click.option("--programs", "builtins", is_flag=True, help="The built-in programs instead; needs no runtime.")
@click.option("--loaded", is_flag=True, help="The programs loaded in this boot instead.")
def ls(ctx: Context, sites: bool, builtins: bool, loaded: bool) -> None:
    """Print one row a probe, site or program."""
    if builtins:
        _builtins(ctx)
        return
    if watched.is_watched(ctx.run) and not (sites or loaded):
        seen = watched.look(ctx.run)
        ctx.message(f"a script that recuros.watch watches: {seen.when}")
        _attached(ctx, list(seen.rows.values()))
        return
    with ctx.client() as client:
        if loaded:
            _loaded(ctx, client.probe_programs()["programs"])
            return
        answer = client.probe_list()
    if sites:
        rows = [site if isinstance(site, dict) else {"site": site} for site in answer["sites"]]
        ctx.emit(
            {"schema": "recuros.probe.sites/v1", "sites": rows},
            Table(rows, {k: k.upper() for k in _keys(rows)}, key="site"),
        )
        return
    _attached(ctx, answer["probes"])


def _attached(ctx: Context, rows: list[dict[str, Any]]) -> None:
    there = _keys(rows)
    keys = sorted(there, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    table = Table(
        rows, {k: k.upper().replace("_", " ") for k in keys}, wide=WIDE, key="id", empty="no probe is attached"
    )
    ctx.emit({"schema": "recuros.probe.ls/v1", "probes": rows}, table)


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict)))


def _loaded(ctx: Context, found: list[dict[str, Any]]) -> None:
    rows = [{**{k: v for k, v in p.items() if k != "certificate"}, "cost": p["certificate"]["cost"]} for p in found]
    columns = {
        key: key.upper() for key in ("digest", "name", "hook", "every", "bytes", "cost", "probes", "owner", "seq")
    }
    table = Table(rows, {**columns, "object": "OBJECT"}, wide=("object",), key="digest", empty="no program is loaded")
    ctx.emit({"schema": "recuros.probe.loaded/v1", "programs": found}, table)


def _builtins(ctx: Context) -> None:
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
    "load",
    "Compile FILE, have the kernel verify it, and keep it, to be attached by its digest.",
    examples=("recuros probe load rms.py", "recuros probe load layers.obpf --json", "recuros probe load saved.obpfc"),
    right="attach-probe",
    exits=(3, 4, 5, 8, 75, 124),
)
@click.argument("file")
@changes()
def load(ctx: Context, file: str, reason: str, dry_run: bool) -> None:
    """Load and print the digest."""
    found = programs.compile_name(file)
    with ctx.client() as client:
        for program, answer in zip(found, _load(client, found, reason, dry_run), strict=True):
            document = {"schema": "recuros.probe.load/v1", "name": program.name, **answer}
            proved = answer["certificate"]
            ctx.emit(
                document,
                f"{answer['digest']}  {program.name} for {program.hook}: {proved['instructions']} instructions,"
                f" at most {proved['cost']} units a firing, "
                + ("verified, not loaded (--dry-run)" if dry_run else f"ledger seq {answer['seq']}"),
            )


def _load(client: Client, found: list[Bytecode], reason: str, dry_run: bool) -> list[dict[str, Any]]:
    from probes import isa

    return [
        client.change("rl_load_probe", reason=reason, dry_run=dry_run, program=isa.encode(program)) for program in found
    ]


@verb(
    "attach",
    "Attach PROGRAM (builtin:NAME, a FILE, a one-liner, or sha256:HEX of what was loaded) at HOOK [the program's own].",
    examples=(
        "recuros probe attach builtin:cka on_kd_step --every 10 --reason 'is it learning the middle layers?'",
        "recuros probe attach rms.py 'on_forward:student/blocks.*' --every 5",
        "recuros probe attach 'on_forward:student/blocks.* { @rms[layer] = hist(rms(x)) }' --dry-run",
    ),
    right="attach-probe and read-trace",
    exits=(3, 4, 5, 6, 8, 75, 124),
)
@click.argument("program")
@click.argument("hook", default="")
@click.option("--every", type=click.IntRange(0), default=0, metavar="STEPS", help="Cadence [the program's own].")
@changes()
def attach(ctx: Context, program: str, hook: str, every: int, reason: str, dry_run: bool) -> None:
    """Attach and print the id."""
    if program.startswith(BUILTIN) and not hook:
        raise RecurosError("E2-USAGE", f"{program} needs a hook", hint=f"recuros probe attach {program} HOOK")
    if program.startswith((BUILTIN, programs.DIGEST_PREFIX)):
        with ctx.client() as client:
            _attach(ctx, client, hook, program, every, reason, dry_run)
        return
    found = programs.compile_name(program)
    with ctx.client() as client:
        there = {row["digest"] for row in client.probe_programs()["programs"]}
        for answer in _load(client, found, reason, dry_run):  # all are verified before the first is attached
            if dry_run and answer["digest"] not in there:
                _only_verified(ctx, answer)
            else:
                _attach(ctx, client, hook, answer["digest"], every, reason, dry_run)


def _attach(ctx: Context, client: Client, hook: str, prog: str, every: int, reason: str, dry_run: bool) -> None:
    answer = client.change("rl_attach_probe", reason=reason, dry_run=dry_run, hook=hook, prog=prog, every=every)
    name = f"probe {answer['id']}" if answer["id"] else prog
    ctx.changed("recuros.probe.attach/v1", answer, f"{name} at {len(answer['sites'])} sites")


def _only_verified(ctx: Context, answer: dict[str, Any]) -> None:
    """A program that is not loaded has no sites yet, and nothing may be loaded now."""
    doc = {"id": 0, "sites": [], "seq": -1, "step": -1, "dry_run": True}
    ctx.message(
        f"{answer['digest'][:19]} is not loaded: its sites and its cost there are looked at when it is "
        "(recuros probe load, then attach --dry-run)"
    )
    text = f"{answer['digest'][:19]}: verified for the reference sizes; nothing was changed"
    ctx.emit({"schema": "recuros.probe.attach/v1", **doc}, text)


@verb(
    "detach",
    "Detach probe ID.",
    examples=(
        "recuros probe detach 3",
        "recuros probe detach 3 --dry-run --json",
        "recuros --run runs/first probe detach 1",
    ),
    right="attach-probe",
    exits=(3, 4, 5, 124),
)
@click.argument("probe_id", metavar="ID", type=int)
@changes()
def detach(ctx: Context, probe_id: int, reason: str, dry_run: bool) -> None:
    """Detach."""
    with ctx.client() as client:
        answer = client.change("rl_detach_probe", reason=reason, dry_run=dry_run, id=probe_id)
    ctx.changed("recuros.probe.detach/v1", answer, f"probe {probe_id} detached")


for _command in (ls, show, check, load, attach, detach, dump, stats, trace):
    probe.add_command(_command)
