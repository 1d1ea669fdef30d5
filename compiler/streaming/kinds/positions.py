"""Streams made from the number of a frame alone, and frames of several frames by number."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Reach, StreamNode

HOLD, WRAP, END = "hold", "wrap", "end"
"""What a table gives after its last row: that row for ever, its rows again, or nothing: the stream must stop there."""


@dataclass(eq=False)
class Positions(StreamNode):
    """Frame n is the number start + step·n, int64 and without another axis than time."""

    start: int = 0
    step: int = 1


@dataclass(eq=False)
class Table(StreamNode):
    """Frame n is row n of a constant. rows: it, with the rows along the output's time axis. beyond: what follows."""

    rows: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))
    beyond: str = END

    @property
    def is_constant(self) -> bool:
        """Whether all frames are the same."""
        return self.beyond == HOLD and self.rows.shape[self.output.axis] == 1


@dataclass(eq=False)
class Extent(StreamNode):
    """A length of the stream as data, once it is known: count(T) / div, in a tensor of one element."""

    count: Count = field(default_factory=Count.time)
    div: int = 1

    def reach(self, x: Reach) -> Reach:
        return Reach(endless=True)


@dataclass(eq=False)
class Frames(StreamNode):
    """Frame n has frames stride·n + offset + dilation·k, k < kernel, of x along a new axis.

    before: whether that axis comes before the time axis (else after it); both stand where the time axis of x is. All
    frames that are named exist.
    """

    kernel: int = 1
    stride: int = 1
    offset: int = 0
    dilation: int = 1
    before: bool = False

    @property
    def span(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    def reach(self, x: Reach) -> Reach:
        return x.moved(self.offset * self.jump, (self.offset + self.span - 1) * self.jump)
