"""The portable form of static inputs: inputs of the ONNX model that every call is given."""

from __future__ import annotations

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.ir import STACKED
from runnel.compiler.streaming.kinds.statics import Spread, Static
from runnel.compiler.streaming.portable.registry import Chunks, writes


@writes(Static)
def _static(b: Builder, node: Static, chunks: Chunks) -> Chunk:
    return Chunk(node.output.name, 0, 0)


@writes(Spread)
def _spread(b: Builder, node: Spread, chunks: Chunks) -> Chunk:
    name, out = chunks[node.streams[0]].name, node.output
    if out.axis == STACKED:
        return Chunk(name, 0, 0 if out.fact.once else b.frames_of(out))
    frames = b.frames_of(out)
    one = b.node("Reshape", [name, b.constant([1 if d is None else d for d in out.shape])])
    return Chunk(b.node("Expand", [one, b.constant([frames if d is None else d for d in out.shape])]), 0, frames)
