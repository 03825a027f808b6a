"""The FORMAT file: which format a store has, which store it is, and the public key that its checkpoints verify with.

Responsible for: its one canonical text. Refuses: another version (both are named), any text that is not canonical.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kfs.checkpoint import PublicKey
from syscalls.errors import RecurosError

MAJOR: Final = 1
MINOR: Final = 1
NAME: Final = "recuros-kfs"
_BYTES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Format:
    """What FORMAT says; `store_id` is 32 hex digits chosen at creation."""

    store_id: str
    key: PublicKey
    minor: int = MINOR

    def text(self) -> bytes:
        """The whole file: one line of JSON, fields in this order."""
        row = {"format": NAME, "major": MAJOR, "minor": self.minor, "store": self.store_id, "key": str(self.key)}
        return json.dumps(row).encode() + b"\n"


def origin(store_id: str) -> str:
    """The log's origin, which is also the name of its key."""
    return f"recuros.kfs/{store_id}"


def read_format(path: Path) -> Format:
    """Read and check FORMAT: E4-NOENT without one, E9-VERSION for another version, E9-INTEGRITY for anything else.

    Nothing signs the file, so a minor version that was let pass would be one that a flipped bit can choose.
    """
    try:
        data = path.read_bytes()[: _BYTES_MAX + 1]
    except (FileNotFoundError, NotADirectoryError) as e:
        raise RecurosError("E4-NOENT", f"there is no store at {path.parent}", hint="recuros boot makes one") from e
    try:
        row = json.loads(data)
        name, major, minor = row["format"], row["major"], row["minor"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise RecurosError("E9-INTEGRITY", f"{path} is not a FORMAT file: {e}") from e
    if name == NAME and type(major) is type(minor) is int and (major, minor) != (MAJOR, MINOR):
        raise RecurosError(
            "E9-VERSION",
            f"{path.parent} has store format {major}.{minor}; this program reads and writes format {MAJOR}.{MINOR}",
            hint="use the release that wrote it; there are no migrations before 1.0",
        )
    try:
        found = Format(str(row["store"]), PublicKey.parse(str(row["key"])), minor)
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise RecurosError("E9-INTEGRITY", f"{path} is malformed: {e}") from e
    if found.text() != data or found.key.name != origin(found.store_id):
        raise RecurosError("E9-INTEGRITY", f"{path} is not in its canonical form")
    return found
