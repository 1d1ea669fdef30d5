"""Frames joined before and behind a stream, and channels shifted in time."""

from __future__ import annotations

import numpy as np
import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

END = 1 << 62


def sliced(net: Net, x: str, start: int, stop: int) -> str:
    return str(net.op("Slice", x, net.const([start]), net.const([stop]), net.const([2])))


@pytest.mark.parametrize(("left", "right"), [(1, 0), (3, 0), (0, 1), (0, 3), (2, 2)])
@pytest.mark.parametrize("time_last", [False, True])
def test_concat_of_a_table(check: Check, left: int, right: int, time_last: bool) -> None:
    """Learned tokens before the first frame and behind the last."""
    net = Net()
    x = net.input([1, 3, TIME] if time_last else [1, TIME, 3])
    axis = 2 if time_last else 1
    h = net.op("Tanh", net.conv(x, 3, 3, 3, pads=[1, 1])) if time_last else net.op("Tanh", x)
    parts = [
        net.const(net.rng.standard_normal([1, 3, n] if time_last else [1, n, 3])) if n else "" for n in (left, right)
    ]
    y = net.op("Concat", *(p for p in (parts[0], h, parts[1]) if p), axis=axis)
    z = net.conv(y, 3, 2, 3, pads=[1, 1]) if time_last else net.op("Exp", y)
    check(net.model(y, z), lengths=(1, 2, 3, 5, 9, 14))


def test_many_equal_frames_behind(check: Check) -> None:
    net, x = stack(2)
    token = np.broadcast_to(np.array([[[1.0], [-2.0]]]), (1, 2, 40))
    check(net.model(net.op("Concat", x, net.const(token), axis=2)), lengths=(1, 2, 5, 9))


def shifted(net: Net, x: str, by: int, how: str) -> str:
    """Frame n - by of x, zeros where there is none."""
    cut = sliced(net, x, 0, -by) if by > 0 else sliced(net, x, -by, END)
    left, right = max(by, 0), max(-by, 0)
    if how == "pad":
        return str(net.op("Pad", cut, net.const([0, 0, left, 0, 0, right])))
    if how == "constants":
        zeros = net.const(np.zeros((1, 2, abs(by))))
    else:
        shape = net.op("Concat", net.op("Shape", cut, end=2), net.const([abs(by)]), axis=0)
        zeros = net.op("ConstantOfShape", shape) if how == "filled" else net.op("Expand", net.const([[[0.0]]]), shape)
    return str(net.op("Concat", *([zeros, cut] if by > 0 else [cut, zeros]), axis=2))


@pytest.mark.parametrize("how", ["pad", "constants", "filled", "expanded"])
def test_temporal_shift(check: Check, how: str) -> None:
    """Some channels from the frame before, some from the frame after, the rest as they are."""
    net, x = stack(6)
    h = net.conv(x, 6, 6, 3, pads=[1, 1])
    past, future, same = net.op("Split", h, net.const([2, 2, 2]), outputs=3, axis=1)
    y = net.op("Concat", shifted(net, past, 1, how), shifted(net, future, -1, how), same, axis=1)
    check(net.model(net.op("Add", x, net.conv(y, 6, 6, 1))), lengths=(1, 2, 3, 5, 9, 14))


@pytest.mark.parametrize("by", [-3, 2])
def test_shift_by_more_frames(check: Check, by: int) -> None:
    net, x = stack(2)
    check(net.model(net.op("Sub", x, shifted(net, x, by, "filled"))), lengths=range(4, 20))


@pytest.mark.parametrize("look", [False, True])
def test_pre_emphasis(check: Check, look: bool) -> None:
    """The first frame as it is, every other one less a part of the one before."""
    net, x = stack(2)
    h = net.conv(x, 2, 2, 3, pads=[1, 1]) if look else x
    less = net.op("Mul", sliced(net, h, 0, -1), net.const(0.97))
    y = net.op("Concat", sliced(net, h, 0, 1), net.op("Sub", sliced(net, h, 1, END), less), axis=2)
    check(net.model(net.op("Tanh", y), net.conv(y, 2, 2, 3, pads=[1, 1])), lengths=(1, 2, 3, 5, 9, 14))


def test_first_frames_repeated_before_the_stream(check: Check) -> None:
    net, x = stack(2)
    h = net.op("Sigmoid", net.conv(x, 2, 2, 3, pads=[1, 1]))
    first = sliced(net, h, 0, 1)
    y = net.op("Concat", first, first, net.op("Neg", sliced(net, h, 1, 3)), h, axis=2)
    check(net.model(y, net.conv(y, 2, 2, 5, pads=[2, 2])), lengths=(3, 4, 5, 9, 14))


@pytest.mark.parametrize("how", ["once", "thrice", "tiled", "expanded", "gathered"])
@pytest.mark.parametrize("front", [False, True])
def test_the_last_frame_again_behind_the_stream(check: Check, how: str, front: bool) -> None:
    """A pad with the edge, as joins write it."""
    net, x = stack(2)
    h = net.conv(x, 2, 3, 4, pads=[2, 1], strides=[2])
    last = sliced(net, h, -1, END)
    if how == "gathered":
        last = net.op("Unsqueeze", net.op("Gather", h, net.const(-1), axis=2), net.const([2]))
    elif how == "tiled":
        last = net.op("Tile", last, net.const([1, 1, 4]))
    elif how == "expanded":
        last = net.op("Expand", last, net.const([1, 3, 2]))
    parts = ([sliced(net, h, 0, 1)] if front else []) + [h] + [last] * (3 if how == "thrice" else 1)
    y = net.op("Concat", *parts, axis=2)
    check(net.model(net.conv(y, 3, 2, 3, pads=[1, 1])), lengths=(1, 2, 3, 5, 8, 13, 20))


def test_a_difference_to_the_next_frame(check: Check) -> None:
    net, x = stack(3)
    following = net.op("Concat", sliced(net, x, 1, END), sliced(net, x, -1, END), axis=2)
    check(net.model(net.op("Sub", following, x)), lengths=(1, 2, 3, 5, 9))


def test_the_last_frame_behind_others_is_refused() -> None:
    net, x = stack(2)
    last = sliced(net, x, -1, END)
    with pytest.raises(Refused, match="behind other frames than its own"):
        analyse(load(net.model(net.op("Concat", last, x, last, axis=2))))


def test_zeros_made_of_the_first_frame(check: Check) -> None:
    net, x = stack(2)
    zeros = net.op("Mul", sliced(net, x, 0, 1), net.const(0.0))
    check(net.model(net.op("Add", x, net.op("Concat", zeros, sliced(net, x, 0, -1), axis=2))), lengths=(1, 2, 5, 9))
