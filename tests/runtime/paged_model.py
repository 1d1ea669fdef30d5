"""A small model whose weights lie in many segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.compiler.lowering import moving, segments, split

RNG = np.random.default_rng(3)
SMALL = 1 << 14  # bytes of a segment
TOKENS = 300


def constants(**shapes: tuple[int, ...]) -> list[TensorProto]:
    return [numpy_helper.from_array((0.2 * RNG.standard_normal(s)).astype(np.float32), n) for n, s in shapes.items()]


def decoder() -> bytes:
    """A table, a recurrence, products with many segments, and a layer with a stride that runs every other frame."""
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["e"]),
        helper.make_node("MatMul", ["e", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["d", "gw", "gr"], ["g"], hidden_size=32),
        helper.make_node("Squeeze", ["g", "axis"], ["h"]),
        helper.make_node("Transpose", ["h"], ["i"], perm=[1, 2, 0]),
        helper.make_node("Conv", ["i", "k"], ["slow"], strides=[2], pads=[2, 0], kernel_shape=[3]),
        helper.make_node("Transpose", ["h"], ["j"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["j", "w2"], ["y"]),
    ]
    weights = constants(table=(TOKENS, 48), w0=(48, 256), w1=(256, 96), w2=(32, 300), gw=(1, 96, 96), gr=(1, 96, 32),
                        k=(80, 32, 3))  # fmt: skip
    graph = helper.make_graph(
        nodes, "paged", [helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "T"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "T", 300]),
         helper.make_tensor_value_info("slow", TensorProto.FLOAT, [1, 80, "S"])],
        [*weights, numpy_helper.from_array(np.array([1]), "axis")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def compiled(path: Path) -> Path:
    """The model as a bundle whose segments are small."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (split, segments):
            patch.setattr(module, "SEGMENT_BYTES", SMALL)
        patch.setattr(segments, "BLOCK_BYTES", 4096)
        patch.setattr(moving, "FETCHED", 1000)
        runnel.compile(decoder(), path, backend="native", hop=5)
    return path
