"""Float products by weights of few bits: MatMulNBits, and MatMul and Gemm by DequantizeLinear of a constant."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import TIME
from oracle import Check
from quantised_nets import QuantisedNet

from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.graph.model import load
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

MICROSOFT = {"domain": "com.microsoft"}


def weight_bytes(model: bytes) -> int:
    """What the native program keeps of the model's weights."""
    planner = Planner(lower(analyse(load(model))), 1, KernelModule(Target.host()))
    planner.build()
    return planner.weights.constant_bytes


def product(
    bits: int,
    inputs: int,
    outputs: int,
    block: int,
    zeros: str = "",
    bias: bool = False,
    order: bool = False,
    level: int = 0,
) -> bytes:
    net = QuantisedNet(inputs + bits)
    rng, blocks = net.rng, -(-inputs // block)
    names = [
        net.input([1, TIME, inputs]),
        net.const(rng.integers(0, 256, (outputs, blocks, block * bits // 8)), "uint8"),
    ]
    names.append(net.const(rng.uniform(0.01, 0.02, outputs * blocks).astype(np.float32)))
    if zeros == "uint8":
        names.append(net.const(rng.integers(0, 256, outputs * -(-blocks * bits // 8)), "uint8"))
    elif zeros:
        names.append(net.const(rng.uniform(0, 2**bits, (outputs, blocks)).astype(np.float32)))
    names += [""] * (3 - len(names) + 1)
    names.append(net.const(np.arange(inputs) // block, "int32") if order else "")
    names.append(net.const(rng.standard_normal(outputs).astype(np.float32)) if bias else "")
    while not names[-1]:
        names.pop()
    attrs = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": level, **MICROSOFT}
    return bytes(net.model(net.op("Tanh", net.op("MatMulNBits", *names, **attrs))))


@pytest.mark.parametrize(
    ("bits", "inputs", "outputs", "block", "zeros", "bias"),
    [
        (4, 40, 6, 32, "", True),
        (8, 129, 33, 16, "uint8", False),
        (4, 64, 130, 16, "uint8", True),
        (2, 96, 48, 32, "", False),
        (4, 48, 17, 64, "float32", False),
    ],
)
def test_matrices_of_few_bits(
    check: Check, bits: int, inputs: int, outputs: int, block: int, zeros: str, bias: bool
) -> None:
    check(product(bits, inputs, outputs, block, zeros, bias))


def test_an_order_that_says_nothing(check: Check) -> None:
    check(product(4, 64, 16, 32, order=True))


def test_another_order_is_refused() -> None:
    model = onnx.load_from_string(product(4, 64, 16, 32, order=True))
    order = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT32)
    order.CopyFrom(onnx.numpy_helper.from_array(np.arange(64, dtype=np.int32) % 2, order.name))
    with pytest.raises(Refused, match="order of their own"):
        analyse(load(model))


def test_activations_are_not_rounded(check: Check) -> None:
    """Whatever accuracy the model allows: the offline model of the proof is the one that rounds nothing."""
    model = product(4, 64, 16, 32, level=4)
    assert check(model, expected=product(4, 64, 16, 32)).worst < 1e-5
    assert analyse(load(model)).nodes[-2].attrs.get("accuracy_level", 0) == 0


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("blocks", [True, False])
def test_dequantised_weights_stay_codes(check: Check, kind: str, blocks: bool) -> None:
    net = QuantisedNet(11, opset=21)
    t = net.op("Transpose", net.input([1, 64, TIME]), perm=[0, 2, 1])
    low, high = np.iinfo(kind).min if "4" not in kind else {"int4": -8, "uint4": 0}[kind], 8
    codes = net.const(net.rng.integers(low, high, (64, 40)), kind)
    shape = (2, 40) if blocks else (40,)
    scales = net.const(net.rng.uniform(0.01, 0.1, shape).astype(np.float32))
    zeros = net.const(net.rng.integers(0, 8, shape), kind)
    w = net.op("DequantizeLinear", codes, scales, zeros, **({"axis": 0, "block_size": 32} if blocks else {"axis": 1}))
    model = bytes(net.model(net.op("MatMul", t, w)))
    check(model)
    assert weight_bytes(model) < 64 * 48 * (0.8 if "4" in kind else 1.3) + 1024


@pytest.mark.parametrize("turned", [True, False])
def test_gemm_of_codes(check: Check, turned: bool) -> None:
    net = QuantisedNet(13, opset=21)
    x = net.input([TIME, 50])
    codes = net.const(net.rng.integers(-128, 128, (20, 50) if turned else (50, 20)), "int8")
    scales = net.const(net.rng.uniform(0.01, 0.1, 20).astype(np.float32))
    w = net.op("DequantizeLinear", codes, scales, axis=0 if turned else 1)
    bias = net.const(net.rng.standard_normal(20).astype(np.float32))
    model = bytes(net.model(net.op("Gemm", x, w, bias, transB=int(turned))))
    check(model)
    assert weight_bytes(model) < 50 * 32 + 1024


@pytest.mark.parametrize("blocks", [True, False])
def test_a_convolution_of_codes(check: Check, blocks: bool) -> None:
    net = QuantisedNet(17, opset=21)
    x = net.input([1, 64, TIME])
    codes = net.const(net.rng.integers(-128, 128, (40, 64, 3)), "int8")
    scales = net.const(net.rng.uniform(0.01, 0.1, (40, 2, 3) if blocks else (40,)).astype(np.float32))
    w = net.op("DequantizeLinear", codes, scales, **({"axis": 1, "block_size": 32} if blocks else {"axis": 0}))
    model = bytes(net.model(net.op("Relu", net.op("Conv", x, w, net.weight(40), pads=[2, 0]))))
    check(model)
    assert weight_bytes(model) < 1.3 * 64 * 48 * 3 + 1024


def test_halves_are_kept_where_weights_are_no_more(check: Check) -> None:
    """A model exported with float16 weights loses nothing by them, and needs no mode."""
    net = QuantisedNet(18)
    x = net.input([1, TIME, 256])
    w = net.const(net.rng.standard_normal((256, 300)).astype(np.float16), "float16")
    model = bytes(net.model(net.op("MatMul", x, net.op("Cast", w, to=onnx.TensorProto.FLOAT))))
    check(model)
    assert weight_bytes(model) < 2 * 256 * 304 + 1024
