"""Probe programs as people name them: a file of source or bytecode, a one-liner, a digest, the id of an attached probe.

Responsible for: reading and compiling what is on this side, and fetching what is loaded from the store of the run. Imports no
torch. Refuses: files that cannot be read (E4-NOENT), and files that hold neither a source text nor bytecode (E8).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from console import watched
from console.context import Context
from syscalls.errors import RecurosError

if TYPE_CHECKING:
    from probes.certificate import Certificate
    from probes.isa import Bytecode
    from syscalls.client import Client

SOURCE_BYTES_MAX: Final = 1 << 20
DIGEST_PREFIX: Final = "sha256:"
ONE_LINER: Final = "one-liner.obpf"
RIGHTS: Final = ("attach-probe", "read-trace")
TIERS: Final = ("pure", "inline", "async")


@dataclass(frozen=True)
class Loaded:
    """A program that the runtime holds, and the row of the probe that was asked for, if it was one."""

    program: Bytecode | None
    digest: str
    probe: dict[str, Any]


def read(name: str) -> bytes:
    """The file's bytes, at most one more than a source may have; E4-NOENT when it cannot be read."""
    try:
        with Path(name).open("rb") as file:
            return file.read(SOURCE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RecurosError(
            "E4-NOENT", f"{name!r:.200} cannot be read: {why}", hint="name a .py, .obpf, .asm or .obpfc file"
        ) from error


def compile_bytes(data: bytes, filename: str) -> list[Bytecode]:
    """The programs of a file; E8-SYNTAX or E8-ENCODING says why there are none."""
    from probes import isa, lang

    if data.startswith(isa.MAGIC) or filename.endswith(".obpfc"):
        return [isa.decode(data)]
    if len(data) > SOURCE_BYTES_MAX:
        raise _no_text(f"the file is larger than {SOURCE_BYTES_MAX} bytes", "a probe is a small function")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_text(
            f"byte {error.start} is not UTF-8 text, and the file does not begin as bytecode does",
            "write a .py, .obpf or .asm source, or give compiled bytes (.obpfc)",
        ) from error
    return lang.compile_all(text, filename)


def _no_text(message: str, hint: str) -> RecurosError:
    return RecurosError("E8-SYNTAX", message, hint=hint, details={"line": 1, "column": 1})


def compile_name(name: str) -> list[Bytecode]:
    """The programs of a file, or of a one-liner that was given as it is."""
    if "{" in name and not Path(name).is_file():
        return compile_bytes(name.encode(), ONE_LINER)
    return compile_bytes(read(name), name)


def certify(program: Bytecode, *, hook: str = "", rights: tuple[str, ...] = RIGHTS, tier: str = "async") -> Certificate:
    """Verify for the reference sizes, as `rl_load_probe` does; raises what the verifier raises."""
    from probes import isa, sites
    from probes.verifier import verify

    kind = sites.parse(hook).kind if hook else program.hook_kind
    return verify(program, isa.Contract(kind), rights, tiers=isa.Tier[tier.upper()])


def fetch(ctx: Context, name: str) -> Loaded:
    """What runs as probe NAME, or the loaded program whose digest begins so. E4-NOENT when there is no such thing."""
    if name.isdigit() and watched.is_watched(ctx.run):
        seen = watched.look(ctx.run)
        asked = seen.row(int(name))
        return Loaded(*watched.program(ctx.run, seen, int(name)), asked)
    with ctx.client() as client:
        if not name.isdigit():
            return _by_digest(ctx, client, name)
        rows = client.probe_list()["probes"]
        row = next((row for row in rows if row["id"] == int(name)), None)
        if row is None:
            raise RecurosError("E4-NOENT", f"no probe has id {name}", hint="recuros probe ls")
        if not row.get("object"):
            return Loaded(None, "", row)
        digest = str(row["prog"]).partition(",")[0].removeprefix(DIGEST_PREFIX)
        return Loaded(stored(ctx, row["object"], digest), digest, row)


def _by_digest(ctx: Context, client: Client, name: str) -> Loaded:
    programs = client.probe_programs()["programs"]
    found = [p for p in programs if p["digest"].startswith(name)]
    if len(found) != 1:
        names = ", ".join(f"{p['digest'][:19]} ({p['name']})" for p in found or programs)
        what = f"{len(found)} programs are" if found else "no program is"
        raise RecurosError(
            "E4-NOENT", f"{what} called {name!r:.80}; there are: {names or 'none'}", hint="recuros probe load FILE"
        )
    digest = found[0]["digest"].removeprefix(DIGEST_PREFIX)
    return Loaded(stored(ctx, found[0]["object"], digest), digest, {})


def stored(ctx: Context, object_id: str, digest: str) -> Bytecode:
    """A program's bytes from the store, checked against both of its names."""
    from kfs.store import Store
    from probes import isa

    with Store.open_reader(ctx.run / "store") as store:
        data = bytes(store.get(object_id).data)
    if isa.digest(data) != digest:
        raise RecurosError("E9-INTEGRITY", f"object {object_id} is not program {digest}", hint="recuros kfs verify")
    return isa.decode(data)
