"""Convolutions over spatial axes, transposed ones and pools, against onnxruntime with time as one more axis."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from kernel_harness import ROWS, Case, Runner, case, random_frames, value
from onnx import helper, numpy_helper

from runnel.compiler.lowering.frame import FrameNode

# channels in and out, taps, input size, kernel, stride, pads, dilation, groups
CONVS = [
    (3, 8, 1, (17,), (3,), (1,), (1, 1), (1,), 1),
    (16, 16, 3, (33,), (5,), (2,), (2, 2), (1,), 1),
    (16, 16, 3, (33,), (3,), (1,), (1, 1), (1,), 16),
    (4, 10, 2, (65,), (3,), (1,), (2, 1), (2,), 2),
    (8, 8, 2, (257,), (1,), (1,), (0, 0), (1,), 1),
    (1, 1, 1, (16,), (3,), (1,), (0, 0), (1,), 1),
    (5, 70, 1, (3,), (3,), (1,), (1, 1), (1,), 1),
    (64, 7, 2, (1,), (1,), (1,), (0, 0), (1,), 1),
    (3, 9, 1, (15, 18), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    (6, 6, 2, (9, 40), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6),
    (4, 8, 1, (6, 6), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (2, 3, 1, (4, 5, 20), (2, 3, 3), (1, 1, 3), (0, 1, 1, 1, 1, 0), (1, 1, 1), 1),
    (2, 2, 1, (4,), (9,), (1,), (4, 4), (1,), 1),
]
# channels in and out, input size, kernel, stride, pads, dilation, output padding, groups
TRANSPOSED = [
    (16, 16, (33,), (5,), (2,), (2, 2), (1,), (0,), 1),
    (16, 4, (17,), (3,), (1,), (1, 1), (1,), (0,), 2),
    (3, 5, (8,), (2,), (4,), (0, 0), (1,), (1,), 1),
    (4, 4, (5, 9), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 1),
    (4, 6, (20,), (3,), (3,), (0, 1), (2,), (2,), 2),
    (8, 6, (), (), (), (), (), (), 2),
]
POOLS = [
    (5, 1, (17,), (3,), (2,), (1, 1), (1,)),
    (3, 2, (33,), (2,), (2,), (0, 0), (1,)),
    (20, 3, (), (), (), (), ()),
    (7, 2, (), (), (), (), ()),
    (4, 1, (9, 21), (3, 2), (1, 2), (1, 0, 1, 0), (1, 1)),
]


def reference(op: str, x: np.ndarray, arrays: list[np.ndarray], attrs: dict[str, object]) -> np.ndarray:
    """onnxruntime's result of one node."""
    names = [f"w{i}" for i in range(len(arrays))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], **attrs)],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for a, n in zip(arrays, names)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def add_time(pads: tuple[int, ...]) -> list[int]:
    """Pads with none for the axis of time in front."""
    half = len(pads) // 2
    return [0, *pads[:half], 0, *pads[half:]]


def conv_case(
    index: int, spec: tuple, contiguous: bool, step: int, rng: np.random.Generator
) -> tuple[Case, np.ndarray]:
    cin, cout, taps, size, kernel, stride, pads, dilation, groups = spec
    x = value("x", (1, cin, *size))
    w = rng.standard_normal((cout, cin // groups, taps, *kernel)).astype(np.float32)
    bias = rng.standard_normal(cout).astype(np.float32)
    frames = random_frames(rng, x, (ROWS - 1) * step + taps)
    attrs = {
        "strides": [step, *stride],
        "dilations": [1, *dilation],
        "pads": add_time(pads),
        "group": groups,
    }
    expected = np.moveaxis(reference("Conv", np.moveaxis(frames[:, 0], 0, 1)[None], [w, bias], attrs), 2, 0)
    y = value("y", expected.shape[1:])
    residual, z, out = value("r", y.shape), value("z", y.shape), value("o", y.shape)
    extra = random_frames(rng, residual, ROWS)
    scale = rng.standard_normal((cout, *[1] * len(size))).astype(np.float32)
    node_attrs = {"strides": list(stride), "dilations": list(dilation), "pads": list(pads), "group": groups}
    nodes = [
        FrameNode("conv", (x, w, bias), y, node_attrs),
        FrameNode("mul", (y, scale), z),
        FrameNode("add", (z, residual), out),
    ]
    built = case(f"conv{index}", nodes, {x: frames, residual: extra}, {x: (taps, contiguous, step)})
    return built, expected * scale + extra


def transposed_case(index: int, spec: tuple, rng: np.random.Generator) -> tuple[Case, np.ndarray]:
    cin, cout, size, kernel, stride, pads, dilation, extra, groups = spec
    x = value("x", (1, cin, *size))
    w = rng.standard_normal((cin, cout // groups, *kernel)).astype(np.float32)
    bias = rng.standard_normal(cout).astype(np.float32)
    frames = random_frames(rng, x, ROWS)
    attrs = {"strides": list(stride), "dilations": list(dilation), "pads": list(pads), "output_padding": list(extra)}
    if size:
        expected = reference("ConvTranspose", frames[:, 0], [w, bias], {**attrs, "group": groups})[:, None]
    else:
        ones = {"strides": [1], "dilations": [1], "pads": [0, 0], "output_padding": [0], "group": groups}
        expected = reference("ConvTranspose", frames[:, 0, :, None], [w[..., None], bias], ones)[:, None, :, 0]
    y, z = value("y", expected.shape[1:]), value("z", expected.shape[1:])
    nodes = [FrameNode("conv_transpose", (x, w, bias), y, {**attrs, "group": groups}), FrameNode("relu", (y,), z)]
    return case(f"transposed{index}", nodes, {x: frames}), np.maximum(expected, 0)


def pool_case(index: int, op: str, spec: tuple, padding: int, rng: np.random.Generator) -> tuple[Case, np.ndarray]:
    channels, taps, size, kernel, stride, pads, dilation = spec
    x = value("x", (1, channels, *size))
    frames = random_frames(rng, x, ROWS - 1 + taps)
    attrs = {"kernel_shape": [taps, *kernel], "strides": [1, *stride], "pads": add_time(pads)}
    attrs |= {"count_include_pad": padding} if op == "AveragePool" else {}
    expected = np.moveaxis(reference(op, np.moveaxis(frames[:, 0], 0, 1)[None], [], attrs), 2, 0)
    y = value("y", expected.shape[1:])
    kind = {"AveragePool": "avg_pool", "MaxPool": "max_pool"}[op]
    own = {
        "kernel": list(kernel),
        "strides": list(stride),
        "pads": list(pads),
        "dilations": list(dilation),
        "count_include_pad": padding,
    }
    return case(
        f"{kind}{index}", [FrameNode(kind, (x,), y, own)], {x: frames}, {x: (taps, index % 2 == 0, 1)}
    ), expected


@cache
def built() -> tuple[Runner, list[tuple[Case, np.ndarray]]]:
    rng = np.random.default_rng(1)
    cases = [conv_case(i, spec, i % 2 == 0, 1 + i % 3, rng) for i, spec in enumerate(CONVS)]
    cases += [transposed_case(i, spec, rng) for i, spec in enumerate(TRANSPOSED)]
    for i, spec in enumerate(POOLS):
        cases += [pool_case(i, "MaxPool", spec, 0, rng), pool_case(i, "AveragePool", spec, i % 2, rng)]
    return Runner([c for c, _ in cases]), cases


@pytest.mark.parametrize("index", range(len(CONVS) + len(TRANSPOSED) + 2 * len(POOLS)))
def test_matches_onnxruntime(index: int) -> None:
    runner, cases = built()
    c, expected = cases[index]
    one, many = runner.run(c)
    assert one.tobytes() == many.tobytes(), f"{c.name}: rows differ"
    assert np.abs(one - expected).max() <= 1e-6 * max(np.abs(expected).max(), 1), c.name
