"""Reads the directory of a bundle's zip, strictly: stored entries of plain names that do not overlap.

Only the central directory counts (APPNOTE 6.3.10, sections 4.3.7 to 4.3.16). zipfile is not used, because it repairs
and tolerates what a bundle must not have.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

from runnel.errors import BundleError

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
MAX_ENTRIES = 100_000
MAX_NAME = 1024
ENCRYPTED, LATER_SIZES = 0x1, 0x8
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """Where an entry's bytes lie in the file. crc32 is the zip's own."""

    name: str
    offset: int
    size: int
    crc32: int


class Broken(BundleError):
    """Not a whole bundle."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"'{path}' is not a whole bundle: {what}; copy or compile it again.")


def read_directory(data: memoryview, path: str) -> dict[str, Entry]:
    """Entries by name, in the order of the file. Raises BundleError naming the entry that is wrong."""
    try:
        return _Directory(data, path).read()
    except struct.error:
        raise Broken(path, "it is cut off inside its directory") from None


class _Directory:
    def __init__(self, data: memoryview, path: str) -> None:
        self.data, self.path = data, path

    def broken(self, what: str) -> Broken:
        return Broken(self.path, what)

    def read(self) -> dict[str, Entry]:
        count, start, stop = self._bounds()
        if count > MAX_ENTRIES or count * CENTRAL.size > stop - start:
            raise self.broken(f"its directory claims {count} entries")
        entries: dict[str, Entry] = {}
        used: list[tuple[int, int, str]] = []
        at = start
        for _ in range(count):
            at, entry, header = self._central(at, start, stop)
            if entry.name in entries:
                raise self.broken(f"entry '{entry.name}' is there twice")
            entries[entry.name] = entry
            used.append((header, entry.offset + entry.size, entry.name))
        if at != stop:
            raise self.broken("its directory has bytes that belong to no entry")
        used.sort()
        for (_, end, name), (begin, _, other) in zip(used, used[1:]):
            if begin < end:
                raise self.broken(f"entries '{name}' and '{other}' overlap")
        return dict(sorted(entries.items(), key=lambda item: item[1].offset))

    def _bounds(self) -> tuple[int, int, int]:
        """(number of entries, where the directory starts, where it stops)."""
        end = len(self.data) - END.size
        if end < 0:
            raise self.broken(f"it has {len(self.data)} bytes")
        magic, disk, first_disk, here, count, size, start, comment = END.unpack_from(self.data, end)
        if magic != b"PK\5\6" or comment:
            raise self.broken("its end is missing")
        stop = end
        if FULL16 in (here, count) or FULL32 in (size, start):
            stop, here, count, size, start = self._bounds64(end)
        if disk or first_disk or here != count:
            raise self.broken("it is one of several parts")
        if start + size != stop:
            raise self.broken("its directory is not where its end says")
        return count, start, stop

    def _bounds64(self, end: int) -> tuple[int, int, int, int, int]:
        locator = end - LOCATOR64.size
        if locator < 0:
            raise self.broken("its zip64 end is missing")
        magic, _, stop, disks = LOCATOR64.unpack_from(self.data, locator)
        if magic != b"PK\6\7" or disks > 1 or stop + END64.size != locator:
            raise self.broken("its zip64 end is missing")
        magic, _, _, _, disk, first_disk, here, count, size, start = END64.unpack_from(self.data, stop)
        if magic != b"PK\6\6" or disk or first_disk:
            raise self.broken("its zip64 end is damaged")
        return stop, here, count, size, start

    def _central(self, at: int, start: int, stop: int) -> tuple[int, Entry, int]:
        """(where the next one starts, the entry, where its local header starts)."""
        fields = CENTRAL.unpack_from(self.data, at)
        magic, flags, method, crc, packed, size = fields[0], fields[3], fields[4], fields[7], fields[8], fields[9]
        name_bytes, extra_bytes, comment_bytes, disk, attributes, header = *fields[10:14], fields[15], fields[16]
        extra = at + CENTRAL.size + name_bytes
        following = extra + extra_bytes + comment_bytes
        if magic != b"PK\1\2" or following > stop:
            raise self.broken("its directory is damaged")
        raw = bytes(self.data[at + CENTRAL.size : extra])
        name = self._name(raw)
        size, packed, header = self._sizes(name, size, packed, header, self.data[extra : extra + extra_bytes])
        if flags & (ENCRYPTED | LATER_SIZES) or method != 0 or packed != size or disk:
            raise self.broken(f"entry '{name}' is compressed or encrypted, and a bundle's entries are stored")
        kind = stat.S_IFMT(attributes >> 16)
        if kind not in (0, stat.S_IFREG) or name.endswith("/"):
            raise self.broken(f"entry '{name}' is a link or a folder")
        if header + LOCAL.size > start:
            raise self.broken(f"entry '{name}' lies outside the file")
        return following, self._local(name, raw, header, size, crc, start), header

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"an entry's name, {raw[:40]!r}, is not text") from None
        parts = name.split("/")
        plain = name.isprintable() and "\\" not in name and ":" not in name and len(name) <= MAX_NAME
        if not plain or not all(parts[:-1]) or any(p in (".", "..") for p in parts) or not name:
            raise self.broken(f"entry {name[:80]!r} has a name that could leave its folder")
        return name

    def _sizes(self, name: str, size: int, packed: int, header: int, extra: memoryview) -> tuple[int, int, int]:
        """Takes what does not fit 32 bits from the zip64 extra field."""
        wanted = [v == FULL32 for v in (size, packed, header)]
        if not any(wanted):
            return size, packed, header
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1 and length >= 8 * sum(wanted):
                values = iter(struct.unpack_from(f"<{sum(wanted)}Q", extra, at + 4))
                given = [next(values) if w else v for w, v in zip(wanted, (size, packed, header))]
                return given[0], given[1], given[2]
            at += 4 + length
        raise self.broken(f"entry '{name}' lacks its zip64 sizes")

    def _local(self, name: str, raw: bytes, header: int, size: int, crc: int, limit: int) -> Entry:
        fields = LOCAL.unpack_from(self.data, header)
        name_bytes, extra_bytes = fields[9], fields[10]
        first = header + LOCAL.size
        offset = first + name_bytes + extra_bytes
        if fields[0] != b"PK\3\4" or bytes(self.data[first : first + name_bytes]) != raw or fields[3] != 0:
            raise self.broken(f"entry '{name}' has a damaged header")
        if offset + size > limit:
            raise self.broken(f"entry '{name}' lies outside the file")
        return Entry(name, offset, size, crc)
