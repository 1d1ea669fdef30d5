"""Relative positions: a product of queries and a table whose rows are shifted, as one row of the table a distance.

The shift (Transformer-XL's, Shaw's) moves elements only, so it is found by marking them: the product is fed with the
numbers of its rows, then of its columns, and what arrives at the softmax says which element each score got.
"""

from __future__ import annotations

import numpy as np

from runnel.compiler.streaming.attention.band import PROBE, Band, Observer, Sight
from runnel.compiler.streaming.registry import Refusal

NOT_BY_DISTANCE = Refusal(
    "adds relative positions that are no function of the distance between two frames",
    "shift the rows of the product by one frame each",
)


def relative_table(
    observer: Observer, ticks: list[int], band: Band, back: int, ahead: int
) -> tuple[np.ndarray, int | None]:
    """((batch…, distances, features), limit): what r[i] is multiplied with for i - j from -ahead to back, and the input
    frames after which the model's table ends."""
    found: tuple[np.ndarray, np.ndarray] | None = None
    good, limit = 0, None
    for frames in sorted(set(ticks)):
        try:
            found = _joined(observer, frames, band, back, ahead, found)
            good = frames
        except Refusal:
            if found is None:
                raise
            while frames - good > 1:
                middle = (good + frames) // 2
                try:
                    found = _joined(observer, middle, band, back, ahead, found)
                    good = middle
                except Refusal:
                    frames = middle
            limit = good
            break
    if found is None or not found[1].all():
        raise NOT_BY_DISTANCE
    return np.ascontiguousarray(found[0], np.float32), limit


def _joined(
    observer: Observer, frames: int, band: Band, back: int, ahead: int, found: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, which are known) with those that one more length shows; refuses where they differ."""
    sight = observer.look(frames)
    if sight is None:
        raise NOT_BY_DISTANCE
    gain, columns = _columns(observer, frames, sight, band, back, ahead)
    seen = columns >= 0
    rows = np.moveaxis(observer.scores.table(frames).astype(np.float64) * gain, -1, -2)[..., np.maximum(columns, 0), :]
    if found is None:
        return rows, seen
    both = seen & found[1]
    apart = np.abs(rows - found[0])[..., both, :]
    if apart.size and apart.max() > 1e-5 * max(1e-3, float(np.abs(found[0]).max())):
        raise NOT_BY_DISTANCE
    return np.where(found[1][:, None], found[0], rows), seen | found[1]


def _columns(
    observer: Observer, frames: int, sight: Sight, band: Band, back: int, ahead: int
) -> tuple[float, np.ndarray]:
    """(factor of the product, its column for each distance, -1 for distances that this length does not have)."""
    scores, inside = observer.scores, band.inside(sight.length)
    leaf = scores.leaves[1]
    zero = {name: scores.zeros(frames, name) for name in scores.leaves}

    def marked(values: np.ndarray) -> np.ndarray:
        """What every score inside the band got of the product."""
        fed = zero | {leaf: np.broadcast_to(values, zero[leaf].shape).astype(np.float32)}
        got = scores.run(frames, fed, scores.pattern.logits).astype(np.float64)
        base = np.where(np.isfinite(sight.value), sight.value, 0)
        return (np.where(inside, got, 0) - np.where(inside, base, 0)).reshape(-1, sight.length, sight.length)

    gains = marked(np.array(PROBE))[:, inside] / PROBE
    gain = float(gains.reshape(-1)[0])
    if gain == 0 or np.abs(gains - gain).max() > 1e-5 * abs(gain):
        raise NOT_BY_DISTANCE
    count, width = zero[leaf].shape[-2:]
    row = marked(np.arange(1, count + 1)[:, None]) / gain - 1
    column = marked(np.arange(1, width + 1)[None, :]) / gain - 1
    i = np.arange(sight.length)
    if np.abs(row - i[:, None])[:, inside].max() > 0.1 or np.abs(column - np.rint(column))[:, inside].max() > 0.1:
        raise NOT_BY_DISTANCE
    columns = np.full(back + ahead + 1, -1)
    for distance in range(-ahead, back + 1):
        line = np.rint(np.diagonal(column, -distance, 1, 2)[:, np.diagonal(inside, -distance)])
        if line.size:
            if (line != line.reshape(-1)[0]).any():
                raise NOT_BY_DISTANCE
            columns[distance + ahead] = int(line.reshape(-1)[0])
    return gain, columns
