"""The networks as ONNX. Weights come from a seed; batch statistics from ``signal``, a made-up recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]
EXAMPLES = 8
RATE = {"acc": 32.0, "eeg": 256.0, "ppg": 32.0}


def signal(channels: int, frames: int, rate: float, seed: int = 0) -> Array:
    """(channels, frames): drifting tones of changing loudness, with noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames) / rate
    x = 0.3 * rng.standard_normal((channels, frames))
    for c in range(channels):
        for _ in range(6):
            pitch, phase = rng.uniform(0.5, rate / 10), rng.uniform(0, 6)
            drift = 1 + 0.1 * np.sin(2 * np.pi * 0.01 * t)
            x[c] += rng.uniform(0.3, 1) * np.sin(2 * np.pi * pitch * t * drift + phase)
        x[c] *= 1 + 0.8 * np.sin(2 * np.pi * 0.02 * t + c)
    return x.astype(np.float32)


class Network:
    """Collects nodes behind an input (1, channels, frames), and what they make of a few windows of the signal."""

    def __init__(self, name: str, channels: int, frames: int, seed: int) -> None:
        self.name, self.inputs, self.channels, self.frames = name, channels, channels, frames
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        recording = signal(channels, frames * EXAMPLES, RATE[name], seed)
        self.values = recording.reshape(channels, EXAMPLES, frames).transpose(1, 0, 2)
        self.last = "x"

    def constant(self, value: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        self.last = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [self.last], name=f"{self.last}_node", **attrs))
        return self.last

    def random(self, *shape: int) -> Array:
        fan = int(np.prod(shape[1:]))
        return (self.rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)

    def conv(self, outputs: int, kernel: int, dilation: int = 1, pads: tuple[int, int] = (0, 0)) -> None:
        """Convolution, batch normalisation by the statistics of the windows, ReLU."""
        w = self.random(outputs, self.channels, kernel)
        self.node("Conv", self.last, self.constant(w), dilations=[dilation], pads=list(pads), kernel_shape=[kernel])
        x = np.pad(self.values, ((0, 0), (0, 0), pads))
        frames = x.shape[2] - (kernel - 1) * dilation
        y = sum(np.einsum("oc,bct->bot", w[:, :, k], x[:, :, k * dilation :][:, :, :frames]) for k in range(kernel))
        mean, variance = y.mean((0, 2)), y.var((0, 2)) + 1e-5
        shift = (0.1 * self.rng.standard_normal(outputs)).astype(np.float32)
        parameters = [np.ones(outputs), shift, mean, variance]
        self.node("BatchNormalization", self.last, *(self.constant(p.astype(np.float32)) for p in parameters))
        self.node("Relu", self.last)
        normal = (y - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5) + shift[:, None]
        self.values, self.channels = np.maximum(normal, 0).astype(np.float32), outputs

    def pool(self, op: str, size: int) -> None:
        self.node(op, self.last, kernel_shape=[size], strides=[size])
        frames = self.values.shape[2] // size * size
        parts = self.values[:, :, :frames].reshape(*self.values.shape[:2], -1, size)
        self.values = parts.max(3) if op == "MaxPool" else parts.mean(3)

    def dense(self, inputs: int, outputs: int, relu: bool = True) -> None:
        bias = (0.1 * self.rng.standard_normal(outputs)).astype(np.float32)
        self.node("Gemm", self.last, self.constant(self.random(outputs, inputs)), self.constant(bias), transB=1)
        if relu:
            self.node("Relu", self.last)

    def attention(self, heads: int, size: int) -> None:
        """Self-attention over what is left of the window, with a layer normalisation."""
        x = self.node("Transpose", self.last, perm=[0, 2, 1])
        split = self.constant(np.array([0, 0, heads, size], np.int64))
        parts = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            made = self.node("MatMul", x, self.constant(self.random(self.channels, heads * size)))
            parts.append(self.node("Transpose", self.node("Reshape", made, split), perm=perm))
        scores = self.node("MatMul", parts[0], parts[1])
        scale = self.constant(np.array(size**-0.5, np.float32))
        weights = self.node("Softmax", self.node("Mul", scores, scale), axis=-1)
        joined = self.node("Transpose", self.node("MatMul", weights, parts[2]), perm=[0, 2, 1, 3])
        self.node("Reshape", joined, self.constant(np.array([0, 0, -1], np.int64)))
        ones, zeros = (self.constant(np.full(heads * size, v, np.float32)) for v in (1, 0))
        self.node("LayerNormalization", self.last, ones, zeros, axis=-1)

    def model(self) -> onnx.ModelProto:
        """The ONNX model; its output is ``y``."""
        shape = [1, self.inputs, self.frames]
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes, self.name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], self.weights,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def acc(seed: int = 0) -> onnx.ModelProto:
    """Six convolutions and a global average: input (1, 4, 960)."""
    net = Network("acc", 4, 960, seed)
    for channels in (8, 16, 32, 64, 128, 256):
        net.conv(channels, 3, pads=(1, 1))
    net.node("GlobalAveragePool", net.last)
    net.node("Flatten", net.last)
    for inputs, outputs, relu in ((256, 256, False), (256, 128, True), (128, 64, True), (64, 2, False)):
        net.dense(inputs, outputs, relu)
    return net.model()


def eeg(seed: int = 0) -> onnx.ModelProto:
    """Three convolutions with pools of 4 and a convolution over the rest: input (1, 18, 1024)."""
    net = Network("eeg", 18, 1024, seed)
    for _ in range(3):
        net.conv(128, 3, pads=(1, 1))
        net.pool("MaxPool", 4)
    net.node("Conv", net.last, net.constant(net.random(100, 128, 16)))
    net.node("Conv", net.last, net.constant(net.random(2, 100, 1)))
    net.node("Flatten", net.last)
    return net.model()


def ppg(seed: int = 0) -> onnx.ModelProto:
    """Nine causal dilated convolutions with average pools, and attention: input (1, 1, 256)."""
    net = Network("ppg", 1, 256, seed)
    for channels, pool in ((32, 4), (48, 2), (64, 2)):
        for _ in range(3):
            net.conv(channels, 5, dilation=2, pads=(8, 0))
        net.pool("AveragePool", pool)
    net.attention(4, 16)
    net.node("Flatten", net.last)
    net.dense(16 * 64, 32)
    net.dense(32, 1, False)
    return net.model()


NETWORKS: dict[str, Callable[[int], onnx.ModelProto]] = {"acc": acc, "eeg": eeg, "ppg": ppg}
