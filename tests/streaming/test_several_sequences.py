"""Convolutions, pools and norms of several sequences at once, as a separator decodes all of its voices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import TIME, Net
from oracle import Check

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "taps": {"kernel": 3, "pads": [1, 1]},
    "strided groups": {"kernel": 4, "strides": [2], "group": 2},
    "no bias": {"kernel": 3, "bias": False},
    "planes": {"kernel": [3, 2], "pads": [2, 0, 0, 1]},
    "inside": {"kernel": [1, 3]},
}
TRANSPOSED: dict[str, dict[str, Any]] = {
    "upsampled": {"kernel": 4, "strides": [2]},
    "upsampled groups": {"kernel": 3, "strides": [2], "group": 2},
    "planes": {"kernel": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 0]},
    "inside": {"kernel": [1, 3], "strides": [1, 2], "group": 2},
}


def sequences(options: dict[str, Any]) -> tuple[Net, str]:
    net = Net()
    x = net.input([3, 4, TIME, 5] if isinstance(options["kernel"], list) else [3, 4, TIME])
    return net, x


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution(check: Check, kind: str) -> None:
    net, x = sequences(CONVOLUTIONS[kind])
    check(net.model(net.op("Relu", net.conv(x, 4, 6, **CONVOLUTIONS[kind]))))


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_transposed_convolution(check: Check, kind: str) -> None:
    net, x = sequences(TRANSPOSED[kind])
    check(net.model(net.op("Relu", net.conv_transpose(x, 4, 6, **TRANSPOSED[kind]))))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("kernel", [[3], [2, 3], [1, 2]])
def test_pool(check: Check, op: str, kernel: list[int]) -> None:
    net = Net()
    x = net.input([3, 4, TIME, 5][: 2 + len(kernel)])
    check(net.model(net.op(op, x, kernel_shape=kernel, strides=[2] if len(kernel) == 1 else None)))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MaxPool"])
def test_inside_a_frame(check: Check, op: str) -> None:
    """Time ahead of the model's own batch, and folded into it."""
    net = Net()
    x = net.input([1, TIME, 3, 4, 5])
    h = net.op("Reshape", x, net.const([-1, 4, 5]))
    made = {
        "Conv": lambda: net.conv(h, 4, 6, 3, pads=[1, 1]),
        "ConvTranspose": lambda: net.conv_transpose(h, 4, 6, 2, strides=[2]),
        "MaxPool": lambda: net.op("MaxPool", h, kernel_shape=[2]),
    }[op]()
    size = {"Conv": [6, 5], "ConvTranspose": [6, 10], "MaxPool": [4, 4]}[op]
    check(net.model(net.op("Reshape", made, net.const([1, -1, 3, *size]))))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_norm_of_groups_in_each_frame(check: Check, groups: int) -> None:
    net = Net()
    x = net.input([TIME, 4, 3, 3])
    h = net.op("Reshape", x, net.const([0, groups, -1]))
    h = net.op("InstanceNormalization", h, net.weight(groups), net.weight(groups), epsilon=1e-2)
    h = net.op("Reshape", h, net.op("Shape", x))
    check(net.model(net.op("Mul", h, net.const(np.ones((4, 1, 1))))))


def test_group_norm_in_each_frame(check: Check) -> None:
    net = Net(opset=21)
    x = net.input([TIME, 4, 3, 3])
    check(net.model(net.op("GroupNormalization", x, net.weight(4), net.weight(4), num_groups=2, epsilon=1e-2)))
