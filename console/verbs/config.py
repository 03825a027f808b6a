"""Configuration: what the command line is set to, and what is in a manifest, each with its origin.

Responsible for: showing and checking, without booting anything. Refuses: changing files; they are TOML, for an editor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from console import settings
from console.context import Context, Table
from console.verb import noun, verb

config = noun("config", "Settings and manifests: show them with their origins, check them.")
_OF_CONTEXT = {"run_option": "run", "output": "output", "timeout_option_s": "timeout", "no_color": "color"}


@verb(
    "show",
    "The settings in force; of MANIFEST (an app's name or a file) every value of the merged manifest. --origin: where from.",
    examples=(
        "recuros config show --origin",
        "recuros config show digits --origin",
        "recuros config show my.toml --json",
    ),
    exits=(4,),
)
@click.argument("manifest", metavar="[MANIFEST]", required=False)
@click.option("--origin", is_flag=True, help="Also say where each value comes from.")
def show(ctx: Context, manifest: str | None, origin: bool) -> None:
    """Print one row a value."""
    if manifest is None:
        rows = settings.rows(_in_force(ctx))
        doc = {"schema": "recuros.config.show/v1", "files": [str(path) for path in settings.files()], "settings": rows}
    else:
        path = _manifest(manifest)
        rows = list(_values(path))
        doc = {"schema": "recuros.config.manifest/v1", "file": str(path), "values": rows}
    columns = {"name": "NAME", "value": "VALUE", "origin": "ORIGIN", "what": "WHAT"}
    there = {k: v for k, v in columns.items() if k in rows[0] and (k != "origin" or origin)}
    ctx.emit(doc, Table(rows, there, key="name"))


def _in_force(ctx: Context) -> dict[str, settings.Value]:
    """As loaded, with what this command line says on top."""
    found = dict(ctx.settings or settings.load())
    given = {"run": ctx.run_option, "output": ctx.output, "timeout": ctx.timeout_option_s, "color": not ctx.no_color}
    for attribute, flag in ctx.flags.items():
        if name := _OF_CONTEXT.get(attribute):
            found[name] = settings.Value(given[name], f"flag {flag}")
    return found


def _manifest(text: str) -> Path:
    from servers import manifest as manifests

    return Path(text) if text.endswith(".toml") or "/" in text else manifests.app_path(text)


def _values(path: Path) -> Iterator[dict[str, Any]]:
    """Every leaf of the checked manifest: from the file itself, from the base that all apps share, or a default of the schema."""
    import tomllib

    from servers import manifest as manifests

    checked = tomllib.loads(manifests.dump(manifests.load(path)))
    own = dict(_leaves(tomllib.loads(path.read_text(encoding="utf-8"))))
    base_path = manifests.app_path("digits").with_name(f"{manifests.BASE}.toml")
    base = dict(_leaves(tomllib.loads(base_path.read_text(encoding="utf-8"))))
    for name, value in _leaves(checked):
        origin = str(path) if name in own else base_path.name if name in base else "default"
        yield {"name": name, "value": value, "origin": origin}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names; tables of an array go by their name, hook or place."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value):
            label = item.get("name") or item.get("prog") or place
            yield from _leaves(item, f"{name}[{label}]")
    else:
        yield name, value


@verb(
    "check",
    "Check the settings' files and a MANIFEST (an app's name or a file; default: the run directory's), without booting.",
    examples=("recuros config check", "recuros config check my.toml", "recuros config check digits --json"),
    exits=(4,),
)
@click.argument("manifest", metavar="[MANIFEST]", required=False)
def check(ctx: Context, manifest: str | None) -> None:
    """Load everything; what is wrong is the error, with its place and the way out."""
    settings.load()
    checked = [{"file": str(path), "what": "settings"} for path in settings.files()]
    kept = ctx.run / "manifest.toml"
    path = _manifest(manifest) if manifest is not None else kept if kept.is_file() else None
    if path is not None:
        checked.append({"file": str(path), "what": _what(path)})
    columns = {"file": "FILE", "what": "WHAT"}
    table = Table(checked, columns, key="file", empty="there is no file to check; every setting is its default")
    ctx.emit({"schema": "recuros.config.check/v1", "ok": True, "checked": checked}, table)


def _what(path: Path) -> str:
    """A checked manifest in a line."""
    from servers import manifest as manifests

    found = manifests.load(path)
    windows = sum(phase.windows for phase in found.phase)
    return f"manifest of {found.app.name}: {len(found.phase)} phases, {windows} windows, {len(found.server)} servers"


for _command in (show, check):
    config.add_command(_command)
