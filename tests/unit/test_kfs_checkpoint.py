from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kfs.checkpoint import PublicKey, Signer, TreeHead, read_highest, verify_note
from kfs.files import Files
from syscalls.errors import RecurosError

NAME = "recuros.kfs/0123"


def head(size: int, fill: int = 0) -> TreeHead:
    return TreeHead(size, bytes([fill]) * 32)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.create(Files(), tmp_path / "keys" / "a.key", tmp_path / "keys" / "a.signed", NAME)


def test_a_checkpoint_is_the_c2sp_text_with_an_ed25519_signature(signer: Signer) -> None:
    text, _, signature = signer.sign(head(5)).decode().partition("\n\n")
    assert text.split("\n") == [NAME, "5", base64.b64encode(bytes(32)).decode()]
    dash, name, encoded = signature.rstrip("\n").split(" ")
    raw = base64.b64decode(encoded)
    assert (dash, name) == ("\u2014", NAME)
    assert raw[:4] == hashlib.sha256(NAME.encode() + b"\n\x01" + signer.public.key).digest()[:4]
    Ed25519PublicKey.from_public_bytes(signer.public.key).verify(raw[4:], (text + "\n").encode())


def test_a_note_verifies_to_its_head(signer: Signer) -> None:
    assert verify_note(signer.sign(head(5)), PublicKey.parse(str(signer.public))) == head(5)


def test_every_changed_byte_of_a_note_is_noticed(signer: Signer) -> None:
    note = signer.sign(head(5))
    for position in range(len(note)):
        changed = bytearray(note)
        changed[position] ^= 1
        with pytest.raises(RecurosError) as caught:
            verify_note(bytes(changed), signer.public)
        assert caught.value.code == "E9-INTEGRITY"
    for other in (b"", note[:-1], note + b"\n", note + note):
        with pytest.raises(RecurosError):
            verify_note(other, signer.public)


def test_another_key_of_the_same_name_does_not_verify(signer: Signer, tmp_path: Path) -> None:
    other = Signer.create(Files(), tmp_path / "keys" / "b.key", tmp_path / "keys" / "b.signed", NAME)
    with pytest.raises(RecurosError):
        verify_note(signer.sign(head(5)), other.public)


def test_a_smaller_or_conflicting_tree_is_never_signed(signer: Signer) -> None:
    signer.sign(head(5))
    for refused in (head(4), head(5, fill=1), head(0)):
        with pytest.raises(RecurosError, match="refusing to sign"):
            signer.sign(refused)
    assert signer.sign(head(5)) == signer.sign(head(5))
    signer.sign(head(6, fill=1))


def test_the_highest_size_survives_reopening_and_is_on_disk_before_the_signature(
    signer: Signer, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    signer.sign(head(9))
    assert read_highest(keys / "a.signed") == head(9)
    again = Signer(Files(), keys / "a.key", keys / "a.signed")
    assert again.public == signer.public
    with pytest.raises(RecurosError, match="refusing to sign"):
        again.sign(head(8))


def test_the_key_is_private_and_a_readable_one_is_refused(signer: Signer, tmp_path: Path) -> None:
    key = tmp_path / "keys" / "a.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    key.chmod(0o640)
    with pytest.raises(RecurosError) as caught:
        Signer(Files(), key, tmp_path / "keys" / "a.signed")
    assert caught.value.code == "E5-DENIED"


@pytest.mark.parametrize("text", ["", "name", "name+00000000+AQ==", "+00000000+AQ==", "name+zz+!!"])
def test_what_is_not_a_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(RecurosError):
        PublicKey.parse(text)
