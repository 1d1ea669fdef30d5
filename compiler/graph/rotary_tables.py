"""Cosines and sines of rotary positions that were rounded to float16, as they were before that.

A rounded table turns keys by angles that are off by up to 5e-4, and by no fixed frequencies. Every row shows its
angles, so the frequencies can be found again; what is made of them lies within the rounding of what was given.
"""

from __future__ import annotations

import numpy as np

ROUNDING = 2.0**-11
"""Of a float16, relative."""
FEWEST = 8
"""Rows from which on a table is looked at."""


def sharpened(cosines: np.ndarray, sines: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The tables (…, rows, columns) as float32; None where they are no cosines and sines of fixed frequencies."""
    shape = cosines.shape
    if cosines.shape != sines.shape or len(shape) < 2 or shape[-2] < FEWEST or shape[-2] * shape[-1] != cosines.size:
        return None
    cosines, sines = cosines.reshape(shape[-2:]), sines.reshape(shape[-2:])
    if sines[0].any() or cosines[0, 0] <= 0 or np.ptp(cosines[0]):
        return None
    cos, sin = cosines.astype(np.float64), sines.astype(np.float64)
    factor = cos[0, 0]
    if not np.isfinite(cos + sin).all():
        return None
    found = _measured(np.arctan2(sin, cos))
    rows = np.arange(len(cos))[:, None]
    for frequencies in (_powers(found, len(cos)), found):
        if frequencies is None:
            continue
        angles = rows * frequencies
        # Exporters take the product of position and frequency in float32.
        slack = factor * (ROUNDING / 2 + rows * np.maximum(frequencies, 1.0) * 2.0**-22 + 2.0**-13)
        made = factor * np.cos(angles), factor * np.sin(angles)
        if all((np.abs(m - t) <= slack).all() for m, t in zip(made, (cos, sin), strict=True)):
            return made[0].astype(np.float32).reshape(shape), made[1].astype(np.float32).reshape(shape)
    return None


def _measured(angles: np.ndarray) -> np.ndarray:
    """The frequency of each column, from row 1 and made finer by rows 2, 4, 8, …, then by all of them."""
    found = angles[1].copy()
    row = 1
    while 2 * row < len(angles):
        row *= 2
        found = _unwound(found, angles[row], row) / row
    rows = np.arange(len(angles))[:, None]
    return (rows * _unwound(found, angles, rows)).sum(axis=0) / (rows**2).sum()


def _unwound(frequencies: np.ndarray, angles: np.ndarray, row: np.ndarray | int) -> np.ndarray:
    """Angles with the whole turns that they have at a row."""
    return angles + 2 * np.pi * np.rint((frequencies * row - angles) / (2 * np.pi))


def _powers(found: np.ndarray, rows: int) -> np.ndarray | None:
    """Powers base^(-p/pairs) of a whole base, where the frequencies are that; once or twice each."""
    columns = len(found)
    for order in (np.arange(columns), np.arange(columns) % max(columns // 2, 1), np.arange(columns) // 2):
        pairs = int(order[-1]) + 1
        if pairs < 2:
            continue
        last = found[np.flatnonzero(order == pairs - 1)[0]]
        if last <= 0:
            continue
        guess = last ** (-pairs / (pairs - 1))
        for digits in (7, 3, 2, 1):
            base = float(np.rint(float(f"{guess:.{digits}g}")))
            powers = base ** (-order / pairs) if base > 1 else np.zeros(columns)
            if (np.abs(powers - found) <= 4 * ROUNDING / rows).all():
                return powers
    return None
