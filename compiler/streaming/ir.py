"""The stream graph: tensors with what they mean in time, and nodes that say how frames are made from frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.count import Count, Ended

STACKED = -1
"""The axis of a tensor whose frames are whole tensors: windows, and the steps of a model that brings its own state."""


@dataclass(frozen=True, eq=False)
class StreamFact:
    """What a tensor is in time.

    axis: its time axis, or STACKED. final(t): after t input frames, how many of its first frames have values that
    cannot change any more. length(T): how many frames it has for an input of T. clock: the input that drives it.
    """

    axis: int
    final: Count
    length: Count
    clock: str = ""

    @cached_property
    def made(self) -> Count:
        """After t input frames: how many frames are final and certain to exist. A longer input never has fewer."""
        return self.final.minimum_with(self.length.affine(1, 0))

    @property
    def once(self) -> bool:
        """Whether it is one value a stream, known at its end."""
        return isinstance(self.final, Ended)

    @property
    def static(self) -> bool:
        """Whether it is one value that is there from the start, until it is set anew."""
        return not self.once and self.final.is_const and self.final == 1

    @property
    def rate(self) -> Fraction:
        """Frames per input frame."""
        return self.length.rate or self.final.rate

    def due(self, n: int) -> int:
        """The number of input frames after which frame n is final."""
        return self.made.first(n)

    @cached_property
    def hold(self) -> int:
        """Start-up frames that come late, in one burst."""
        first = int(np.argmax(self.made.values > 0)) if (self.made.values > 0).any() else 0
        return max(0, self.made(first) - 1) if self.made(0) == 0 else 0


@dataclass(eq=False)
class Stream:
    """A tensor of the stream graph. shape: None at the time axis (nowhere when stacked). dtype: numpy name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    fact: StreamFact
    node: StreamNode | None = None

    @property
    def axis(self) -> int:
        return self.fact.axis

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The shape with time removed."""
        return tuple(d for d in self.shape if d is not None)

    def __repr__(self) -> str:
        return f"Stream({self.name} {self.shape})"


@dataclass(frozen=True)
class Reach:
    """Input frames that one output frame reads, relative to the input frame it lines up with. endless: all of the
    past too."""

    first: Fraction = Fraction(0)
    last: Fraction = Fraction(0)
    endless: bool = False

    def moved(self, first: Fraction | int, last: Fraction | int, endless: bool = False) -> Reach:
        return Reach(self.first + first, self.last + last, self.endless or endless)

    @staticmethod
    def around(parts: Sequence[Reach]) -> Reach:
        """What contains all of them."""
        if not parts:
            return Reach()
        return Reach(min(p.first for p in parts), max(p.last for p in parts), any(p.endless for p in parts))


Operand = Stream | np.ndarray | None


@dataclass(eq=False)
class StreamNode:
    """How ``output`` is made. name: the ONNX node it comes from."""

    name: str
    op: str
    inputs: list[Operand]
    output: Stream

    @property
    def streams(self) -> list[Stream]:
        return [x for x in self.inputs if isinstance(x, Stream)]

    @property
    def least_frames(self) -> int:
        """The fewest frames of its input with which the offline op runs; 0: any."""
        return 0

    @property
    def jump(self) -> Fraction:
        """Input frames of the model from one frame of the node's first stream to the next."""
        return 1 / self.streams[0].fact.rate

    def reach(self, x: Reach) -> Reach:
        """What an output frame reads of the model's input, x being that of the node's streams."""
        return x

    @property
    def macs(self) -> int:
        """Multiply-adds of one output frame (for element-wise ops none)."""
        return 0


@dataclass(eq=False)
class Source(StreamNode):
    """An input of the model."""


@dataclass(eq=False)
class Pointwise(StreamNode):
    """Frame n of the output needs frame n of each input and nothing else. The ONNX op with its attributes as they were.

    target: for Reshape and Expand, the output's shape with None at the time axis.
    """

    attrs: dict[str, Any] = field(default_factory=dict)
    domain: str = ""

    @property
    def macs(self) -> int:
        out = int(np.prod(self.output.frame_shape, dtype=np.int64))
        sizes = [[int(d or 1) for d in w.shape] for w in self.inputs[1:] if w is not None]
        if self.op in ("MatMul", "MatMulInteger", "Gemm"):
            if constants := [w for w in self.inputs if isinstance(w, np.ndarray) and w.ndim > 1]:
                rows = out // (constants[0].shape[-1] if self.inputs[1] is constants[0] else constants[0].shape[-2])
                return constants[0].size * max(1, rows)
            return out * (self.streams[0].frame_shape[-1] if self.streams[0].frame_shape else 1)
        if self.op in ("Conv", "ConvInteger", "MatMulNBits"):
            return out * int(self.attrs["K"] if self.op == "MatMulNBits" else np.prod(sizes[0][1:]))
        first = self.streams[0].frame_shape
        if self.op == "ConvTranspose":
            return int(np.prod(first[-(len(sizes[0]) - 2) :], dtype=np.int64)) * int(np.prod(sizes[0]))
        if self.op == "MoE":
            return int(self.attrs.get("k", 1)) * sum(w[0].size for w in (self.inputs[2], self.inputs[4]))  # type: ignore
        if self.op in ("GRU", "LSTM", "RNN"):
            return sum(int(np.prod(s)) for s in sizes[:2]) * (first[0] if first else 1)
        return 0


@dataclass(eq=False)
class Window(StreamNode):
    """Conv, MaxPool or AveragePool over time: frame n reads frames stride·n - left + dilation·k, k < kernel.

    Frames outside the input read as ``fill``. time: which spatial axis is time. spatial_*: the attributes with the
    entries of time as they were in the model (kernel, stride, dilation) and pads of time zero.
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    left: int = 0
    right: int = 0
    fill: float = 0.0
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def span(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    @property
    def least_frames(self) -> int:
        return max(0, self.span - self.left - self.right)

    def reach(self, x: Reach) -> Reach:
        return x.moved(-self.left * self.jump, (self.span - 1 - self.left) * self.jump)

    @property
    def macs(self) -> int:
        weight = self.inputs[1] if self.op in ("Conv", "ConvInteger") else None
        frame = int(np.prod(self.output.frame_shape, dtype=np.int64))
        return frame * int(np.prod(weight.shape[1:])) if isinstance(weight, np.ndarray) else 0


@dataclass(eq=False)
class Upsample(StreamNode):
    """ConvTranspose over time: y[n] = sum of w[k]·x[j] with n + crop = stride·j + dilation·k."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    crop: int = 0
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def span(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    @property
    def taps(self) -> int:
        """Input frames that one block of ``stride`` output frames reads."""
        return -(-self.span // self.stride)

    def reach(self, x: Reach) -> Reach:
        lean = Fraction(self.crop, self.stride)
        return x.moved((lean - self.taps + Fraction(1, self.stride)) * self.jump, lean * self.jump)

    @property
    def macs(self) -> int:
        weight = self.inputs[1]
        assert isinstance(weight, np.ndarray)
        spatial = int(np.prod(self.streams[0].frame_shape[2:], dtype=np.int64))
        return spatial * weight.size // self.stride


@dataclass(eq=False)
class Shift(StreamNode):
    """y[n] = x[n + offset]; outside x by mode: "constant" (fill), "reflect" or "edge": slices and pads."""

    offset: int = 0
    left: int = 0
    right: int | None = 0
    fill: float = 0.0
    mode: str = "constant"
    beside: bool = False
    """Whether frames that it adds are read only together with the frame that they copy."""

    @property
    def pads(self) -> bool:
        return self.left > 0 or self.right is None or self.right > 0

    @property
    def least_frames(self) -> int:
        return {"constant": 0, "edge": 1, "reflect": max(self.left, self.right or 0) + 1}[self.mode]

    def reach(self, x: Reach) -> Reach:
        far = 0 if self.beside else {"constant": 0, "edge": 1, "reflect": 2}[self.mode]
        return x.moved((self.offset - far * (self.right or 0)) * self.jump, (self.offset + far * self.left) * self.jump)


@dataclass(eq=False)
class Recurrent(StreamNode):
    """GRU, LSTM or RNN along time. inputs: x, W, R, then B, initial h, initial c, peephole weights or None each.

    The output is Y, or an LSTM's cell states (cells), of which only the last one may be read.
    """

    attrs: dict[str, Any] = field(default_factory=dict)
    cells: bool = False

    @property
    def least_frames(self) -> int:
        return 1

    def reach(self, x: Reach) -> Reach:
        return x.moved(0, 0, endless=True)

    @property
    def macs(self) -> int:
        return sum(w.size for w in self.inputs[1:3] if isinstance(w, np.ndarray))


@dataclass(eq=False)
class Unfold(StreamNode):
    """y[n] = frames stride·n + offset + dilation·k, k < kernel, of x, as one stacked frame (window mode)."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    offset: int = 0

    @property
    def span(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    def reach(self, x: Reach) -> Reach:
        return x.moved(self.offset * self.jump, (self.offset + self.span - 1) * self.jump)


@dataclass(eq=False)
class Feedback(StreamNode):
    """A state that the model brings itself: frame n is frame n - 1 of another tensor (named by ``source``), first
    ``initial``."""

    source: str = ""
    initial: np.ndarray | None = None

    def reach(self, x: Reach) -> Reach:
        return Reach(endless=True)


@dataclass(frozen=True, eq=False)
class Deviation:
    """A tensor less its mean over ``axes`` (time among them), to a power: what may follow it is known at the end."""

    stream: Stream
    mean: Stream
    axes: frozenset[int]
    power: int = 1


@dataclass(frozen=True, eq=False)
class Weights:
    """A softmax of scores over time, times x where that is there: its sum over time is known. node: the softmax."""

    scores: Stream
    node: Node
    x: Stream | None = None


@dataclass(frozen=True, eq=False)
class Tail:
    """Frames [-start, -stop) of a tensor, counted from the end: known only when the stream ends."""

    stream: Stream
    start: int
    stop: int = 0


class Poisoned:
    """The output of a node that was refused."""


@dataclass(eq=False)
class StreamGraph:
    """nodes in topological order. outputs: model output name → stream (or Tail). window: (W, H) in window mode.

    carried: the model's outputs that are its own states, which a stream keeps to itself. shortest: the fewest input
    frames that the offline model takes. remainders: (period, those of the lengths that it takes). max_frames: the
    most input frames of a stream, and why; None: any number. modes: the named modes that were used, which change the
    result. mode_nodes: the nodes that each of them made possible. decided: (op, "exact" or the named mode) of each of
    the model's nodes. kv: what its caches keep; None where it has none. aligned: outputs that wait for others: how many
    frames come out after t input frames. sparse: "exact" or "predicted" reading of neurons. misses: of units, by table
    (lowering's Table). experts: what those of several widths have. window_macs: of a hop, "naive", "exact" and "reuse".
    """

    name: str
    inputs: list[Stream]
    outputs: dict[str, Stream | Tail]
    nodes: list[StreamNode]
    opset: int
    window: tuple[int, int] | None = None
    carried: dict[str, Stream] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shortest: int = 1
    remainders: tuple[int, tuple[int, ...]] = (1, (0,))
    max_frames: int | None = None
    max_frames_reason: str = ""
    aligned: dict[str, Count] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    mode_nodes: dict[str, list[str]] = field(default_factory=dict)
    decided: list[tuple[str, str]] = field(default_factory=list)
    kv: str | None = None
    sparse: str = ""
    misses: dict[str, tuple[int, ...]] = field(default_factory=dict)
    experts: list[dict[str, Any]] = field(default_factory=list)
    window_macs: dict[str, float] = field(default_factory=dict)

    @property
    def streams(self) -> list[Stream]:
        return [n.output for n in self.nodes]

    @property
    def statics(self) -> list[Stream]:
        """The static inputs."""
        return [n.output for n in self.nodes if n.op == "Static"]

    def next_length(self, frames: int) -> int:
        """The least length from ``frames`` on that the offline model takes."""
        period, taken = self.remainders
        frames = max(frames, self.shortest)
        return next(n for n in range(frames, frames + period) if n % period in taken)
