"""Recurrences over a sequence inside a frame, against onnxruntime (linear_before_reset both ways, all directions)."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime
import pytest
from kernel_harness import ROWS, Case, Runner, case, random_frames, value
from onnx import TensorProto, helper, numpy_helper

from runnel.compiler.codegen import KernelModule, Target, Unsupported
from runnel.compiler.lowering.frame import Access, FrameNode, Group

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
# op, steps, batch, hidden, direction, linear_before_reset, whether the states are values
CASES = [
    *(("GRU", 33, 1, 4, "bidirectional", 1, False), ("GRU", 5, 2, 33, "reverse", 1, True)),
    *(("GRU", 7, 1, 8, "forward", 0, True), ("GRU", 6, 3, 13, "bidirectional", 0, True)),
    *(("GRU", 1, 33, 8, "forward", 1, True), ("GRU", 4, 1, 16, "forward", 1, False)),
    *(("GRU", 3, 2, 1, "reverse", 0, False), ("LSTM", 9, 1, 16, "bidirectional", 0, True)),
    *(("LSTM", 4, 2, 5, "reverse", 0, False), ("LSTM", 3, 1, 130, "forward", 0, True)),
    ("RNN", 6, 2, 9, "bidirectional", 0, True),
]  # fmt: skip


def reference(
    spec: tuple[str, int, int, int, str, int, bool], feeds: dict[str, np.ndarray], weights: list[np.ndarray]
) -> np.ndarray:
    """Y of onnxruntime; the input's product is the identity's."""
    op, steps, batch, hidden, direction, linear, _ = spec
    names = ["x", "w", "r", "b", "", *(n for n in ("h", "c") if n in feeds)]
    attrs = {"linear_before_reset": linear} if op == "GRU" else {}
    node = helper.make_node(op, names, ["y"], hidden_size=hidden, direction=direction, **attrs)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(v.shape)) for n, v in feeds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(w, n) for n, w in zip("wrb", weights, strict=True)]
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    (y,) = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    return np.asarray(y)


def sequence_case(spec: tuple[str, int, int, int, str, int, bool], rng: np.random.Generator) -> tuple[Case, np.ndarray]:
    op, steps, batch, hidden, direction, linear, given = spec
    ways, width, size = 2 if direction == "bidirectional" else 1, GATES[op] * hidden, 3
    w, r = ((rng.standard_normal((ways, width, n)) / np.sqrt(n)).astype(np.float32) for n in (size, hidden))
    bias = rng.standard_normal((ways, 2 * width)).astype(np.float32)
    x = rng.standard_normal((ROWS, steps, batch, size)).astype(np.float32)
    gx = np.concatenate([x @ w[d].T + bias[d, :width] for d in range(ways)], -1)
    count = 2 if op == "LSTM" else 1
    values = [value(n, (ways, batch, hidden)) for n in "hc"[:count]]
    states = [random_frames(rng, v, ROWS if given else 1) for v in values]
    inputs = {value("gx", gx.shape[1:]): gx} | (dict(zip(values, states, strict=True)) if given else {})
    attrs = {"reverse": [False, True] if ways == 2 else [direction == "reverse"], "linear_before_reset": linear}
    y, z = (value(n, (steps, ways, batch, hidden)) for n in "yz")
    scale = rng.standard_normal((ways, 1, hidden)).astype(np.float32)
    operands = (
        next(iter(inputs)),
        r.transpose(0, 2, 1),
        bias[:, width:],
        *(values if given else [s[0] for s in states]),
    )
    nodes = [
        FrameNode(f"{op.lower()}_sequence", operands, y, attrs),
        FrameNode("mul", (y, scale), z),
    ]
    expected = []
    for row in range(ROWS):
        feeds = {"x": x[row]} | {n: s[row if given else 0] for n, s in zip("hc", states, strict=False)}
        expected.append(reference(spec, feeds, [w, r, bias]) * scale)
    return case(str(spec), nodes, inputs), np.stack(expected)


@cache
def built() -> tuple[Runner, list[tuple[Case, np.ndarray]]]:
    rng = np.random.default_rng(0)
    cases = [sequence_case(spec, rng) for spec in CASES]
    return Runner([c for c, _ in cases]), cases


@pytest.mark.parametrize("index", range(len(CASES)))
def test_matches_onnxruntime(index: int) -> None:
    runner, cases = built()
    c, expected = cases[index]
    one, several = runner.run(c)
    assert np.array_equal(one, several)
    np.testing.assert_allclose(one, expected, atol=4e-6 * np.abs(expected).max(), rtol=0)


def test_states_too_large_for_the_stack_are_refused() -> None:
    x, y = value("gx", (2, 1, 3 * 2048)), value("y", (2, 1, 1, 2048))
    weights, state = np.zeros((1, 2048, 3 * 2048), np.float32), np.zeros((1, 1, 2048), np.float32)
    node = FrameNode("gru_sequence", (x, weights, None, state), y, {"reverse": [False], "linear_before_reset": 1})
    with pytest.raises(Unsupported, match="stack"):
        KernelModule(Target.host()).add(Group((node,), {x: Access(1, False, 3 * 2048 * 2)}))
