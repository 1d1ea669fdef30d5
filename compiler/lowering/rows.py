"""Rows of matrices as the bytes of units: float32, or packed codes with their scales behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from runnel.compiler.graph.blocks import Blocks
from runnel.compiler.lowering.frame import LANES, round_up
from runnel.compiler.lowering.weights import HALF

UNIT_ALIGN = 64  # bytes
SINGLE = 32  # bits of what has no codes
SCALES = 8  # of which each row has a multiple


@dataclass(frozen=True)
class Row:
    """Where a unit has one row, and how.

    at: its first byte. bits: 32 of float32, 16 of float16, or 8, 4, 2 of codes about zero: 8 bits a byte each; fewer in
    vectors of LANES words of 32 bits, whose lowest bits are the first LANES elements. block: elements of one scale, 0
    where there are none. scales, zeros: the first byte of theirs, -1 for none; float16 if ``half``.
    """

    at: int
    bits: int
    block: int = 0
    scales: int = -1
    zeros: int = -1
    half: bool = False

    @property
    def together(self) -> int:
        """Vectors of elements that lie in one vector of words."""
        return 32 // self.bits if self.bits < 8 else 1

    @property
    def word_bytes(self) -> int:
        """Of a vector of words."""
        return LANES * max(self.bits, 8) // 8 if self.together == 1 else 4 * LANES

    @property
    def piece(self) -> int:
        """Elements after which both words and scales begin anew, a power of two."""
        return max(self.block, LANES * self.together)


Matrix: TypeAlias = "np.ndarray | Blocks"


def fits(blocks: Blocks) -> bool:
    """Whether a row can have such scales."""
    return blocks.bits == HALF or (blocks.block % LANES == 0 and blocks.block & (blocks.block - 1) == 0)


def units(products: Sequence[Matrix], last: Matrix) -> tuple[np.ndarray, list[Row]]:
    """The units (neurons, bytes) and what lies in them: column i of each product and row i of the last matrix make up
    unit i. products: (inputs, neurons); last: (neurons, outputs), whose scales are not in units."""
    turned = [m.codes.T if isinstance(m, Blocks) else m.T for m in products]
    rows = [_packed(m, _bits(p)) for m, p in zip(turned, products, strict=True)]
    rows.append(_packed(last.codes if isinstance(last, Blocks) else last, _bits(last)))
    parts, found, at = [], [], 0

    def add(part: np.ndarray) -> int:
        nonlocal at
        parts.append(part)
        at += part.shape[1]
        return at - part.shape[1]

    starts = [add(row) for row in rows]
    for start, matrix in zip(starts[:-1], products, strict=True):
        if not isinstance(matrix, Blocks) or matrix.bits == HALF:
            found.append(Row(start, _bits(matrix)))
            continue
        half = halved(matrix)
        scales = add(_reals(matrix.scales.T, half))
        zeros = -1 if matrix.zeros is None else add(_reals(matrix.zeros.T, half))
        found.append(Row(start, matrix.bits, matrix.block, scales, zeros, half))
    found.append(Row(starts[-1], _bits(last), last.block if isinstance(last, Blocks) and last.bits != HALF else 0))
    add(np.zeros((len(rows[0]), -at % UNIT_ALIGN), np.uint8))
    return np.ascontiguousarray(np.concatenate(parts, axis=1)), found


def halved(blocks: Blocks) -> bool:
    """Whether all scales and zeros are float16 exactly."""
    with np.errstate(over="ignore"):
        return all(np.array_equal(v.astype(np.float16), v) for v in (blocks.scales, blocks.zeros) if v is not None)


def _bits(matrix: Matrix) -> int:
    return matrix.bits if isinstance(matrix, Blocks) else SINGLE


def _packed(rows: np.ndarray, bits: int) -> np.ndarray:
    """(rows, elements) as (rows, bytes), whole vectors of words."""
    row = Row(0, bits)
    padded = np.zeros((len(rows), round_up(rows.shape[1], LANES * row.together)), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    if row.together > 1:
        words = padded.reshape(len(rows), -1, row.together, LANES).astype(np.uint32) & ((1 << bits) - 1)
        shifts = (bits * np.arange(row.together, dtype=np.uint32))[:, None]
        padded = np.bitwise_or.reduce(words << shifts, axis=2).reshape(len(rows), -1)
    return padded.view(np.uint8)


def _reals(rows: np.ndarray, half: bool) -> np.ndarray:
    padded = np.zeros((len(rows), round_up(rows.shape[1], SCALES)), np.float16 if half else np.float32)
    padded[:, : rows.shape[1]] = rows
    return padded.view(np.uint8)
