"""The portable form of values known at the end: every call gives what they would be if the stream ended there."""

from __future__ import annotations

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.kinds.once import Last
from runnel.compiler.streaming.portable.basic import recent_frames
from runnel.compiler.streaming.portable.registry import Chunks, read, writes


@writes(Last)
def _last(b: Builder, node: Last, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    kept = recent_frames(b, x, b.known(x, chunk), node.start, node.stop, f"last.{node.output.name}")
    return Chunk(b.node("Reshape", [kept, b.constant(list(node.output.frame_shape))]), 0, 0)
