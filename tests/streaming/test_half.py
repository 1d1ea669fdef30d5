"""Models in float16: float16 weights and ports, float32 arithmetic, as onnxruntime runs them on a CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import pytest
import runners
from halves import TOLERANCE, in_half
from nets import TIME, Net, Turn
from oracle import Check, check
from recipes import Builder, random_recipe

import runnel
from runnel.compiler.graph.half import widen
from runnel.compiler.graph.model import load
from runnel.compiler.graph.rotary_tables import sharpened
from runnel.compiler.lowering.lower import lower
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import InputError, Refused
from runnel.runtime import native

GRAPHS = 6


def dilated() -> Net:
    net = Net(1)
    x = net.input([1, 16, TIME])
    for d in (1, 2, 4):
        padded = net.op("Pad", x, net.const([0, 0, 2 * d, 0, 0, 0]))
        x = net.op("Add", x, net.op("Relu", net.conv(padded, 16, 16, 3, dilations=[d])))
    net.outputs = [x]
    return net


def recurrent(op: str) -> Net:
    net = Net(2)
    x = net.input([TIME, 1, 9])
    y = net.recurrent(op, x, 9, 20, outputs=2, **({"linear_before_reset": 1} if op == "GRU" else {}))
    net.outputs = [net.op("MatMul", net.op("Squeeze", y[0], net.const([1])), net.weight(20, 7))]
    return net


def normalised() -> Net:
    net = Net(3)
    x = net.input([1, TIME, 32])
    y = net.op("LayerNormalization", x, net.weight(32), net.weight(32), axis=-1)
    y = net.op("Softmax", net.op("MatMul", y, net.weight(32, 48)), axis=-1)
    net.outputs = [net.op("Sigmoid", net.op("Mul", y, net.const(10.0))), net.op("ReduceMean", y, axes=[-1])]
    return net


def image() -> Net:
    net = Net(4)
    x = net.input([1, 4, TIME, 9])
    y = net.op("Relu", net.conv(net.op("Pad", x, net.const([0, 0, 2, 1, 0, 0, 0, 1])), 4, 8, [3, 3]))
    y = net.op("Tanh", net.conv(net.op("Pad", y, net.const([0, 0, 2, 1, 0, 0, 0, 1])), 8, 8, [3, 3], group=8))
    y = net.conv_transpose(y, 8, 3, [1, 3], strides=[1, 2])
    net.outputs = [net.op("MaxPool", y, kernel_shape=[1, 2], strides=[1, 2])]
    return net


def turned_loop() -> Net:
    net = Net(5)
    x = net.input([TIME, 5])
    turn = Turn()
    h, frame = turn.input("h", 5, kind=onnx.TensorProto.FLOAT), turn.input("frame", 5)
    new = turn.op("Add", turn.op("Mul", h, "decay"), frame)
    net.initializers.append(onnx.numpy_helper.from_array(np.array(0.75, np.float32), "decay"))
    body = turn.graph(new, turn.op("Identity", new))
    net.outputs = net.op("Scan", net.const(np.zeros(5)), x, outputs=2, body=body, num_scan_inputs=1)[1:]
    return net


NETS = {
    "dilated": dilated, "GRU": lambda: recurrent("GRU"), "LSTM": lambda: recurrent("LSTM"), "normalised": normalised,
    "image": image, "loop": turned_loop,
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_streams_as_onnxruntime_runs_it(check: Check, name: str) -> None:
    net = NETS[name]()
    check(in_half(net.model(*net.outputs)), tolerance=TOLERANCE)


def test_random_graphs_are_exact_or_refused() -> None:
    """Each bundle is also proved to 1e-5 against the same model in float32."""
    exact = 0
    for seed in range(GRAPHS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = in_half(Builder(random_recipe(np.random.default_rng(seed)), seed).model())
        try:
            proof = check(model, lengths=(1, 2, 7, 19, 33), steps=(None, 5), seed=seed, at_least=0,
                          tolerance=TOLERANCE, runner=runners.RUNNERS["native"])  # fmt: skip
        except (Refused, pytest.skip.Exception):
            continue
        exact += bool(proof.runs)
    assert exact >= 0.8 * GRAPHS


needs_core = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")


@needs_core
def test_results_are_those_of_float64_rounded_once(tmp_path: Path) -> None:
    """What lies between ports is not rounded."""
    net = dilated()
    model = in_half(net.model(*net.outputs))
    info = runnel.compile(model, tmp_path / "m.rnl")
    assert info.manifest["inputs"][0]["dtype"] == info.manifest["outputs"][0]["dtype"] == "float16"
    assert info.manifest["proof"]["half"]["deviation"] <= TOLERANCE
    x = np.random.default_rng(0).standard_normal((1, 16, 300)).astype(np.float16)
    stream = runnel.load(info.path, backend="native").stream()
    got = np.concatenate([*(stream.push(x[:, :, i : i + 7]) for i in range(0, 300, 7)), stream.flush()], axis=2)
    constants = [onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer]
    weights = [c.astype(np.float64) for c in constants if c.ndim == 3]
    biases = [c.astype(np.float64) for c in constants if c.dtype == np.float16 and c.ndim == 1]
    wanted = x[0].astype(np.float64)
    for d, w, b in zip((1, 2, 4), weights, biases, strict=True):
        late = np.pad(wanted, [(0, 0), (2 * d, 0)])
        taps = [w[:, :, k] @ late[:, k * d : k * d + 300] for k in range(3)]
        wanted = wanted + np.maximum(sum(taps) + b[:, None], 0)
    rounded = wanted.astype(np.float16)
    assert (got[0] == rounded).mean() > 0.99
    assert (np.abs(got[0].astype(np.float64) - rounded) <= np.spacing(np.abs(rounded))).all()


def test_states_that_a_model_brings_itself(tmp_path: Path) -> None:
    """They keep their type: what is carried on is rounded at every step, as the model says."""
    net = Net(6)
    x, h = net.input([1, 6]), net.input([1, 1, 1, 6], "conv_cache")
    new = net.op("Tanh", net.op("Add", net.op("MatMul", h, net.weight(6, 6)), x))
    net.nodes.append(onnx.helper.make_node("Identity", [new], ["conv_cache_out"]))
    y = net.op("Mul", new, net.const(3.0))
    model = in_half(net.model(y, "conv_cache_out"))
    assert [p.dtype for p in load(model).inputs] == ["float16", "float16"]
    info = runnel.compile(model, tmp_path / "m.rnl")
    proof = info.manifest["proof"]
    assert info.manifest["native_refusal"] is None and proof["half"]["deviation"] == 0
    assert proof["limit"] == pytest.approx(0.25 * 2.0**-11)  # unlike roundings of one state


def test_an_integer_is_rounded_as_the_model_says(check: Check) -> None:
    """2049 is no float16."""
    net = Net(7)
    x = net.input([1, TIME], dtype="int64")
    y = net.op("Mul", net.op("Cast", x, to=onnx.TensorProto.FLOAT16), net.const(np.float16(0.5), "float16"))
    model = net.model(y, dtypes={y: "float16"})
    check(model, feeds=lambda n: {"x": 2040 + np.arange(n)[None]}, tolerance=0)


@needs_core
def test_weights_and_tables_stay_float16(tmp_path: Path) -> None:
    net = Net(8)
    x = net.input([1, TIME], dtype="int64")
    rows = net.op("Gather", net.weight(2000, 64), x, axis=0)
    y = net.op("MatMul", rows, net.weight(64, 1100))
    info = runnel.compile(in_half(net.model(y)), tmp_path / "m.rnl")
    sizes = {entry.filename.split("/")[0]: entry.file_size for entry in ZipFile(info.path).infolist()}
    elements = 2000 * 64 + 64 * 1104
    assert 2 * elements <= sizes["weights"] < 2 * elements + 16384
    assert 2 * 64 * 1100 < sizes["streaming.onnx"] < 2 * elements + 16384


def test_a_window_of_float16(check: Check) -> None:
    net = Net(9)
    x = net.input([1, 6, 20])
    y = net.op("Relu", net.conv(x, 6, 8, 3, pads=[1, 1]))
    y = net.op("Flatten", net.op("GlobalAveragePool", net.conv(y, 8, 5, 3)))
    check(in_half(net.model(y)), window=20, hop=2, tolerance=TOLERANCE)


def test_tables_of_positions_are_taken_as_they_were_before_rounding() -> None:
    rng = np.random.default_rng(0)
    for rows, frequencies in (
        (128, 10000.0 ** (-np.arange(8) / 8)),
        (2048, np.tile(500000.0 ** (-np.arange(16) / 16), 2)),
        (300, np.sort(rng.uniform(0.001, 1, 6))[::-1]),
    ):
        angles = np.arange(rows)[:, None] * frequencies.astype(np.float32)
        exact = np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))
        cos, sin = (t.astype(np.float16) for t in exact)
        made = sharpened(cos, sin)
        assert made is not None
        for table, wanted in zip(made, exact, strict=True):
            error = np.abs(table[:41] - wanted[:41]).max()
            assert error < (1e-5 if rows != 300 else 2e-4), (rows, error)
    cos[200] = cos[201]
    assert sharpened(cos, sin) is None and sharpened(sin, cos) is None
    assert sharpened(np.ones((20, 4), np.float16), np.zeros((20, 4), np.float16)) is not None


def test_nodes_may_stand_in_any_order(check: Check) -> None:
    """Converters put their casts at the end."""
    net = Net(10)
    x = net.input([1, 6, TIME])
    y = net.op("Relu", net.conv(x, 6, 8, 3, pads=[2, 0]))
    model = onnx.load_from_string(in_half(net.model(net.op("Tanh", y))))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    check(model.SerializeToString(), tolerance=TOLERANCE, lengths=(1, 5, 9), at_least=2)
    nodes[0].input[0] = nodes[-1].output[0]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(InputError, match="topologically"):
        load(model)


def test_a_model_without_float16_is_left_alone() -> None:
    net = dilated()
    assert load(net.model(*net.outputs)).half is None
    half = load(in_half(net.model(*net.outputs)))
    assert half.half is not None
    kinds = {t.data_type for t in half.proto.graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds  # small ones
    again = onnx.ModelProto.FromString(half.proto.SerializeToString())
    widen(again)
    assert [n.op_type for n in again.graph.node].count("Cast") == 2 + 2  # of the ports, once more
    low = lower(analyse(half))
    assert [s.stored for s in low.inputs] == ["float16"]
