"""From the stream graph to steps on signals: what the native backend runs, before fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runnel.compiler.graph.blocks import Blocks
from runnel.compiler.lowering import experts as _experts  # noqa: F401  (registers its handlers)
from runnel.compiler.lowering import moving as _moving  # noqa: F401  (registers its handlers)
from runnel.compiler.lowering import nodes as _nodes  # noqa: F401  (registers them)
from runnel.compiler.lowering.frame import FrameNode, FrameValue, frame_elements
from runnel.compiler.lowering.neurons import with_neurons
from runnel.compiler.lowering.registry import LOWERERS
from runnel.compiler.lowering.signals import (
    Cached,
    Choose,
    Copy,
    Fetch,
    NoKernel,
    Operand,
    Read,
    Signal,
    Step,
    Table,
    View,
)
from runnel.compiler.lowering.split import SEGMENT_BYTES, segment_bytes, split_large
from runnel.compiler.lowering.transforms import product
from runnel.compiler.lowering.weights import block_operands, coded, half_table
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Feedback, Stream, StreamGraph, StreamNode, Tail

HALF = "float16"
BOOLEAN = {"equal", "greater", "less", "greater_equal", "less_equal", "and", "or", "xor", "not", "is_nan", "is_inf"}


class Lowering:
    """Steps in order, the views of streams, and the signals of inputs and outputs.

    Raises NoKernel where the native backend cannot run the graph.
    """

    def __init__(self, graph: StreamGraph) -> None:
        self.graph = graph
        self.steps: list[Step | Cached | Choose | Copy | Fetch] = []
        self.signals: list[Signal] = []
        self.views: dict[Stream, View] = {}
        self.inputs: list[Signal] = []
        self.statics: list[Signal] = []
        self.outputs: dict[str, tuple[View, Tail | None]] = {}
        self.shared: dict[Any, Any] = {}  # what several outputs of one node have in common
        self.one_frame_steps = any(isinstance(n, Feedback) for n in graph.nodes)
        self.feedback: list[tuple[Feedback, Signal]] = []
        self.segment_bytes = SEGMENT_BYTES
        self.loop = 0
        """The loop that new steps belong to; 0: none."""
        self._loops = 0

    def run(self) -> Lowering:
        for node in self.graph.nodes:
            try:
                if type(node) not in LOWERERS:
                    raise NoKernel("has no kernel")
                self.views[node.output] = LOWERERS[type(node)](self, node)
            except NoKernel as error:
                raise NoKernel(f"{node.op} '{node.name}' {error}") from None
        for feedback, signal in self.feedback:
            self.copy(self.views[self.graph.carried[feedback.source]], signal, 0, 0, 0.0, last=True)
        for name, value in self.graph.outputs.items():
            stream = value.stream if isinstance(value, Tail) else value
            view = self.views[stream]
            if view.stride != 1 or view.offset < 0 or not view.inside_end:
                view = self.materialise(view, stream.fact.made, stream.name)
            view = self.stored_as(view, stream.dtype, name)
            self.outputs[name] = (view, value if isinstance(value, Tail) else None)
        self.segment_bytes = segment_bytes(self.steps)
        self.steps = split_large(self.steps, self.segment_bytes)
        return self

    # What handlers use ----------------------------------------------------------------------------------------------

    def view(self, stream: Stream) -> View:
        return self.views[stream]

    def signal(
        self, name: str, shape: tuple[int, ...], dtype: str, made: Count, length: Count, **fields: Any
    ) -> Signal:
        """A new signal. Nothing is made before the first step, not even frames that are padding alone."""
        if made(0) > 0 and not (made.is_const and length.is_const):  # but for what is static
            made = made.minimum_with(Count.time().affine(max(made(1), made.gain * 2 + 1, 1), 0))
        if dtype == HALF:
            dtype, fields = "float32", fields | {"half": True}
        signal = Signal(name, tuple(shape), dtype, made, length, **fields)
        self.signals.append(signal)
        return signal

    def new_loop(self) -> int:
        self._loops += 1
        return self._loops

    def read(self, view: View, **fields: Any) -> Read:
        """A read of the view's own frames, at the same number as the iteration unless ``fields`` say otherwise."""
        offset = view.offset + fields.pop("offset", 0) * view.stride
        stride = fields.pop("stride", 1) * view.stride
        dilation = fields.pop("dilation", 1) * view.stride
        value = FrameValue(view.signal.name, view.shape, view.signal.dtype)
        read = Read(view.signal, value, offset, stride, dilation=dilation, **fields)
        view.signal.reads.append(read)
        return read

    def add(self, node: FrameNode, reads: list[Read], signal: Signal, loop: int | None = None) -> View:
        loop = self.loop if loop is None else loop
        step = Step(node, reads, signal, loop)
        for read in reads:
            read.count, read.loop = step.count, loop
        self.steps.append(step)
        return View(signal, 0, 1, node.output.shape, signal.length)

    def step(
        self,
        node: StreamNode,
        op: str,
        operands: Sequence[Operand],
        shape: tuple[int, ...],
        attrs: dict[str, Any],
        dtype: str | None = None,
    ) -> View:
        """A frame-local step of ``node``; the output has the node's facts."""
        reads: list[Read] = []
        inputs: list[FrameValue | np.ndarray | None] = []
        seen: dict[tuple[Any, ...], Read] = {}
        for x in operands:
            if not isinstance(x, View):
                inputs.append(x)
                continue
            key = (x.signal, x.offset, x.stride, x.shape)
            if key not in seen:
                seen[key] = self.read(x)
                reads.append(seen[key])
            inputs.append(seen[key].value)
        fact = node.output.fact
        dtype = dtype or next((x.signal.dtype for x in operands if isinstance(x, View)), node.output.dtype)
        signal = self.signal(node.output.name, shape, dtype, fact.made, fact.length)
        output = FrameValue(node.name, tuple(shape), signal.dtype)
        return self.add(FrameNode(op, tuple(inputs), output, attrs), reads, signal)

    def elementwise(
        self, node: StreamNode, op: str, operands: Sequence[View | np.ndarray], attrs: dict[str, Any]
    ) -> View:
        """An element-wise step, in a shape without axes of one; the result has the broadcast shape."""
        shape = np.broadcast_shapes(*(x.shape for x in operands))
        keep = [i for i, d in enumerate(shape) if d != 1]
        squeezed: list[Operand] = []
        for x in operands:
            full = (1,) * (len(shape) - len(x.shape)) + tuple(x.shape)
            dims = tuple(full[i] for i in keep)
            squeezed.append(x.reshaped(dims) if isinstance(x, View) else np.asarray(x).reshape(dims))
        out = tuple(shape[i] for i in keep)
        dtype = None
        if op in BOOLEAN:
            dtype = "bool"
        elif op in ("cast", "quantize"):
            dtype = attrs["to"]
        elif op == "where":
            values = [x.signal.dtype if isinstance(x, View) else x.dtype.name for x in operands[1:]]
            dtype = values[0]
        return self.step(node, op, squeezed, out, attrs, dtype).reshaped(tuple(shape))

    def reduce(self, node: StreamNode, op: str, x: View, attrs: dict[str, Any]) -> View:
        """A reduction that keeps its axes, in a shape without axes of one."""
        shape = tuple(1 if i in attrs["axes"] else d for i, d in enumerate(x.shape))
        keep = [i for i, d in enumerate(x.shape) if d != 1]
        axes = tuple(k for k, i in enumerate(keep) if i in attrs["axes"])
        if not axes:
            return x
        small = tuple(shape[i] for i in keep)
        squeezed = x.reshaped(tuple(x.shape[i] for i in keep))
        return self.step(node, op, [squeezed], small, attrs | {"axes": axes, "keepdims": True}).reshaped(shape)

    def linear(
        self, node: StreamNode, x: View, weight: np.ndarray, bias: np.ndarray | None, shape: tuple[int, ...]
    ) -> View:
        """x @ weight + bias over the last axis of the frame."""
        rows = x.shape if x.shape and x.shape[-1] == weight.shape[0] else (*x.shape, weight.shape[0])
        if int(np.prod(rows)) != int(np.prod(x.shape, dtype=np.int64)):
            raise NoKernel("has a matrix product of unusual rank")
        out = (*rows[:-1], weight.shape[1])
        weight = np.ascontiguousarray(weight, np.float32)
        if (blocks := coded(self.graph.modes, [weight])) is not None:
            return self.block_product(node, x, blocks, bias, shape)
        if int(np.prod(x.shape)) == len(weight):
            transformed = product(self, node, x.reshaped(weight.shape[:1]), weight, bias)
            if transformed is not None:
                return transformed.reshaped(shape)
        return self.step(node, "matmul", [x.reshaped(rows), weight, bias], out, {}).reshaped(shape)

    def block_product(
        self, node: StreamNode, x: View, blocks: list[Blocks], bias: Operand, shape: tuple[int, ...]
    ) -> View:
        """As ``linear`` by weights that stay codes."""
        inputs, outputs = blocks[0].codes.shape
        x = x if x.shape and x.shape[-1] == inputs else x.reshaped((*x.shape, inputs))
        weights, attrs = block_operands(blocks)
        made = self.step(node, "matmul_blocks", [x, *weights, bias], (*x.shape[:-1], outputs), attrs)
        return made.reshaped(shape)

    def unfolded(self, node: StreamNode, view: View, axis: int, **taps: int) -> View:
        """Frames that ``taps`` says (as in Read) as one frame, in which they are the axis ``axis``."""
        signal, fact = view.signal, node.output.fact
        read = self.read(view, **taps)
        if signal.item_bytes > 4 and (read.dilation > 1 or signal.pitch != frame_elements(signal.shape)):
            raise NoKernel(f"puts frames of {signal.dtype} together")
        output = FrameValue(node.name, node.output.frame_shape, signal.dtype)
        made = self.signal(node.output.name, output.shape, output.dtype, fact.made, fact.length)
        return self.add(FrameNode("unfold", (read.value,), output, {"axis": axis}), [read], made)

    def fetch(self, node: StreamNode, table: np.ndarray, rows: View, shape: tuple[int, ...]) -> View:
        """The row of ``table`` that each frame of ``rows``, one number, names."""
        fact = node.output.fact
        table = half_table(table)
        signal = self.signal(node.output.name, shape, table.dtype.name, fact.made, fact.length)
        read = self.read(rows)
        read.count = signal.made
        self.steps.append(Fetch(read, signal, table))
        return View(signal, 0, 1, shape, signal.length)

    def choose(self, node: StreamNode, table: Table, units: View, guess: bool = False) -> View:
        """The slots of the units that each frame of ``units`` names."""
        fact = node.output.fact
        name = f"{node.output.name}/{'guess' if guess else 'slots'}"
        signal = self.signal(name, () if guess else units.shape, "int32", fact.made, fact.length)
        read = self.read(units)
        read.count, read.loop = signal.made, self.loop
        self.steps.append(Choose([read], signal, table, guess, read.loop))
        return View(signal, 0, 1, signal.shape, signal.length)

    # Time -----------------------------------------------------------------------------------------------------------

    def padded(self, view: View, fill: float, left: int, right: int, name: str) -> View:
        """A view whose neighbours before the start and after the end read as ``fill``."""
        signal = view.signal
        start_ok = left <= 0 or (view.offset <= 0 and view.stride == 1)
        end_ok = right <= 0 or (view.covers_end and view.stride == 1)
        if start_ok and end_ok and signal.unit == 1 and signal.initial is None and signal.fill in (None, fill):
            signal.fill = fill
            return view
        copied = self.materialise(view, None, name)
        copied.signal.fill = fill
        return copied

    def materialise(self, view: View, made: Count | None, name: str) -> View:
        """A copy of exactly the view's own frames."""
        if made is None:
            made = view.signal.made.affine(1, view.stride - 1 - view.offset, view.stride)
            made = made.minimum_with(view.length.affine(1, 0))
        fill = view.signal.fill or 0.0
        signal = self.signal(f"{name}/copy", view.shape, view.signal.stored, made, view.length)
        if view.stride != 1:
            return self._moved(view, signal)
        self.copy(view, signal, 0, 0, fill)
        return View(signal, 0, 1, view.shape, view.length)

    def _moved(self, view: View, signal: Signal) -> View:
        read = self.read(view)
        output = FrameValue(signal.name, view.shape, signal.dtype)
        return replace(self.add(FrameNode("identity", (read.value,), output), [read], signal), length=view.length)

    def stored_as(self, view: View, dtype: str, name: str) -> View:
        """The view's frames in memory of an element type: float32 and float16 stand for each other."""
        if view.signal.stored == dtype or {view.signal.stored, dtype} != {"float32", HALF}:
            return view
        made = view.signal.made.affine(1, view.stride - 1 - view.offset, view.stride)
        made = made.minimum_with(view.length.affine(1, 0))
        return self._moved(view, self.signal(f"{name}/{dtype}", view.shape, dtype, made, view.length))

    def copy(
        self, view: View, target: Signal, offset: int, mode: int, fill: float, back: int = 0, last: bool = False
    ) -> None:
        if self.loop:
            raise NoKernel("copies frames inside a loop")
        view = self.stored_as(view, target.stored, target.name)
        if view.signal.pitch != target.pitch:
            target.pitch = view.signal.pitch
        read = self.read(view, offset=offset, back=back)
        read.count = target.made
        self.steps.append(Copy(read, target, mode, fill, last=last))


def lower(graph: StreamGraph) -> Lowering:
    """The steps of a stream graph. Raises NoKernel, whose message is the reason, where the native backend cannot run
    it."""
    return Lowering(with_neurons(graph)[0] if graph.sparse else graph).run()
