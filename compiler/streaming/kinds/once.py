"""Values that exist once a stream, because they are known only at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runnel.compiler.streaming.count import Count, Ended
from runnel.compiler.streaming.ir import STACKED, Reach, Stream, StreamNode

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis


@dataclass(eq=False)
class Last(StreamNode):
    """Frames [-start, -stop) of a stream, counted from its end, as one value."""

    start: int = 1
    stop: int = 0

    @property
    def least_frames(self) -> int:
        return self.start

    def reach(self, x: Reach) -> Reach:
        return x.moved((1 - self.start) * self.jump, -self.stop * self.jump)


@dataclass(eq=False)
class First(StreamNode):
    """Frames [start, stop) of a stream as one value, held until the end."""

    start: int = 0
    stop: int = 1

    @property
    def least_frames(self) -> int:
        return self.stop

    def reach(self, x: Reach) -> Reach:
        return x.moved(0, 0, endless=True)


@dataclass(eq=False)
class Accumulate(StreamNode):
    """Frame n is what frames 0 … n of x amount to (exclusive: those before n). how: see HOWS."""

    how: str = "sum"
    exclusive: bool = False

    def reach(self, x: Reach) -> Reach:
        return x.moved(0, 0, endless=True)


@dataclass(eq=False)
class Total(Accumulate):
    """What all frames of x amount to, once, at the end."""

    @property
    def least_frames(self) -> int:
        return 1


HOWS = (
    "sum", "mean", "max", "min", "prod", "logsumexp", "variance", "weighted", "sequential", "argmax", "argmin",
    "argmax_last", "argmin_last",
)  # fmt: skip
"""What frames can amount to. Sums are kept in float64, where 100,000 frames leave no trace of rounding; "sequential" is
a sum in the type of x, in order; "weighted" one with weights that are a softmax over time of a second stream; "argmax"
and the like are the number of the first, or last, of the frames with the largest or least value."""


def ended(x: Stream) -> Ended:
    """1 once all frames of x are there."""
    return Ended(frozenset([(x.fact.made, x.fact.length)]))


def last_frames(
    a: Analysis, node: Node, x: Stream, start: int, stop: int = 0, shape: tuple[int | None, ...] | None = None,
    suffix: str = "/last",
) -> Stream:  # fmt: skip
    """Frames [-start, -stop) of x, seen with another shape if given, as one value."""
    shape = shape or tuple(start - stop if d is None else d for d in x.shape)
    return a.emit(
        node,
        Last,
        [x],
        STACKED,
        ended(x),
        Count.const(1),
        shape=shape,
        op="Last",
        suffix=suffix,
        start=start,
        stop=stop,
    )


def first_frames(
    a: Analysis, node: Node, x: Stream, start: int, stop: int, suffix: str = "", output: int = 0
) -> Stream:  # fmt: skip
    """Frames [start, stop) of x as one value."""
    known = Ended(frozenset([(x.fact.made, Count.const(stop))]))
    shape = tuple(stop - start if d is None else d for d in x.shape)
    return a.emit(
        node, First, [x], STACKED, known, Count.const(1), output, shape, "First", suffix, start=start, stop=stop
    )  # fmt: skip
