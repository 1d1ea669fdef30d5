"""Kinds of stream nodes that change how frames lie in time: resampled, stacked, spread, and streams of one value."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Reach, StreamNode


@dataclass(eq=False)
class Fill(StreamNode):
    """A stream with the facts of its input whose every element is ``value``: padding of it is still padding."""

    value: float = 1.0


@dataclass(eq=False)
class Resample(StreamNode):
    """y[n] = the sum over k of weights[p, k] · x[down·q + first[p] + k], with n + crop = up·q + p, p < up.

    Resizing by a fixed factor up/down, and slices in steps (up = 1). weights: (up, taps) float32; None: one tap of 1.
    """

    up: int = 1
    down: int = 1
    crop: int = 0
    first: tuple[int, ...] = (0,)
    weights: np.ndarray | None = None

    @property
    def taps(self) -> int:
        return 1 if self.weights is None else int(self.weights.shape[1])

    @property
    def span(self) -> int:
        """Frames from the first that a block of ``up`` output frames reads to its last."""
        return max(self.first) + self.taps - min(self.first)

    def reach(self, x: Reach) -> Reach:
        steps = [Fraction(at) - Fraction(self.down * (p - self.crop), self.up) for p, at in enumerate(self.first)]
        return x.moved(min(steps) * self.jump, (max(steps) + self.taps - 1) * self.jump)

    @property
    def macs(self) -> int:
        return 0 if self.weights is None else self.taps * int(np.prod(self.output.frame_shape, dtype=np.int64))


def blocks(frames: Count, down: int, reach: int) -> Count:
    """How many blocks of output frames so many input frames make, block q reading frames below down·q + reach."""
    return frames.affine(1, down - reach, down)


@dataclass(eq=False)
class Interleave(StreamNode):
    """y[count·n + p] = part p of frame n of x, whose axis behind time has ``count`` parts: Frames undone."""

    count: int = 1

    def reach(self, x: Reach) -> Reach:
        return x.moved(-Fraction(self.count - 1, self.count) * self.jump, 0)
