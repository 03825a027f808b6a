"""From relocatable x86-64 ELF objects to a flat image that runs wherever it is mapped.

Responsible for: laying the code and constants of objects side by side and resolving every relocation between them, which are
all relative; the image's own framing with a checksum. So the learner needs no LLVM and no linker: it maps the bytes.
Refuses: symbols that no object defines, writable data, absolute addresses, other machines: `LinkError` says which.
Standard library only. Source of the formats: System V ABI, chapters 4 (object files) and, for x86-64, 4.4 (relocation).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

IMAGE_MAGIC: Final = b"OBPFimg1"
IMAGE_BYTES_MAX: Final = 8 << 20
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELOCATION: Final = struct.Struct("<QQq")
_FRAME: Final = struct.Struct("<8s32sQ")
_MACHINE_X86_64: Final = 62
_TYPE_RELOCATABLE: Final = 1
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8
_WRITE, _ALLOC = 1, 2
_PC32, _PLT32 = 2, 4
_LOCAL = 0


class LinkError(Exception):
    """The object cannot become an image; the message says why."""


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: str
    where: int
    value: int
    shared: bool


def link(objects: Iterable[bytes], entry: str) -> tuple[bytes, int]:
    """Code of the objects side by side and the offset of the function `entry` in it."""
    image, parts, table = bytearray(), [], dict[str, int]()
    for data in objects:
        try:
            part = _Part(data, image)
        except (struct.error, IndexError, ValueError) as e:
            raise LinkError(f"not a well-formed object: {e}") from e
        parts.append(part)
        table |= part.defined()
    for part in parts:
        part.relocate(image, table)
    if entry not in table:
        raise LinkError(f"no object defines {entry}")
    return bytes(image), table[entry]


class _Part:
    """One object, its code and constants already laid into the image."""

    def __init__(self, data: bytes, image: bytearray) -> None:
        self.data = data
        self.sections = _sections(data)
        self.base: dict[int, int] = {}
        for number, section in enumerate(self.sections):
            # Unwind tables are data about the code, not of it: nothing unwinds through a probe.
            if not section.flags & _ALLOC or not section.size or section.name == ".eh_frame":
                continue
            if section.kind == _NOBITS or section.flags & _WRITE:
                raise LinkError(f"an object has writable data ({section.name}, {section.size} bytes)")
            if section.kind != _PROGBITS:
                continue
            image += b"\xcc" * (-len(image) % section.align)
            self.base[number] = len(image)
            image += data[section.offset : section.offset + section.size]
        self.symbols = _symbols(data, self.sections)

    def defined(self) -> dict[str, int]:
        """Offset of each symbol that other objects may name."""
        return {s.name: self.base[s.where] + s.value for s in self.symbols if s.shared and s.where in self.base}

    def relocate(self, image: bytearray, table: dict[str, int]) -> None:
        """Resolve every reference out of this object's sections."""
        for section in self.sections:
            if section.kind == _RELA and section.info in self.base:
                for at in range(section.offset, section.offset + section.size, _RELOCATION.size):
                    offset, info, addend = _RELOCATION.unpack_from(self.data, at)
                    if info & 0xFFFFFFFF not in (_PC32, _PLT32):
                        raise LinkError(
                            f"an object has a relocation of type {info & 0xFFFFFFFF}, which is not relative"
                        )
                    place = self.base[section.info] + offset
                    target = self._target(self.symbols[info >> 32], table)
                    struct.pack_into("<i", image, place, target + addend - place)

    def _target(self, symbol: _Symbol, table: dict[str, int]) -> int:
        if symbol.where in self.base:
            return self.base[symbol.where] + symbol.value
        if symbol.name not in table:
            raise LinkError(f"an object needs the external symbol {symbol.name or symbol.where!r}")
        return table[symbol.name]


def _sections(data: bytes) -> list[_Section]:
    ident, kind, machine, _, _, _, table, _, _, _, _, size, count, names_at = _HEADER.unpack_from(data)
    if ident[:6] != b"\x7fELF\x02\x01" or kind != _TYPE_RELOCATABLE or machine != _MACHINE_X86_64:
        raise LinkError(f"not a relocatable x86-64 object (type {kind}, machine {machine})")
    rows = [_SECTION.unpack_from(data, table + size * i) for i in range(count)]
    names = rows[names_at]
    text = data[names[4] : names[4] + names[5]]
    return [_Section(_text(text, r[0]), r[1], r[2], r[4], r[5], r[6], r[7], max(1, r[8])) for r in rows]


def _symbols(data: bytes, sections: list[_Section]) -> list[_Symbol]:
    table = next((s for s in sections if s.kind == _SYMTAB), None)
    if table is None:
        raise LinkError("an object has no symbols")
    names = sections[table.link]
    text = data[names.offset : names.offset + names.size]
    found = []
    for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
        name, info, _, where, value, _ = _SYMBOL.unpack_from(data, at)
        found.append(_Symbol(_text(text, name), where, value, info >> 4 != _LOCAL))
    return found


def _text(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode("ascii", "replace")


def pack_image(code: bytes, entry: int) -> bytes:
    """The bytes that are cached and sent: magic, SHA-256 of the rest, entry offset, code."""
    body = struct.pack("<Q", entry) + code
    return IMAGE_MAGIC + hashlib.sha256(body).digest() + body


def unpack_image(data: bytes) -> tuple[bytes, int]:
    """Inverse of `pack_image`; LinkError when the bytes are not whole."""
    if not _FRAME.size < len(data) <= IMAGE_BYTES_MAX or data[:8] != IMAGE_MAGIC:
        raise LinkError(f"{len(data)} bytes that are no compiled probe")
    _, digest, entry = _FRAME.unpack_from(data)
    if hashlib.sha256(data[40:]).digest() != digest:
        raise LinkError("a compiled probe's bytes do not match their checksum")
    if entry >= len(data) - _FRAME.size:
        raise LinkError(f"a compiled probe begins at {entry}, past its end")
    return data[_FRAME.size :], entry
