"""The mode "reuse" (StreamiNNC, arXiv 2408.03223): every column is computed once, when it is new, and kept as it is.

Tensors come in *blocks*: the columns of a window that its last hop added. A layer computes them from the newest block
of its input, with the columns that it kept before it and its own padding behind it, where nothing is at hand yet. So
the last columns of a block have seen padding, and keep that value when later windows hold their real neighbours; the
first columns of a window have seen real neighbours where the offline model sees padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from runnel.compiler.graph.model import Node, Port
from runnel.compiler.streaming.ir import Operand, Shift, Source, Stream, Unfold
from runnel.compiler.streaming.kinds.history import History
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.windows.columns import Columns
from runnel.compiler.streaming.windows.local import trial
from runnel.compiler.streaming.windows.rules.sums import MAX, MEAN, SUM, finish, reduce, reduced_axes
from runnel.compiler.streaming.windows.walk import Value, Walk

BlockRule: TypeAlias = "Callable[[Reuse, Node, Blocks], Value | None]"


@dataclass(eq=False)
class Blocks:
    """A tensor of ``frames`` columns a window, of which each block adds ``new``.

    stream: stacked, one block a hop. behind: columns of padding after the newest one, which no block holds.
    """

    stream: Stream
    axis: int
    frames: int
    behind: int = 0

    @property
    def new(self) -> int:
        return int(self.stream.shape[self.axis] or 0)


class Reuse(Walk):
    """The walk of the mode. ``changed``: the nodes whose values differ from the offline model's for it."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.blocks: dict[str, Blocks] = {}
        self.changed: list[str] = []

    def source(self, port: Port, axis: int) -> None:
        width, hop = self.window
        shape = tuple(None if a == axis else d for a, d in enumerate(port.shape))
        stream = self.add(Source, port.name, "Source", [], shape, port.dtype, self.time, self.time)  # type: ignore[arg-type]
        missing = -width % hop
        if missing:  # so that every window ends with a block
            count = stream.fact.final.affine(1, missing)
            stream = self.add(
                Shift, f"{port.name}/padded", "Shift", [stream], stream.shape, stream.dtype, count, count,
                offset=-missing, left=missing,
            )  # fmt: skip
        fact = stream.fact
        sizes = [hop if d is None else d for d in stream.shape]
        block = self.add(
            Unfold, f"{port.name}/block", "Unfold", [stream], sizes, stream.dtype, fact.final.affine(1, 0, hop),
            fact.length.affine(1, 0, hop), kernel=hop, stride=hop,
        )  # fmt: skip
        self.values[port.name] = block
        self.blocks[port.name] = Blocks(block, axis, width)

    def recent(self, node: Node, x: Blocks, columns: int, fill: float = 0.0) -> Stream:
        """The newest ``columns`` columns, one stacked tensor a hop."""
        past = -(-columns // x.new) - 1
        stream = x.stream
        if past > 0:
            shape = [(past + 1) * x.new if a == x.axis else d for a, d in enumerate(stream.shape)]
            fact = stream.fact
            stream = self.add(
                History, f"{node.outputs[0]}/{stream.name}/recent", "History", [stream], shape, stream.dtype,
                fact.final, fact.length, past=past, along=x.axis, fill=fill,
            )  # fmt: skip
        size = int(stream.shape[x.axis] or 0)
        return self.sliced(node, stream, x.axis, size - columns, size, f"/{stream.name}/newest")

    def stacked(self, node: Node, value: Columns | Stream) -> Stream:
        """The whole window."""
        found = next((x for x in self.blocks.values() if x.stream is value), None)
        if found is None:
            assert isinstance(value, Stream)
            return value
        if found.behind:
            raise Refusal("pads time after the end, and no convolution follows", "use mode=exact")
        return self.recent(node, found, found.frames)

    def _results(self, node: Node) -> list[Value]:
        given = [self.blocks[i] for i in node.inputs if i in self.blocks]
        if given and not any(isinstance(self.values[i], Stream) and i not in self.blocks for i in node.inputs if i):
            alone = len(given) == 1 and node.inputs[0] in self.blocks
            if alone and (total := self._total(node, given[0])) is not None:
                return [total]
            made = self._shared(node, given, alone)
            if made is not None:
                self.blocks.update({name: b for name, b in zip(node.outputs, made, strict=False) if name})
                return [b.stream for b in made]
            self._note(node)
        return super()._results(node)

    def _shared(self, node: Node, given: list[Blocks], alone: bool) -> list[Blocks] | None:
        if node.op in ("Conv", "ConvInteger", "MaxPool", "AveragePool") and given[0].axis >= 2:
            if not alone:
                return None
            made = None if any(node.outputs[1:]) else self._layer(node, given[0])
            return None if made is None else [made]
        if node.op == "Pad" and alone and (padded := self._pad(node, given[0])) is not None:
            return [padded]
        first = given[0]
        if any((b.new, b.frames, b.behind) != (first.new, first.frames, 0) for b in given):
            return None
        return self._local(node, {i: self.blocks[i] for i in node.inputs if i in self.blocks})

    def _local(self, node: Node, blocks: dict[str, Blocks]) -> list[Blocks] | None:
        stand_ins = {n: (b.axis, b.frames, b.stream) for n, b in blocks.items()}
        found = trial(self, node, stand_ins)
        if found is None:
            return None
        nodes, results = found
        first = next(iter(blocks.values()))
        known = dict(blocks)
        for n in nodes:
            inputs: list[Operand] = [known[x.name].stream if isinstance(x, Stream) else x for x in n.inputs]
            attrs = dict(n.attrs)
            shape = [first.new if d is None else d for d in n.output.shape]
            if n.op in ("Reshape", "Expand") and "shape" in attrs:
                attrs.pop("shape")
                inputs = [inputs[0], np.array(shape, np.int64)]
            made = self.apply(node, n.op, inputs, shape, f"/{n.output.name}", attrs, n.domain, n.output.dtype)
            known[n.output.name] = Blocks(made, n.output.axis, first.frames)
        return [known[r.name] for r in results]

    def _total(self, node: Node, x: Blocks) -> Stream | None:
        """A sum, mean or maximum over the window, of those of its blocks."""
        if node.op not in (*MEAN, *SUM, *MAX) or x.behind or x.frames < 2 * x.new:
            return None
        axes = reduced_axes(self, node, len(x.stream.shape))
        if axes is None or x.axis not in axes or x.stream.dtype != "float32":
            return None
        op = "ReduceMax" if node.op in MAX else "ReduceSum"
        lowest = -np.inf if op == "ReduceMax" else 0.0
        blocks, rest = divmod(x.frames, x.new)

        def newest(part: Stream, count: int, suffix: str) -> Stream:
            for axis in axes:
                part = reduce(self, node, part, axis, op, f"{suffix}/over {axis}")
            return self.recent(node, Blocks(part, x.axis, x.frames), count, lowest)

        parts: list[Operand] = [newest(x.stream, blocks, "/blocks")]
        if rest:
            older = self.sliced(node, x.stream, x.axis, x.new - rest, x.new, "/rest")
            row = newest(older, blocks + 1, "/rest")
            parts.insert(0, self.sliced(node, row, x.axis, 0, 1, "/oldest"))
        total = reduce(self, node, self.joined(node, parts, x.axis, "/parts"), x.axis, op, "/total")
        count = np.prod([x.frames if a == x.axis else x.stream.shape[a] or 1 for a in axes])
        return finish(self, node, total, float(count) if node.op in MEAN else 1.0)

    def _layer(self, node: Node, x: Blocks) -> Blocks | None:
        attrs = self.explicit(node)
        if attrs.get("ceil_mode"):
            return None
        weights: list[Operand] = [v if isinstance(v := self.values[i], np.ndarray) else None for i in node.inputs[1:]]
        i, rank = x.axis - 2, len(x.stream.shape) - 2
        kernel, stride = attrs["kernel_shape"][i], attrs["strides"][i]
        span = (kernel - 1) * attrs.get("dilations", [1] * rank)[i] + 1
        shape, dtype = self.shapes[node.outputs[0]]
        made, real = shape[x.axis], x.frames - x.behind
        if made == 1 or made * stride <= x.new:  # no column of a window is left for the next one
            return None
        if x.new % stride:
            raise Refusal(
                f"takes steps of {stride} columns, and a hop is {x.new} here: windows would need other columns",
                "use a hop that is a multiple of all strides, or mode=exact",
            )
        new = x.new // stride
        left = attrs["pads"][i]
        before = real + left - stride * made
        padding = max(0, stride * (new - 1) - before + span - x.new)
        if left or padding:
            self.changed.append(node.name)
        lowest = -np.inf if node.op == "MaxPool" else 0.0
        part = self.recent(node, x, max(1, x.new + before), lowest)
        attrs["pads"] = [0 if a % rank == i else p for a, p in enumerate(attrs["pads"])]
        attrs["pads"][rank + i] = padding
        size = [new if a == x.axis else d for a, d in enumerate(shape)]
        stream = self.apply(node, node.op, [part, *weights], size, "", attrs, dtype=dtype)
        return Blocks(stream, x.axis, made)

    def _pad(self, node: Node, x: Blocks) -> Blocks | None:
        """Zeros before the window are left to the columns kept; those behind it to the layer that reads them."""
        given = [self.values[i] if i else None for i in node.inputs[1:]]
        amounts = node.attrs.get("pads", given[0] if given else None)
        if amounts is None or len(given) > 2 or node.attrs.get("mode", "constant") != "constant":
            return None
        rank = len(x.stream.shape)
        pads = [int(v) for v in np.asarray(amounts).reshape(-1)]
        fill = given[1] if len(given) > 1 and given[1] is not None else node.attrs.get("value", 0)
        off_time = any(p for a, p in enumerate(pads) if a % rank != x.axis)
        if off_time or min(pads) < 0 or np.any(np.asarray(fill) != 0) or x.behind:
            return None
        self.changed.append(node.name)
        return Blocks(x.stream, x.axis, x.frames + pads[x.axis] + pads[rank + x.axis], pads[rank + x.axis])

    def output(self, port: Port) -> Stream | None:
        """One answer a window: the first blocks, before a window is whole, have none."""
        value, node = self.values.get(port.name), Node("Output", port.name, [port.name], [port.name])
        if not isinstance(value, Stream):
            return super().output(port)
        width, hop = self.window
        stream = self.stacked(node, value)
        first = -(-width // hop) - 1
        return self.add(
            Shift, f"{port.name}/complete", "Shift", [stream], stream.shape, stream.dtype, self.windows, self.windows,
            offset=first,
        )  # fmt: skip
