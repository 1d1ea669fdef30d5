"""QLinear ops and other ops on codes: bit-equal to what onnxruntime computes for them, streamed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from oracle import Check
from quantised_nets import TIME, QuantisedNet
from test_quantised import in_integers, model_of

from runnel.compiler.graph.model import load
from runnel.compiler.lowering.quantised import integer_weights
from runnel.compiler.lowering.signals import NoKernel
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import RunnelError

MICROSOFT = {"domain": "com.microsoft"}


def source(net: QuantisedNet, channels: int = 3) -> tuple[str, tuple[str, str]]:
    x = net.source([1, channels, TIME])
    return x, net.steps[x]


def qlinear_conv(net: QuantisedNet, x: str, cin: int, cout: int, kernel: int, **attrs: Any) -> str:
    step, group = net.step(), attrs.get("group", 1)
    w = net.const(net.rng.integers(-127, 128, (cout, cin // group, kernel)), "int8")
    scales = net.const(net.rng.uniform(0.001, 0.01, cout).astype(np.float32))
    zeros = net.const(np.zeros(cout), "int8")
    bias = net.const(net.rng.integers(-500, 500, cout), "int32")
    y = net.op("QLinearConv", x, *net.steps[x], w, scales, zeros, *step, bias, **attrs)
    net.steps[y] = step
    return str(y)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_conv(check: Check, kind: str) -> None:
    net = QuantisedNet(1, kind)
    x, _ = source(net)
    h = qlinear_conv(net, x, 3, 20, 3, pads=[2, 0])
    h = qlinear_conv(net, h, 20, 20, 3, group=20, pads=[1, 1])
    assert check(model_of(net, qlinear_conv(net, h, 20, 5, 2, strides=[2]))).worst == 0.0


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_matmul(check: Check, kind: str) -> None:
    net = QuantisedNet(2, kind)
    x, step = source(net, 20)
    t = net.op("Transpose", x, perm=[0, 2, 1])
    w = net.const(net.rng.integers(-127, 128, (20, 18)), "int8")
    y = net.op("QLinearMatMul", t, *step, w, net.const(np.float32(0.002)), net.const(np.array(3), "int8"), *net.step())
    assert check(model_of(net, y)).worst == 0.0


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integer_products_with_int32_results(check: Check, kind: str) -> None:
    net = QuantisedNet(3, kind)
    x, step = source(net, 5)
    w = net.const(net.rng.integers(0, 256, (6, 5, 3)), "uint8")
    h = net.op("ConvInteger", x, w, step[1], net.const(np.array(120), "uint8"), pads=[1, 1])
    t = net.op("Transpose", x, perm=[0, 2, 1])
    m = net.const(net.rng.integers(-127, 128, (5, 7)), "int8")
    p = net.op("MatMulInteger", t, m, step[1])
    assert check(net.model(h, p, dtypes={h: "int32", p: "int32"})).worst == 0.0


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_element_by_element(check: Check, op: str, kind: str) -> None:
    """One branch is late; the scales differ."""
    net = QuantisedNet(4, kind)
    x, step = source(net)
    late = qlinear_conv(net, x, 3, 3, 5, pads=[2, 2])
    y = net.op(op, x, *step, late, *net.steps[late], *net.step(0.06), **MICROSOFT)
    assert check(model_of(net, y)).worst == 0.0


@pytest.mark.parametrize(("op", "attrs"), [("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.1})])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_functions_of_one_code(check: Check, op: str, attrs: dict[str, Any], kind: str) -> None:
    net = QuantisedNet(5, kind)
    x, step = source(net, 18)
    y = net.op(op, x, *step, *net.step(0.004 if op == "QLinearSigmoid" else None), **attrs, **MICROSOFT)
    assert check(model_of(net, y)).worst == 0.0


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_softmax_over_channels(check: Check, kind: str) -> None:
    """A float island: at most one code apart."""
    net = QuantisedNet(6, kind)
    x, step = source(net, 12)
    y = net.op("QLinearSoftmax", x, *step, *net.step(1 / 256, -128 if kind == "int8" else 0), axis=1, opset=13,
               **MICROSOFT)  # fmt: skip
    check(model_of(net, y), codes=1)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_concat_of_other_scales(check: Check, kind: str) -> None:
    net = QuantisedNet(7, kind)
    x, step = source(net)
    late = qlinear_conv(net, x, 3, 4, 3, pads=[0, 2])
    y = net.op("QLinearConcat", *step, x, *step, late, *net.steps[late], axis=1, **MICROSOFT)
    assert check(model_of(net, y)).worst == 0.0


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_gemm_on_frames(check: Check, kind: str) -> None:
    net = QuantisedNet(8, kind)
    x = net.source([TIME, 20])
    w = net.const(net.rng.integers(-127, 128, (9, 20)), "int8")
    scales, zeros = net.const(net.rng.uniform(0.001, 0.01, 9).astype(np.float32)), net.const(np.zeros(9), "int8")
    bias = net.const(net.rng.integers(-500, 500, 9), "int32")
    y = net.op("QGemm", x, *net.steps[x], w, scales, zeros, bias, *net.step(), transB=1, **MICROSOFT)
    assert check(model_of(net, y)).worst == 0.0


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_average_pools(check: Check, kind: str) -> None:
    """Onnxruntime rounds an average between two codes either way; in integers it goes to the even one."""
    net = QuantisedNet(9, kind)
    x, step = source(net)
    y = net.op("QLinearAveragePool", x, *step, *net.step(), kernel_shape=[4], strides=[2], **MICROSOFT)
    model = model_of(net, y)
    assert check(model, expected=in_integers(model)).worst == 0.0
    check(model, codes=1, lengths=(4, 5, 9, 23, 40))


@pytest.mark.parametrize("bits", [4, 8])
def test_matrices_of_few_bits(check: Check, bits: int) -> None:
    net = QuantisedNet(10)
    x = net.input([1, TIME, 40])
    blocks, block = 2, 32
    packed = net.const(net.rng.integers(0, 256, (6, blocks, block * bits // 8)), "uint8")
    scales = net.const(net.rng.uniform(0.01, 0.02, 6 * blocks).astype(np.float32))
    y = net.op("MatMulNBits", x, packed, scales, K=40, N=6, bits=bits, block_size=block, accuracy_level=0, **MICROSOFT)
    check(net.model(y))


@pytest.mark.parametrize("kind", ["int4", "uint4", "int16"])
def test_weights_of_other_widths_are_dequantised(check: Check, kind: str) -> None:
    """Four bits and blocks of scales: the products are the float ones or those of codes."""
    net = QuantisedNet(11, opset=21)
    t = net.op("Transpose", net.input([1, 8, TIME]), perm=[0, 2, 1])
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int16": (-999, 1000)}[kind]
    codes = net.const(net.rng.integers(low, high, (8, 6)), kind)
    w = net.op("DequantizeLinear", codes, net.const(net.rng.uniform(0.01, 0.1, (2, 6))), axis=0, block_size=4)
    check(net.model(net.op("MatMul", t, w)))


def test_a_malformed_op_is_refused_in_words() -> None:
    net = QuantisedNet(12)
    x, step = source(net)
    y = net.op("QLinearAdd", x, *step, x, *step, *net.step(), **MICROSOFT)
    model = onnx.load_from_string(model_of(net, y))
    del model.graph.node[-1].input[3:]
    with pytest.raises(RunnelError):
        analyse(load(model))


def test_sums_beyond_int32_have_no_kernel() -> None:
    weights = np.full((70000, 2), 127, np.int8)
    with pytest.raises(NoKernel, match="beyond int32"):
        integer_weights(weights, None, 1)
