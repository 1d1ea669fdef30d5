"""Attention over time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from runnel.compiler.streaming.attention.band import Band
from runnel.compiler.streaming.ir import Reach, StreamNode


@dataclass(eq=False)
class Attend(StreamNode):
    """y[i] = softmax(scale·q[i]·k[j]ᵀ + bias)·v[j] over the keys j that frame i sees.

    inputs: q (batch…, T, D), k (batch…, T, D), v (batch…, T, Dv), and with ``relative`` r (batch…, T, E), numpy's
    broadcasting between batches. band: which keys, with a definite left side. endless: whether that side is all of the
    past, as far as the stream may go. relative: (batch…, distances, E) float32, scale·r[i]·relative[i - j + right] is
    added to the scores.
    """

    band: Band = field(default_factory=lambda: Band(0, 0))
    endless: bool = False
    relative: np.ndarray | None = None

    @property
    def back(self) -> int:
        """How far the oldest key lies behind the query."""
        assert self.band.back is not None
        return self.band.back

    @property
    def ahead(self) -> int:
        """How far the newest key lies before the query."""
        assert self.band.right is not None
        return self.band.right

    def reach(self, x: Reach) -> Reach:
        return x.moved(-self.back * self.jump, self.ahead * self.jump, self.endless)

    @property
    def macs(self) -> int:
        q, v = self.streams[0].frame_shape, self.streams[2].frame_shape
        batch = int(np.prod(self.output.frame_shape[:-1], dtype=np.int64))
        return batch * (self.back + self.ahead + 1) * (q[-1] * (2 if self.relative is not None else 1) + v[-1])
