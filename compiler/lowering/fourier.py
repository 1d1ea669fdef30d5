"""A windowed Fourier basis as two thin products, as in Cooley and Tukey's first step (Math. Comp. 19, 1965).

Sample l + i·L of a sinusoid depends on i through a sinusoid of a frequency folded by L, and basis vectors whose folded
frequencies are equal share those two. So the sums over i come first, one pair for each l and folded frequency, and
each basis vector is a product of its 2·L sums: 512 samples to 257 bins take 34 thousand multiply-adds, not 263.
The window, scales, signs and order of the bins are whatever the weights say; nothing is known but the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runnel.compiler.lowering.frame import LANES

MOST_SAMPLES, LEAST_SAMPLES, LEAST_VECTORS = 2048, 128, 32
WORTH = 0.5
"""The share of the multiply-adds that has to be left."""
SOME = 16
"""Vectors that are looked at first: most matrices are no Fourier basis."""
EDGE = 1e-2
"""The share of the window's largest value below which it says nothing of a frequency."""
ON_GRID = 0.1
CLOSE = 1e-6
"""How far rounded factors may lie from the weights, in lengths of the longest basis vector: about what float32 rounds
in a sum of as many products."""
NOTHING = 1e-7
"""The share of the longest vector's length below which one is zero: the sine of half the sampling rate, in floats."""
MOST_GROWTH = 8.0
"""How much larger the factors' products may be, sign left out, than the weights: more would cost digits."""


@dataclass(frozen=True, eq=False)
class Factors:
    """weights[rows[g, r], l + i·L] = sum over s of first[i, 2·g + s, l] · second[g, s·L + l, r].

    first: (samples / L, 2·groups, L) float32. second: (groups, 2·L, rows of a group) float32, zeros where there is no
    row. rows: (groups, rows of a group) int32, -1 for none; a basis vector that is zero is in none.
    """

    first: np.ndarray
    second: np.ndarray
    rows: np.ndarray

    @property
    def macs(self) -> int:
        return int(self.first.size + self.second.size)


def factors(weights: np.ndarray) -> Factors | None:
    """The factors of basis vectors (vectors, samples); None where they are no Fourier basis, or nothing is gained."""
    count, samples = weights.shape
    if not LEAST_SAMPLES <= samples <= MOST_SAMPLES or not LEAST_VECTORS <= count <= 4 * samples + 2:
        return None
    window = np.sqrt(np.einsum("rn,rn->n", weights, weights, dtype=np.float64))  # cos² + sin² is 1 for every bin
    if not np.isfinite(window).all() or _grid(weights[:: count // SOME].astype(np.float64), window) is None:
        return None
    basis = weights.astype(np.float64)
    norms = np.sqrt((basis**2).sum(1))
    live = np.flatnonzero(norms > NOTHING * norms.max())
    grid = _grid(basis[live], window)
    if grid is None:
        return None
    size, bins = grid
    best: Factors | None = None
    for stride in range(LANES, samples // 4 + 1, LANES):
        if samples % stride == 0:
            found = _factored(basis, window, live, bins, size, stride)
            if found and found.macs <= WORTH * weights.size and (best is None or found.macs < best.macs):
                best = found
    return best if best is not None and _holds(best, basis) else None


def _grid(basis: np.ndarray, window: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The size of the transform, and each vector's bin."""
    inside = window > EDGE * window.max()
    inside = inside[:-2] & inside[1:-1] & inside[2:]
    if inside.sum() < LANES:
        return None
    waves = basis / np.where(window > 0, window, 1)
    middle, weight = waves[:, 1:-1], window[1:-1] ** 2 * inside
    power = (weight * middle**2).sum(1)
    middle, waves, power = (part[power > 0] for part in (middle, waves, power))
    # sin(a + b) + sin(a - b) = 2 sin(a) cos(b)
    cosine = (weight * middle * (waves[:, :-2] + waves[:, 2:])).sum(1) / (2 * power)
    turns = np.arccos(np.clip(cosine, -1, 1)) / (2 * np.pi)
    samples = basis.shape[1]
    whole = 1 << (samples - 1).bit_length()
    for size in sorted({samples, whole, 2 * samples, 2 * whole}):
        bins = turns * size
        if np.abs(bins - np.rint(bins)).max() < ON_GRID:
            return size, np.rint(bins).astype(np.int64)
    return None


def _factored(
    basis: np.ndarray, window: np.ndarray, live: np.ndarray, bins: np.ndarray, size: int, stride: int
) -> Factors | None:
    """Factors for sums over every ``stride``-th sample; None where there are too many groups to gain anything."""
    samples = basis.shape[1]
    folded = bins * stride % size
    folded = np.minimum(folded, size - folded)
    alone = [f for f in np.unique(folded) if f in (0, size / 2)]  # their sine is zero
    pairs = [f for f in np.unique(folded) if f not in alone]
    groups = [[(f, s) for s in ("cos", "sin")] for f in pairs] + ([[(f, "cos") for f in alone]] if alone else [])
    terms = samples // stride
    if len(groups) * 2 * samples > WORTH * basis.size:
        return None
    members = [[live[folded == f] for f in dict.fromkeys(f for f, _ in group)] for group in groups]
    most = max(sum(map(len, parts)) for parts in members)
    first = np.zeros((terms, 2 * len(groups), stride))
    second = np.zeros((len(groups), 2 * stride, most))
    rows = np.full((len(groups), most), -1, np.int32)
    shaped = window.reshape(terms, stride)
    for g, (group, parts) in enumerate(zip(groups, members, strict=True)):
        for s, (f, kind) in enumerate(group):
            angle = 2 * np.pi * (np.arange(terms) * f % size) / size
            first[:, 2 * g + s] = shaped * (np.cos(angle) if kind == "cos" else np.sin(angle))[:, None]
        at = 0
        for i, part in enumerate(parts):
            used = slice(2 * g, 2 * g + 2) if len(parts) == 1 else slice(2 * g + i, 2 * g + i + 1)
            wanted = basis[part].reshape(len(part), terms, stride)
            for lane in range(stride):
                of = np.linalg.lstsq(first[:, used, lane], wanted[:, :, lane].T, rcond=1e-9)[0]
                for s, values in zip(range(used.start - 2 * g, used.stop - 2 * g), of, strict=True):
                    second[g, s * stride + lane, at : at + len(part)] = values
            rows[g, at : at + len(part)] = part
            at += len(part)
    return Factors(first.astype(np.float32), second.astype(np.float32), rows)


def _holds(found: Factors, basis: np.ndarray) -> bool:
    """Whether the rounded factors give the weights."""
    terms, _, stride = found.first.shape
    groups, _, count = found.second.shape
    first = found.first.reshape(terms, groups, 2, stride).astype(np.float64)
    second = found.second.reshape(groups, 2, stride, count).astype(np.float64)
    made, size = np.zeros_like(basis), np.zeros_like(basis)
    for g in range(groups):
        real = found.rows[g] >= 0
        at = found.rows[g][real]
        made[at] = np.einsum("isl,slr->ril", first[:, g], second[g][..., real]).reshape(len(at), -1)
        size[at] = np.einsum("isl,slr->ril", abs(first[:, g]), abs(second[g][..., real])).reshape(len(at), -1)
    norm = np.sqrt((basis**2).sum(1)).max()
    off = np.sqrt(((made - basis) ** 2).sum(1)).max()
    grown = np.sqrt((size**2).sum(1)).max()
    return bool(off <= CLOSE * norm and grown <= MOST_GROWTH * norm)
