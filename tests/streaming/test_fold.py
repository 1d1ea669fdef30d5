"""Reshapes between frames and channels: pixel shuffles up and down, in one and two dimensions, and stacked frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check
from runners import RUNNERS

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused, StreamError


def shuffled_up(net: Net, x: str, channels: int, r: int, target: Any) -> str:
    """[1, channels·r, T] to [1, channels, T·r], as sub-pixel layers write it."""
    h = net.op("Reshape", x, net.const([1, channels, r, -1]))
    h = net.op("Transpose", h, perm=[0, 1, 3, 2])
    return str(net.op("Reshape", h, target))


def shuffled_down(net: Net, x: str, channels: int, r: int) -> str:
    """[1, channels, T] to [1, channels·r, T / r]."""
    h = net.op("Reshape", x, net.const([1, channels, -1, r]))
    h = net.op("Transpose", h, perm=[0, 1, 3, 2])
    return str(net.op("Reshape", h, net.const([1, channels * r, -1])))


@pytest.mark.parametrize(("channels", "r"), [(1, 2), (3, 2), (2, 5), (16, 2), (20, 3)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_frames_from_channels(check: Check, channels: int, r: int, symbolic: bool) -> None:
    net, x = stack(3)
    h = net.conv(x, 3, channels * r, 3, pads=[1, 1])
    target = net.const([1, channels, -1])
    if symbolic:
        times = net.op("Mul", net.length(x, 2), net.const([r]))
        target = net.op("Concat", net.const([1, channels]), times, axis=0)
    y = shuffled_up(net, h, channels, r, target)
    check(net.model(y, net.conv(y, channels, 2, 3, pads=[1, 1])), lengths=(1, 2, 3, 7, 12), steps=(None, 4))


@pytest.mark.parametrize(("channels", "r"), [(1, 2), (3, 4), (20, 3)])
def test_channels_from_frames(check: Check, channels: int, r: int) -> None:
    net, x = stack(channels)
    h = net.conv(x, channels, channels, 3, pads=[1, 1])
    y = shuffled_down(net, h, channels, r)
    z = net.conv(y, channels * r, 2, 3, pads=[1, 1])
    check(net.model(y, z), lengths=[r * n for n in (1, 2, 3, 5, 9)], steps=(None, 5))


def test_down_and_up_again(check: Check) -> None:
    net, x = stack(2)
    h = net.op("Tanh", net.conv(shuffled_down(net, x, 2, 4), 8, 8, 3, pads=[1, 1]))
    y = net.op("Add", x, shuffled_up(net, h, 2, 4, net.const([1, 2, -1])))
    check(net.model(y), lengths=range(1, 30), at_least=7)


def test_stacked_frames_of_a_time_first_model(check: Check) -> None:
    """[1, T, C] to [1, T / 3, 3·C], as encoders lower their frame rate."""
    net = Net()
    x = net.input([1, TIME, 4])
    third = net.op("Div", net.length(x, 1), net.const([3]))
    y = net.op("Reshape", x, net.op("Concat", net.const([1]), third, net.const([12]), axis=0))
    check(net.model(net.op("MatMul", y, net.weight(12, 5))), lengths=(3, 6, 9, 24))


def test_interleaved_channels_of_a_time_first_model(check: Check) -> None:
    net = Net()
    x = net.input([1, TIME, 6])
    check(net.model(net.op("Reshape", net.op("Relu", x), net.const([1, -1, 2]))), lengths=(1, 2, 5, 9))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("axis", [2, 3])
def test_depth_to_space(check: Check, axis: int, mode: str) -> None:
    net = Net()
    x = net.input([1, 8, TIME, 3] if axis == 2 else [1, 8, 3, TIME])
    h = net.conv(x, 8, 8, [3, 3], pads=[1, 1, 1, 1])
    check(net.model(net.op("DepthToSpace", h, blocksize=2, mode=mode)), lengths=(1, 2, 5, 9))


@pytest.mark.parametrize("axis", [2, 3])
def test_space_to_depth(check: Check, axis: int) -> None:
    net = Net()
    x = net.input([1, 2, TIME, 6] if axis == 2 else [1, 2, 6, TIME])
    h = net.conv(x, 2, 2, [3, 3], pads=[1, 1, 1, 1])
    y = net.op("SpaceToDepth", h, blocksize=2)
    check(net.model(net.conv(y, 8, 2, [3, 3], pads=[1, 1, 1, 1])), lengths=(2, 4, 8, 14))


@pytest.mark.parametrize("runner", ["reference", "native"])
def test_a_length_that_does_not_divide_is_refused_at_the_end(runner: str) -> None:
    net, x = stack(2)
    h = net.conv(x, 2, 2, 4)
    model = net.model(shuffled_down(net, h, 2, 4))
    assert analyse(load(model)).remainders == (4, (3,))
    make = RUNNERS[runner](model, {})
    for frames in (11, 12):
        stream = make()
        stream.push({"x": np.zeros((1, 2, frames), np.float32)})
        if frames % 4 == 3:
            assert stream.flush()
        else:
            with pytest.raises(StreamError, match="does not take"):
                stream.flush()


def test_parts_that_lie_far_apart_are_refused() -> None:
    """[1, 2, T] as [1, 2·T]: the second channel would follow the end of the first."""
    net, x = stack(2)
    with pytest.raises(Refused, match="folds time together"):
        oracle.check(net.model(net.op("Reshape", x, net.const([1, -1]))))
