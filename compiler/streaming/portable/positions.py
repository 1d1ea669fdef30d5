"""The portable form of positions, tables and frames of frames."""

from __future__ import annotations

import numpy as np
from onnx import helper

from runnel.compiler.streaming.emit import LENGTH, POSITION, Builder, Chunk
from runnel.compiler.streaming.kinds.positions import WRAP, Extent, Frames, Positions, Table
from runnel.compiler.streaming.portable.basic import reading
from runnel.compiler.streaming.portable.registry import Chunks, read, writes


@writes(Positions)
def _positions(b: Builder, node: Positions, chunks: Chunks) -> Chunk:
    frames = b.frames_of(node.output)
    value = b.numbers(node.output.fact.rate, 0, frames)
    if node.step != 1:
        value = b.node("Mul", [value, b.constant(node.step)])
    if node.start:
        value = b.node("Add", [value, b.constant(node.start)])
    return Chunk(b.node("Identity", [value], b.fresh(node.output.name)), 0, frames)


@writes(Table)
def _table(b: Builder, node: Table, chunks: Chunks) -> Chunk:
    frames, axis = b.frames_of(node.output), node.output.axis
    if node.is_constant:
        return Chunk(b.constant(np.repeat(node.rows, frames, axis)), 0, frames)
    numbers, count = b.numbers(node.output.fact.rate, 0, frames), node.rows.shape[axis]
    if node.beyond == WRAP:
        place = b.node("Mod", [numbers, b.constant(count)])
    else:
        place = b.node("Min", [numbers, b.constant(count - 1)])
    return Chunk(b.node("Gather", [b.constant(node.rows), place], b.fresh(node.output.name), axis=axis), 0, frames)


@writes(Extent)
def _extent(b: Builder, node: Extent, chunks: Chunks) -> Chunk:
    here = b.node("Min", [LENGTH, b.node("Add", [POSITION, b.constant(b.hop)])])  # if the stream ends with this call
    value = b.node(
        "Cast", [b.length(node.count, here)], to=helper.np_dtype_to_tensor_dtype(np.dtype(node.output.dtype))
    )
    if node.div != 1:
        value = b.node("Div", [value, b.constant(np.array(node.div, node.output.dtype))])
    return Chunk(b.node("Reshape", [value, b.constant(list(node.output.frame_shape))]), 0, 0)


@writes(Frames)
def _frames(b: Builder, node: Frames, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    frames = b.frames_of(node.output)
    name, delay = reading(
        b, x, chunk, -node.offset, node.stride, node.span, frames, 0.0, False, f"frames.{node.output.name}"
    )
    starts, taps = node.stride * np.arange(frames), node.dilation * np.arange(node.kernel)
    places = taps[:, None] + starts if node.before else starts[:, None] + taps
    return Chunk(b.node("Gather", [name, b.constant(places)], b.fresh(node.output.name), axis=x.axis), delay, frames)
