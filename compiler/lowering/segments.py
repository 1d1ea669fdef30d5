"""The weights as segments: what a bundle checks and a runtime reads at once, in order of use (docs/plan.md)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from runnel.compiler.lowering.frame import round_up
from runnel.compiler.lowering.split import SEGMENT_BYTES

ALIGN = 64  # bytes, of a constant
PAGE = 4096  # bytes, of a segment: what storage reads past the system's cache
BLOCK_BYTES = 1 << 16  # of a segment of a table, of which one row is read at a time


class Segments:
    """The weights while they are laid out.

    A constant lies in one segment; one that is larger than a segment begins one and fills several. constant_bytes: of
    all constants, without what lies between them.
    """

    def __init__(self, most: int = SEGMENT_BYTES) -> None:
        self._most = most
        self.data = bytearray()
        self.constant_bytes = 0
        self._starts: list[int] = [0]
        self._placed: dict[tuple[Any, ...], int] = {}

    def add(self, array: np.ndarray) -> int:
        """Where a constant lies; equal ones lie once."""
        array = np.ascontiguousarray(array)
        key = _identity(array)
        if key not in self._placed:
            at = round_up(len(self.data), ALIGN)
            if at + array.nbytes > self._starts[-1] + self._most:
                self.close()
                at = len(self.data)
            self.data += bytes(at - len(self.data))
            self.data += array.tobytes()
            self.constant_bytes += array.nbytes
            self._placed[key] = at
            while len(self.data) > self._starts[-1] + self._most:
                self._starts.append(self._starts[-1] + self._most)
        return self._placed[key]

    def table(self, rows: np.ndarray) -> tuple[int, int]:
        """Where a table lies, and how many of its rows are in each of its segments; no row is in two."""
        rows = np.ascontiguousarray(rows)
        row_bytes = rows.nbytes // len(rows)
        apart = max(1, BLOCK_BYTES // row_bytes)
        key = (*_identity(rows), "table")
        if key not in self._placed:
            self.close()
            self.constant_bytes += rows.nbytes
            self._placed[key] = len(self.data)
            for first in range(0, len(rows), apart):
                self.data += rows[first : first + apart].tobytes()
                self.close()
        return self._placed[key], apart

    def units(self, data: bytes | bytearray, sums: np.ndarray) -> list[int]:
        """Where units that are read when they are chosen lie, and their checksums: in segments of their own."""
        self.close()
        at = len(self.data)
        self.data += data
        self.constant_bytes += len(data)
        while len(self.data) > self._starts[-1] + self._most:
            self._starts.append(self._starts[-1] + self._most)
        self.close()
        found = [at, self.add(sums)]
        self.close()
        return found

    def close(self) -> None:
        """What comes next begins a segment."""
        if len(self.data) > self._starts[-1]:
            self.data += bytes(-len(self.data) % PAGE)
            self._starts.append(len(self.data))

    def listed(self) -> list[dict[str, int]]:
        """{offset, bytes} of each, in order, without gaps."""
        ends = [*self._starts[1:], len(self.data)]
        return [{"offset": a, "bytes": b - a} for a, b in zip(self._starts, ends, strict=True) if b > a]


def _identity(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
