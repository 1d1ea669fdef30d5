"""Positions, tables and frames of frames as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import View
from runnel.compiler.streaming.ir import StreamNode
from runnel.compiler.streaming.kinds.positions import WRAP, Extent, Frames, Positions, Table

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


def _made(low: Lowering, node: StreamNode, op: str, inputs: tuple[np.ndarray, ...], attrs: dict[str, Any]) -> View:
    fact, shape = node.output.fact, node.output.frame_shape
    output = FrameValue(node.name, shape, node.output.dtype)
    signal = low.signal(node.output.name, shape, node.output.dtype, fact.made, fact.length)
    return low.add(FrameNode(op, inputs, output, {"length": fact.length, **attrs}), [], signal)


@lowers(Positions)
def positions(low: Lowering, node: Positions) -> View:
    return _made(low, node, "frame_number", (), {"start": node.start, "step": node.step})


@lowers(Table)
def table(low: Lowering, node: Table) -> View:
    rows = np.ascontiguousarray(np.moveaxis(node.rows, node.output.axis, 0))
    return _made(low, node, "table_row", (rows,), {"wrap": node.beyond == WRAP})


@lowers(Extent)
def extent(low: Lowering, node: Extent) -> View:
    fact, shape = node.output.fact, node.output.frame_shape
    count = low.signal(f"{node.output.name}/count", (), "int64", fact.made, fact.length)
    number = FrameNode("frame_length", (), FrameValue(node.name, (), "int64"), {"length": node.count})
    value = low.elementwise(node, "cast", [low.add(number, [], count)], {"to": node.output.dtype})
    if node.div != 1:
        value = low.elementwise(node, "div", [value, np.array(node.div, node.output.dtype)], {})
    return value.reshaped(shape)


@lowers(Frames)
def frames(low: Lowering, node: Frames) -> View:
    x = node.streams[0]
    view, fact = low.view(x), node.output.fact
    if node.kernel == 1:
        return view.moved(node.offset, fact.length, node.stride).reshaped(node.output.frame_shape)
    taps = {"stride": node.stride, "offset": node.offset, "taps": node.kernel, "dilation": node.dilation}
    return low.unfolded(node, view, x.axis, **taps)
