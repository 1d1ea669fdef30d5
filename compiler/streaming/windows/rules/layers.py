"""Convolutions and pools over the window: shared columns at the phases that occur, edges with the padding they meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.ir import Operand, Stream, Window
from runnel.compiler.streaming.windows.columns import Columns
from runnel.compiler.streaming.windows.local import frame_local
from runnel.compiler.streaming.windows.walk import Value, Walk, window_rule


@dataclass(frozen=True)
class Taps:
    """Output column c reads input columns stride·c - left + dilation·k, k < kernel, of ``frames``; ``made`` come out.

    The columns before ``begin`` read the input's left edge or padding, those from ``end`` on the right one.
    """

    kernel: int
    stride: int
    dilation: int
    left: int
    frames: int
    made: int
    begin: int
    end: int

    @staticmethod
    def of(x: Columns, made: int, kernel: int, stride: int, dilation: int, left: int) -> Taps:
        begin, end = x.inner
        span = (kernel - 1) * dilation + 1
        first = max(0, -(-(begin + left) // stride))
        last = min(made, max(0, -(-(end + left - span + 1) // stride)))
        return Taps(kernel, stride, dilation, left, x.frames, made, first, last)

    @property
    def span(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    @property
    def left_reads(self) -> tuple[int, int, int]:
        """(first column, last column + 1, padding before) that the left edge of the output reads."""
        return 0, self.stride * (self.begin - 1) - self.left + self.span, self.left

    @property
    def right_reads(self) -> tuple[int, int, int]:
        """(first column, last column + 1, padding behind) that the right edge of the output reads."""
        past = self.stride * (self.made - 1) - self.left + self.span - self.frames
        return self.stride * self.end - self.left, self.frames + min(0, past), max(0, past)


@window_rule("Conv", "ConvInteger", "MaxPool", "AveragePool")
def layer(walk: Walk, node: Node) -> list[Value] | None:
    x = walk.values[node.inputs[0]]
    others = [walk.values[i] if i else None for i in node.inputs[1:]]
    if not isinstance(x, Columns) or any(isinstance(v, (Columns, Stream)) for v in others) or any(node.outputs[1:]):
        return None
    if x.axis < 2:
        return frame_local(walk, node) if x.axis == 0 else None
    weights: list[Operand] = [v if isinstance(v, np.ndarray) else None for v in others]
    attrs = walk.explicit(node)
    i = x.axis - 2
    rank = len(x.stream.shape) - 2
    if attrs.get("ceil_mode"):
        return None
    dilations = attrs.get("dilations", [1] * rank)
    made = walk.shapes[node.outputs[0]][0][x.axis]
    taps = Taps.of(x, made, attrs["kernel_shape"][i], attrs["strides"][i], dilations[i], attrs["pads"][i])
    if walk.neighbours and (attrs["pads"][i] or attrs["pads"][rank + i]):
        walk.pads(node, x)
        taps = replace(taps, begin=0, end=made)
    columns = _shared(walk, node, x, weights, taps, attrs)
    if columns is None:
        return None

    def edge(reads: tuple[int, int, int], count: int, at: int, suffix: str) -> Stream:
        start, stop, padding = reads
        pads = list(attrs["pads"])
        pads[i] = pads[rank + i] = 0
        pads[at] = padding
        part = walk.span(node, x, start, stop)
        shape, dtype = columns.shape(count), columns.stream.dtype
        return walk.apply(node, node.op, [part, *weights], shape, suffix, attrs | {"pads": pads}, "", dtype)

    if taps.begin:
        columns.left = edge(taps.left_reads, taps.begin, i, "/left")
    if taps.end < made:
        columns.right = edge(taps.right_reads, made - taps.end, rank + i, "/right")
    return [columns]


def _shared(
    walk: Walk, node: Node, x: Columns, weights: list[Operand], taps: Taps, attrs: dict[str, Any]
) -> Columns | None:
    """The columns that touch no edge; None where computing them once saves nothing.

    Windows begin ``hop`` frames apart and the columns of one lie stride·spacing frames apart, so the phases that occur
    are the multiples of the greatest common divisor of both. A single column occurs at one phase.
    """
    inner = taps.end - taps.begin
    edges = taps.made - inner
    if inner <= 0:
        return None
    every = x.hop if inner == 1 else gcd(x.hop, taps.stride * x.spacing)
    if not walk.worth_sharing(x.hop // every, edges, taps.made):
        return None
    start, stop, _ = taps.right_reads
    if (taps.begin and taps.left_reads[1] < 1) or (taps.end < taps.made and not 0 <= start < stop):
        return None
    first = x.offset - taps.left * x.spacing
    if inner == 1:
        first += taps.stride * taps.begin * x.spacing
    base = first % every
    source = walk.shifted(x.stream, base)
    dilation = taps.dilation * x.spacing if taps.kernel > 1 else 1
    operands, op, shared = weights, node.op, dict(attrs)
    if node.op == "AveragePool" and dilation > 1 and walk.graph.opset < 19:
        mean = _mean_as_conv(x, attrs)
        if mean is None:
            return None
        op, (operands, shared) = "Conv", mean
    time, rank = x.axis - 2, len(x.stream.shape) - 2
    shared["strides"] = [every if a == time else s for a, s in enumerate(attrs["strides"])]
    shared["pads"] = [0 if a % rank == time else p for a, p in enumerate(attrs["pads"])]
    if "dilations" in shared or dilation > 1:
        old = shared.get("dilations", [1] * rank)
        shared["dilations"] = [dilation if a == time else d for a, d in enumerate(old)]
    reach = (taps.kernel - 1) * dilation + 1 - every
    name = node.outputs[0]
    shape, dtype = walk.shapes[name]
    fact = source.fact
    stream = walk.add(
        Window, name, op, [source, *operands], [None if a == x.axis else d for a, d in enumerate(shape)], dtype,
        fact.final.affine(1, -reach, every), fact.length.affine(1, -reach, every), node=node.name,
        kernel=taps.kernel, stride=every, dilation=dilation, attrs=shared,
        fill=-np.inf if node.op == "MaxPool" else 0.0,
    )  # fmt: skip
    offset = (first - base) // every - (taps.begin if inner == 1 else 0)
    spacing = 1 if inner == 1 else taps.stride * x.spacing // every
    return Columns(stream, taps.made, offset, x.hop // every, spacing)


def _mean_as_conv(x: Columns, attrs: dict[str, Any]) -> tuple[list[Operand], dict[str, Any]] | None:
    """A dilated average as a convolution: before opset 19 an average has no dilation."""
    channels = x.stream.shape[1]
    time, rank = x.axis - 2, len(attrs["kernel_shape"])
    if channels is None or any(p for a, p in enumerate(attrs["pads"]) if a % rank != time):
        return None
    kernel = attrs["kernel_shape"]
    weight = np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
    kept = {k: attrs[k] for k in ("kernel_shape", "strides", "pads")}
    return [weight], kept | {"group": channels}
