"""A backward recurrence that starts a stated number of frames ahead, in place of the end of the stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runnel.compiler.streaming.ir import Reach, StreamNode


@dataclass(eq=False)
class Backward(StreamNode):
    """GRU, LSTM or RNN against time, ``ahead`` frames at a time: one block of frames comes from a run that starts
    ``ahead`` frames after the block, or at the stream's end where that is nearer.

    inputs: as of Recurrent. Frame n of the output, in block k = n // ahead, needs frames up to (k + 2)·ahead.
    """

    ahead: int = 1
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def least_frames(self) -> int:
        return 1

    def reach(self, x: Reach) -> Reach:
        return x.moved(0, (2 * self.ahead - 1) * self.jump)

    @property
    def macs(self) -> int:
        return 2 * sum(w.size for w in self.inputs[1:3] if isinstance(w, np.ndarray))
