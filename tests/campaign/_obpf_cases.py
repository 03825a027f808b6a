"""The corpus of oBPF programs under tests/cases/obpf: how a case file is read, and what becomes of it.

A case is a program in any source form whose first line is a comment that says what it is about. Further comment lines at the top:

    # expect: CODE [pc=N] [line=N]   the error; E8-VERIFY:<rule> names the rule (reject only)
    # rights: a b                    rights held (default: read-trace); empty means none
    # tier: pure | inline | async    (default: async)
    # dims: rows=8 width=4           sizes of the contract (default: the reference sizes)
    # attach: HOOK                   attached to another kind of hook than the program's own
    # patch: ...                     the encoded program is changed before it is decoded, see `patched`
    # changed: ...                   what differs between the certificate and what it is shown, see `stale`
    # run: x=3x4 ...                 sizes of the views of one firing of the accepted program (default: 1 along every axis)
    # times: N                       firings (default 1), with step = 0, 1, ...
    # observe: drops m=3 ...         what the maps must have counted afterwards
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from probes import isa
from probes.verifier import verify
from syscalls.errors import RecurosError

ROOT: Final = Path(__file__).resolve().parents[1] / "cases" / "obpf"
KEYS: Final = frozenset(
    {"expect", "rights", "tier", "dims", "attach", "patch", "changed", "run", "times", "observe", "line"}
)
_HEADER: Final = re.compile(r"(?:#|//)\s*([a-z]+):(?:\s+(.*))?\Z")


@dataclass(frozen=True)
class Case:
    """One file. `says`: its first line; `head`: the lines `key: value` after it."""

    path: Path
    verdict: str
    category: str
    says: str
    head: dict[str, str]
    text: str

    @property
    def name(self) -> str:
        """Category and name, as in the folder."""
        return f"{self.category}/{self.path.name}"

    def expected(self) -> tuple[str, int | None, int | None]:
        """Code, pc and line; None where the case does not say."""
        code, *places = self.head["expect"].split()
        found = dict(place.split("=") for place in places)
        if "line" in self.head:
            found["line"] = self.head["line"]
        return code, *(int(found[key]) if key in found else None for key in ("pc", "line"))  # type: ignore[return-value]

    def contract(self, hook: str) -> isa.Contract:
        """The contract that it is verified for."""
        return isa.Contract(self.head.get("attach", hook), _numbers(self.head.get("dims", "")))

    def rights(self) -> tuple[str, ...]:
        """Rights that are held."""
        return tuple(self.head.get("rights", "read-trace").split())

    def tier(self) -> isa.Tier:
        """Highest tier allowed."""
        return isa.Tier[self.head.get("tier", "async").upper()]


def _numbers(text: str) -> dict[str, int]:
    return {key: int(value) for key, _, value in (part.partition("=") for part in text.split())}


def load(verdict: str) -> list[Case]:
    """All cases of a verdict, "reject" or "accept", sorted."""
    paths = sorted(path for path in (ROOT / verdict).rglob("*") if path.is_file())
    return [read(path, verdict) for path in paths]


def read(path: Path, verdict: str) -> Case:
    """One case; ValueError when its head is not in the form above."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    head: dict[str, str] = {}
    for line in lines[1:]:
        match = _HEADER.match(line)
        if match is None:
            break
        if match[1] not in KEYS or match[1] in head:
            raise ValueError(f"{path}: {match[1]!r} is no key, or is given twice")
        head[match[1]] = (match[2] or "").strip()
    says = lines[0].lstrip("#/ ")
    if not says or (verdict == "reject") == ("expect" not in head and "observe" not in head):
        raise ValueError(f"{path}: a case says in its first line what it is, and a rejected one what is expected")
    return Case(path, verdict, path.parent.name, says, head, text)


def compiled(case: Case) -> isa.Bytecode:
    """The program of a case, whatever form its source has."""
    from probes import lang

    if case.path.suffix == ".asm":
        return lang.assemble(case.text, case.path.name)
    return lang.compile_source(case.text, case.path.name)


def judge(case: Case) -> RecurosError | None:
    """What becomes of a case up to the moment before it runs: the error, or None for an accepted one."""
    try:
        program = compiled(case)
        if "patch" in case.head:
            program = isa.decode(patched(isa.encode(program), case.head["patch"]))
        contract = case.contract(program.hook_kind)
        certificate = verify(program, contract, case.rights(), tiers=case.tier())
        if "changed" in case.head:
            stale(certificate, isa.encode(program), contract, case)
    except RecurosError as e:
        return e
    return None


def found(error: RecurosError | None) -> tuple[str, Any, Any]:
    """Code (with its rule), pc and line of an error; "accepted" for None."""
    if error is None:
        return "accepted", None, None
    return error.details.get("rule", error.code), error.details.get("pc"), error.details.get("line")


def agrees(case: Case, error: RecurosError | None) -> bool:
    """Whether the case's expectation is met; a place it does not speak of may be any."""
    wanted, got = case.expected(), found(error)
    return wanted[0] == got[0] and all(w is None or w == g for w, g in zip(wanted[1:], got[1:], strict=True))


# --- bytes -------------------------------------------------------------------------------------------------------------
def patched(data: bytes, patch: str) -> bytes:
    """`N.column=value` of an instruction, or of the envelope; the checksum is made to fit unless the patch is about the bytes."""
    key, _, value = patch.partition("=")
    prefix = struct.Struct("<4sHHI")
    magic, version, zero, length = prefix.unpack_from(data)
    body, code_at = bytearray(data[:-32]), prefix.size + length
    match key:
        case "cut":
            return data[: -int(value)]
        case "keep":
            return data[: int(value)]
        case "append":
            return data + bytes(int(value))
        case "flip":
            changed = bytearray(data)
            changed[int(value)] ^= 1
            return bytes(changed)
        case "magic":
            magic = value.encode()
        case "version":
            version = int(value)
        case "reserved":
            zero = int(value)
        case "header_length":
            length = int(value)
        case "header_length-":
            length -= int(value)
        case "header":
            header = bytes.fromhex(value)
            body = bytearray(body[: prefix.size] + header + body[code_at:])
            length = len(header)
        case "code":
            del body[code_at:]
        case _:
            pc, _, column = key.partition(".")
            _patch_column(body, code_at + int(pc) * isa.INSTRUCTION_BYTES, column, value)
    prefix.pack_into(body, 0, magic, version, zero, length)
    return bytes(body) + hashlib.sha256(body).digest()


def _patch_column(body: bytearray, at: int, column: str, value: str) -> None:
    if column in ("op", "d", "a", "b"):
        body[at + ("op", "d", "a", "b").index(column)] = int(value, 0)
    elif column == "aux":
        struct.pack_into("<i", body, at + 4, int(value, 0))
    elif value == "nan":
        struct.pack_into("<d", body, at + 8, math.nan)
    else:
        struct.pack_into("<q", body, at + 8, int(value, 0))


def stale(certificate: Any, data: bytes, contract: isa.Contract, case: Case) -> None:
    """Show a certificate something that it is not for. Raises what its check raises; `changed` says what is different."""
    what, value = re.split("[:=]", case.head["changed"], maxsplit=1)
    rights: tuple[str, ...] = case.rights()
    match what:
        case "program":
            certificate = dataclasses.replace(certificate, program=value * 64)
        case "bytes":
            data = patched(data, "1.d=1")
        case "dims":
            contract = isa.Contract(contract.hook, _numbers(value))
        case "hook":
            contract = isa.Contract(value, contract.dims_max)
        case "rights":
            rights = tuple(value.split())
        case _:
            certificate = dataclasses.replace(certificate, **{what: int(value)})
    type(certificate).decode(certificate.encode()).check(data, contract, rights)
