"""A model with states that stops early: the layers behind its first answer run where that is not sure enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from onnx import GraphProto, TensorProto, helper, numpy_helper

WIDTH = 64  # a square layer has 16 KiB


def weight(name: str, *shape: int) -> TensorProto:
    """The same ones for the same name."""
    values = np.random.default_rng(list(name.encode())).standard_normal(shape) * 1.5 / np.sqrt(shape[0])
    return numpy_helper.from_array(values.astype(np.float32), name)


def floats(name: str, *shape: int) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def branch(name: str, nodes: Sequence[object], outputs: Sequence[object], *weights: TensorProto) -> GraphProto:
    return helper.make_graph(list(nodes), name, [], list(outputs), list(weights))


def model(threshold: float, inner: float | None = None) -> bytes:
    """x [1, 16], states h1 and h2 [1, 64] → y [1, 32]. Frames whose score passes ``threshold`` take the small branch,
    which keeps h2; the others run two layers more, and, with ``inner``, choose again between them."""
    early = branch(
        "early",
        [helper.make_node("MatMul", ["a", "e"], ["ey"]), helper.make_node("Identity", ["h2"], ["eh"])],
        [floats("ey", 1, 32), floats("eh", 1, WIDTH)], weight("e", WIDTH, 32),
    )  # fmt: skip
    last = [helper.make_node("MatMul", ["lh", "d2"], ["m"]), helper.make_node("Tanh", ["m"], ["n"])]
    tail = [helper.make_node("MatMul", ["n", "d3"], ["ly"])]
    deep = [weight("d2", WIDTH, 4 * WIDTH), weight("d3", 4 * WIDTH, 32)]
    if inner is not None:
        again = {
            "then_branch": branch("short", [helper.make_node("MatMul", ["lh", "s"], ["sy"])], [floats("sy", 1, 32)],
                                  weight("s", WIDTH, 32)),
            "else_branch": branch("long", [*last, helper.make_node("MatMul", ["n", "d3"], ["dy"])],
                                  [floats("dy", 1, 32)], *deep),
        }  # fmt: skip
        tail = [
            helper.make_node("ReduceMean", ["lh"], ["mean"], keepdims=0),
            helper.make_node("Greater", ["mean", "inner"], ["short"]),
            helper.make_node("If", ["short"], ["ly"], **again),
        ]
        last, deep = [], [numpy_helper.from_array(np.float32(inner), "inner")]
    late = branch(
        "late",
        [
            helper.make_node("MatMul", ["a", "d0"], ["b"]),
            helper.make_node("Add", ["b", "h2"], ["c"]),
            helper.make_node("MatMul", ["c", "d1"], ["d"]),
            helper.make_node("Tanh", ["d"], ["lh"]),
            *last,
            *tail,
        ],
        [floats("ly", 1, 32), floats("lh", 1, WIDTH)], weight("d0", WIDTH, WIDTH), weight("d1", WIDTH, WIDTH), *deep,
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("MatMul", ["h1", "r"], ["hr"]),
        helper.make_node("Add", ["xw", "hr"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["a"]),
        helper.make_node("Identity", ["a"], ["h1_out"]),
        helper.make_node("ReduceMean", ["a"], ["score"], keepdims=0),
        helper.make_node("Greater", ["score", "threshold"], ["sure"]),
        helper.make_node("If", ["sure"], ["y", "h2_out"], then_branch=early, else_branch=late),
    ]
    constants = [weight("w", 16, WIDTH), weight("r", WIDTH, WIDTH),
                 numpy_helper.from_array(np.float32(threshold), "threshold")]  # fmt: skip
    graph = helper.make_graph(
        nodes, "early exit", [floats("x", 1, 16), floats("h1", 1, WIDTH), floats("h2", 1, WIDTH)],
        [floats("y", 1, 32), floats("h1_out", 1, WIDTH), floats("h2_out", 1, WIDTH)], constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def called_in_turn(given: bytes, x: np.ndarray) -> np.ndarray:
    """What the model gives, frame after frame."""
    session = ort.InferenceSession(given)
    h1 = h2 = np.zeros((1, WIDTH), np.float32)
    results = []
    for frame in x:
        y, h1, h2 = session.run(None, {"x": frame, "h1": h1, "h2": h2})
        results.append(y)
    return np.stack(results)
