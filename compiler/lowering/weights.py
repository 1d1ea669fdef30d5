"""Constant matrices as a kernel keeps them: float32, or packed codes where they hold no more than that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runnel.compiler.graph.blocks import Blocks
from runnel.compiler.graph.rounded import is_half, parse, recoded

HALF = 16
MANY = 1 << 16
"""Weights from which on halves are taken unasked: fewer lie in a cache."""


def coded(modes: Mapping[str, str], taps: Sequence[np.ndarray]) -> list[Blocks] | None:
    """The codes of matrices (inputs, outputs), one a tap: those of the mode ``weights``, or halves where they are many
    and all float16 exactly; None where they are neither."""
    if "weights" in modes:
        bits, block = parse(modes["weights"])
    elif sum(t.size for t in taps) >= MANY and all(is_half(t) for t in taps):
        bits, block = HALF, 0
    else:
        return None
    found = [recoded(tap, bits, block) for tap in taps]
    return [b for b in found if b is not None] if all(b is not None for b in found) else None


def half_table(table: np.ndarray) -> np.ndarray:
    """A table of float32 that are float16 exactly as such."""
    return table.astype(np.float16) if table.dtype == np.float32 and is_half(table) else table


def block_operands(taps: Sequence[Blocks]) -> tuple[list[np.ndarray | None], dict[str, Any]]:
    """Codes, scales, zeros and the attributes of a matmul_blocks."""
    first = taps[0]
    zeros = None
    if any(b.zeros is not None for b in taps):
        zeros = np.stack([np.zeros_like(b.scales) if b.zeros is None else b.zeros for b in taps])
    scales = None if first.bits == HALF else np.stack([b.scales for b in taps])
    return [np.stack([b.codes for b in taps]), scales, zeros], {"bits": first.bits, "block": first.block}
