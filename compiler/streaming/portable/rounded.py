"""The portable form of rounded activations."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.kinds.rounded import HALF, Rounded
from runnel.compiler.streaming.portable.registry import Chunks, read, writes

LEAST = np.array(1e-30, np.float32)


@writes(Rounded)
def _rounded(b: Builder, node: Rounded, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    if chunk.each:
        each = tuple(_tensor(b, name, list(x.frame_shape), node.block) for name in chunk.each)
        return Chunk(each[0], chunk.delay, chunk.frames, each)
    dims = [chunk.frames if d is None else d for d in x.shape]
    return Chunk(_tensor(b, chunk.name, dims, node.block), chunk.delay, chunk.frames)


def _tensor(b: Builder, name: str, dims: list[int], block: int) -> str:
    if block == HALF:
        return b.node("Cast", [b.node("Cast", [name], to=TensorProto.FLOAT16)], to=TensorProto.FLOAT)
    *outer, inputs = dims
    more = -inputs % block
    if more:
        name = b.node("Pad", [name, b.constant([0] * (2 * len(outer) + 1) + [more])])
    parts = b.node("Reshape", [name, b.constant([*outer, -1, block])])
    size = b.node("Abs", [parts])
    if b.graph.opset < 18:
        largest = b.node("ReduceMax", [size], axes=[-1], keepdims=1)
    else:
        largest = b.node("ReduceMax", [size, b.constant([-1])], keepdims=1)
    scale = b.node("Div", [largest, b.constant(np.array(127, np.float32))])
    codes = b.node("Round", [b.node("Div", [parts, b.node("Max", [scale, b.constant(LEAST)])])])
    whole = b.node("Reshape", [b.node("Mul", [codes, scale]), b.constant([*outer, inputs + more])])
    return b.slice(whole, 0, inputs, len(outer)) if more else whole
