"""Reads a relocatable ELF object, as much of it as linking needs (System V ABI; psABI of x86-64 and AArch64)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runnel.compiler.codegen.errors import CodegenError

SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 2, 4, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
STT_SECTION = 3
MACHINES = {62: "x86_64", 183: "aarch64"}


@dataclass(frozen=True)
class Section:
    """A section; ``data`` is empty where it takes no bytes of the file."""

    name: str
    kind: int
    flags: int
    align: int
    link: int
    info: int
    data: bytes


@dataclass(frozen=True)
class Symbol:
    """A symbol; ``section`` 0 means undefined."""

    name: str
    section: int
    value: int


@dataclass(frozen=True)
class Relocation:
    """Patch ``section`` at ``offset`` with the symbol's address plus ``addend``, in the way of ``kind``."""

    section: int
    offset: int
    kind: int
    symbol: Symbol
    addend: int


@dataclass(frozen=True)
class Object:
    """A relocatable object."""

    arch: str
    sections: list[Section]
    symbols: list[Symbol]
    relocations: list[Relocation]


def read_object(data: bytes) -> Object:
    """Parse a little-endian ELF64 relocatable object. Raises ``CodegenError`` if it is anything else."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise CodegenError("the compiled object is not a little-endian ELF64 file")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != 1 or machine not in MACHINES:
        raise CodegenError(f"the compiled object has type {kind}, machine {machine}; a relocatable one is needed")
    (table,) = struct.unpack_from("<Q", data, 40)
    entry, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry) for i in range(count)]
    contents = [b"" if h[1] == SHT_NOBITS else data[h[4] : h[4] + h[5]] for h in headers]
    sections = [
        Section(_string(contents[names], h[0]), h[1], h[2], max(h[8], 1), h[6], h[7], content)
        for h, content in zip(headers, contents, strict=True)
    ]
    for h, section in zip(headers, sections, strict=True):
        if h[1] == SHT_NOBITS and h[5]:
            raise CodegenError(f"section {section.name} of the compiled object needs {h[5]} bytes of writable memory")
    symbols: list[Symbol] = []
    for section in sections:
        if section.kind == SHT_SYMTAB:
            strings = sections[section.link].data
            for name, info, _, index, value, _ in struct.iter_unpack("<IBBHQQ", section.data):
                label = sections[index].name if info & 15 == STT_SECTION else _string(strings, name)
                symbols.append(Symbol(label, index, value))
    return Object(MACHINES[machine], sections, symbols, _relocations(sections, symbols))


def _relocations(sections: list[Section], symbols: list[Symbol]) -> list[Relocation]:
    found = []
    for section in sections:
        if section.kind == SHT_REL and sections[section.info].flags & SHF_ALLOC:
            raise CodegenError(f"section {section.name} holds relocations without addends")
        if section.kind == SHT_RELA:
            for offset, info, addend in struct.iter_unpack("<QQq", section.data):
                found.append(Relocation(section.info, offset, info & 0xFFFFFFFF, symbols[info >> 32], addend))
    return found


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()
