"""From the stream graph to steps on signals: what the native backend runs, before fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runnel.compiler.lowering import moving as _moving  # noqa: F401  (registers its handlers)
from runnel.compiler.lowering.frame import LANES, FrameNode, FrameValue, round_up
from runnel.compiler.lowering.pointwise import HANDLERS, conv_attrs
from runnel.compiler.lowering.recurrence import lower_recurrent
from runnel.compiler.lowering.signals import Copy, NoKernel, Read, Signal, Step, View
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import (
    Feedback,
    Pointwise,
    Recurrent,
    Shift,
    Source,
    Stream,
    StreamGraph,
    StreamNode,
    Tail,
    Unfold,
    Upsample,
    Window,
)

Operand = View | np.ndarray | None
MODES = {"constant": 0, "reflect": 1, "edge": 2}


class Lowering:
    """Steps in order, the views of streams, and the signals of inputs and outputs.

    Raises NoKernel where the native backend cannot run the graph.
    """

    def __init__(self, graph: StreamGraph) -> None:
        self.graph = graph
        self.steps: list[Step | Copy] = []
        self.signals: list[Signal] = []
        self.views: dict[Stream, View] = {}
        self.inputs: list[Signal] = []
        self.outputs: dict[str, tuple[View, Tail | None]] = {}
        self.shared: dict[Any, list[View]] = {}  # what several outputs of one node have in common
        self.one_frame_steps = any(isinstance(n, Feedback) for n in graph.nodes)
        self._feedback: list[tuple[Feedback, Signal]] = []
        self._loops = 0

    def run(self) -> Lowering:
        for node in self.graph.nodes:
            try:
                self.views[node.output] = self._lower(node)
            except NoKernel as error:
                raise NoKernel(f"{node.op} '{node.name}' {error}") from None
        for feedback, signal in self._feedback:
            self._copy(self.views[self.graph.carried[feedback.source]], signal, 0, 0, 0.0, last=True)
        for name, value in self.graph.outputs.items():
            stream = value.stream if isinstance(value, Tail) else value
            view = self.views[stream]
            if view.stride != 1 or view.offset < 0 or not view.inside_end:
                view = self.materialise(view, stream.fact.made, stream.name)
            self.outputs[name] = (view, value if isinstance(value, Tail) else None)
        return self

    # What handlers use ----------------------------------------------------------------------------------------------

    def view(self, stream: Stream) -> View:
        return self.views[stream]

    def signal(
        self, name: str, shape: tuple[int, ...], dtype: str, made: Count, length: Count, **fields: Any
    ) -> Signal:
        """A new signal. Nothing is made before the first step, not even frames that are padding alone."""
        if made(0) > 0:
            made = made.minimum_with(Count.time().affine(max(made(1), made.gain * 2 + 1, 1), 0))
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

    def add(self, node: FrameNode, reads: list[Read], signal: Signal, loop: int = 0) -> View:
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
        output = FrameValue(node.name, tuple(shape), dtype)
        signal = self.signal(node.output.name, shape, dtype, fact.made, fact.length)
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
        if op in ("equal", "greater", "less", "greater_equal", "less_equal", "and", "or", "xor", "not"):
            dtype = "bool"
        elif op == "cast":
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
        return self.step(node, "matmul", [x.reshaped(rows), weight, bias], out, {}).reshaped(shape)

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
        if view.stride != 1:
            raise NoKernel("needs a padded view of strided frames")
        if made is None:
            made = view.signal.made.affine(1, -view.offset).minimum_with(view.length.affine(1, 0))
        fill = view.signal.fill or 0.0
        signal = self.signal(f"{name}/copy", view.shape, view.signal.dtype, made, view.length)
        self._copy(view, signal, 0, 0, fill)
        return View(signal, 0, 1, view.shape, view.length)

    def _copy(
        self, view: View, target: Signal, offset: int, mode: int, fill: float, back: int = 0, last: bool = False
    ) -> None:
        if view.signal.pitch != target.pitch:
            target.pitch = view.signal.pitch
        read = self.read(view, offset=offset, back=back)
        read.count = target.made
        self.steps.append(Copy(read, target, mode, fill, last=last))

    # Nodes ----------------------------------------------------------------------------------------------------------

    def _lower(self, node: StreamNode) -> View:
        if isinstance(node, Source):
            fact = node.output.fact
            signal = self.signal(node.output.name, node.output.frame_shape, node.output.dtype, fact.made, fact.length)
            self.inputs.append(signal)
            return View(signal, 0, 1, signal.shape, fact.length)
        if isinstance(node, Feedback):
            return self._lower_feedback(node)
        if isinstance(node, Pointwise):
            handler = HANDLERS.get(node.op) if not node.domain else None
            if handler is None:
                raise NoKernel("has no kernel")
            return handler(self, node).reshaped(node.output.frame_shape)
        if isinstance(node, Window):
            return self._lower_window(node)
        if isinstance(node, Upsample):
            return self._lower_upsample(node)
        if isinstance(node, Shift):
            return self._lower_shift(node)
        if isinstance(node, Recurrent):
            return lower_recurrent(self, node)
        assert isinstance(node, Unfold)
        return self._lower_unfold(node)

    def _lower_feedback(self, node: Feedback) -> View:
        fact = node.output.fact
        shape = node.output.frame_shape
        initial = np.zeros(shape, node.output.dtype) if node.initial is None else node.initial
        signal = self.signal(node.output.name, shape, node.output.dtype, fact.made, fact.length, initial=initial[None])
        self._feedback.append((node, signal))
        return View(signal, -1, 1, shape, fact.length)

    def _lower_window(self, node: Window) -> View:
        x = node.streams[0]
        view = self.view(x)
        if node.left or node.right:
            view = self.padded(view, node.fill, node.left, node.right, node.name)
        rank = len(node.attrs["kernel_shape"])
        time = x.axis - 2
        attrs = conv_attrs(node.attrs, rank, time)
        out = (1, *node.output.frame_shape[1:])
        if x.shape[0] != 1:
            raise NoKernel("convolves a batch")
        operands: list[Any] = []
        if node.op == "Conv":
            weight = np.moveaxis(np.asarray(node.inputs[1]), 2 + time, 2)
            operands = [np.ascontiguousarray(weight), node.inputs[2] if len(node.inputs) > 2 else None]
            op = "conv"
            if all(d == 1 for d in (*view.shape[2:], *out[2:], *weight.shape[3:])):  # no spatial axes worth the name
                attrs |= {"strides": [], "pads": [], "dilations": []}
                operands[0] = operands[0].reshape(weight.shape[:3])
                view, out = view.reshaped(view.shape[:2]), out[:2]
        else:
            op = "max_pool" if node.op == "MaxPool" else "avg_pool"
            kernel = node.attrs["kernel_shape"]
            attrs |= {"kernel": [kernel[i] for i in range(rank) if i != time]}
            if op == "avg_pool":
                attrs["count_include_pad"] = bool(node.attrs.get("count_include_pad", 0))
        read = self.read(view, offset=-node.left, stride=node.stride, taps=node.kernel, dilation=node.dilation)
        output = FrameValue(node.name, out, x.dtype)
        fact = node.output.fact
        signal = self.signal(node.output.name, out, x.dtype, fact.made, fact.length)
        frame = FrameNode(op, (read.value, *operands), output, attrs)
        return self.add(frame, [read], signal).reshaped(node.output.frame_shape)

    def _lower_upsample(self, node: Upsample) -> View:
        x = node.streams[0]
        weight = np.asarray(node.inputs[1], np.float32)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if node.span == 1 and node.stride == 1 and node.crop == 0:
            return self._upsample_inside(node, weight, bias if isinstance(bias, np.ndarray) else None)
        if weight.ndim != 3:
            raise NoKernel("upsamples time and another axis at once")
        group = int(node.attrs.get("group", 1))
        inputs, each, _ = weight.shape
        outputs, unit, taps = each * group, node.stride, node.taps
        padded_out = outputs
        if outputs >= LANES or (unit * outputs >= LANES and unit * outputs % LANES):
            padded_out = round_up(outputs, LANES)
        blocks = np.zeros((unit, padded_out, inputs, taps), np.float32)
        for k in range(node.kernel):
            at = k * node.dilation
            i, phase = divmod(at, unit)
            for g in range(group):
                rows = slice(g * inputs // group, (g + 1) * inputs // group)
                blocks[phase, g * each : (g + 1) * each, rows, taps - 1 - i] += weight[rows, :, k].T
        full_bias = np.zeros((unit, padded_out), np.float32)
        if isinstance(bias, np.ndarray):
            full_bias[:, :outputs] = bias
        view = self.padded(self.view(x), 0.0, taps - 1, taps, node.name)
        fact = node.output.fact
        made = x.fact.made.affine(unit, 0)
        length = fact.length.affine(1, node.crop + unit - 1, unit).affine(unit, 0)  # whole blocks
        frame_shape = (1, outputs)
        signal = self.signal(
            f"{node.output.name}/blocks", frame_shape, x.dtype, made, length, unit=unit, pitch=padded_out
        )
        read = self.read(view, offset=-(taps - 1), taps=taps)
        output = FrameValue(node.name, (1, unit * padded_out), x.dtype)
        attrs = {"group": 1, "strides": [], "pads": [], "dilations": []}
        kernel = np.ascontiguousarray(blocks.reshape(unit * padded_out, inputs, taps))
        self.add(FrameNode("conv", (read.value, kernel, full_bias.reshape(-1)), output, attrs), [read], signal)
        return View(signal, node.crop, 1, node.output.frame_shape, fact.length)

    def _upsample_inside(self, node: Upsample, weight: np.ndarray, bias: np.ndarray | None) -> View:
        """A transposed convolution that does nothing to time."""
        x, time = node.streams[0], node.streams[0].axis - 2
        rank = weight.ndim - 2
        if x.shape[0] != 1:
            raise NoKernel("convolves a batch")
        attrs = conv_attrs(node.attrs, rank, time)
        padding = node.attrs.get("output_padding", [0] * rank)
        attrs["output_padding"] = [int(v) for i, v in enumerate(padding) if i != time]
        operands: list[Operand] = [self.view(x), np.ascontiguousarray(weight.squeeze(2 + time)), bias]
        return self.step(node, "conv_transpose", operands, node.output.frame_shape, attrs)

    def _lower_shift(self, node: Shift) -> View:
        view = self.view(node.streams[0])
        fact = node.output.fact
        right = node.right
        if node.mode == "constant":
            if node.pads:
                view = self.padded(view, node.fill, node.left, 1 if right is None else right, node.name)
            return view.moved(node.offset, fact.length)
        signal = self.signal(node.output.name, view.shape, view.signal.dtype, fact.made, fact.length)
        if view.offset or view.stride != 1 or view.signal.unit != 1 or view.signal.length != view.length:
            view = self.materialise(view, None, node.name)
        edges = node.left + (right or 0)
        self._copy(view, signal, node.offset, MODES[node.mode], 0.0, back=2 * edges)
        return View(signal, 0, 1, view.shape, fact.length)

    def _lower_unfold(self, node: Unfold) -> View:
        x = node.streams[0]
        view = self.view(x)
        fact = node.output.fact
        if node.kernel == 1:
            return View(view.signal, view.offset, view.stride * node.stride, node.output.frame_shape, fact.length)
        if node.kernel > 12:
            raise NoKernel(f"looks at {node.kernel} frames of a window at once")
        axis = x.axis
        shape = tuple(1 if d is None else d for d in x.shape)
        views = [view.moved(k, view.length).reshaped(shape) for k in range(node.kernel)]
        views = [View(v.signal, v.offset, v.stride * node.stride, v.shape, v.length) for v in views]
        return self.step(node, "concat", views, node.output.frame_shape, {"axis": axis})


def lower(graph: StreamGraph) -> Lowering:
    """The steps of a stream graph. Raises NoKernel, whose message is the reason, where the native backend cannot run
    it."""
    return Lowering(graph).run()
