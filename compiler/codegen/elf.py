"""Reads a relocatable ELF object, as much of it as linking needs (System V ABI; psABI of x86-64, AArch64 and Arm)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runnel.compiler.codegen.errors import CodegenError

SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 2, 4, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
STT_SECTION = 3
R_ARM_REL32, R_ARM_CALL, R_ARM_JUMP24, R_ARM_MOVW_PREL_NC, R_ARM_MOVT_PREL = 3, 28, 29, 45, 46
MACHINES = {(2, 62): "x86_64", (2, 183): "aarch64", (1, 40): "armv7"}  # by class and machine


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


@dataclass(frozen=True)
class _Form:
    """Where things lie in a class of files: the header's section table, and one section header, symbol, relocation."""

    table: str
    at: tuple[int, int]
    section: str
    symbol: str


_FORMS = {1: _Form("<I", (32, 46), "<IIIIIIIIII", "<IIIBBH"), 2: _Form("<Q", (40, 58), "<IIQQQQIIQQ", "<IBBHQQ")}


def read_object(data: bytes) -> Object:
    """Parse a little-endian relocatable object. Raises ``CodegenError`` if it is anything else."""
    if data[:4] != b"\x7fELF" or data[4:6] not in (b"\1\1", b"\2\1"):
        raise CodegenError("the compiled object is not a little-endian ELF file")
    form = _FORMS[data[4]]
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != 1 or (data[4], machine) not in MACHINES:
        raise CodegenError(f"the compiled object has type {kind}, machine {machine}; a relocatable one is needed")
    (table,) = struct.unpack_from(form.table, data, form.at[0])
    entry, count, names = struct.unpack_from("<HHH", data, form.at[1])
    headers = [struct.unpack_from(form.section, data, table + i * entry) for i in range(count)]
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
            for fields in struct.iter_unpack(form.symbol, section.data):
                name, info, _, index, value, _ = fields if data[4] == 2 else (*fields[:1], *fields[3:], *fields[1:3])
                label = sections[index].name if info & 15 == STT_SECTION else _string(strings, name)
                symbols.append(Symbol(label, index, value))
    arch = MACHINES[data[4], machine]
    return Object(arch, sections, symbols, _relocations(arch, sections, symbols))


def _relocations(arch: str, sections: list[Section], symbols: list[Symbol]) -> list[Relocation]:
    found = []
    for section in sections:
        if section.kind == SHT_REL and sections[section.info].flags & SHF_ALLOC:
            place = sections[section.info]
            if arch != "armv7":
                raise CodegenError(f"section {section.name} holds relocations without addends")
            for offset, info in struct.iter_unpack("<II", section.data):
                kind, (word,) = info & 0xFF, struct.unpack_from("<I", place.data, offset)
                found.append(Relocation(section.info, offset, kind, symbols[info >> 8], _arm_addend(kind, word)))
        if section.kind == SHT_RELA:
            for offset, info, addend in struct.iter_unpack("<QQq", section.data):
                found.append(Relocation(section.info, offset, info & 0xFFFFFFFF, symbols[info >> 32], addend))
    return found


def _arm_addend(kind: int, word: int) -> int:
    """The addend that an instruction or word of 32-bit Arm holds itself."""
    if kind in (R_ARM_CALL, R_ARM_JUMP24):
        return _signed((word & 0xFFFFFF) << 2, 26)
    if kind in (R_ARM_MOVW_PREL_NC, R_ARM_MOVT_PREL):
        return _signed(word >> 4 & 0xF000 | word & 0xFFF, 16)
    return _signed(word, 32)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()
