"""Models with a layer of each kind, all of like size: in float32 and in codes."""

from __future__ import annotations

import numpy as np
from nets import TIME, Net
from quantised_nets import QuantisedNet

CHANNELS, PLACES = 32, 48


def images() -> bytes:
    """Of frames (32, 48), channels by places."""
    net = Net()
    x = net.input([1, CHANNELS, TIME, PLACES])
    c, before = CHANNELS, [1, 1, 0, 1]
    made = [
        net.op("Relu", net.conv(x, c, c, [2, 3], pads=before, strides=[1, 2])),
        net.conv(x, c, c, [2, 3], pads=before, group=c),
        net.conv(x, c, c, [2, 3], pads=before, group=4),
        net.conv(x, c, 24, [1, 1]),
        net.conv(x, c, 3, [1, 3], pads=[0, 1, 0, 1]),
        net.conv_transpose(x, c, 8, [1, 3], strides=[1, 2]),
        net.op("MaxPool", x, kernel_shape=[1, 3], strides=[1, 2], pads=[0, 1, 0, 1]),
        net.op("AveragePool", x, kernel_shape=[2, 3], strides=[1, 1], pads=before),
    ]
    return net.model(*made)


def moves() -> bytes:
    """What moves elements or picks some."""
    net = Net()
    x = net.input([1, CHANNELS, TIME, PLACES])
    twice = net.const(np.array([1.0, 1.0, 1.0, 2.0], np.float32))
    ends = [net.const([v]) for v in (1, 1 << 20, 3, 2)]
    made = [
        net.op("Mul", x, x),
        net.op("Transpose", x, perm=[0, 3, 2, 1]),
        net.op("Resize", x, "", twice, mode="nearest"),
        net.op("Slice", x, *ends),
        net.op("Gather", x, net.const(net.rng.permutation(CHANNELS)), axis=1),
        net.op("Concat", x, last_as(net, x), axis=3),
    ]
    return net.model(*made)


def last_as(net: Net, x: str) -> str:
    return str(net.op("Slice", x, net.const([5]), net.const([17]), net.const([3])))


def values() -> bytes:
    """Element-wise ops, reductions, normalisation, products, recurrences."""
    net = Net()
    x = net.input([1, TIME, PLACES, CHANNELS])
    y = net.op("Add", x, net.weight(CHANNELS))
    flat = net.op("Transpose", net.op("ReduceMean", x, axes=[2], keepdims=0), perm=[1, 0, 2])
    gru = net.recurrent("GRU", flat, CHANNELS, CHANNELS, outputs=2, linear_before_reset=1)[0]
    lstm = net.recurrent("LSTM", flat, CHANNELS, CHANNELS, outputs=2)[0]
    made = [
        *(net.op(op, y) for op in ("Erf", "Tanh", "Sigmoid", "Exp", "Softplus", "HardSwish", "Sqrt", "Floor")),
        net.op("Softmax", x, axis=3), net.op("Softmax", x, axis=2), net.op("LogSoftmax", x, axis=3),
        net.op("LayerNormalization", x, net.weight(CHANNELS), net.weight(CHANNELS), axis=-1),
        *(net.op(op, x, axes=[axis], keepdims=1) for op in ("ReduceMax", "ReduceMean", "ReduceL2") for axis in (2, 3)),
        net.op("Where", net.op("Greater", x, y), x, net.op("Abs", y)),
        net.op("PRelu", x, net.weight(CHANNELS)), net.op("Pow", net.op("Abs", x), y),
        net.op("MatMul", x, net.weight(CHANNELS, 24)),
        net.op("MatMul", x, net.op("Transpose", y, perm=[0, 1, 3, 2])),
        gru, lstm,
    ]  # fmt: skip
    return net.model(*made)


def codes() -> bytes:
    """Layers of codes."""
    net = QuantisedNet(kind="uint8")
    x = net.source([1, CHANNELS, TIME, PLACES])
    c, before = CHANNELS, [1, 1, 0, 1]
    real = net.real(x)
    twice = net.const(np.array([1.0, 1.0, 1.0, 2.0], np.float32))
    made = [
        net.qconv(x, c, c, [2, 3], relu=True, pads=before, strides=[1, 2]),
        net.qconv(x, c, c, [2, 3], pads=before, group=c),
        net.qconv(x, c, c, [2, 3], pads=before, group=4),
        net.qconv(x, c, 24, [1, 1]),
        net.qconv(x, c, 3, [1, 3], pads=[0, 1, 0, 1]),
        net.quantise(net.op("MaxPool", real, kernel_shape=[1, 3], strides=[1, 2], pads=[0, 1, 0, 1])),
        net.quantise(net.op("AveragePool", real, kernel_shape=[2, 3], strides=[1, 1], pads=before)),
        net.quantise(net.op("Add", real, net.real(net.quantise(net.op("Relu", real))))),
        net.quantise(net.op("Softmax", real, axis=3)),
        net.quantise(net.op("ReduceMean", real, axes=[3], keepdims=1)),
        net.quantise(net.op("Resize", real, "", twice, mode="nearest")),
        net.quantise(net.op("Concat", real, net.op("Neg", real), axis=3)),
    ]
    return net.model(*(net.real(m) for m in made))


MODELS = {"images": images, "moves": moves, "values": values, "codes": codes}
