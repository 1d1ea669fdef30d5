"""Window mode: what a fixed-window model gives on the last W frames, every H frames, without computing frames twice."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
from nets import TIME, Net
from oracle import Check

from runnel.errors import InputError


def body(net: Net, window: int | str, channels: int = 3) -> tuple[str, int]:
    """Two VALID convolutions; the tensor and its frames for a window of 20."""
    x = net.input([1, channels, window])
    h = net.op("Relu", net.conv(x, channels, 4, 5))
    return net.op("Relu", net.conv(h, 4, 4, 3, dilations=[2])), 12


def flatten_gemm(net: Net, h: str, frames: int) -> str:
    return str(net.op("Gemm", net.op("Flatten", h), net.weight(3, 4 * frames), net.weight(3), transB=1))


def global_average(net: Net, h: str, frames: int) -> str:
    return str(net.op("Gemm", net.op("Flatten", net.op("GlobalAveragePool", h)), net.weight(3, 4), transB=1))


def softmax_over_time(net: Net, h: str, frames: int) -> str:
    weights = net.op("Softmax", net.conv(h, 4, 1, 1), axis=-1)
    return str(net.op("ReduceSum", net.op("Mul", h, weights), net.const([2]), keepdims=0))


def attention(net: Net, h: str, frames: int) -> str:
    t = net.op("Transpose", h, perm=[0, 2, 1])
    scores = net.op("Softmax", net.op("MatMul", t, h), axis=-1)
    return str(net.op("MatMul", scores, t))


def last_frame(net: Net, h: str, frames: int) -> str:
    return str(net.op("Slice", h, net.const([-1]), net.const([1 << 62]), net.const([2])))


def maximum(net: Net, h: str, frames: int) -> str:
    return str(net.op("ReduceMax", h, axes=[2], keepdims=0))


def positions(net: Net, h: str, frames: int) -> str:
    return str(net.op("Add", h, net.weight(1, 4, frames)))


def reshape(net: Net, h: str, frames: int) -> str:
    return str(net.op("MatMul", net.op("Reshape", h, net.const([1, -1])), net.weight(4 * frames, 2)))


def none(net: Net, h: str, frames: int) -> str:
    return h


HEADS = (flatten_gemm, global_average, softmax_over_time, attention, last_frame, maximum, positions, reshape, none)


@pytest.mark.parametrize("hop", [1, 3, 25])
@pytest.mark.parametrize("head", HEADS)
def test_heads(check: Check, head: Any, hop: int) -> None:
    net = Net()
    h, frames = body(net, 20)
    check(net.model(head(net, h, frames)), window=20, hop=hop)


def test_symbolic_time_axis_with_a_window(check: Check) -> None:
    net = Net()
    h, frames = body(net, TIME)
    check(net.model(global_average(net, h, frames)), window=20, hop=2)


@pytest.mark.parametrize("hop", [2, 4, 6])
def test_hop_is_a_multiple_of_the_stride(check: Check, hop: int) -> None:
    net = Net()
    x = net.input([1, 3, 21])
    h = net.op("Relu", net.conv(x, 3, 4, 3, strides=[2]))
    h = net.op("MaxPool", h, kernel_shape=[2])
    check(net.model(flatten_gemm(net, h, 9)), window=21, hop=hop)


def test_two_dimensional(check: Check) -> None:
    net = Net()
    x = net.input([1, 18, 6])
    h = net.op("Unsqueeze", x, net.const([1]))
    h = net.op("Relu", net.conv(h, 1, 4, [3, 3], pads=[0, 1, 0, 1]))
    h = net.op("Relu", net.conv(h, 4, 4, [4, 6]))
    check(net.model(flatten_gemm(net, h, 13)), window=18, hop=2)


def test_several_outputs_of_different_kinds(check: Check) -> None:
    net = Net()
    h, frames = body(net, 20)
    check(net.model(h, maximum(net, h, frames), flatten_gemm(net, h, frames)), window=20, hop=2)


def test_recurrence_inside_a_window(check: Check) -> None:
    """The state starts at zero in every window, so the whole recurrence is run again for each."""
    net = Net()
    h, _ = body(net, 20)
    y = net.recurrent("GRU", net.op("Transpose", h, perm=[2, 0, 1]), 4, 3)
    check(net.model(y), window=20, hop=2)


def test_window_as_long_as_the_model_is_fixed_to() -> None:
    net = Net()
    h, frames = body(net, 20)
    model = net.model(flatten_gemm(net, h, frames))
    with pytest.raises(InputError, match="no input has an axis of 21 frames"):
        oracle.check(model, window=21)


def test_shorter_than_a_window_gives_nothing(check: Check) -> None:
    net = Net()
    h, frames = body(net, 20)
    check(net.model(flatten_gemm(net, h, frames)), window=20, lengths=[1, 10, 19])
