"""The portable form of running answers: a call carries as many whole tensors as it has frames."""

from __future__ import annotations

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.kinds.running import Stack, Unstack
from runnel.compiler.streaming.portable.registry import Chunks, read, writes


@writes(Stack)
def _stack(b: Builder, node: Stack, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    shape = b.constant(list(node.output.frame_shape))
    frames = [b.slice(chunk.name, i, i + 1, x.axis) for i in range(chunk.frames)]
    each = tuple(b.node("Reshape", [frame, shape]) for frame in frames)
    return Chunk(each[0], chunk.delay, chunk.frames, each)


@writes(Unstack)
def _unstack(b: Builder, node: Unstack, chunks: Chunks) -> Chunk:
    _, chunk = read(node, chunks)
    shape = b.constant([1 if d is None else d for d in node.output.shape])
    each = [b.node("Reshape", [name, shape]) for name in chunk.each]
    return Chunk(b.node("Concat", each, axis=node.output.axis), chunk.delay, chunk.frames)
