"""Quantised graphs: codes equal to those of the offline graph in integers, whatever the chunking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from oracle import Check
from quantised_nets import TIME, QuantisedNet, qstack

from runnel.compiler.graph.fold import session
from runnel.compiler.graph.model import load
from runnel.compiler.graph.quantised import integer_form
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

Case = Callable[[QuantisedNet, str], str]


def in_integers(model: bytes) -> bytes:
    """The offline model with its sums taken in int32."""
    graph = load(model)
    integer_form(graph)
    return bytes(graph.proto.SerializeToString())


def model_of(net: QuantisedNet, *codes: str) -> bytes:
    return net.model(*codes, dtypes=dict.fromkeys(codes, net.kind))


def causal(net: QuantisedNet, x: str) -> str:
    return net.qconv(x, 3, 8, 3, pads=[2, 0], relu=True)


def centred(net: QuantisedNet, x: str) -> str:
    return net.qconv(x, 3, 18, 5, pads=[2, 2])


def wide(net: QuantisedNet, x: str) -> str:
    return net.qconv(net.qconv(x, 3, 32, 1), 32, 40, 3, pads=[1, 1], bias=False)


def few_outputs(net: QuantisedNet, x: str) -> str:
    return net.qconv(net.qconv(x, 3, 43, 1), 43, 5, 3, pads=[2, 0], per_channel=False)


def dilated(net: QuantisedNet, x: str) -> str:
    return net.qconv(net.qconv(x, 3, 6, 3, dilations=[3], pads=[3, 3]), 6, 4, 2, dilations=[2])


def strided(net: QuantisedNet, x: str) -> str:
    return net.qconv(net.qconv(x, 3, 20, 4, strides=[2], pads=[1, 1]), 20, 4, 3, strides=[2], pads=[2, 0])


def depthwise(net: QuantisedNet, x: str) -> str:
    h = net.qconv(x, 3, 24, 1, relu=True)
    return net.qconv(net.qconv(h, 24, 24, 3, group=24, pads=[1, 1]), 24, 6, 1)


def grouped(net: QuantisedNet, x: str) -> str:
    return net.qconv(net.qconv(x, 3, 8, 1), 8, 12, 3, group=4, pads=[2, 0])


def clipped(net: QuantisedNet, x: str) -> str:
    h = net.op("Conv", net.real(x), net.weights(8, 3, 3)[0], pads=[1, 1])
    return net.quantise(net.op("Clip", h, net.const(np.float32(0)), net.const(np.float32(0.4))))


def float_bias(net: QuantisedNet, x: str) -> str:
    h = net.op("Conv", net.real(x), net.weights(8, 3, 3)[0], net.weight(8, scale=0.3), pads=[1, 1])
    return net.quantise(net.op("Relu", h))


def residual(net: QuantisedNet, x: str) -> str:
    """Branches with other scales and delays."""
    h = net.qconv(x, 3, 8, 1)
    deep = net.qconv(net.qconv(h, 8, 8, 3, pads=[1, 1], relu=True), 8, 8, 3, pads=[1, 1])
    return net.quantise(net.op("Relu", net.op("Add", net.real(h), net.real(deep))))


def scaled(net: QuantisedNet, x: str) -> str:
    gate = net.qconv(x, 3, 3, 3, pads=[2, 0])
    return net.quantise(net.op("Mul", net.real(x), net.real(gate)))


def dense(net: QuantisedNet, x: str) -> str:
    t = net.op("Transpose", x, perm=[0, 2, 1])
    net.steps[t] = net.steps[x]
    weight, scale = net.weights(3, 20, axis=1)
    h = net.op("Add", net.op("MatMul", net.real(t), weight), net.bias(x, scale, 20))
    h = net.quantise(net.op("Relu", h))
    return net.quantise(net.op("MatMul", net.real(h), net.weights(20, 6, axis=None)[0]))


def pooled(net: QuantisedNet, x: str) -> str:
    h = net.op("MaxPool", x, kernel_shape=[3], strides=[2], pads=[1, 1])
    net.steps[h] = net.steps[x]
    return net.qconv(h, 3, 4, 3, pads=[1, 1])


def averaged(net: QuantisedNet, x: str) -> str:
    return net.quantise(net.op("AveragePool", net.real(x), kernel_shape=[4], pads=[2, 1], count_include_pad=1))


def moved(net: QuantisedNet, x: str) -> str:
    """Slices, joins and pads of codes."""
    later = net.op("Slice", x, net.const([1]), net.const([1 << 60]), net.const([2]))
    early = net.op("Slice", x, net.const([0]), net.const([-1]), net.const([2]))
    both = net.op("Concat", later, early, axis=1)
    net.steps[both] = net.steps[x]
    zero = net.const(np.array(7), net.kind)
    h = net.op("Pad", both, net.const([0, 1, 2, 0, 0, 1]), zero)
    net.steps[h] = net.steps[x]
    return net.qconv(h, 7, 5, 2)


def curved(net: QuantisedNet, x: str) -> str:
    """Functions of one code."""
    h = net.quantise(net.op("Sigmoid", net.real(net.qconv(x, 3, 20, 3, pads=[2, 0]))), 1 / 256, None)
    wide = net.real(h)
    h = net.quantise(net.op("Mul", wide, net.op("HardSigmoid", wide, alpha=1 / 6)))
    return net.quantise(net.op("Tanh", net.op("Mul", net.real(h), net.const(np.float32(3)))))


CASES = [curved, causal, centred, wide, few_outputs, dilated, strided, depthwise, grouped, clipped, float_bias,
         residual, scaled, dense, pooled, averaged, moved]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_codes_are_those_of_the_offline_graph(check: Check, case: Case, kind: str) -> None:
    net, x = qstack(3, seed=len(case.__name__), kind=kind)
    model = model_of(net, case(net, x))
    assert check(model, expected=in_integers(model), lengths=(1, 2, 5, 7, 16, 23, 40), steps=(None, 5)).worst == 0.0


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_images_and_spectrograms(check: Check, kind: str) -> None:
    net = QuantisedNet(2, kind)
    x = net.source([1, 2, TIME, 20])
    h = net.qconv(x, 2, 8, [3, 3], pads=[2, 1, 0, 1], strides=[1, 2], relu=True)
    h = net.qconv(h, 8, 8, [3, 3], group=8, pads=[1, 1, 1, 1])
    h = net.qconv(net.qconv(h, 8, 8, [2, 3], group=2, pads=[1, 1, 0, 1]), 8, 20, [1, 1])
    pool = net.op("MaxPool", h, kernel_shape=[1, 2], strides=[1, 2])
    net.steps[pool] = net.steps[h]
    model = model_of(net, net.qconv(pool, 20, 3, [2, 3], dilations=[2, 1]))
    assert check(model, expected=in_integers(model), lengths=(3, 4, 9, 17, 30), steps=(None, 6)).worst == 0.0


def test_codes_as_inputs_and_float_results(check: Check) -> None:
    net = QuantisedNet(3)
    x = net.input([1, 3, TIME], dtype="int8")
    net.steps[x] = net.step(0.03)
    h = net.qconv(x, 3, 8, 3, pads=[1, 1])
    model = net.model(net.real(h), net.op("Conv", net.real(h), net.weights(4, 8, 3)[0], pads=[2, 0]))

    def feeds(length: int) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(length).integers(-128, 128, (1, 3, length)).astype(np.int8)}

    check(model, expected=in_integers(model), feeds=feeds)


def test_functions_of_one_code_are_tables() -> None:
    net, x = qstack(3)
    graph = load(model_of(net, curved(net, x)))
    integer_form(graph)
    assert [n.op for n in graph.nodes].count("Gather") == 3
    assert not {"Sigmoid", "HardSigmoid", "Tanh"} & {n.op for n in graph.nodes}


def test_sums_are_those_of_onnxruntime(check: Check) -> None:
    """Onnxruntime's own rewrites make the same integer kernels of Conv between DequantizeLinear and QuantizeLinear."""
    for seed in range(3):
        net, x = qstack(8, seed=seed)
        h = net.qconv(net.qconv(x, 8, 24, 3, pads=[2, 0], relu=False), 24, 24, 3, group=24, pads=[1, 1])
        model = model_of(net, net.qconv(h, 24, 9, 2, strides=[2], per_channel=False))
        ours = session(onnx.load_from_string(in_integers(model)))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        theirs = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feeds = {"x": np.random.default_rng(seed).standard_normal((1, 8, 999)).astype(np.float32)}
        np.testing.assert_array_equal(ours.run(None, feeds)[0], theirs.run(None, feeds)[0])


@pytest.mark.parametrize("hop", [1, 3])
def test_windows_of_codes(check: Check, hop: int) -> None:
    net = QuantisedNet(5)
    x = net.source([1, 4, 16])
    h = net.qconv(net.qconv(x, 4, 8, 3, relu=True), 8, 6, 3, dilations=[2])
    flat = net.op("Flatten", h)
    net.steps[flat] = net.steps[h]
    w, scale = net.weights(5, 60, axis=0)
    model = model_of(net, net.quantise(net.op("Gemm", net.real(flat), w, net.bias(flat, scale, 5), transB=1)))
    assert check(model, expected=in_integers(model), window=16, hop=hop).worst == 0.0


@pytest.mark.parametrize("hop", [1, 2])
def test_windows_padded_with_the_zero_point(check: Check, hop: int) -> None:
    net = QuantisedNet(6)
    h = net.qconv(net.source([1, 4, 14]), 4, 8, 4, pads=[1, 1], strides=[2], relu=True)
    model = model_of(net, net.qconv(h, 8, 6, 3, pads=[1, 1]))
    assert check(model, expected=in_integers(model), window=14, hop=hop).worst == 0.0


def test_codes_of_both_ends_of_the_range(check: Check) -> None:
    """Saturation, and sums as large as they get."""
    net = QuantisedNet(6, "uint8")
    x = net.quantise(net.input([1, 40, TIME]), 0.01, 0)
    codes, scale = net.const(np.full((6, 40, 5), 127), "int8"), net.const(np.float32(0.02))
    h = net.op("Conv", net.real(x), net.op("DequantizeLinear", codes, scale), pads=[4, 0])
    model = model_of(net, net.quantise(h, 0.4, 3))
    assert check(model, expected=in_integers(model), scale=3.0).worst == 0.0


def refused(model: bytes, **options: object) -> str:
    with pytest.raises(Refused) as caught:
        analyse(load(model), **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_scales_of_the_whole_recording_are_refused() -> None:
    net = QuantisedNet(7)
    codes, scale, zero = net.op("DynamicQuantizeLinear", net.input([1, TIME, 8]), outputs=3)
    w = net.const(net.rng.integers(-127, 128, (8, 5)), "int8")
    total = net.op("MatMulInteger", codes, w, zero)
    model = net.model(net.op("Mul", net.op("Cast", total, to=1), scale))
    assert "takes its scale from the least and the largest value of the whole recording" in refused(model)


def test_scales_of_each_window_are_taken(check: Check) -> None:
    net = QuantisedNet(7)
    codes, scale, zero = net.op("DynamicQuantizeLinear", net.input([1, 12, 8]), outputs=3)
    w = net.const(net.rng.integers(-127, 128, (8, 5)), "int8")
    total = net.op("MatMulInteger", codes, w, zero)
    check(net.model(net.op("Mul", net.op("Cast", total, to=1), scale)), window=12, time_axis={"x": 1})
