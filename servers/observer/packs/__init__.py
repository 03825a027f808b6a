"""The explicit list of policy packs."""

from __future__ import annotations

from servers.observer.packs import born_again, distilbert, minilm, snapshot, starter, static, tinybert
from servers.observer.policy import Pack
from syscalls.errors import RecurosError

PACKS: dict[str, Pack] = {
    pack.name: pack
    for pack in (
        starter.PACK,
        static.PACK,
        distilbert.PACK,
        tinybert.PACK,
        minilm.PACK,
        born_again.PACK,
        snapshot.PACK,
    )
}


def pack_of(name: str) -> Pack:
    """A pack by name; E2-MANIFEST lists the known ones."""
    if name not in PACKS:
        raise RecurosError("E2-MANIFEST", f"[policy] pack = {name!r} is unknown", hint=f"one of {', '.join(PACKS)}")
    return PACKS[name]
