"""Weights in segments: large products in parts, tables by rows, and where constants lie."""

from __future__ import annotations

import numpy as np
import pytest
from nets import Net
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.compiler.lowering import moving, segments, split
from runnel.compiler.lowering.segments import PAGE, Segments
from runnel.runtime.bundle import Bundle

RNG = np.random.default_rng(7)
SMALL = 1 << 14


@pytest.fixture
def small_segments(monkeypatch):
    """Segments of 16 KiB, so that small models have several."""
    monkeypatch.setattr(split, "SEGMENT_BYTES", SMALL)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SMALL)
    monkeypatch.setattr(segments, "BLOCK_BYTES", SMALL)
    monkeypatch.setattr(moving, "FETCHED", 1000)
    return SMALL


def test_constants_lie_in_one_segment_each_and_equal_ones_lie_once():
    laid = Segments()
    sizes = [400_000, 600_000, 300_000, 64, 1_048_576, 5]
    arrays = [RNG.integers(0, 9, n).astype(np.uint8) for n in sizes]
    places = [laid.add(x) for x in arrays]
    assert laid.add(arrays[2].copy()) == places[2]
    laid.close()
    listed = laid.listed()
    starts = [s["offset"] for s in listed]
    assert starts == list(np.cumsum([0] + [s["bytes"] for s in listed[:-1]]))
    assert all(s["bytes"] <= split.SEGMENT_BYTES and s["offset"] % PAGE == s["bytes"] % PAGE == 0 for s in listed)
    for place, array in zip(places, arrays):
        assert place % 64 == 0
        assert bytes(laid.data[place : place + array.nbytes]) == array.tobytes()
        inside = [s for s in listed if s["offset"] <= place and place + array.nbytes <= s["offset"] + s["bytes"]]
        assert len(inside) == 1
    assert sum(s["bytes"] for s in listed) == len(laid.data)


def test_what_is_larger_than_a_segment_begins_one():
    laid = Segments()
    laid.add(np.ones(10, np.uint8))
    large = laid.add(np.zeros(3 * split.SEGMENT_BYTES // 2, np.uint8))
    laid.close()
    assert large in [s["offset"] for s in laid.listed()]
    assert max(s["bytes"] for s in laid.listed()) == split.SEGMENT_BYTES


def test_rows_of_a_table_are_in_one_block_each():
    laid = Segments()
    table = RNG.standard_normal((1000, 100)).astype(np.float32)
    place, apart = laid.table(table)
    assert apart == segments.BLOCK_BYTES // 400
    block = -(-apart * 400 // PAGE) * PAGE
    for row in (0, apart - 1, apart, 999):
        at = place + row // apart * block + row % apart * 400
        assert bytes(laid.data[at : at + 400]) == table[row].tobytes()


@pytest.mark.parametrize("outputs", [64, 130, 700])
def test_products_in_parts_stream_exactly(check, small_segments, outputs):
    net = Net()
    x = net.input([1, 48, "T"])
    w = RNG.standard_normal((outputs, 48, 3)).astype(np.float32)
    h = net.op("Relu", net.op("Conv", x, net.const(w), net.const(w[:, 0, 0]), pads=[2, 0]))
    y = net.op("MatMul", net.op("Transpose", h, perm=[0, 2, 1]), net.const(RNG.standard_normal((outputs, 40)) * 0.1))
    check(net.model(net.op("Transpose", y, perm=[0, 2, 1])))


def embedding(dtype: int) -> bytes:
    """tokens (1, T) → rows of a table by tokens, through a product."""
    table = RNG.standard_normal((300, 48)).astype(np.float32)
    weight = RNG.standard_normal((48, 200)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["e"]),
        helper.make_node("MatMul", ["e", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "embedding", [helper.make_tensor_value_info("tokens", dtype, [1, "T"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "T", 200])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32])
def test_rows_are_fetched(tmp_path, small_segments, dtype):
    model = embedding(dtype)
    info = runnel.compile(model, tmp_path / "m.rnl", backend="native", hop=4)
    assert any(k["ops"] == "fetch" for k in info.manifest["kernels"])
    program = runnel.load(tmp_path / "m.rnl")
    tokens = RNG.integers(-300, 300, (1, 50)).astype(program.inputs[0].dtype)
    stream = program.stream()
    parts = [stream.push(tokens[:, i:j]) for i, j in ((0, 1), (1, 9), (9, 50))]
    import onnxruntime

    (expected,) = onnxruntime.InferenceSession(model).run(None, {"tokens": tokens})
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=1e-4)
    listed = Bundle(tmp_path / "m.rnl").manifest["weights"]["segments"]
    assert len(listed) > 6
    assert max(s["bytes"] for s in listed) <= SMALL


@pytest.mark.parametrize(("outputs", "most"), [(0, split.PART_BYTES), (800, 800 * 256 * 4)])
def test_segments_are_half_as_large_where_all_products_can_be_cut(monkeypatch, tmp_path, outputs, most):
    """Weights that cannot be cut, as of a product with several rows in a frame, still lie in one."""
    monkeypatch.setattr(split, "SEGMENTS", 4)
    net = Net()
    if outputs:
        rows = net.op("MatMul", net.input([1, "T", 4, 256]), net.const(0.1 * RNG.standard_normal((256, outputs))))
        h = net.op("ReduceMean", rows, axes=[2], keepdims=0)
    else:
        h = net.input([1, "T", 800])
    for shape in [(800, 2048), (2048, 1536)]:
        h = net.op("MatMul", h, net.const(0.02 * RNG.standard_normal(shape)))
    runnel.compile(net.model(h), tmp_path / "m.rnl", backend="native", hop=1)
    listed = runnel.load(tmp_path / "m.rnl").manifest["weights"]["segments"]
    largest = max(s["bytes"] for s in listed)
    assert (most if outputs else most // 2) <= largest <= -(-most // (1 << 16)) * (1 << 16)
    assert runnel.load(tmp_path / "m.rnl", ram="6M").paging.streamed > 0
