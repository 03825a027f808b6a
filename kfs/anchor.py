"""What is kept elsewhere to check a store with: its public key, and an earlier checkpoint.

Responsible for: reading both from files that a person names. Refuses: to guess; a file that is missing, or is neither, is an error.
"""

from __future__ import annotations

from pathlib import Path

from kfs.checkpoint import NOTE_BYTES_MAX, PublicKey
from kfs.formatfile import read_format
from syscalls.errors import RecurosError


def read_key(text: str) -> PublicKey:
    """The public key in a file of that name (a copy of FORMAT will do), or in the text itself; E4-NOENT for no such file."""
    path = Path(text)
    if "+" in text and not path.is_file():
        return PublicKey.parse(text)
    try:
        data = path.read_bytes()[:NOTE_BYTES_MAX]
    except OSError as e:
        raise RecurosError(
            "E4-NOENT", f"key {text:.200} cannot be read: {e.strerror}", hint="give a file, or NAME+ID+KEY itself"
        ) from e
    if data.startswith(b"{"):
        return read_format(path).key
    try:
        return PublicKey.parse(data.decode())
    except UnicodeDecodeError as e:
        raise RecurosError("E9-INTEGRITY", f"{path} is not a public key") from e


def read_note_file(path: Path) -> bytes:
    """The bytes of a checkpoint that was kept elsewhere, not verified; E4-NOENT without the file."""
    try:
        with path.open("rb") as file:
            return file.read(NOTE_BYTES_MAX + 1)
    except OSError as e:
        raise RecurosError("E4-NOENT", f"checkpoint {path} cannot be read: {e.strerror}") from e
