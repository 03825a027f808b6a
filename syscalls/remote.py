"""A remote operator's way in: CURVE over TCP, where the principal is the public key.

Responsible for: the runtime's own pair of keys (`keys/remote.*` in the run directory), and the operator's card: a file that names
address, the runtime's public key and the operator's pair. Refuses: secrets that others may read, keys that are not 40 characters of Z85,
addresses that are not tcp://HOST:PORT.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from syscalls.errors import RecurosError

PREFIX: Final = "operator:key-"
"""Principals of remote operators: this, the public key in hexadecimal, a dot and the session's number."""
ADDRESS: Final = re.compile(r"^tcp://[^\s/]+:\d{1,5}$")


@dataclass(frozen=True)
class Card:
    """What an operator needs to connect. Keys are Z85 text."""

    address: str
    server: str
    public: str
    secret: str = field(repr=False)


def key_bytes(text: str, what: str) -> bytes:
    """The 32 bytes of a key; E2-USAGE when the text is none."""
    try:
        key = bytes(z85.decode(text.encode("ascii")))
    except (ValueError, UnicodeEncodeError, KeyError, IndexError):
        key = b""
    if len(key) != 32 or len(text) != 40:
        raise RecurosError(
            "E2-USAGE", f"{what} = {text!r:.60} is not a key: 40 characters of Z85", hint="recuros remote key"
        )
    return key


def server_keys(run: Path) -> tuple[str, str]:
    """The runtime's public and secret key; made at the first use, and readable to this user only."""
    folder = run / "keys"
    secret = folder / "remote.secret"
    if not secret.exists():
        public_text, secret_text = zmq.curve_keypair()
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "remote.public").write_bytes(public_text + b"\n")
        _write_secret(secret, secret_text.decode() + "\n")
    _check_private(secret)
    text = secret.read_text(encoding="ascii").strip()
    key_bytes(text, str(secret))
    return zmq.curve_public(text.encode()).decode(), text


def make_card(path: Path, address: str, server: str) -> Card:
    """A new pair of keys in a new file; E2-USAGE when the file exists already."""
    _check_address(address)
    key_bytes(server, "the runtime's key")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    lines = {"address": address, "server": server, "public": public, "secret": secret}
    try:
        _write_secret(path, "".join(f"{name} = '{value}'\n" for name, value in lines.items()))
    except FileExistsError as error:
        raise RecurosError("E2-USAGE", f"{path} exists", hint="another name, or remove it first") from error
    return Card(address, server, public, secret)


def load_card(path: Path) -> Card:
    """An operator's file; E2-USAGE when it is none, E5-DENIED when others may read it."""
    try:
        found = tomllib.loads(path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecurosError(
            "E2-USAGE", f"{path}: not a remote operator's file: {error}", hint="recuros remote key FILE"
        ) from error
    _check_private(path)
    names = ("address", "server", "public", "secret")
    if set(found) != set(names) or not all(isinstance(found[name], str) for name in names):
        raise RecurosError("E2-USAGE", f"{path} must hold {', '.join(names)}, it holds {', '.join(found) or 'nothing'}")
    _check_address(found["address"])
    for name in names[1:]:
        key_bytes(found[name], name)
    return Card(**found)


def _check_address(address: str) -> None:
    if not ADDRESS.match(address):
        raise RecurosError(
            "E2-USAGE", f"{address!r:.80} is not an address", hint="tcp://HOST:PORT, as recuros status shows it"
        )


def _write_secret(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)


def _check_private(path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise RecurosError(
            "E5-DENIED", f"{path} has mode {mode:o}: others may read the secret key", hint=f"chmod 600 {path}"
        )
