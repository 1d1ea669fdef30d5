"""Networks that the bench defines itself, from their published shapes, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
Shape = tuple["int | str", ...]


class Builder:
    """Collects nodes; every method returns the name of what it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        return self.constant(gain * self.random.standard_normal(shape) / max(1, int(np.prod(shape[1:]))) ** 0.5)

    def op(self, op: str, *inputs: str, output: str = "", **attrs: Any) -> str:
        """output: what it is to be called, if that matters."""
        name = output or f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], f"node_{name}", **attrs))
        return name

    def conv(
        self,
        x: str,
        inside: int,
        outside: int,
        kernel: tuple[int, ...],
        gain: float = 1.0,
        group: int = 1,
        **attrs: Any,
    ) -> str:
        weight = self.weight(outside, inside // group, *kernel, gain=gain)
        bias = self.constant(0.1 * self.random.standard_normal(outside))
        return self.op("Conv", x, weight, bias, kernel_shape=list(kernel), group=group, **attrs)

    def model(self, inputs: dict[str, Shape], outputs: dict[str, Shape]) -> bytes:
        """The serialised model."""
        ports = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in side.items()]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "net", ports[0], ports[1], self.constants)
        others = sorted({node.domain for node in self.nodes} - {""})
        versions = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in others)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=IR_VERSION)
        return bytes(model.SerializeToString())


def relu() -> bytes:
    """One Relu of one number a frame, [1, 1, T]: what a call costs."""
    b = Builder()
    b.op("Relu", "x", output="y")
    return b.model({"x": (1, 1, "T")}, {"y": (1, 1, "T")})


def few_bits(bits: int, level: int = 0, size: int = 4096, layers: int = 2, block: int = 32) -> bytes:
    """MatMulNBits of size by size and Tanh, [1, T, size]. level: the accuracy that onnxruntime may round to."""
    b, x = Builder(), "x"
    for i in range(layers):
        codes = b.random.integers(0, 256, (size, size // block, block * bits // 8), dtype=np.uint8)
        scales = (b.random.uniform(0.5, 1.5, size * size // block) / 2**bits / size**0.5).astype(np.float32)
        y = b.op("MatMulNBits", x, b.constant(codes), b.constant(scales), domain="com.microsoft", K=size, N=size,
                 bits=bits, block_size=block, accuracy_level=level)  # fmt: skip
        x = b.op("Tanh", y, output="y" if i == layers - 1 else "")
    return b.model({"x": (1, "T", size)}, {"y": (1, "T", size)})


def tcn(channels: int = 64, layers: int = 10, kernel: int = 3, growth: int = 2) -> bytes:
    """A causal residual stack, [1, channels, T]: dilations 1, growth, growth² … growth^(layers - 1)."""
    b, x = Builder(), "x"
    for i in range(layers):
        dilation = growth**i
        y = b.conv(x, channels, channels, (kernel,), dilations=[dilation], pads=[(kernel - 1) * dilation, 0])
        x = b.op("Add", x, b.op("Relu", y), output="y" if i == layers - 1 else "")
    return b.model({"x": (1, channels, "T")}, {"y": (1, channels, "T")})


def tcn_step(hop: int, batch: int = 1, channels: int = 64, layers: int = 10, kernel: int = 3, growth: int = 2) -> bytes:
    """The same stack by hand as a step of ``hop`` frames of ``batch`` streams, [batch, channels, hop].

    Each layer's history s<i> comes in and n<i> goes out.
    """
    b, x = Builder(), "x"
    inputs: dict[str, Shape] = {"x": (batch, channels, hop)}
    outputs: dict[str, Shape] = {"y": (batch, channels, hop)}
    for i in range(layers):
        dilation = growth**i
        span = (kernel - 1) * dilation
        inputs[f"s{i}"] = outputs[f"n{i}"] = (batch, channels, span)
        joined = b.op("Concat", f"s{i}", x, axis=2)
        bounds = [b.constant(np.array([n], np.int64)) for n in (hop, hop + span, 2)]
        b.op("Slice", joined, *bounds, output=f"n{i}")
        y = b.conv(joined, channels, channels, (kernel,), dilations=[dilation])
        x = b.op("Add", x, b.op("Relu", y), output="y" if i == layers - 1 else "")
    return b.model(inputs, outputs)


def recurrent(op: str, inside: int, hidden: int) -> bytes:
    """One GRU or LSTM, [T, 1, inside] to [T, 1, hidden]."""
    b = Builder()
    gates = {"GRU": 3, "LSTM": 4}[op]
    weights = [b.weight(1, gates * hidden, n) for n in (inside, hidden)]
    bias = b.constant(0.1 * b.random.standard_normal((1, 2 * gates * hidden)))
    more: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
    y = b.op(op, "x", *weights, bias, hidden_size=hidden, **more)
    b.op("Squeeze", y, b.constant(np.array([1])), output="y")
    return b.model({"x": ("T", 1, inside)}, {"y": ("T", 1, hidden)})


def recurrent_step(op: str, inside: int, hidden: int, batch: int = 1) -> bytes:
    """The same for one frame of ``batch`` streams, [1, batch, inside], with its states as inputs and outputs."""
    b = Builder()
    gates = {"GRU": 3, "LSTM": 4}[op]
    weights = [b.weight(1, gates * hidden, n) for n in (inside, hidden)]
    bias = b.constant(0.1 * b.random.standard_normal((1, 2 * gates * hidden)))
    more: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
    states = ["h"] if op == "GRU" else ["h", "c"]
    made = ["all", *(f"{s}_next" for s in states)]
    b.nodes.append(
        helper.make_node(op, ["x", *weights, bias, "", *states], made, "node_rnn", hidden_size=hidden, **more)
    )
    b.op("Squeeze", "all", b.constant(np.array([1])), output="y")
    state: Shape = (1, batch, hidden)
    return b.model(
        {"x": (1, batch, inside)} | dict.fromkeys(states, state),
        {"y": (1, batch, hidden)} | {f"{s}_next": state for s in states},
    )


def soundstream(
    channels: int = 32, strides: tuple[int, ...] = (2, 4, 5, 8), embedding: int = 512, hop: int = 0
) -> bytes:
    """The causal encoder of SoundStream (Zeghidour et al. 2021, section III-A), [1, 1, T] to [1, embedding, T / 320].

    At 16 kHz a frame of the output is 20 ms. hop: as a step of so many samples with states by hand, convolutions over
    [1, C, 1, T] because those are what runtimes do best.
    """
    b = Builder()
    frames, width = hop, channels
    inputs: dict[str, Shape] = {"x": (1, 1, hop or "T")}
    outputs: dict[str, Shape] = {"y": (1, embedding, hop // int(np.prod(strides)) if hop else "F")}

    def causal(
        x: str, inside: int, outside: int, kernel: int, dilation: int = 1, stride: int = 1, gain: float = 1
    ) -> str:
        past = (kernel - 1) * dilation - (stride - 1)
        if not hop:
            more: dict[str, Any] = {"dilations": [dilation], "strides": [stride], "pads": [past, 0]}
            return b.conv(x, inside, outside, (kernel,), gain, **more)
        if past:
            given, made = f"s{len(inputs)}", f"n{len(inputs)}"
            inputs[given] = outputs[made] = (1, inside, 1, past)
            x = b.op("Concat", given, x, axis=3)
            bounds = [b.constant(np.array([n], np.int64)) for n in (frames, frames + past, 3)]
            b.op("Slice", x, *bounds, output=made)
        return b.conv(x, inside, outside, (1, kernel), gain, dilations=[1, dilation], strides=[1, stride])

    x = b.op("Unsqueeze", "x", b.constant(np.array([2], np.int64))) if hop else "x"
    x = causal(x, 1, width, 7)
    for stride in strides:
        for dilation in (1, 3, 9):
            y = causal(b.op("Elu", x), width, width, 7, dilation)
            x = b.op("Add", x, causal(b.op("Elu", y), width, width, 1, gain=0.5))
        x = causal(b.op("Elu", x), width, 2 * width, 2 * stride, stride=stride)
        frames, width = frames // stride, 2 * width
    y = causal(b.op("Elu", x), width, embedding, 3)
    b.op("Squeeze" if hop else "Identity", y, *([b.constant(np.array([2], np.int64))] if hop else []), output="y")
    return b.model(inputs, outputs)


# Kernel (time, space), expanded channels, of each layer of a block; the block's output and its first stride (space).
MOVINET_A0 = (
    (8, 2, (((1, 5), 40),)),
    (32, 2, (((5, 3), 80), ((3, 3), 80), ((3, 3), 80))),
    (56, 2, (((5, 3), 184), ((3, 3), 112), ((3, 3), 184))),
    (56, 1, (((5, 3), 184), ((3, 3), 184), ((3, 3), 184), ((3, 3), 184))),
    (104, 2, (((5, 3), 384), ((1, 5), 280), ((1, 5), 280), ((1, 5), 344))),
)


class Video:
    """Layers of MoViNet over [1, C, T, H, W], or as a step over [1, C, H, W] with its states as inputs and outputs."""

    def __init__(self, step: bool, size: int) -> None:
        self.b, self.step = Builder(), step
        self.size = size
        self.inputs: dict[str, Shape] = {"x": (1, 3, 1, size, size) if step else (1, 3, "T", size, size)}
        self.outputs: dict[str, Shape] = {}
        b = self.b
        if step:
            self.count = self.carried("count", ("Add", b.constant(np.ones((1, 1, 1, 1)))), (1, 1, 1, 1))
            return
        self.two = b.constant(np.array(2, np.int64))
        one = b.constant(np.array(1, np.int64))
        length = b.op("Gather", b.op("Shape", "x"), self.two, axis=0)
        number = b.op("Range", one, b.op("Add", length, one), one)
        shape = b.constant(np.array([1, 1, -1, 1, 1], np.int64))
        self.count = b.op("Reshape", b.op("Cast", number, to=TensorProto.FLOAT), shape)

    def carried(self, name: str, change: tuple[str, str], shape: Shape) -> str:
        """A state that an op with a value changes at each step."""
        self.inputs[name] = self.outputs[f"{name}_next"] = shape
        return self.b.op(change[0], name, change[1], output=f"{name}_next")

    def conv(
        self, x: str, inside: int, outside: int, kernel: int, stride: int = 1, group: int = 1, gain: float = 1.4
    ) -> str:
        pad, front = (kernel - 1) // 2, () if self.step else (1,)
        none = [0] * len(front)
        shape = (outside, inside // group, *front, kernel, kernel)
        weight = self.b.weight(*shape, gain=gain)
        bias = self.b.constant(0.1 * self.b.random.standard_normal(outside))
        return self.b.op(
            "Conv", x, weight, bias, kernel_shape=list(shape[2:]), group=group, strides=[*front, stride, stride],
            pads=[*none, pad, pad, *none, pad, pad],
        )  # fmt: skip

    def over_time(self, x: str, channels: int, kernel: int, side: int) -> str:
        """Each channel by itself, over the frame and those before it."""
        b = self.b
        if not self.step:
            pads = [kernel - 1, 0, 0, 0, 0, 0]
            return b.conv(x, channels, channels, (kernel, 1, 1), 1.4, channels, pads=pads)
        weights = 1.4 * b.random.standard_normal((channels, 1, kernel, 1, 1)) / kernel**0.5
        total = b.constant(0.1 * b.random.standard_normal(channels).reshape(1, -1, 1, 1))
        number = len(self.inputs)
        past = [f"p{number}_{k}" for k in range(kernel - 1)]
        for k, frame in enumerate([*past, x]):
            total = b.op("Add", total, b.op("Mul", frame, b.constant(weights[:, 0, k].reshape(1, -1, 1, 1))))
            if k:
                b.op("Identity", frame, output=f"{past[k - 1]}_next")
        for name in past:
            self.inputs[name] = self.outputs[f"{name}_next"] = (1, channels, side, side)
        return total

    def swish(self, x: str) -> str:
        return self.b.op("HardSwish", x)

    def average(self, x: str, channels: int) -> str:
        """Of space, and of time so far."""
        axes = [2, 3] if self.step else [3, 4]
        mean = self.b.op("ReduceMean", x, axes=axes, keepdims=1)
        if self.step:
            total = self.carried(f"sum{len(self.inputs)}", ("Add", mean), (1, channels, 1, 1))
        else:
            total = self.b.op("CumSum", mean, self.two)
        return self.b.op("Div", total, self.count)


def movinet(step: bool = False, size: int = 172, head: tuple[int, int, int] = (480, 2048, 600)) -> bytes:
    """MoViNet-A0 in its streaming form (Kondratyuk et al. 2021, table 9), [1, 3, T, size, size] to [1, T, classes].

    (2+1)-D causal convolutions, hard swish, squeeze and excite and the head's pool over the cumulative average.
    step: one frame with its states, by hand, in two dimensions.
    """
    v = Video(step, size)
    b = v.b
    x = b.op("Squeeze", "x", b.constant(np.array([2], np.int64))) if step else "x"
    x, channels, side = v.swish(v.conv(x, 3, 8, 3, 2)), 8, -(-size // 2)
    for outside, stride, layers in MOVINET_A0:
        for i, ((time, space), expanded) in enumerate(layers):
            y = v.swish(v.conv(x, channels, expanded, 1))
            y = v.swish(v.conv(y, expanded, expanded, space, stride if i == 0 else 1, expanded))
            side = -(-side // stride) if i == 0 else side
            if time > 1:
                y = v.swish(v.over_time(y, expanded, time, side))
            squeezed = max(8, (expanded // 4 + 4) // 8 * 8)
            gate = b.op("Relu", v.conv(v.average(y, expanded), expanded, squeezed, 1))
            y = b.op("Mul", y, b.op("HardSigmoid", v.conv(gate, squeezed, expanded, 1), alpha=1 / 6, beta=0.5))
            y = v.conv(y, expanded, outside, 1, gain=0.7)
            x, channels = (b.op("Add", x, y) if i and channels == outside else y), outside
    y = v.average(v.swish(v.conv(x, channels, head[0], 1)), head[0])
    y = v.conv(v.swish(v.conv(y, head[0], head[1], 1)), head[1], head[2], 1)
    if step:
        b.op("Reshape", y, b.constant(np.array([1, 1, head[2]], np.int64)), output="y")
    else:
        y = b.op("Squeeze", y, b.constant(np.array([3, 4], np.int64)))
        b.op("Transpose", y, perm=[0, 2, 1], output="y")
    return b.model(v.inputs, {"y": (1, 1 if step else "T", head[2])} | v.outputs)
