"""How frames and constants lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

LANES = 16  # frames and constants of 16 elements or more are padded to a multiple of this


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``n``."""
    return -(-n // multiple) * multiple


def frame_elements(shape: Sequence[int]) -> int:
    """Elements that a frame of this shape takes in memory: padded to a multiple of 16 if it has 16 or more."""
    n = prod(shape)
    return round_up(n, LANES) if n >= LANES else n


def flat_padded(data: np.ndarray) -> np.ndarray:
    """``data`` in row-major order with the padding of a frame (zeros)."""
    flat = np.ascontiguousarray(data).reshape(-1)
    if flat.dtype == np.bool_:
        flat = flat.astype(np.int8)
    padding = frame_elements(flat.shape) - flat.size
    return np.concatenate([flat, np.zeros(padding, flat.dtype)]) if padding else flat
