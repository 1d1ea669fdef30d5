"""The flat image: a linker of one object into position-independent bytes that need nothing from outside."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from runnel.compiler.codegen import elf
from runnel.compiler.codegen.errors import CodegenError
from runnel.compiler.codegen.memory import round_up

PAGE = 4096
_DROPPED = (".eh_frame", ".comment", ".note", ".ARM")


@dataclass(frozen=True)
class Image:
    """Code and constants of all kernels.

    code: to be mapped read and exec at a multiple of 4096. entries: byte offset of each kernel. arch: of the code.
    """

    code: bytes
    entries: dict[str, int]
    arch: str


def link(data: bytes, entries: Iterable[str], arch: str) -> Image:
    """Lay out an object's code and constants and resolve all that they refer to.

    Raises ``CodegenError`` naming what cannot be in an image: undefined symbols, writable sections, other relocations.
    """
    obj = elf.read_object(data)
    if obj.arch != arch:
        raise CodegenError(f"the compiled object is for {obj.arch}, the target is {arch}")
    entries = list(entries)
    symbols = {s.name: s for s in obj.symbols if s.section}
    missing = [name for name in entries if name not in symbols]
    if missing:
        raise CodegenError(f"the compiled object lacks kernels: {', '.join(missing)}")
    kept = _reachable(obj, [symbols[name].section for name in entries])
    base: dict[int, int] = {}
    code = bytearray()
    for index in kept:
        section = obj.sections[index]
        code += bytes(round_up(len(code), section.align) - len(code))
        base[index] = len(code)
        code += section.data
    for r in obj.relocations:
        if r.section in base:
            place = base[r.section] + r.offset
            target = base[r.symbol.section] + r.symbol.value + r.addend
            _patch(arch, r, code, place, target)
    return Image(bytes(code), {name: base[symbols[name].section] + symbols[name].value for name in entries}, arch)


def _reachable(obj: elf.Object, roots: list[int]) -> list[int]:
    """The sections that kernels need, in the object's order. TVM adds helpers of its own that they do not."""
    needs: dict[int, list[elf.Relocation]] = {}
    for r in obj.relocations:
        needs.setdefault(r.section, []).append(r)
    kept: set[int] = set()
    undefined: set[str] = set()
    pending = list(roots)
    while pending:
        index = pending.pop()
        if index in kept:
            continue
        kept.add(index)
        for r in needs.get(index, ()):
            if r.symbol.section == 0 or r.symbol.section >= len(obj.sections):
                undefined.add(r.symbol.name)
            else:
                pending.append(r.symbol.section)
    if undefined:
        raise CodegenError(
            f"kernels call what an image cannot import: {', '.join(sorted(undefined))} (floor, roundeven and the like"
            " mean that the target's features lack an instruction: x86-64 needs at least SSE4.2, x86-64-v2)"
        )
    for index in kept:
        section = obj.sections[index]
        if section.flags & elf.SHF_WRITE or not section.flags & elf.SHF_ALLOC:
            raise CodegenError(f"kernels need section {section.name}, which is not read-only memory")
        if section.name.startswith(_DROPPED):
            raise CodegenError(f"kernels refer to section {section.name}")
    return sorted(kept)


def _patch(arch: str, r: elf.Relocation, code: bytearray, place: int, target: int) -> None:
    """Resolve one relocation; ``place`` and ``target`` are offsets in the image."""
    patch = _KINDS[arch].get(r.kind)
    if patch is None:
        raise CodegenError(f"relocation type {r.kind} ({arch}) against {r.symbol.name} has no place in an image")
    patch(code, place, target)


def _relative(form: str) -> Callable[[bytearray, int, int], None]:
    def patch(code: bytearray, place: int, target: int) -> None:
        try:
            struct.pack_into(form, code, place, target - place)
        except struct.error as error:
            raise CodegenError(f"the image is too large for a {form} reference at {place}") from error

    return patch


def _instruction(fields: Callable[[int, int], int]) -> Callable[[bytearray, int, int], None]:
    def patch(code: bytearray, place: int, target: int) -> None:
        (word,) = struct.unpack_from("<I", code, place)
        struct.pack_into("<I", code, place, word | fields(place, target))

    return patch


def _adr_page(place: int, target: int) -> int:
    pages = (target >> 12) - (place >> 12)
    _check(-(1 << 20) <= pages < (1 << 20), place)
    return (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def _branch(place: int, target: int) -> int:
    words = (target - place) >> 2
    _check(-(1 << 25) <= words < (1 << 25), place)
    return words & 0x3FFFFFF


def _low12(shift: int) -> Callable[[int, int], int]:
    def fields(place: int, target: int) -> int:
        _check((target & 0xFFF) % (1 << shift) == 0, place)
        return ((target & 0xFFF) >> shift) << 10

    return fields


def _arm_branch(code: bytearray, place: int, target: int) -> None:
    (word,) = struct.unpack_from("<I", code, place)
    _check((target - place) % 4 == 0 and -(1 << 25) <= target - place < 1 << 25, place)
    struct.pack_into("<I", code, place, word & 0xFF000000 | (target - place) >> 2 & 0xFFFFFF)


def _arm_move(shift: int) -> Callable[[bytearray, int, int], None]:
    def patch(code: bytearray, place: int, target: int) -> None:
        (word,) = struct.unpack_from("<I", code, place)
        half = (target - place) >> shift & 0xFFFF
        struct.pack_into("<I", code, place, word & 0xFFF0F000 | (half & 0xF000) << 4 | half & 0xFFF)

    return patch


def _check(fits: bool, place: int) -> None:
    if not fits:
        raise CodegenError(f"a reference at {place} of the image is out of reach or misaligned")


_X86_64: dict[int, Callable[[bytearray, int, int], None]] = {
    2: _relative("<i"),  # R_X86_64_PC32
    4: _relative("<i"),  # R_X86_64_PLT32
    24: _relative("<q"),  # R_X86_64_PC64
}
_AARCH64: dict[int, Callable[[bytearray, int, int], None]] = {
    260: _relative("<q"),  # R_AARCH64_PREL64
    261: _relative("<i"),  # R_AARCH64_PREL32
    275: _instruction(_adr_page),  # R_AARCH64_ADR_PREL_PG_HI21
    277: _instruction(_low12(0)),  # R_AARCH64_ADD_ABS_LO12_NC
    278: _instruction(_low12(0)),  # R_AARCH64_LDST8_ABS_LO12_NC
    282: _instruction(_branch),  # R_AARCH64_JUMP26
    283: _instruction(_branch),  # R_AARCH64_CALL26
    284: _instruction(_low12(1)),  # R_AARCH64_LDST16_ABS_LO12_NC
    285: _instruction(_low12(2)),  # R_AARCH64_LDST32_ABS_LO12_NC
    286: _instruction(_low12(3)),  # R_AARCH64_LDST64_ABS_LO12_NC
    299: _instruction(_low12(4)),  # R_AARCH64_LDST128_ABS_LO12_NC
}
_ARMV7: dict[int, Callable[[bytearray, int, int], None]] = {
    elf.R_ARM_REL32: _relative("<i"),
    elf.R_ARM_CALL: _arm_branch,
    elf.R_ARM_JUMP24: _arm_branch,
    elf.R_ARM_MOVW_PREL_NC: _arm_move(0),
    elf.R_ARM_MOVT_PREL: _arm_move(16),
}
_KINDS = {"x86_64": _X86_64, "aarch64": _AARCH64, "armv7": _ARMV7}
