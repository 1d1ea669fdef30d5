"""The walk over an offline graph in window mode: which columns of each tensor windows share, and which they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx

from runnel.compiler.graph.fold import captured_names, fold
from runnel.compiler.graph.model import Graph, Node, Port
from runnel.compiler.registry import registering
from runnel.compiler.streaming.analysis import Analysis
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import (
    STACKED,
    Operand,
    Pointwise,
    Shift,
    Source,
    Stream,
    StreamFact,
    StreamNode,
    Unfold,
)
from runnel.compiler.streaming.registry import Refusal, missing_rule
from runnel.compiler.streaming.unruled import reads
from runnel.compiler.streaming.windows.columns import Columns
from runnel.compiler.streaming.windows.padding import PADDED, explicit, pad_amounts
from runnel.errors import InternalError, Reason

DOMAINS = ("", "ai.onnx", "com.microsoft")
UNSIZED = ("NonZero", "Unique", "Compress", "NonMaxSuppression", "StringSplit", "ImageDecoder")
SIZED_BY = {
    "Reshape": 1, "Slice": 1, "Expand": 1, "Tile": 1, "Resize": 1, "Upsample": 1, "Pad": 1, "Range": 0, "Split": 1,
    "ConstantOfShape": 0, "TopK": 1, "OneHot": 1, "Unsqueeze": 1, "Squeeze": 1, "CenterCropPad": 1, "AffineGrid": 1,
}  # fmt: skip
"""The first input that says how large the output is."""
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


class Poisoned:
    """The output of a node that was refused."""


Value: TypeAlias = "Columns | Stream | np.ndarray | Poisoned"
WindowRule: TypeAlias = "Callable[[Walk, Node], list[Value] | None]"
WINDOW_RULES: dict[str, WindowRule] = {}


def window_rule(*ops: str) -> Callable[[WindowRule], WindowRule]:
    """Register how windows share the work of these ops. None: they do not here, so that it runs on whole windows."""
    return registering(WINDOW_RULES, ops, "window rules for")


class Walk:
    """The state of one walk.

    share: whether windows share anything; without, every op runs on whole windows, as a user who calls the model again
    would do. neighbours: whether padding of time is the signal's own neighbours (signal.py).
    """

    neighbours = False
    bounded = True
    """Whether the start of every stream is known: no window reads before it."""

    def pads(self, node: Node, x: Columns) -> None:
        """Called with signal padding where the node pads the time of x."""

    def __init__(self, graph: Graph, window: tuple[int, int], shapes: Mapping[str, tuple[tuple[int, ...], str]],
                 share: bool = True) -> None:  # fmt: skip
        self.graph, self.window, self.shapes, self.share = graph, window, shapes, share
        self.nodes: list[StreamNode] = []
        self.values: dict[str, Value] = dict(graph.constants)
        self.reasons: list[Reason] = []
        self.notes: list[str] = []
        self.trial = Analysis(graph, {}, window)
        """Applies rules of sequence mode to streams that stand in for columns."""
        self.trial.shapes, self.trial.probe_length = dict(shapes), window[0]
        self._spans: dict[tuple[Columns, int, int], Stream] = {}
        width, hop = window
        self.time = Count.time()
        self.windows = self.time.affine(1, hop - width, hop)
        """After t input frames: how many windows are complete."""

    # Adding nodes ---------------------------------------------------------------------------------------------------

    def add(
        self, kind: type[StreamNode], name: str, op: str, inputs: Sequence[Operand], shape: Sequence[int | None],
        dtype: str, final: Count, length: Count, *, node: str = "", **fields: Any,
    ) -> Stream:  # fmt: skip
        """Add a stream node and return its output. The time axis is where ``shape`` has None."""
        streams = [x for x in inputs if isinstance(x, Stream)]
        clock = streams[0].fact.clock if streams else name
        shape = tuple(shape)
        axis = shape.index(None) if None in shape else STACKED
        made = Stream(name, shape, dtype, StreamFact(axis, final, length, clock))
        made.node = kind(node or name, op, list(inputs), made, **fields)
        self.nodes.append(made.node)
        return made

    def apply(
        self, node: Node, op: str, inputs: Sequence[Operand], shape: Sequence[int | None], suffix: str = "",
        attrs: Mapping[str, Any] | None = None, domain: str = "", dtype: str | None = None, output: int = 0,
    ) -> Stream:  # fmt: skip
        """A frame-local node, on stacked tensors or on frames of streams."""
        streams = [x for x in inputs if isinstance(x, Stream)]
        final, length = streams[0].fact.final, streams[0].fact.length
        for other in streams[1:]:
            final = final.minimum_with(other.fact.final)
            length = length.minimum_with(other.fact.length)
        return self.add(
            Pointwise, node.outputs[output] + suffix, op, inputs, shape, dtype or streams[0].dtype, final, length,
            node=node.name, attrs=dict(attrs or {}), domain=domain,
        )  # fmt: skip

    def shifted(self, x: Stream, frames: int) -> Stream:
        """The stream from frame ``frames`` on."""
        if frames == 0:
            return x
        final, length = x.fact.final.affine(1, -frames), x.fact.length.affine(1, -frames)
        return self.add(Shift, f"{x.name}/from {frames}", "Shift", [x], x.shape, x.dtype, final, length, offset=frames)

    def sliced(self, node: Node, x: Stream, axis: int, start: int, stop: int, suffix: str) -> Stream:
        """Places start to stop of an axis of a stacked tensor."""
        if start == 0 and stop == x.shape[axis]:
            return x
        bounds: list[Operand] = [np.array([v], np.int64) for v in (start, stop, axis)]
        shape = [stop - start if i == axis else d for i, d in enumerate(x.shape)]
        return self.apply(node, "Slice", [x, *bounds], shape, suffix)

    def joined(self, node: Node, parts: Sequence[Operand], axis: int, suffix: str) -> Stream:
        """Stacked tensors and constants, one after the other along an axis."""
        first = next(p for p in parts if isinstance(p, Stream))
        if len(parts) == 1:
            return first
        total = sum(int(p.shape[axis] or 0) for p in parts if p is not None)
        shape = [total if i == axis else d for i, d in enumerate(first.shape)]
        return self.apply(node, "Concat", parts, shape, suffix, {"axis": axis})

    def filled(self, node: Node, x: Stream, pads: Sequence[int], fill: np.ndarray, suffix: str) -> Stream:
        """A stacked tensor with constants around it, pads as in ONNX.

        Joined and not padded: onnxruntime would fuse Pad into pools that cannot hold it.
        """
        rank = len(x.shape)
        for axis in range(rank):
            sides: list[Operand] = []
            for count in (pads[axis], pads[rank + axis]):
                shape = [count if a == axis else int(d or 0) for a, d in enumerate(x.shape)]
                sides.append(np.full(shape, fill.reshape(()), x.dtype) if count else None)
            parts = [p for p in (sides[0], x, sides[1]) if p is not None]
            x = self.joined(node, parts, axis, f"{suffix}/{axis}")
        return x

    # Columns --------------------------------------------------------------------------------------------------------

    def span(self, node: Node, x: Columns, start: int, stop: int) -> Stream:
        """Columns start to stop of each window, as one stacked tensor."""
        assert 0 <= start < stop <= x.frames, (start, stop, x.frames)
        key = (x, start, stop)
        if key not in self._spans:
            begin, end = x.inner
            parts: list[Operand] = []
            mark = f"/{x.stream.name}/{start}:{stop}"
            if start < begin and x.left is not None:
                parts.append(self.sliced(node, x.left, x.axis, start, min(stop, begin), f"{mark}/left"))
            if max(start, begin) < min(stop, end):
                parts.append(self._unfold(x, max(start, begin), min(stop, end)))
            if stop > end and x.right is not None:
                parts.append(self.sliced(node, x.right, x.axis, max(start, end) - end, stop - end, f"{mark}/right"))
            self._spans[key] = self.joined(node, parts, x.axis, mark)
        return self._spans[key]

    def _unfold(self, x: Columns, start: int, stop: int) -> Stream:
        count = stop - start
        first = x.offset + x.spacing * start
        ahead = first + (count - 1) * x.spacing + 1 - x.hop
        if first < 0 and self.bounded:
            raise InternalError(f"a window would read before the start of '{x.stream.name}'; please report this model")
        fact = x.stream.fact
        return self.add(
            Unfold, f"{x.stream.name}/{start}:{stop}", "Unfold", [x.stream], x.shape(count), x.stream.dtype,
            fact.final.affine(1, -ahead, x.hop), fact.length.affine(1, -ahead, x.hop),
            kernel=count, stride=x.hop, dilation=x.spacing if count > 1 else 1, offset=first,
        )  # fmt: skip

    def stacked(self, node: Node, value: Columns | Stream) -> Stream:
        """The whole window as one tensor."""
        return value if isinstance(value, Stream) else self.span(node, value, 0, value.frames)

    @staticmethod
    def worth_sharing(new: int, edges: int, columns: int) -> bool:
        """Whether ``new`` shared columns a hop and so many columns at the edges are less work than a whole window."""
        return new + edges < columns or (edges == 0 and new <= columns)

    def explicit(self, node: Node) -> dict[str, Any]:
        """The node's attributes: of convolutions and pools with explicit pads, of loops with what they read inside."""
        if any(isinstance(v, onnx.GraphProto) for v in node.attrs.values()):
            return {k: self._closed(v) if isinstance(v, onnx.GraphProto) else v for k, v in node.attrs.items()}
        if node.op not in PADDED:
            return dict(node.attrs)
        x, made = self.values[node.inputs[0]], self.shapes[node.outputs[0]][0]
        sizes = x.shape if isinstance(x, np.ndarray) else self.shapes[node.inputs[0]][0]
        kernel = node.attrs.get("kernel_shape")
        if kernel is None:
            weight = self.values[node.inputs[3 if node.op == "QLinearConv" else 1]]
            if not isinstance(weight, np.ndarray):
                return dict(node.attrs)
            kernel = weight.shape[2:]
        return explicit(node, sizes[2:], made[2:], kernel)

    # The walk -------------------------------------------------------------------------------------------------------

    def source(self, port: Port, axis: int) -> None:
        """An input of the model."""
        time = self.time
        shape = tuple(None if a == axis else d for a, d in enumerate(port.shape))
        stream = self.add(Source, port.name, "Source", [], shape, port.dtype, time, time)  # type: ignore[arg-type]
        columns = Columns(stream, self.window[0], 0, self.window[1], 1)
        node = Node("Source", port.name, [], [port.name])
        self.values[port.name] = columns if self.share else self.stacked(node, columns)

    def visit(self, node: Node) -> None:
        """Add what the node needs; a refusal is collected and its outputs are poisoned."""
        if any(isinstance(self.values.get(i), Poisoned) for i in reads(node)):
            self.values.update({o: Poisoned() for o in node.outputs if o})
            return
        try:
            if any(0 in self.shapes[o][0] for o in node.outputs if o in self.shapes):
                frames = self.window[0]
                raise Refusal(f"gives an empty tensor for a window of {frames} frames", "use a longer window")
            results = self._results(node)
        except Refusal as refusal:
            self.reasons.append(Reason(node.name, node.op, refusal.reason, refusal.remedy))
            results = [Poisoned() for _ in node.outputs]
        self.values.update({name: r for name, r in zip(node.outputs, results, strict=False) if name})

    def _results(self, node: Node) -> list[Value]:
        inputs = [self.values[i] for i in node.inputs if i]
        if not any(isinstance(v, (Columns, Stream)) for v in inputs):
            return self._constant(node)
        if any(isinstance(v, Columns) for v in inputs) and not any(isinstance(v, Stream) for v in inputs):
            from runnel.compiler.streaming.windows.local import frame_local

            rule = WINDOW_RULES.get(node.op, frame_local) if node.domain in ("", "ai.onnx") else frame_local
            results = rule(self, node)
            if results is not None:
                return results
            self._note(node)
        return self.whole(node)

    def _note(self, node: Node) -> None:
        hint = f"'{node.name}' ({node.op})"
        if not self.notes:
            self.notes.append(f"from {hint} on, each window is computed as a whole")

    def whole(self, node: Node) -> list[Value]:
        """The node on whole windows."""
        if node.domain not in DOMAINS:
            raise missing_rule(node.op)
        if node.op == "BatchNormalization" and node.attrs.get("training_mode"):
            raise Refusal("is in training mode and normalises by the batch", "export the model in inference mode")
        lengths = node.inputs[4] if node.op in ("GRU", "LSTM", "RNN") and len(node.inputs) > 4 else ""
        if lengths and isinstance(self.values[lengths], (Columns, Stream)):
            raise Refusal("takes the lengths of its sequences from the window", "export it without sequence_lens")
        if node.op in RANDOM:
            raise Refusal("gives other values each time", "export the model in inference mode")
        sized = [i for i in node.inputs[SIZED_BY.get(node.op, len(node.inputs)) :] if i]
        if node.op in UNSIZED or any(isinstance(self.values[i], (Columns, Stream)) for i in sized):
            raise Refusal("has an output whose size depends on the data", "export the model with fixed sizes")
        operands: list[Operand] = []
        for name in node.inputs:
            value = self.values[name] if name else None
            assert not isinstance(value, Poisoned)
            operands.append(self.stacked(node, value) if isinstance(value, (Columns, Stream)) else value)
        if node.op == "Pad" and isinstance(operands[0], Stream) and node.attrs.get("mode", "constant") == "constant":
            pads, fill = pad_amounts(node, operands, len(operands[0].shape))
            if min(pads) >= 0:
                return [self.filled(node, operands[0], pads, fill, "/padded")]
        results: list[Value] = []
        for i, name in enumerate(node.outputs):
            if not name:
                results.append(Poisoned())
                continue
            shape, dtype = self.shapes[name]
            attrs = self.explicit(node)
            if len(node.outputs) > 1:
                attrs |= {"runnel.output": i, "runnel.outputs": len(node.outputs)}
            results.append(self.apply(node, node.op, operands, shape, "", attrs, node.domain, dtype, i))
        return results

    def _closed(self, body: onnx.GraphProto) -> onnx.GraphProto:
        """A subgraph with the constants around it that it reads."""
        closed = onnx.GraphProto()
        closed.CopyFrom(body)
        for name in sorted(captured_names(body) & set(self.values)):
            value = self.values[name]
            if not isinstance(value, np.ndarray):
                raise Refusal("reads data of the window inside its body", "pass what the body reads as its inputs")
            closed.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))
        return closed

    def _constant(self, node: Node) -> list[Value]:
        known = {i: v for i in node.inputs if isinstance(v := self.values.get(i), np.ndarray)}
        ports = [Port(o, "float32", ()) for o in node.outputs if o]
        small = replace(self.graph, nodes=[node], constants=known, inputs=[], outputs=ports)
        fold(small)
        return [small.constants[o] if o else Poisoned() for o in node.outputs]

    def drop_unread(self, outputs: Sequence[Stream]) -> None:
        """Take out the nodes that no output needs."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if node.output in needed or isinstance(node, Source):
                kept.append(node)
                needed.update(node.streams)
        self.nodes = kept[::-1]

    def output(self, port: Port) -> Stream | None:
        """An output of the model: one stacked frame a window, no earlier than the window is complete."""
        value = self.values.get(port.name)
        node = Node("Output", port.name, [port.name], [port.name])
        if isinstance(value, Poisoned):
            return None
        if not isinstance(value, (Columns, Stream)):
            remedy = "drop this output from the model"
            self.reasons.append(Reason(port.name, "Output", "does not depend on the input frames", remedy))
            return None
        stream = self.stacked(node, value)
        if stream.fact.length == self.windows:
            return stream
        final = stream.fact.final.minimum_with(self.windows)
        return self.add(
            Pointwise, f"{port.name}/complete", "Identity", [stream], stream.shape, stream.dtype, final, self.windows
        )
