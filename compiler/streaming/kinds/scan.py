"""A loop whose n-th turn takes the n-th frame: Scan, and Loop over the frames of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from runnel.compiler.streaming.ir import Reach, Stream, StreamNode


@dataclass(eq=False)
class Carried:
    """A state of a loop. stream: what a turn reads, initial at first; next: what it leaves for the turn after it."""

    stream: Stream
    initial: np.ndarray
    next: Stream


@dataclass(eq=False)
class Body:
    """One turn, on whole frames. inputs: the frames of the loop's streams. outputs: what each output's frame is."""

    inputs: list[Stream]
    states: list[Carried]
    nodes: list[StreamNode]
    outputs: list[Stream]
    axes: list[int]
    """Where time stands in each output."""


@dataclass(eq=False)
class Scan(StreamNode):
    """Output ``index`` of a loop; all outputs of one loop share its ``body``."""

    body: Body = field(default_factory=lambda: Body([], [], [], [], []))
    index: int = 0

    @property
    def least_frames(self) -> int:
        return 1

    def reach(self, x: Reach) -> Reach:
        return x.moved(0, 0, endless=True)

    @property
    def macs(self) -> int:
        return sum(n.macs for n in self.body.nodes) if self.index == 0 else 0
