"""The portable form of resampled and spread frames, and of streams of one value."""

from __future__ import annotations

import numpy as np

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.kinds.geometry import Fill, Interleave, Resample
from runnel.compiler.streaming.portable.basic import reading
from runnel.compiler.streaming.portable.registry import Chunks, read, writes


@writes(Fill)
def _fill(b: Builder, node: Fill, chunks: Chunks) -> Chunk:
    _, chunk = read(node, chunks)
    shape = [chunk.frames if d is None else d for d in node.output.shape]
    return Chunk(b.constant(np.full(shape, node.value, node.output.dtype)), chunk.delay, chunk.frames)


@writes(Resample)
def _resample(b: Builder, node: Resample, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    blocks = b.frames_of(node.output) // node.up
    low = min(node.first)
    whole, delay = reading(
        b, x, chunk, -low, node.down, node.span, blocks, 0.0, False, f"resample.{node.output.name}"
    )  # fmt: skip
    places = (np.arange(blocks)[:, None] * node.down + np.array(node.first) - low).reshape(-1)
    delay = node.up * delay + node.crop
    frames = blocks * node.up
    if node.weights is None:
        return Chunk(b.node("Gather", [whole, b.constant(places)], axis=x.axis), delay, frames)
    shape = [frames if d is None else 1 for d in x.shape]
    total = ""
    for k in range(node.taps):
        weight = np.tile(node.weights[:, k], blocks).reshape(shape).astype(x.dtype)
        part = b.node("Gather", [whole, b.constant(places + k)], axis=x.axis)
        part = b.node("Mul", [part, b.constant(weight)])
        total = b.node("Add", [total, part]) if total else part
    return Chunk(total, delay, frames)


@writes(Interleave)
def _spread(b: Builder, node: Interleave, chunks: Chunks) -> Chunk:
    _, chunk = read(node, chunks)
    frames = chunk.frames * node.count
    shape = [frames if d is None else d for d in node.output.shape]
    return Chunk(b.node("Reshape", [chunk.name, b.constant(shape)]), chunk.delay * node.count, frames)
