"""The mask and bias of an attention as what the stream needs: how far it looks each way, and a bias by distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from runnel.compiler.streaming.attention.scores import Scores, TooLarge
from runnel.compiler.streaming.registry import Refusal

MASKED = -0.99e9
PROBE = float(1 << 20)
SMALL = (1, 2, 3, 4, 5, 6, 7, 9, 12, 17, 31, 40)
LARGEST_BIAS = 1000.0


@dataclass(frozen=True)
class Band:
    """Query i sees keys low·⌊i/low⌋ - left … high·⌊i/high⌋ + right, those that exist; None: all of them on that side.

    scale: times the scores, of their batch axes' rank. softcap: c in c·tanh(scores/c), 0 for none. bias: (batch axes…,
    distances) float32, for i - j from -right to left + low - 1, or None.
    """

    left: int | None
    right: int | None
    low: int = 1
    high: int = 1
    scale: np.ndarray | float = 1.0
    softcap: float = 0.0
    bias: np.ndarray | None = None

    @property
    def back(self) -> int | None:
        """The greatest distance to a key of the past."""
        return None if self.left is None else self.left + self.low - 1

    def first(self, i: np.ndarray) -> np.ndarray:
        """The first key that queries i see."""
        return np.zeros_like(i) if self.left is None else np.maximum(0, self.low * (i // self.low) - self.left)

    def last(self, i: np.ndarray, length: int) -> np.ndarray:
        """The last key that queries i see in a sequence of so many."""
        if self.right is None:
            return np.full_like(i, length - 1)
        return np.minimum(length - 1, self.high * (i // self.high) + self.right)

    def inside(self, length: int) -> np.ndarray:
        """Whether query i sees key j, bool (length, length)."""
        i = np.arange(length)
        return (i[None, :] >= self.first(i)[:, None]) & (i[None, :] <= self.last(i, length)[:, None])


@dataclass(frozen=True)
class Sight:
    """What one length shows. length: keys. seen: (length, length) bool. value: (batch axes…, length, length), with -inf
    where a head does not look."""

    length: int
    seen: np.ndarray
    value: np.ndarray


class Observer:
    """Looks at the mask of one attention at many lengths.

    length: input frames → frames of the attention.
    """

    def __init__(self, scores: Scores, length: Callable[[int], int], ticks: Callable[[int], int]) -> None:
        self.scores, self.length, self.ticks = scores, length, ticks
        self.leaf = scores.leaves[0]
        self.start = scores.tanh.outputs[0] if scores.tanh is not None else self.leaf
        self.known: dict[int, Sight | None] = {}

    def look(self, frames: int) -> Sight | None:
        """The mask for an input of so many frames; None where the model does not take that length."""
        if frames not in self.known:
            self.known[frames] = self._look(frames)
        return self.known[frames]

    def _values(self, frames: int, fill: float) -> np.ndarray:
        leaves = {leaf: self.scores.zeros(frames, leaf) for leaf in self.scores.leaves}
        leaves[self.leaf][...] = fill
        if self.start != self.leaf:
            leaves[self.start] = leaves[self.leaf]
        return self.scores.run(frames, leaves, self.scores.pattern.logits)

    def _look(self, frames: int) -> Sight | None:
        length = self.length(frames)
        if length < 1:
            return None
        try:
            value = self._values(frames, 0.0)
        except TooLarge:
            raise
        except Exception:  # onnxruntime's exceptions share no base class of their own
            return None
        if value.shape[-2:] != (length, length):
            return None
        if np.isnan(value).any():
            raise Refusal("has a mask that is not a number at some places", "write masked places as -inf")
        value = np.where(value < MASKED, -np.inf, value.astype(np.float32))
        seen = np.asarray((value > -np.inf).any(axis=tuple(range(value.ndim - 2))))
        return Sight(length, seen, value)

    def gain(self) -> tuple[np.ndarray | float, float]:
        """(scale, softcap): what the scores are multiplied with, checked on noise."""
        sights = ((t, self.look(t)) for t in map(self.ticks, SMALL[4:]))
        frames, sight = next(((t, s) for t, s in sights if s is not None), (0, None))
        if sight is None:
            raise Refusal("has a mask that could not be computed from lengths alone", "compute the mask from shapes")
        if self.scores.tanh is None:
            return self._slope(frames, self.scores.pattern.logits, sight.value, PROBE), 0.0
        cap = self._slope(frames, self.scores.pattern.logits, sight.value, 1.0)
        inner = self.scores.tanh.inputs[0]
        leaves = {leaf: self.scores.zeros(frames, leaf) for leaf in self.scores.leaves}
        before = self.scores.run(frames, leaves, inner)
        if np.any(before) or np.size(cap) != 1:
            raise Refusal("bends its scores after a mask", "apply the cap before the mask")
        self.start, outer = self.leaf, self.start
        try:
            inside = self._slope(frames, inner, before, PROBE)
        finally:
            self.start = outer
        softcap = float(np.reshape(cap, -1)[0])
        return inside * softcap, softcap

    def _slope(self, frames: int, output: str, base: np.ndarray, probe: float) -> np.ndarray | float:
        rng = np.random.default_rng(7)
        leaves = {leaf: self.scores.zeros(frames, leaf) for leaf in self.scores.leaves}

        def at(values: np.ndarray) -> np.ndarray:
            leaves[self.leaf] = values
            if self.start != self.leaf:
                leaves[self.start] = values
            return self.scores.run(frames, leaves, output).astype(np.float64)

        open_ = base > -np.inf
        slope = np.where(open_, (at(np.full_like(leaves[self.leaf], probe)) - np.where(open_, base, 0)) / probe, np.nan)
        scale = np.nanmax(slope, axis=(-1, -2))
        if scale.size and np.ptp(scale) == 0:
            scale = scale.reshape(-1)[:1].reshape((1,) * scale.ndim)
        noise = rng.standard_normal(leaves[self.leaf].shape).astype(np.float32)
        expected = noise * scale[..., None, None] + np.where(open_, base, 0)
        error = np.abs(np.where(open_, at(noise) - expected, 0))
        if (
            not np.allclose(np.where(open_, slope, scale[..., None, None]), scale[..., None, None], rtol=1e-5)
            or (error > 1e-5 * np.maximum(1, np.abs(expected))).any()
        ):
            raise Refusal(
                "does something else with its scores than to scale them and to add a mask and a bias",
                "use softmax(scale·Q·Kᵀ + mask)·V",
            )
        return float(scale.reshape(-1)[0]) if scale.size == 1 else scale.astype(np.float32)


def edges(sights: list[Sight]) -> Band:
    """The band that every sight shows. Refuses a mask that is none."""
    if any(np.abs(v := s.value[np.isfinite(s.value)]).max(initial=0) > LARGEST_BIAS and not _grows(v) for s in sights):
        raise Refusal(
            "adds a large finite number to masked scores, which leaves them a share that depends on the data",
            "write masked places as -inf (or -1e9)",
        )
    largest = max(sights, key=lambda s: s.length)
    n = largest.length
    rows = np.arange(n)
    if not largest.seen.any(axis=1).all() or any(not s.seen.any(axis=1).all() for s in sights):
        raise Refusal("has a mask that leaves some frame nothing to look at", "let every frame see itself")
    last = n - 1 - np.argmax(largest.seen[:, ::-1], axis=1)
    first = np.argmax(largest.seen, axis=1)
    right, high = (None, 1) if last[0] == n - 1 and n > 1 else _steps(rows, last, last < n - 1)
    left, low = (None, 1) if not first.any() else _steps(rows, -first, first > 0)
    band = Band(left, right, low, high)
    far = np.array([np.diagonal(largest.seen, -d).any() for d in range(-n + 1, n)])
    for sight in sights:
        i = np.arange(sight.length)
        inside = band.inside(sight.length) & far[i[:, None] - i[None, :] + n - 1]
        if (sight.seen != inside).any():
            raise Refusal(_unlike(sight, inside), "use a causal, sliding or chunked mask")
    if (left is not None and left < 0) or (right is not None and right < 0):
        raise Refusal("has a mask that leaves some frame nothing to look at", "let every frame see itself")
    return band


def _steps(rows: np.ndarray, edge: np.ndarray, free: np.ndarray) -> tuple[int, int]:
    """(distance, chunk) with |edge| = chunk·⌊row/chunk⌋ + distance (its negative for the first key), from rows where
    the edge is free."""
    sign = -1 if (edge[free] < 0).any() else 1
    if not free.any():
        raise Refusal("has a mask whose window is as long as the input", "use a causal, sliding or chunked mask")
    bound = sign * edge[free]
    levels = np.unique(bound)
    chunk = gcd(*(int(d) for d in np.diff(levels))) if len(levels) > 1 else int(free.sum())
    row = rows[free][-1]
    distance = int(bound[-1]) - chunk * int(row // chunk)
    return (distance, chunk) if sign > 0 else (-distance, chunk)


def _unlike(sight: Sight, inside: np.ndarray) -> str:
    wrong = np.argwhere(sight.seen != inside)[0]
    verb = "sees" if sight.seen[wrong[0], wrong[1]] else "does not see"
    return (
        f"has a mask that is neither causal nor sliding nor chunked: with {sight.length} frames, frame {wrong[0]} "
        f"{verb} frame {wrong[1]}"
    )


def with_bias(band: Band, sights: list[Sight], back: int, ahead: int) -> Band:
    """The band with its bias by distance, for distances i - j from -ahead to back. Refuses one that is not a function
    of the distance."""
    largest = max(sights, key=lambda s: s.length)
    if not any(np.any(s.value[..., band.inside(s.length)] != 0) for s in sights):
        return band
    table = _table(largest, band, back, ahead)
    if table is None or any(not _fits(s, table, band, ahead, 0.0) for s in sights):
        sights = [replace(s, value=_centred(s.value)) for s in sights]
        table = _table(max(sights, key=lambda s: s.length), band, back, ahead)
        limit = 2e-6 * max(float(np.abs(s.value[np.isfinite(s.value)]).max(initial=0)) for s in sights)
        if table is None or any(not _fits(s, table, band, ahead, limit) for s in sights):
            raise Refusal(
                "adds a bias to its scores that is no function of the distance between two frames",
                "use a relative bias, or positions that are added to the frames",
            )
    for axis in range(table.ndim - 1):
        if (table == table.take([0], axis)).all():
            table = table.take([0], axis)
    if not np.any(table):
        return band
    return replace(band, bias=np.ascontiguousarray(table, np.float32))


def _grows(values: np.ndarray) -> bool:
    """Whether large values are reached gradually, as a slope's are, and not by one jump."""
    ordered = np.unique(np.abs(values[np.isfinite(values)]))
    return bool(len(ordered) > 8 and np.diff(ordered).max() < 0.25 * ordered[-1])


def _centred(value: np.ndarray) -> np.ndarray:
    """Each row less its value on the diagonal, which the softmax does not see."""
    diagonal = np.diagonal(value, axis1=-2, axis2=-1)[..., None]
    return np.where(np.isfinite(value), value.astype(np.float64) - np.where(np.isfinite(diagonal), diagonal, 0), value)


def _table(sight: Sight, band: Band, back: int, ahead: int) -> np.ndarray | None:
    """(batch axes…, ahead + back + 1): the values by distance as the largest length shows them."""
    if sight.length <= max(back, ahead):
        return None
    batch, inside = sight.value.shape[:-2], band.inside(sight.length)
    table = np.zeros((*batch, ahead + back + 1), sight.value.dtype)
    for distance in range(-ahead, back + 1):
        line = np.diagonal(sight.value, -distance, -2, -1)
        seen = np.diagonal(inside, -distance)
        at = int(np.argmax(seen))
        table[..., distance + ahead] = line[..., at] if seen.any() else 0
    return table


def _fits(sight: Sight, table: np.ndarray, band: Band, ahead: int, limit: float) -> bool:
    i = np.arange(sight.length)
    inside = band.inside(sight.length)
    distance = np.clip(i[:, None] - i[None, :] + ahead, 0, table.shape[-1] - 1)
    wanted, got = table[..., distance], sight.value
    both = np.isfinite(got) & np.isfinite(wanted)
    near = both & (np.abs(np.where(both, got, 0) - np.where(both, wanted, 0)) <= limit)
    return bool(((got == wanted) | near | ~inside).all())
