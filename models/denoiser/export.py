"""Write the trained denoiser as one ONNX file, node by node, and compare it with PyTorch.

    python -m runnel.models.denoiser.export --checkpoint build/denoiser/denoiser.pt

Written by hand rather than traced, so that every node has a name a person can read and the STFT and its inverse are one
convolution each over the same stored basis.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .constants import BINS, HOP, SAMPLE_RATE, WINDOW
from .network import (
    COMPRESSION,
    NORM_EPSILON,
    POWER_FLOOR,
    ChannelNorm,
    Denoiser,
    DenseBlock,
    SeparableBlock,
)
from .synthesis import read_wav

OPSET = 17
IR_VERSION = 8
MAX_BYTES = 2_000_000
HERE = Path(__file__).resolve().parent
CHECK_LENGTHS = (1, 2, 255, 256, 257, 511, 512, 513, 5000, 16001, 48000)


def fourier_basis() -> NDArray[np.float32]:
    """Windowed DFT rows, cos then -sin, (2 * BINS, 1, WINDOW) float32; the inverse transform uses the same rows."""
    n = np.arange(WINDOW)
    angle = 2 * np.pi * np.outer(np.arange(BINS), n) / WINDOW
    # sin(pi * n / WINDOW) is the periodic sqrt-Hann window.
    rows = np.concatenate([np.cos(angle), -np.sin(angle)]) * np.sin(np.pi * n / WINDOW)
    rows[np.abs(rows) < 1e-12] = 0.0
    return rows[:, None, :].astype(np.float32)


def inverse_scale() -> NDArray[np.float32]:
    """What each spectrum row is multiplied with before the inverse transform, (1, 2 * BINS, 1) float32."""
    weight = np.full(BINS, 2.0 / WINDOW)
    weight[[0, -1]] = 1.0 / WINDOW
    return np.concatenate([weight, weight])[None, :, None].astype(np.float32)


class GraphWriter:
    """Collects nodes and initializers; every node's output carries the node's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def const(self, name: str, value: NDArray[np.generic]) -> str:
        """Store an initializer once and return its name."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        """A 1-D int64 initializer, shared by value."""
        return self.const("ints_" + "_".join(str(v) for v in values), np.array(values, np.int64))

    def scalar(self, name: str, value: float) -> str:
        """A float32 scalar initializer."""
        return self.const(name, np.array(value, np.float32))

    def op(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output called `name`."""
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def split(self, name: str, x: str, parts: tuple[str, str], size: int) -> tuple[str, str]:
        """Split `x` along the channels into two parts of `size`."""
        self.nodes.append(helper.make_node("Split", [x, self.ints(size, size)], list(parts), name=name, axis=1))
        return parts

    def conv(self, name: str, x: str, layer: torch.nn.Conv1d) -> str:
        """A Conv node with the layer's weights and symmetric zero padding."""
        weight = self.const(f"{name}.weight", array(layer.weight))
        bias = self.const(f"{name}.bias", array(layer.bias))
        pad, stride, dilation, kernel = (
            int(v[0]) for v in (layer.padding, layer.stride, layer.dilation, layer.kernel_size)
        )
        return self.op(
            "Conv", name, x, weight, bias, kernel_shape=[kernel], strides=[stride], dilations=[dilation],
            pads=[pad, pad], group=layer.groups,
        )  # fmt: skip

    def prelu(self, name: str, x: str, layer: torch.nn.PReLU) -> str:
        """A PRelu node with one slope a channel."""
        return self.op("PRelu", name, x, self.const(f"{name}.slope", array(layer.weight)[:, None]))

    def channel_norm(self, name: str, x: str, layer: ChannelNorm) -> str:
        """Layer norm over channels spelled out with ReduceMean, Sub, Mul, Add, Sqrt, Div."""
        scale = self.const(f"{name}.scale", array(layer.scale)[:, None])
        shift = self.const(f"{name}.shift", array(layer.shift)[:, None])
        mean = self.op("ReduceMean", f"{name}.mean", x, axes=[1], keepdims=1)
        centred = self.op("Sub", f"{name}.centred", x, mean)
        square = self.op("Mul", f"{name}.square", centred, centred)
        variance = self.op("ReduceMean", f"{name}.variance", square, axes=[1], keepdims=1)
        floored = self.op("Add", f"{name}.floored", variance, self.scalar("norm_epsilon", NORM_EPSILON))
        deviation = self.op("Sqrt", f"{name}.deviation", floored)
        unit = self.op("Div", f"{name}.unit", centred, deviation)
        scaled = self.op("Mul", f"{name}.scaled", unit, scale)
        return self.op("Add", name, scaled, shift)

    def transposed_norm(self, name: str, x: str, layer: ChannelNorm) -> str:
        """The same norm as Transpose, LayerNormalization, Transpose."""
        scale = self.const(f"{name}.scale", array(layer.scale))
        shift = self.const(f"{name}.shift", array(layer.shift))
        rows = self.op("Transpose", f"{name}.to_rows", x, perm=[0, 2, 1])
        normed = self.op("LayerNormalization", f"{name}.rows", rows, scale, shift, axis=-1, epsilon=NORM_EPSILON)
        return self.op("Transpose", name, normed, perm=[0, 2, 1])

    def dense(self, name: str, x: str, block: DenseBlock) -> str:
        """A DenseBlock, its BatchNormalization kept as a node."""
        y = self.conv(f"{name}.conv", x, block.conv)
        norm = block.norm
        parts = {"scale": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
        inputs = [self.const(f"{name}.norm.{part}", array(value)) for part, value in parts.items()]
        y = self.op("BatchNormalization", f"{name}.norm", y, *inputs, epsilon=norm.eps)
        y = self.prelu(f"{name}.act", y, block.act)
        return self.op("Add", name, x, y)

    def separable(self, name: str, x: str, block: SeparableBlock) -> str:
        """A SeparableBlock."""
        y = self.conv(f"{name}.depthwise", x, block.depthwise)
        y = self.transposed_norm(f"{name}.norm", y, block.norm)
        y = self.prelu(f"{name}.act", y, block.act)
        y = self.conv(f"{name}.pointwise", y, block.pointwise)
        return self.op("Add", name, x, y)

    def gru(self, name: str, x: str, layer: torch.nn.GRU) -> str:
        """A forward GRU over x: (frames, 1, channels); returns (frames, 1, hidden)."""
        weights = [gates(array(layer.weight_ih_l0)), gates(array(layer.weight_hh_l0))]
        bias = np.concatenate([gates(array(layer.bias_ih_l0)), gates(array(layer.bias_hh_l0))])
        w = self.const(f"{name}.W", weights[0][None])
        r = self.const(f"{name}.R", weights[1][None])
        b = self.const(f"{name}.B", bias[None])
        y = self.op("GRU", name, x, w, r, b, hidden_size=layer.hidden_size, linear_before_reset=1, direction="forward")
        return self.op("Squeeze", f"{name}.forward", y, self.ints(1))

    def cut(self, name: str, x: str, like: str) -> str:
        """`x` cut on its last axis to the length of `like`'s last axis."""
        axis = 1 if like == "noisy" else 2
        shape = self.op("Shape", f"{name}.shape", like)
        length = self.op("Gather", f"{name}.length", shape, self.ints(axis), axis=0)
        return self.op("Slice", name, x, self.ints(0), length, self.ints(2), self.ints(1))


def array(tensor: torch.Tensor | None) -> NDArray[np.float32]:
    """A parameter as a float32 array."""
    if tensor is None:
        raise ValueError("this export needs layers with a bias")
    return tensor.detach().cpu().numpy().astype(np.float32)


def gates(stacked: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reorder GRU gates from PyTorch's (reset, update, new) to ONNX's (update, reset, hidden)."""
    reset, update, new = np.split(stacked, 3)
    return np.concatenate([update, reset, new])


def mask_spectrum(g: GraphWriter, net: Denoiser, re: str, im: str) -> tuple[str, str]:
    """The part between the two transforms: from re, im (1, BINS, frames) to the masked re, im."""
    power = g.op("Add", "power", g.op("Mul", "re.square", re, re), g.op("Mul", "im.square", im, im))
    floored = g.op("Add", "power.floored", power, g.scalar("power_floor", POWER_FLOOR))
    magnitude = g.op("Sqrt", "magnitude", floored)
    x = g.op("Pow", "feature", magnitude, g.scalar("compression", COMPRESSION))
    x = g.channel_norm("encoder.norm", g.conv("encoder", x, net.encoder), net.encoder_norm)
    x = g.prelu("encoder.act", x, net.encoder_act)
    skip = g.separable("fine2", g.dense("fine1", x, net.fine1), net.fine2)

    x = g.prelu("down.act", g.conv("down", skip, net.down), net.down_act)
    x = g.separable("coarse1", x, net.coarse1)
    memory = g.gru("gru", g.op("Transpose", "gru.rows", x, perm=[2, 0, 1]), net.gru)
    weight = g.const("gru_out.weight", array(net.gru_out.weight).T)
    memory = g.op("MatMul", "gru_out.product", memory, weight)
    memory = g.op("Add", "gru_out", memory, g.const("gru_out.bias", array(net.gru_out.bias)))
    x = g.op("Add", "gru.residual", x, g.op("Transpose", "gru_out.columns", memory, perm=[1, 2, 0]))
    x = g.separable("coarse2", x, net.coarse2)

    up_weight = g.const("up.weight", array(net.up.weight))
    up_bias = g.const("up.bias", array(net.up.bias))
    x = g.op("ConvTranspose", "up", x, up_weight, up_bias, kernel_shape=[4], strides=[2], pads=[1, 1])
    x = g.op("Concat", "merge.input", g.cut("up.cut", x, skip), skip, axis=1)
    x = g.prelu("merge.act", g.conv("merge", x, net.merge), net.merge_act)
    x = g.dense("fine3", x, net.fine3)

    logits, turns = g.split("mask.split", g.conv("mask", x, net.mask), ("mask.gain_logit", "mask.turn_logit"), BINS)
    gain, turn = g.op("Sigmoid", "mask.gain", logits), g.op("Tanh", "mask.turn", turns)
    clean_re = g.op("Sub", "clean.re", g.op("Mul", "gain.re", gain, re), g.op("Mul", "turn.im", turn, im))
    clean_im = g.op("Add", "clean.im", g.op("Mul", "gain.im", gain, im), g.op("Mul", "turn.re", turn, re))
    return clean_re, clean_im


def build(net: Denoiser) -> onnx.ModelProto:
    """The whole ONNX model, noisy (1, samples) float32 to clean (1, samples) float32."""
    net = net.eval()
    g = GraphWriter()
    basis = g.const("fourier_basis", fourier_basis())
    wave = g.op("Unsqueeze", "wave", "noisy", g.ints(1))
    spectrum = g.op("Conv", "stft", wave, basis, kernel_shape=[WINDOW], strides=[HOP], pads=[HOP, WINDOW - 1])
    re, im = g.split("stft.split", spectrum, ("re", "im"), BINS)
    clean = g.op("Concat", "clean.spectrum", *mask_spectrum(g, net, re, im), axis=1)
    scaled = g.op("Mul", "clean.scaled", clean, g.const("inverse_scale", inverse_scale()))
    wave = g.op("ConvTranspose", "istft", scaled, basis, kernel_shape=[WINDOW], strides=[HOP], pads=[HOP, HOP])
    g.op("Squeeze", "clean", g.cut("istft.cut", wave, "noisy"), g.ints(1))

    shape = [1, "samples"]
    graph = helper.make_graph(
        g.nodes,
        "denoiser",
        [helper.make_tensor_value_info("noisy", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("clean", TensorProto.FLOAT, shape)],
        list(g.initializers.values()),
        doc_string="Offline, non-causal speech denoiser, 16 kHz mono.",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="runnel")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, {"sample_rate": str(SAMPLE_RATE), "license": "Apache-2.0"})
    onnx.checker.check_model(model, full_check=True)
    return model


def compare(net: Denoiser, model: bytes, lengths: tuple[int, ...] = CHECK_LENGTHS) -> float:
    """Worst deviation of onnxruntime from PyTorch over `lengths` of the demo recording, relative to the output's range.

    Speech, not noise: the network takes noise away, and what is left is small against the rounding of what went in.
    """
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    recording, _ = read_wav(HERE / "demo_noisy.wav")
    worst = 0.0
    for length in lengths:
        noisy = recording[None, SAMPLE_RATE : SAMPLE_RATE + length]
        with torch.no_grad():
            expected = net.eval()(torch.from_numpy(noisy.copy())).numpy()
        (got,) = session.run(None, {"noisy": noisy})
        if got.shape != expected.shape:
            raise ValueError(f"length {length}: onnxruntime gave shape {got.shape}, PyTorch {expected.shape}")
        worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
    return worst


def load_network(checkpoint: Path) -> Denoiser:
    """The network with the weights of a checkpoint that train.py wrote."""
    net = Denoiser()
    net.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["model"])
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/denoiser/denoiser.pt"))
    parser.add_argument("--out", type=Path, default=HERE / "denoiser.onnx")
    options = parser.parse_args()
    net = load_network(options.checkpoint)
    data = build(net).SerializeToString()
    if len(data) > MAX_BYTES:
        raise SystemExit(f"the model takes {len(data)} bytes, more than the {MAX_BYTES} allowed; use fewer channels")
    worst = compare(net, data)
    if worst > 1e-5:
        raise SystemExit(f"onnxruntime deviates from PyTorch by {worst:.2e} of the range, more than 1e-5")
    options.out.write_bytes(data)
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{options.out}: {len(data)} bytes, {parameters} parameters, deviation from PyTorch {worst:.1e} of the range")


if __name__ == "__main__":
    main()
