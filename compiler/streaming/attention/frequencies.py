"""The frequencies of rotary positions, as exact as the model says them."""

from __future__ import annotations

import numpy as np

from runnel.compiler.streaming.attention.cuts import Function


def frequencies(angles: np.ndarray, function: Function) -> tuple[np.ndarray, str]:
    """(frequencies float64, where they come from) of angles (positions, pairs), modulo 2π, at positions 0, 1, ….

    A constant of the model that says them is taken as it is, then powers base^(-p/pairs) of a whole base, then what the
    rows of its tables show.
    """
    measured, error = _measured(angles)
    if (named := _constant(measured, error, function)) is not None:
        return named, "a constant"
    if (base := _base(measured, error)) is not None:
        return base ** (-np.arange(len(measured)) / len(measured)), f"base {base:g}"
    return measured, f"a table of {len(angles)} positions"


def _measured(angles: np.ndarray) -> tuple[np.ndarray, float]:
    """Frequencies from row 1, made finer by rows 2, 4, 8, …; and their error."""
    found = angles[1].astype(np.float64)
    row = 1
    while 2 * row < len(angles):
        row *= 2
        turns = np.rint((found * row - angles[row]) / (2 * np.pi))
        found = (angles[row] + 2 * np.pi * turns) / row
    return found, 3e-7 / row


def _constant(measured: np.ndarray, error: float, function: Function) -> np.ndarray | None:
    graph = function.above.graph
    limit = np.maximum(2e-7 * np.abs(measured), 4 * error)
    for name in function.ancestors():
        value = graph.constants.get(name)
        if value is None or value.dtype.kind != "f" or value.size not in (len(measured), 2 * len(measured)):
            continue
        flat = value.astype(np.float64).reshape(-1)
        for candidate in (flat[: len(measured)], flat[::2][: len(measured)]):
            if len(candidate) == len(measured) and (np.abs(candidate - measured) <= limit).all():
                return np.ascontiguousarray(candidate)
    return None


def _base(measured: np.ndarray, error: float) -> float | None:
    pairs = len(measured)
    if pairs < 2 or (measured <= 0).any():
        return None
    last = pairs - 1
    guess = float(measured[last] ** (-pairs / last))
    for base in (float(np.round(guess)), float(f"{guess:.3g}"), float(f"{guess:.2g}"), float(f"{guess:.1g}")):
        if base > 1:
            powers = base ** (-np.arange(pairs) / pairs)
            if (np.abs(powers - measured) <= np.maximum(4 * error, 2e-7 * measured)).all():
                return base
    return None
