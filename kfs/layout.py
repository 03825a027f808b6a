"""Where everything lies: one place for every path of a store.

Responsible for: names. Refuses: touching the disk.

    RUN/store/FORMAT       format version, store id and public key, written last when a store is created
    RUN/store/LOCK         flock of the one writer; holds its process id
    RUN/store/checkpoint   the newest signed note (C2SP tlog-checkpoint)
    RUN/store/packs/       one safetensors file per commit, named by its whole-file BLAKE3
    RUN/store/ledger/      the append-only record file
    RUN/store/tile/        hash tiles (C2SP tlog-tiles paths)
    RUN/store/trash/       packs waiting out their grace
    RUN/store/index.sqlite which pack holds which object; disposable
    RUN/keys/              signing keys and the highest signed size, mode 0600
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PACK_SUFFIX = ".safetensors"
TEMP_PREFIX = ".tmp-"
_PACK_NAME = re.compile(r"[0-9a-f]{64}\.safetensors\Z")
_TRASH_NAME = re.compile(r"(x|[0-9]{1,19})-([0-9]{1,19})-([0-9a-f]{64})\.safetensors\Z")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of the store in directory `store`; its keys lie beside it, so a copied store carries no secret."""

    store: Path

    @property
    def format(self) -> Path:
        """Format version, store id, public key."""
        return self.store / "FORMAT"

    @property
    def lock(self) -> Path:
        """The writer's lock."""
        return self.store / "LOCK"

    @property
    def checkpoint(self) -> Path:
        """The newest signed checkpoint, at the path that C2SP tlog-tiles gives it."""
        return self.store / "checkpoint"

    @property
    def packs(self) -> Path:
        """The folder of packs."""
        return self.store / "packs"

    @property
    def ledger(self) -> Path:
        """The folder of the ledger."""
        return self.store / "ledger"

    @property
    def records(self) -> Path:
        """The record file."""
        return self.ledger / "records"

    @property
    def tile(self) -> Path:
        """The folder of hash tiles."""
        return self.store / "tile"

    @property
    def trash(self) -> Path:
        """Collected packs in their grace."""
        return self.store / "trash"

    @property
    def index(self) -> Path:
        """Which pack holds which object; disposable."""
        return self.store / "index.sqlite"

    def trashed(self, plan: str, at: int, digest: str) -> Path:
        """A pack in its grace: given up by record `plan` ("x": by none), moved when the ledger held `at` records."""
        return self.trash / f"{plan}-{at}-{digest}{PACK_SUFFIX}"

    @property
    def keys(self) -> Path:
        """The folder of signing keys, beside the store."""
        return self.store.parent / "keys"

    def pack(self, digest: str) -> Path:
        """The pack whose whole-file BLAKE3 is `digest` (64 hex digits)."""
        return self.packs / f"{digest}{PACK_SUFFIX}"

    def signing_key(self, store_id: str) -> Path:
        """The private key of the store with that id."""
        return self.keys / f"{store_id}.key"

    def signed(self, store_id: str) -> Path:
        """The highest tree size ever signed for the store with that id, and its root."""
        return self.keys / f"{store_id}.signed"

    def folders(self) -> tuple[Path, ...]:
        """Every folder inside the store."""
        return (self.packs, self.ledger, self.tile, self.trash)


def pack_digest(name: str) -> str | None:
    """The digest in a pack's file name, or None when the name is not that of a pack."""
    return name[:64] if _PACK_NAME.match(name) else None


def trash_parts(name: str) -> tuple[str, int, str] | None:
    """(plan, at, digest) of a file name in the trash, or None when the name is not of that form; see `Layout.trashed`."""
    found = _TRASH_NAME.match(name)
    return (found[1], int(found[2]), found[3]) if found else None
