"""The portable form of values known at the end: every call gives what they would be if the stream ended there."""

from __future__ import annotations

import numpy as np

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.kinds.once import First, Last
from runnel.compiler.streaming.portable.basic import recent_frames
from runnel.compiler.streaming.portable.registry import Chunks, read, writes


@writes(Last)
def _last(b: Builder, node: Last, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    kept = recent_frames(b, x, b.known(x, chunk), node.start, node.stop, f"last.{node.output.name}")
    return Chunk(b.node("Reshape", [kept, b.constant(list(node.output.frame_shape))]), 0, 0)


@writes(First)
def _first(b: Builder, node: First, chunks: Chunks) -> Chunk:
    """Each call puts in their places what it carries of these frames."""
    x, chunk = read(node, chunks)
    count = node.stop - node.start
    shape = tuple(count if d is None else d for d in x.shape)
    state, out = b.state(f"first.{node.output.name}", shape, x.dtype, 0.0)
    begin = b.start(x.fact.rate, chunk.delay)
    places = b.node("Sub", [b.constant(np.arange(node.start, node.stop)), begin])
    last = b.constant(chunk.frames - 1)
    inside = b.node("Min", [b.node("Max", [places, b.constant(0)]), last])
    carried = b.node("Equal", [places, inside])
    carried = b.node("Reshape", [carried, b.constant([count if d is None else 1 for d in x.shape])])
    frames = b.node("Gather", [chunk.name, inside], axis=x.axis)
    held = b.node("Where", [carried, frames, state], out)
    return Chunk(b.node("Reshape", [held, b.constant(list(node.output.frame_shape))]), 0, 0)
