"""How frames and constants lie in memory."""

from __future__ import annotations

import numpy as np

from runnel.compiler.lowering.frame import LANES, frame_elements, round_up


def flat_padded(data: np.ndarray) -> np.ndarray:
    """``data`` in row-major order with the padding of a frame (zeros)."""
    flat = np.ascontiguousarray(data).reshape(-1)
    if flat.dtype == np.bool_:
        flat = flat.astype(np.int8)
    padding = frame_elements(flat.shape) - flat.size
    return np.concatenate([flat, np.zeros(padding, flat.dtype)]) if padding else flat


__all__ = ["LANES", "flat_padded", "frame_elements", "round_up"]
