"""Models whose frames are a batch for a while: images of a video, bins of a spectrum, and back."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from nets import TIME, Net
from oracle import Check

from runnel.errors import Refused


def sizes(net: Net, x: str, *wanted: int | str | tuple[int, ...]) -> str:
    """A shape as exporters write it: numbers, axes of x ("2"), and products of axes."""
    shape = net.op("Shape", x)
    parts = []
    for want in wanted:
        if isinstance(want, int):
            parts.append(net.const([want]))
            continue
        axes = (int(want),) if isinstance(want, str) else want
        found = [net.op("Gather", shape, net.const(a), axis=0) for a in axes]
        total = found[0]
        for each in found[1:]:
            total = net.op("Mul", total, each)
        parts.append(net.op("Unsqueeze", total, net.const([0])))
    return net.op("Concat", *parts, axis=0)


def images(net: Net, x: str) -> str:
    """A small network of pictures: [n, 2, 6, 6] to [n, 12]."""
    h = net.op("Relu", net.conv(x, 2, 3, [3, 3], pads=[1, 1, 1, 1]))
    h = net.op("MaxPool", h, kernel_shape=[3, 3], strides=[3, 3])
    return net.op("Flatten", h, axis=1)


@pytest.mark.parametrize("fold", ["flatten", "minus one", "shape"])
@pytest.mark.parametrize("back", ["minus one", "shape"])
def test_pictures_of_a_video_and_a_recurrence(check: Check, fold: str, back: str) -> None:
    """[1, T, 2, 6, 6] → [T, 2, 6, 6] → a picture network → [1, T, 12] → GRU."""
    net = Net()
    x = net.input([1, TIME, 2, 6, 6])
    to = {
        "flatten": lambda: sizes(net, x, (0, 1), "2", "3", "4"),
        "minus one": lambda: net.const([-1, 2, 6, 6]),
        "shape": lambda: sizes(net, x, -1, "2", "3", "4"),
    }[fold]()
    h = images(net, net.op("Reshape", x, to))
    again = net.const([1, -1, 12]) if back == "minus one" else sizes(net, x, "0", "1", -1)
    y = net.op("Transpose", net.op("Reshape", h, again), perm=[1, 0, 2])
    check(net.model(net.recurrent("GRU", y, 12, 4)), at_least=12)


def test_temporal_shift(check: Check) -> None:
    """A temporal shift module: a third of the channels from the frame before, a third from the one after."""
    net = Net()
    x = net.input([TIME, 3, 5, 5])
    h = net.op("Relu", net.conv(x, 3, 6, [3, 3], pads=[1, 1, 1, 1]))
    video = net.op("Reshape", h, sizes(net, h, 1, "0", "1", "2", "3"))
    parts = net.op("Split", video, net.const([2, 2, 2]), axis=2, outputs=3)
    zeros = [0] * 10
    before, after = list(zeros), list(zeros)
    before[1], after[6] = 1, 1
    old = net.op("Slice", net.op("Pad", parts[0], net.const(before)), net.const([0]), net.const([-1]), net.const([1]))
    new = net.op(
        "Slice", net.op("Pad", parts[1], net.const(after)), net.const([1]), net.const([1 << 60]), net.const([1])
    )
    mixed = net.op("Concat", old, new, parts[2], axis=2)
    back = net.op("Reshape", mixed, sizes(net, mixed, (0, 1), "2", "3", "4"))
    check(net.model(net.op("Add", h, net.conv(back, 6, 6, [3, 3], pads=[1, 1, 1, 1]))), at_least=12)


def test_dual_path(check: Check) -> None:
    """Over the bins of a frame in both directions, then over time: [1, C, T, F]."""
    net = Net()
    x = net.input([1, 4, TIME, 5])
    h = net.op("Sigmoid", net.conv(x, 4, 4, [3, 3], pads=[1, 1, 1, 1]))
    for _ in range(2):
        bins = net.op("Reshape", net.op("Transpose", h, perm=[3, 0, 2, 1]), sizes(net, h, "3", (0, 2), "1"))
        weights = [net.weight(2, 12, 4), net.weight(2, 12, 4), net.weight(2, 24)]
        inner = net.op("GRU", bins, *weights, hidden_size=4, direction="bidirectional")
        inner = net.op("Reshape", net.op("Transpose", inner, perm=[2, 0, 1, 3]), net.const([0, 0, 8]))
        inner = net.op("Unsqueeze", net.op("MatMul", inner, net.weight(8, 4)), net.const([0]))
        h = net.op("Add", h, net.op("Transpose", inner, perm=[0, 3, 1, 2]))
        frames = net.op("Reshape", net.op("Transpose", h, perm=[2, 0, 3, 1]), sizes(net, h, "2", (0, 3), "1"))
        outer = net.op("Squeeze", net.recurrent("LSTM", frames, 4, 4), net.const([1]))
        outer = net.op("Reshape", net.op("MatMul", outer, net.weight(4, 4)), sizes(net, h, "2", "0", "3", "1"))
        h = net.op("Add", h, net.op("Transpose", outer, perm=[1, 3, 0, 2]))
    check(net.model(h), at_least=12)


def test_initial_states_of_zero_for_every_frame(check: Check) -> None:
    """As PyTorch exports a recurrence over bins: zeros for as many sequences as there are frames."""
    net = Net()
    x = net.input([5, TIME, 3])
    zeros = net.op("ConstantOfShape", sizes(net, x, 2, "1", 4))
    weights = [net.weight(2, 12, 3), net.weight(2, 12, 4), net.weight(2, 24)]
    y = net.op("GRU", x, *weights, "", zeros, hidden_size=4, direction="bidirectional")
    check(net.model(y), at_least=12)


def test_one_initial_state_for_every_frame(check: Check) -> None:
    net = Net()
    x = net.input([5, TIME, 3])
    first = net.op("Expand", net.weight(1, 1, 4), sizes(net, x, 1, "1", 4))
    y = net.op("LSTM", x, net.weight(1, 16, 3), net.weight(1, 16, 4), "", "", first, first, hidden_size=4)
    check(net.model(y), at_least=12)


def test_initial_state_built_from_the_shape(check: Check) -> None:
    """Zeros of (1, batch, hidden), the batch taken from the input."""
    net = Net()
    x = net.input([TIME, 2, 3])
    zeros = net.op("Expand", net.const(np.zeros((1, 1, 4))), sizes(net, x, 1, "1", 4))
    y = net.op("GRU", x, net.weight(1, 12, 3), net.weight(1, 12, 4), "", "", zeros, hidden_size=4)
    check(net.model(y), at_least=12)


def test_a_batch_of_videos_is_refused() -> None:
    """Two videos folded with their time: frames of the second follow all of the first."""
    net = Net()
    x = net.input([2, TIME, 2, 6, 6])
    h = images(net, net.op("Reshape", x, net.const([-1, 2, 6, 6])))
    with pytest.raises(Refused, match="folds time together with other axes"):
        oracle.check(net.model(net.op("Reshape", h, net.const([2, -1, 12]))))


def test_a_batch_behind_time(check: Check) -> None:
    """[T, 2, …] folded to [2·T, …] and back, frame by frame."""
    net = Net()
    x = net.input([TIME, 2, 3])
    h = net.op("Tanh", net.op("Reshape", x, net.const([-1, 3])))
    check(net.model(net.op("Reshape", h, net.const([-1, 2, 3]))), at_least=12)
