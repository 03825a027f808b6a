"""What the verifier proved of a program, and for what: the paper that lets the program run.

Responsible for: the certificate's fields, its one encoding, and the comparison with what is at hand when the program is about
to run. Refuses: bytes that are not a certificate in its one form (E8-ENCODING), and a certificate for anything but this very
program, instruction set, verifier, contract and rights (E8-STALE, which names the one that differs). A certificate is not
signed: it is made in the kernel, and whoever runs a program takes it from the kernel only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Final

import msgpack

from probes import isa
from syscalls.errors import RecurosError

VERIFIER_VERSION: Final = 1
CERTIFICATE_BYTES_MAX: Final = 4_096
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_RIGHTS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Certificate:
    """Proof for one program under one contract.

    program: its SHA-256 in hex; contract: that of `isa.Contract.digest`; tiers: the highest `isa.Tier` it may reach; rights:
    those held by whom it was verified for, sorted; hook: kind of hook; cost: no firing costs more units; visits: instructions
    that the verifier looked at; instructions: of the program.
    """

    program: str
    isa_version: int
    verifier_version: int
    tiers: int
    contract: str
    rights: tuple[str, ...]
    hook: str
    cost: int
    visits: int
    instructions: int

    def encode(self) -> bytes:
        """msgpack map with the fields in order."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        data: bytes = msgpack.packb({**row, "rights": list(self.rights)})
        return data

    @classmethod
    def decode(cls, data: bytes) -> Certificate:
        """Inverse of `encode`; E8-ENCODING for anything else."""
        if len(data) > CERTIFICATE_BYTES_MAX:
            raise _malformed(f"{len(data)} bytes; the limit is {CERTIFICATE_BYTES_MAX}")
        try:
            row = msgpack.unpackb(data, max_ext_len=0)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as e:
            raise _malformed(f"not msgpack: {type(e).__name__}") from e
        if not isinstance(row, dict) or list(row) != [f.name for f in fields(cls)]:
            raise _malformed("its fields are not those of a certificate")
        if not _plausible(row):
            raise _malformed("a field is not what it should be")
        found = cls(**{**row, "rights": tuple(row["rights"])})
        if found.encode() != data:
            raise _malformed("it is not in its one form")
        return found

    def check(self, data: bytes, contract: isa.Contract, rights: Collection[str]) -> None:
        """Nothing, when `data` is the program that was verified, for this contract, and the rights are still held; else E8-STALE."""
        digest = hashlib.sha256(data[:-32])
        if digest.digest() != data[-32:] or digest.hexdigest() != self.program:
            raise _stale("it is for another program", self.program[:12], digest.hexdigest()[:12])
        self.check_digest(self.program, contract, rights)

    def check_digest(self, program: str, contract: isa.Contract, rights: Collection[str]) -> None:
        """The same where the program's SHA-256 (hex) is known to be that of its bytes."""
        if program != self.program:
            raise _stale("it is for another program", self.program[:12], program[:12])
        if self.isa_version != isa.ISA_VERSION:
            raise _stale("it is for another instruction set", str(self.isa_version), str(isa.ISA_VERSION))
        if self.verifier_version != VERIFIER_VERSION:
            raise _stale("another verifier wrote it", str(self.verifier_version), str(VERIFIER_VERSION))
        if self.contract != contract.digest():
            if self.hook != contract.hook:
                raise _stale("it is for another hook", self.hook, contract.hook)
            raise _stale("the hook's views have other sizes now", self.contract[:12], contract.digest()[:12])
        missing = sorted(set(self.rights) - set(rights))
        if missing:
            raise _stale(
                "a right that it counts on is no longer held", ", ".join(missing), ", ".join(sorted(rights)) or "none"
            )


def _plausible(row: dict[str, Any]) -> bool:
    numbers = ("isa_version", "verifier_version", "tiers", "cost", "visits", "instructions")
    return (
        all(isinstance(row[key], str) and _SHA256.match(row[key]) for key in ("program", "contract"))
        and all(type(row[key]) is int and row[key] >= 0 for key in numbers)
        and row["tiers"] in set(isa.Tier)
        and isinstance(row["hook"], str)
        and row["hook"] in isa.HOOK_VIEWS
        and isinstance(row["rights"], list)
        and len(row["rights"]) <= _RIGHTS_MAX
        and all(isinstance(right, str) for right in row["rights"])
        and row["rights"] == sorted(set(row["rights"]))
    )


def _malformed(detail: str) -> RecurosError:
    return RecurosError("E8-ENCODING", f"not a certificate: {detail}", hint="have the program verified again")


def _stale(why: str, certified: str, found: str) -> RecurosError:
    return RecurosError(
        "E8-STALE",
        f"the certificate does not hold: {why} (certified {certified}, found {found})",
        hint="attach the program again: it is then verified for what is there now",
    )
