"""Looks at an ELF program or library for a board: what it needs, and whether the board can have that."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runnel.errors import InputError
from runnel.targets import Target

PAGE = 64 << 10  # an aarch64 kernel may have pages of this size, and maps nothing that is aligned to less
LIBRARIES = frozenset(
    {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-aarch64.so.1",
     "ld-linux-armhf.so.3", "ld-linux-x86-64.so.2"}
)  # fmt: skip
_MACHINES = {(2, 62): "x86_64", (2, 183): "aarch64", (1, 40): "armv7"}
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_NEEDED, _STRTAB, _STRSZ, _TEXTREL, _VERNEED, _VERNEEDNUM = 1, 5, 10, 22, 0x6FFFFFFE, 0x6FFFFFFF
_MOST = 4096


class NotElf(InputError):
    """It is no whole little-endian ELF file of a known processor."""


@dataclass(frozen=True)
class Elf:
    """arch: as a target's. needed: libraries. versions: of symbols, as "GLIBC_2.17". align: the least of a segment that
    is mapped, in bytes. exec_stack: whether its stack may hold code. text_relocations: whether its code is patched."""

    arch: str
    needed: tuple[str, ...]
    versions: tuple[str, ...]
    align: int
    exec_stack: bool
    text_relocations: bool


@dataclass(frozen=True)
class _Segment:
    kind: int
    flags: int
    offset: int
    address: int
    size: int
    align: int


def read(data: bytes) -> Elf:
    """What a program or shared library says of itself. Raises NotElf."""
    try:
        return _Reader(data).read()
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise NotElf(f"this is no whole ELF program or library ({error}).") from None


def problems(elf: Elf, target: Target) -> list[str]:
    """Why it cannot run on a board, one reason each; none where it can."""
    found = []
    if elf.arch != target.arch:
        found.append(f"it is for {elf.arch}, and {target.name} is {target.arch}")
    if other := [name for name in elf.needed if name not in LIBRARIES]:
        found.append(f"it needs {', '.join(other)}, which a board may lack")
    floor = _number(target.glibc)
    for version in elf.versions:
        family, _, number = version.partition("_")
        if family != "GLIBC" or not number[:1].isdigit():
            found.append(f"it needs symbols of version {version}, which a board may lack")
        elif _number(number) > floor:
            found.append(f"it needs glibc {number}, and {target.name} may have {target.glibc}")
    if elf.align < PAGE:
        found.append(f"its segments are aligned to {elf.align} bytes, and pages may have {PAGE}")
    if elf.exec_stack:
        found.append("its stack is executable")
    if elf.text_relocations:
        found.append("its code is patched when it is loaded")
    return found


def check(path: Path, target: Target) -> Elf:
    """What ``problems`` says, as one InputError; else what the file says of itself."""
    elf = read(path.read_bytes())
    if found := problems(elf, target):
        raise InputError(f"'{path}' cannot run on {target.name}: {'; '.join(found)}.")
    return elf


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isascii() and part.isdigit() else 0 for part in text.split(".")[:4])


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self) -> Elf:
        data = self.data
        if data[:4] != b"\x7fELF" or data[4:6] not in (b"\1\1", b"\2\1"):
            raise NotElf("this is no little-endian ELF file.")
        wide = data[4] == 2
        kind, machine = struct.unpack_from("<HH", data, 16)
        if kind not in (2, 3) or (data[4], machine) not in _MACHINES:
            raise NotElf(f"this ELF file has type {kind} and machine {machine}; a program or library is needed.")
        (table,) = struct.unpack_from("<Q" if wide else "<I", data, 32 if wide else 28)
        entry, count = struct.unpack_from("<HH", data, 54 if wide else 42)
        if entry != (56 if wide else 32) or not 0 < count <= 256:
            raise NotElf("this ELF file has no sound table of segments.")
        self.segments = [self._segment(table + i * entry, wide) for i in range(count)]
        loads = [s for s in self.segments if s.kind == _LOAD]
        if not loads:
            raise NotElf("this ELF file has nothing that is loaded.")
        dynamic = list(self._dynamic(wide))
        first = dict(reversed(dynamic))
        strings = self._bytes(self._offset(first[_STRTAB]), first.get(_STRSZ, 0)) if _STRTAB in first else b""
        stacks = [s for s in self.segments if s.kind == _STACK]
        return Elf(
            _MACHINES[data[4], machine],
            tuple(_string(strings, value) for tag, value in dynamic if tag == _NEEDED),
            tuple(sorted(set(self._versions(first, strings)))),
            min(s.align for s in loads),
            not stacks or any(s.flags & 1 for s in stacks),
            _TEXTREL in first,
        )

    def _segment(self, at: int, wide: bool) -> _Segment:
        if wide:
            kind, flags, offset, address, _, size, _, align = struct.unpack_from("<IIQQQQQQ", self.data, at)
        else:
            kind, offset, address, _, size, _, flags, align = struct.unpack_from("<IIIIIIII", self.data, at)
        return _Segment(kind, flags, offset, address, size, align)

    def _dynamic(self, wide: bool) -> Iterator[tuple[int, int]]:
        form, item = ("<QQ", 16) if wide else ("<II", 8)
        for segment in self.segments:
            if segment.kind == _DYNAMIC:
                part = self._bytes(segment.offset, segment.size)
                for tag, value in struct.iter_unpack(form, part[: len(part) // item * item]):
                    if tag == 0:
                        break
                    yield tag, value

    def _versions(self, first: dict[int, int], strings: bytes) -> Iterator[str]:
        if _VERNEED not in first:
            return
        at = self._offset(first[_VERNEED])
        for _ in range(min(first.get(_VERNEEDNUM, 0), _MOST)):
            _, count, _, aux, following = struct.unpack_from("<HHIII", self.data, at)
            place = at + aux
            for _ in range(min(count, _MOST)):
                _, _, _, name, further = struct.unpack_from("<IHHII", self.data, place)
                yield _string(strings, name)
                place += further
            at += following

    def _offset(self, address: int) -> int:
        for s in self.segments:
            if s.kind == _LOAD and s.address <= address < s.address + s.size:
                return address - s.address + s.offset
        raise ValueError(f"nothing is loaded at {address:#x}")

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise ValueError("it ends early")
        return self.data[offset : offset + size]


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode("utf-8", "replace")
