"""Signed tree heads: C2SP tlog-checkpoint in a C2SP signed note, Ed25519.

Responsible for: the text and the signature of a checkpoint, the key files, and the rule that a smaller or a conflicting tree is
never signed: the highest size and its root are on disk before a signature over them is. Refuses: a key file that others can
read, a note whose signature does not verify.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from kfs.files import Files
from syscalls.errors import RecurosError

_ED25519: Final = b"\x01"  # the signature algorithm byte of C2SP signed-note
_DASH: Final = "\u2014"
NOTE_BYTES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class TreeHead:
    """A tree size and its RFC 6962 root."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A note verifier: `name+<8 hex>+<base64 of 0x01 and the 32 key bytes>`, the form Go's note tools use."""

    name: str
    key: bytes

    @property
    def key_id(self) -> bytes:
        """The first four bytes of SHA-256(name, newline, 0x01, key)."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.key).decode()}"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Inverse of `str`; E9-INTEGRITY when the text is not a consistent Ed25519 verifier key."""
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _decode_base64(encoded)
        if raw is None or len(raw) != 33 or raw[:1] != _ED25519 or not name:
            raise RecurosError("E9-INTEGRITY", f"{text!r:.120} is not an Ed25519 verifier key")
        key = cls(name, raw[1:])
        if key.key_id.hex() != key_id:
            raise RecurosError(
                "E9-INTEGRITY", f"verifier key {name!r:.80}: its key id is {key.key_id.hex()}, not {key_id:.8}"
            )
        return key


def body(origin: str, head: TreeHead) -> str:
    """The signed text: origin line, decimal size, base64 root."""
    return f"{origin}\n{head.size}\n{base64.b64encode(head.root).decode()}\n"


def verify_note(note: bytes, key: PublicKey) -> TreeHead:
    """The tree head of a checkpoint signed by `key`, whose name is also the origin; E9-INTEGRITY otherwise."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        text, separator, signatures = note[:NOTE_BYTES_MAX].decode().partition("\n\n")
    except UnicodeDecodeError as e:
        raise RecurosError("E9-INTEGRITY", "checkpoint is not UTF-8") from e
    text += "\n"
    lines = text.split("\n")
    # One signature, in its canonical form: any changed byte of the file is then a changed checkpoint.
    prefix = f"{_DASH} {key.name} "
    raw = (
        _decode_base64(signatures[len(prefix) : -1])
        if signatures.startswith(prefix) and signatures.endswith("\n")
        else None
    )
    if not separator or len(note) > NOTE_BYTES_MAX or raw is None or len(raw) != 68 or raw[:4] != key.key_id:
        raise RecurosError("E9-INTEGRITY", f"checkpoint carries no signature by {key.name}")
    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(raw[4:], text.encode())
    except (InvalidSignature, ValueError) as e:
        raise RecurosError("E9-INTEGRITY", f"checkpoint signature by {key.name} does not verify") from e
    root = _decode_base64(lines[2]) if len(lines) == 4 else None
    if lines[0] != key.name or root is None or len(root) != 32 or not lines[1].isdecimal():
        raise RecurosError("E9-INTEGRITY", "checkpoint body is not origin, size, root")
    return TreeHead(int(lines[1]), root)


class VerifiedCheckpoint:
    """A tree head that its log signed. Making one *is* verifying the signature, so nobody can hold a forged one.

    What proves or checks anything about a tree takes this, never a size and a root: a made-up size would pass.
    """

    __slots__ = ("_head", "_key", "_note")
    _head: TreeHead
    _key: PublicKey
    _note: bytes

    def __init__(self, note: bytes, key: PublicKey) -> None:
        """Verify the signed note; E9-INTEGRITY when `key` did not sign it, or its origin is not the name of `key`."""
        object.__setattr__(self, "_head", verify_note(note, key))
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_note", bytes(note))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a verified checkpoint cannot be changed: {name}")

    def __reduce__(self) -> tuple[type[VerifiedCheckpoint], tuple[bytes, PublicKey]]:
        return VerifiedCheckpoint, (self.note, self.key)

    @property
    def head(self) -> TreeHead:
        """Size and root."""
        return self._head

    @property
    def size(self) -> int:
        """How many records it covers."""
        return self.head.size

    @property
    def root(self) -> bytes:
        """The RFC 6962 root over them."""
        return self.head.root

    @property
    def key(self) -> PublicKey:
        """The key that it verified with."""
        return self._key

    @property
    def origin(self) -> str:
        """Which log it is of."""
        return self.key.name

    @property
    def note(self) -> bytes:
        """The signed note itself."""
        return self._note

    def __repr__(self) -> str:
        return f"<checkpoint of {self.origin}: {self.size} records, root {self.root.hex()}>"


class Signer:
    """The private key of a store, and the highest tree it has signed."""

    def __init__(self, files: Files, key_path: Path, signed_path: Path) -> None:
        """Load the key; E9-INTEGRITY when it is missing or malformed, E5-DENIED when others can read it."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._files = files
        self._signed_path = signed_path
        name, seed = _read_private_key(key_path)
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(name, self._private.public_key().public_bytes_raw())
        self.highest = read_highest(signed_path)

    @staticmethod
    def create(files: Files, key_path: Path, signed_path: Path, name: str) -> Signer:
        """Make a new key, mode 0600, that has signed nothing yet."""
        raw = _ED25519 + os.urandom(32)
        files.sure_folder(key_path.parent, 0o700)
        files.create(signed_path, _highest_text(TreeHead(0, hashlib.sha256(b"").digest())), 0o600)
        files.create(key_path, _private_text(name, raw), 0o600)
        return Signer(files, key_path, signed_path)

    def sign(self, head: TreeHead) -> bytes:
        """The signed note for `head`, whose records must be on disk already. Never smaller, never conflicting."""
        highest = self.highest
        if head.size < highest.size or (head.size == highest.size and head.root != highest.root):
            raise RecurosError(
                "E9-INTEGRITY",
                f"refusing to sign a tree of {head.size} records, root {head.root.hex()}: "
                f"size {highest.size}, root {highest.root.hex()} is signed already",
            )
        if head != highest:
            self._files.replace(self._signed_path, _highest_text(head), 0o600)
            self.highest = head
        text = body(self.public.name, head)
        signature = base64.b64encode(self.public.key_id + self._private.sign(text.encode())).decode()
        return f"{text}\n{_DASH} {self.public.name} {signature}\n".encode()


def read_highest(path: Path) -> TreeHead:
    """The highest tree ever signed, as kept beside the key."""
    try:
        data = path.read_bytes()  # once: a live writer may replace the file at any moment
        size, root = data.decode().split()
        head = TreeHead(int(size), bytes.fromhex(root))
    except FileNotFoundError as e:
        raise RecurosError("E9-INTEGRITY", f"{path} is missing: the highest signed size is unknown") from e
    except ValueError as e:
        raise RecurosError("E9-INTEGRITY", f"{path} is malformed: {e}") from e
    if head.size < 0 or len(head.root) != 32 or data != _highest_text(head):
        raise RecurosError("E9-INTEGRITY", f"{path} is malformed")
    return head


def _highest_text(head: TreeHead) -> bytes:
    return f"{head.size} {head.root.hex()}\n".encode()


def _read_private_key(path: Path) -> tuple[str, bytes]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8", errors="replace")  # what is not text fails the check of the form below
    except FileNotFoundError as e:
        raise RecurosError("E9-INTEGRITY", f"the signing key {path} is missing", hint="restore it from a copy") from e
    if mode & 0o077:
        raise RecurosError(
            "E5-DENIED", f"{path} has mode {mode & 0o777:o}; others can read it", hint=f"chmod 600 {path}"
        )
    parts = text.strip().split("+", 4)
    raw = _decode_base64(parts[4]) if len(parts) == 5 and parts[:2] == ["PRIVATE", "KEY"] else None
    if raw is None or len(raw) != 33 or raw[:1] != _ED25519 or _private_text(parts[2], raw) != text.encode():
        raise RecurosError("E9-INTEGRITY", f"{path} is not an Ed25519 signing key")
    return parts[2], raw[1:]


def _private_text(name: str, raw: bytes) -> bytes:
    """The form of Go's note tools: PRIVATE+KEY+name+key id+base64 of 0x01 and the 32-byte seed."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.from_private_bytes(raw[1:]).public_key().public_bytes_raw()
    return f"PRIVATE+KEY+{name}+{PublicKey(name, public).key_id.hex()}+{base64.b64encode(raw).decode()}\n".encode()


def _decode_base64(text: str) -> bytes | None:
    """Strict base64: None for anything that is not exactly how these bytes encode."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None
