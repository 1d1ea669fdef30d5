"""Kernels and the core for ARM, run under qemu-user against golden output: through the C ABI, and by runnel-run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "streaming"))
from halves import in_half
from nets import Net
from quantised_nets import TIME, QuantisedNet

import runnel
from runnel.runtime.bundle import Bundle
from runnel.tools.cli import main

TARGETS = ("rpi5", "rpi4", "armv7")
MATRICES = str(Path(__file__).with_name("i8mm.toml"))


def layers(kind: str) -> onnx.ModelProto:
    """x (1, 24, T) through one kind of layer."""
    rng = np.random.default_rng(0)
    names, nodes, weights = ["x"], [], {}

    def node(op: str, *inputs: str, **attrs: object) -> str:
        names.append(f"v{len(names)}")
        nodes.append(helper.make_node(op, [names[-2], *inputs], [names[-1]], **attrs))
        return names[-1]

    def weight(name: str, *shape: int) -> str:
        weights[name] = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        return name

    if kind == "conv":
        node("Conv", weight("w", 40, 24, 3), weight("b", 40), pads=[2, 0])
        node("Tanh")
        node("Conv", weight("d", 40, 1, 3), group=40, pads=[1, 1])
        node("Sigmoid")
        node("Conv", weight("o", 24, 40, 1))
    elif kind == "gru":
        node("Transpose", perm=[2, 0, 1])
        of = [names[-1], weight("w", 1, 96, 24), weight("r", 1, 96, 32), weight("b", 1, 192)]
        nodes.append(helper.make_node("GRU", of, ["h"], hidden_size=32))
        names.append("h")
        weights["one"] = np.array([1], np.int64)
        node("Squeeze", "one")
        node("Transpose", perm=[1, 2, 0])
    else:
        node("Exp")
        node("Erf")
        node("Floor")
        node("Add", "x")
        node("Sin")
    graph = helper.make_graph(
        nodes, kind, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 24, "T"])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["B", "C", "U"])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def golden(bundle: Bundle, kind: str, count: int) -> list[np.ndarray]:
    """The bundle's own example."""
    return [np.load(io.BytesIO(bundle.read(f"golden/{kind}_{i}.npy"))) for i in range(count)]


def check(bundle: Bundle, play) -> float:
    """Plays the example in several cuts; the largest error of the outputs' ranges."""
    manifest = bundle.manifest
    inputs = golden(bundle, "input", len(manifest["inputs"]))
    expected = golden(bundle, "output", len(manifest["outputs"]))
    frames = inputs[0].shape[manifest["inputs"][0]["axis"]] // manifest["inputs"][0]["per_tick"]
    rng = np.random.default_rng(3)
    cuts, left = [], frames
    while left:
        cuts.append(min(left, int(rng.integers(1, 3 * manifest["hop"] + 2))))
        left -= cuts[-1]
    whole, cut = play(bundle, inputs, [frames]), play(bundle, inputs, cuts)
    worst = 0.0
    for a, b, y in zip(whole, cut, expected, strict=True):
        assert a.tobytes() == b.tobytes()
        assert a.shape == y.shape
        error = np.abs(a.astype(np.float64) - y)
        if y.dtype == np.float16:  # rounded at last: neighbours are as good
            error = np.maximum(error - np.spacing(np.maximum(np.abs(a), np.abs(y))), 0)
        worst = max(worst, float(error.max() / max(np.ptp(y.astype(np.float64)), 1e-6)))
    assert worst <= manifest["proof"]["limit"]
    return worst


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["conv", "gru", "pointwise"])
def test_layers(kind: str, target: str, tmp_path: Path, play) -> None:
    info = runnel.compile(layers(kind), tmp_path / "m.rnl", target=target, backend="native")
    assert "verify them there" in info.manifest["proof"]["not_covered"]
    check(Bundle(info.path), play)


def codes(kind: str) -> bytes:
    """Images in codes: dense, with a filter a channel, through a window of frames; frames of channels; or products by
    few bits."""
    if kind == "blocks":
        net = QuantisedNet(3, opset=21)
        h = net.op("Transpose", net.input([1, 70, TIME]), perm=[0, 2, 1])
        for bits, (inputs, outputs) in ((4, (70, 48)), (8, (48, 36))):
            packed = net.const(net.rng.integers(0, 256, (outputs, -(-inputs // 32), 4 * bits)), "uint8")
            blocks = -(-inputs // 32)
            scales = net.const(net.rng.uniform(0.01, 0.02, outputs * blocks).astype(np.float32))
            zeros = net.const(net.rng.integers(0, 256, outputs * -(-blocks * bits // 8)), "uint8")
            attrs = {"K": inputs, "N": outputs, "bits": bits, "block_size": 32, "domain": "com.microsoft"}
            h = net.op("Tanh", net.op("MatMulNBits", h, packed, scales, zeros, **attrs))
        return bytes(net.model(h))
    if kind == "frames":  # several rows of a step
        net = QuantisedNet(5)
        h = net.qconv(net.qconv(net.source([1, 21, TIME]), 21, 40, 3, pads=[2, 0]), 40, 40, 1, group=2)
        y = net.qconv(h, 40, 33, 2, dilations=[3])
        return bytes(net.model(y, dtypes={y: "int8"}))
    net = QuantisedNet(4, kind)
    x = net.source([1, 3, TIME, 11])
    h = net.qconv(x, 3, 20, [3, 3], pads=[2, 1, 0, 1], relu=True)
    h = net.qconv(h, 20, 20, [3, 3], group=20, pads=[2, 1, 0, 1])
    h = net.qconv(h, 20, 24, [1, 1])
    y = net.qconv(h, 24, 8, [1, 11])
    return bytes(net.model(y, dtypes={y: kind}))


@pytest.mark.parametrize("target", [*TARGETS, MATRICES], ids=[*TARGETS, "i8mm"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "frames", "blocks"])
def test_codes(kind: str, target: str, tmp_path: Path, play) -> None:
    """Sums of codes to the bit."""
    (tmp_path / "m.onnx").write_bytes(codes(kind))
    options = {"hop": 5} if kind == "frames" else {}
    info = runnel.compile(tmp_path / "m.onnx", tmp_path / "m.rnl", target=target, backend="native", **options)
    assert check(Bundle(info.path), play) == 0.0 or kind == "blocks"


def halves() -> bytes:
    """Convolutions and a product in float16."""
    net = Net(5)
    x = net.input([1, 48, TIME])
    for d in (1, 2):
        padded = net.op("Pad", x, net.const([0, 0, 2 * d, 0, 0, 0]))
        x = net.op("Add", x, net.op("Relu", net.conv(padded, 48, 48, 3, dilations=[d])))
    return in_half(net.model(net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 1]), net.weight(48, 40))))


@pytest.mark.parametrize(
    ("target", "activations"), [("rpi5", None), ("armv7", None), ("rpi4", "fp16"), ("rpi5", "fp16")]
)
def test_halves(target: str, activations: str | None, tmp_path: Path, play) -> None:
    """float32 arithmetic; with the mode, float16 arithmetic where the processor has it."""
    info = runnel.compile(halves(), tmp_path / "m.rnl", target=target, backend="native", activations=activations)
    error = check(Bundle(info.path), play)
    in_float16 = target == "rpi5" and activations == "fp16"
    assert (error > 1e-5) == in_float16 and error < 1e-3


@pytest.mark.parametrize(
    ("target", "weights"), [("rpi5", "int8"), ("rpi4", "int4"), ("armv7", "int4"), ("armv7", "fp16")]
)
def test_neurons_of_few_bits(target: str, weights: str, tmp_path: Path, play) -> None:
    """The weights of active neurons alone, dequantised where they are used."""
    net = Net(7)
    x = net.op("Transpose", net.input([1, 44, TIME]), perm=[0, 2, 1])
    gate = net.op("Relu", net.op("MatMul", x, net.weight(44, 96)))
    y = net.op("MatMul", net.op("Mul", gate, net.op("MatMul", x, net.weight(44, 96))), net.weight(96, 36))
    options = {"weights": weights, "sparse": "exact"}
    info = runnel.compile(net.model(y), tmp_path / "m.rnl", target=target, backend="native", **options)
    check(Bundle(info.path), play)


def test_the_denoiser_without_dot_products(tmp_path: Path, play) -> None:
    check(Bundle(zoo.bundle("denoiser", "rpi4", tmp_path)), play)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rpi5", "armv7"])
@pytest.mark.parametrize("model", zoo.MODELS)
def test_the_zoo(model: str, target: str, tmp_path: Path, play, cache: None, capfd: pytest.CaptureFixture[str]) -> None:
    path = zoo.bundle(model, target, tmp_path)
    check(Bundle(path), play)
    assert main(["verify", str(path), "--on", "qemu"]) == 0
    assert "verified: " in capfd.readouterr().out
