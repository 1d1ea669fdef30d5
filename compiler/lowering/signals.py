"""Signals: the tensors of a native program in time, how nodes read them, and the ring each one needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue, frame_elements, round_up
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.kinds.cache import CachedAttend


class NoKernel(Exception):
    """The native backend cannot run this node; the message says which and why."""


@dataclass(eq=False)
class Signal:
    """A tensor that lives in a ring. Frame n exists while the ring holds it.

    shape: of a frame. pitch: elements from one frame to the next. made, length: as in StreamFact. fill: what lies
    before frame 0 and after the end, once a reader needs it. initial: frames just before frame 0, (frames, *shape).
    unit: frames written at once. half: its float32 lie in memory as float16.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    made: Count
    length: Count
    pitch: int = 0
    unit: int = 1
    fill: float | None = None
    initial: np.ndarray | None = None
    half: bool = False
    reads: list[Read] = field(default_factory=list)

    def __post_init__(self) -> None:
        words = max(1, 4 // self.item_bytes)  # frames are a multiple of 4 bytes
        self.pitch = round_up(self.pitch or frame_elements(self.shape), words)

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def stored(self) -> str:
        """The element type in memory."""
        return "float16" if self.half else self.dtype

    @property
    def item_bytes(self) -> int:
        return np.dtype(self.stored).itemsize

    @property
    def frame_bytes(self) -> int:
        return self.pitch * self.item_bytes


@dataclass(eq=False)
class Read:
    """Iteration q of a step reads frames stride·q + offset + dilation·k, k < taps, of the signal, as ``value``.

    back: how many frames before the first tap it may also look (reflection). count, length: the iterations of the step.
    ended: set where the frame is counted from the signal's end instead (offset below 0): the frames made of what ends.
    oldest: the frame's number less ``ended``'s, once that has all its frames. ring: the kernel finds so many frames
    from the first on in the ring itself; 0: it does not.
    """

    signal: Signal
    value: FrameValue
    offset: int = 0
    stride: int = 1
    taps: int = 1
    dilation: int = 1
    back: int = 0
    count: Count | None = None
    loop: int = 0
    ring: int = 0
    ended: Count | None = None
    oldest: int = 0

    @property
    def lowest(self) -> int:
        return self.offset - self.back

    @property
    def same_frame(self) -> bool:
        """Frame q for iteration q, nothing else."""
        return self.offset == 0 and self.stride == 1 and self.taps == 1 and not self.ring


@dataclass(eq=False)
class View:
    """A stream as frames of a signal: frame n is signal frame stride·n + offset, seen with another shape."""

    signal: Signal
    offset: int
    stride: int
    shape: tuple[int, ...]
    length: Count

    def reshaped(self, shape: tuple[int, ...]) -> View:
        return View(self.signal, self.offset, self.stride, shape, self.length)

    def moved(self, offset: int, length: Count, stride: int = 1) -> View:
        return View(self.signal, self.offset + offset * self.stride, self.stride * stride, self.shape, length)

    @property
    def inside_end(self) -> bool:
        """Whether every frame of this view is a frame that the signal has."""
        end = (self.length - 1) * self.stride + self.offset + 1
        return end.affine(1, 0).minimum_with(self.signal.length).affine(1, 0) == end.affine(1, 0)

    @property
    def covers_end(self) -> bool:
        """Whether frames after this view's own end lie after the signal's end too."""
        end = self.length * self.stride + self.offset
        return end.minimum_with(self.signal.length) == self.signal.length


Operand: TypeAlias = "View | np.ndarray | None"


@dataclass(eq=False)
class Table:
    """Units of weights that are read when they are chosen. units: how many; most: chosen at a time. rows: (units,
    elements), each a multiple of 64 bytes, where they are not the constants of steps. misses: units that a frame
    chooses and that are not there, in 2^-8, where memory holds 0, 1/8, … of all units of this size; none: unknown. Of
    rows it is meant that those chosen last are kept, of others that the user says which."""

    name: str
    units: int
    most: int
    rows: np.ndarray | None = None
    misses: tuple[int, ...] = ()


@dataclass(eq=False)
class Chosen:
    """The constants of a step are those of a unit that was chosen; without one in its place the step is not made.

    slots: what says which. place: which of its units. part: the name of these constants in the unit.
    inputs: for each unit, what the step's node has as constants (None where it has none, and where it has a value).
    """

    table: Table
    slots: Signal
    place: int
    part: str
    inputs: list[tuple[np.ndarray | None, ...]]


@dataclass(eq=False)
class Step:
    """One frame node and where its operands come from. loop: steps with the same number above 0 alternate frame by
    frame. place: where the step's frame begins in the output's, in elements, None where it is the whole of it. chosen:
    where its constants are those of a unit."""

    node: FrameNode
    reads: list[Read]
    output: Signal
    loop: int = 0
    place: int | None = None
    chosen: Chosen | None = None

    @property
    def count(self) -> Count:
        return self.output.made.affine(1, 0, self.output.unit)

    @property
    def length(self) -> Count:
        return self.output.length.affine(1, self.output.unit - 1, self.output.unit)


@dataclass(eq=False)
class Cached:
    """Frame n of queries, keys and values comes into a cache and attends to what it keeps.

    reads: queries, keys, values (not where keys hold them), then those of ``retain``, what a policy ranks frames by,
    and ``positions``, a frame's own.
    """

    node: CachedAttend
    reads: list[Read]
    output: Signal
    retain: Read | None = None
    positions: Read | None = None
    loop: int = 0

    @property
    def count(self) -> Count:
        return self.output.made

    @property
    def length(self) -> Count:
        return self.output.length


@dataclass(eq=False)
class Choose:
    """Frame n of ``reads``, a number of units and the units, is made available: the output says in which slots they
    are. guess: they are only likely to be chosen, and nothing is made."""

    reads: list[Read]
    output: Signal
    table: Table
    guess: bool = False
    loop: int = 0

    @property
    def count(self) -> Count:
        return self.output.made

    @property
    def length(self) -> Count:
        return self.output.length


@dataclass(eq=False)
class Copy:
    """Target frame n is source frame n + offset, outside the source by mode (0 fill, 1 reflection, 2 edge)."""

    read: Read
    output: Signal
    mode: int
    fill: float
    loop: int = 0
    last: bool = False


@dataclass(eq=False)
class Fetch:
    """Target frame n is the row of a constant table that the number in source frame n names; numbers outside are
    brought inside. Rows are taken where they lie, so that a table need not be in memory."""

    read: Read
    output: Signal
    table: np.ndarray
    loop: int = 0
    last: bool = False
