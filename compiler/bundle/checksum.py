"""CRC32C (Castagnoli, reflected polynomial 0x82F63B78; RFC 3720 appendix B.4), on numpy, many lanes at a time."""

from __future__ import annotations

from functools import cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78
LANE = 512  # bytes that one lane of the vectorised loop walks through
Words = NDArray[np.uint32]


@cache
def _table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@cache
def _advance(length: int) -> Words:
    """What ``length`` zero bytes do to a register; the map is linear over bits, so four tables do: (4, 256) uint32."""
    if length == 1:
        register = np.arange(256, dtype=np.uint32)[None, :] << (8 * np.arange(4, dtype=np.uint32))[:, None]
        return cast(Words, (register >> 8) ^ _table()[register & 255])
    half = _advance(length // 2)
    twice = _apply(half, half)
    return _apply(_advance(1), twice) if length % 2 else twice


def _apply(tables: Words, register: Words) -> Words:
    return cast(
        Words,
        tables[0][register & 255]
        ^ tables[1][(register >> 8) & 255]
        ^ tables[2][(register >> 16) & 255]
        ^ tables[3][register >> 24],
    )


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """The CRC32C of ``data``, continuing from ``crc`` (that of the bytes before)."""
    octets = np.frombuffer(data, dtype=np.uint8)
    register = np.uint32(crc ^ 0xFFFFFFFF)
    lanes = octets.size // LANE
    table = _table()
    if lanes:
        columns = np.ascontiguousarray(octets[: lanes * LANE].reshape(lanes, LANE).T)
        remainders = np.zeros(lanes, dtype=np.uint32)
        for column in columns:
            remainders = (remainders >> 8) ^ table[(remainders ^ column) & 255]
        register = _apply(_advance(lanes * LANE), np.array([register], dtype=np.uint32))[0] ^ _join(remainders)
    for octet in octets[lanes * LANE :].tolist():
        register = (register >> np.uint32(8)) ^ table[(int(register) ^ octet) & 255]
    return int(register) ^ 0xFFFFFFFF


def crc32c_rows(rows: NDArray[np.uint8]) -> Words:
    """The CRC32C of each row of (rows, bytes)."""
    if rows.shape[1] > rows.shape[0] * LANE:
        return np.array([crc32c(row.tobytes()) for row in rows], np.uint32)
    register, table = np.full(len(rows), 0xFFFFFFFF, np.uint32), _table()
    for column in np.ascontiguousarray(rows.T):
        register = (register >> np.uint32(8)) ^ table[(register ^ column) & 255]
    return cast(Words, register ^ np.uint32(0xFFFFFFFF))


def _join(remainders: Words) -> np.uint32:
    """The register after all lanes, from that of each lane alone: pairs are joined until one is left."""
    length = LANE
    while remainders.size > 1:
        if remainders.size % 2:  # a lane of zeros in front changes nothing
            remainders = np.concatenate([np.zeros(1, np.uint32), remainders])
        remainders = _apply(_advance(length), remainders[0::2]) ^ remainders[1::2]
        length *= 2
    return cast(np.uint32, remainders[0])
