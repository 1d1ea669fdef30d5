"""Transposed convolution over time: strides, crops, output padding, dilation, and what stands before and after it."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.errors import Refused

CASES: dict[str, dict[str, Any]] = {
    "plain": {"kernel": 4, "strides": [2]},
    "stride_one": {"kernel": 3},
    "stride_one_cropped": {"kernel": 4, "pads": [1, 2]},
    "halves": {"kernel": 4, "strides": [2], "pads": [1, 1]},
    "crop_right": {"kernel": 4, "strides": [2], "pads": [0, 2]},
    "crop_left": {"kernel": 4, "strides": [2], "pads": [2, 0]},
    "crop_beyond_the_kernel": {"kernel": 3, "strides": [2], "pads": [5, 4]},
    "output_padding": {"kernel": 3, "strides": [2], "pads": [1, 1], "output_padding": [1]},
    "kernel_below_stride": {"kernel": 2, "strides": [5]},
    "kernel_below_stride_padded": {"kernel": 2, "strides": [5], "output_padding": [3]},
    "kernel_below_stride_cropped": {"kernel": 2, "strides": [3], "pads": [1, 0], "output_padding": [2]},
    "dilated": {"kernel": 3, "strides": [2], "dilations": [3], "pads": [1, 3]},
    "dilated_stride_one": {"kernel": 3, "dilations": [4], "pads": [4, 4]},
    "overlapping": {"kernel": 9, "strides": [3], "pads": [3, 3]},
    "grouped": {"kernel": 4, "strides": [2], "group": 2, "pads": [1, 1]},
}


@pytest.mark.parametrize("case", CASES)
def test_conv_transpose(check: Check, case: str) -> None:
    net, x = stack(4)
    attrs = dict(CASES[case])
    check(net.model(net.conv_transpose(x, 4, 2, attrs.pop("kernel"), **attrs)), at_least=8)


@pytest.mark.parametrize("case", CASES)
def test_between_layers_that_look_ahead(check: Check, case: str) -> None:
    net, x = stack(4)
    attrs = dict(CASES[case])
    h = net.op("Sigmoid", net.conv(x, 4, 4, 5, pads=[2, 2]))
    h = net.op("Sigmoid", net.conv_transpose(h, 4, 4, attrs.pop("kernel"), **attrs))
    check(net.model(net.conv(h, 4, 2, 5, pads=[2, 2])), at_least=8)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_after_a_stride(check: Check, after: int) -> None:
    net, x = stack(4)
    h = net.op("Tanh", net.conv(x, 4, 4, 4, strides=[after], pads=[2, 2]))
    check(net.model(net.conv_transpose(h, 4, 1, 4, strides=[2], pads=[1, 1])), at_least=8)


@pytest.mark.parametrize("time_last", [False, True])
def test_two_dimensional(check: Check, time_last: bool) -> None:
    net = Net()
    x = net.input([1, 2, 5, TIME] if time_last else [1, 2, TIME, 5])
    kernel, strides, pads, extra = ([4, 3], [2, 1], [1, 1, 1, 0], [1, 0])
    if time_last:
        kernel, strides, pads, extra = kernel[::-1], strides[::-1], [1, 1, 0, 1], extra[::-1]
    y = net.conv_transpose(x, 2, 3, kernel, strides=strides, pads=pads, output_padding=extra)
    check(net.model(y), at_least=8)


def test_time_as_batch(check: Check) -> None:
    net = Net()
    x = net.input([TIME, 2, 6])
    check(net.model(net.conv_transpose(x, 2, 3, 4, strides=[2], pads=[1, 1])), time_axis={"x": 0})


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("kernel", "stride", "extra"), [(4, 2, 0), (3, 2, 0), (3, 2, 1), (5, 3, 0), (3, 1, 0), (2, 2, 0)]
)
def test_auto_pad(check: Check, kernel: int, stride: int, extra: int, mode: str) -> None:
    net, x = stack(2)
    y = net.conv_transpose(x, 2, 3, kernel, strides=[stride], output_padding=[extra], auto_pad=mode)
    check(net.model(net.conv(y, 3, 2, 3, pads=[1, 1])), lengths=(1, 2, 3, 7, 12), steps=(None, 5))


PLANES: dict[str, dict[str, Any]] = {
    "both_strided": {"kernel": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "time_dilated": {"kernel": [3, 3], "strides": [2, 1], "dilations": [3, 1], "pads": [1, 1, 0, 1]},
    "frequency_dilated": {"kernel": [3, 3], "strides": [2, 2], "dilations": [1, 2], "output_padding": [1, 1]},
    "causal": {"kernel": [2, 3], "pads": [0, 1, 1, 1]},
    "grouped": {"kernel": [3, 4], "strides": [3, 2], "group": 2, "pads": [0, 1, 0, 1]},
    "depthwise": {"kernel": [4, 3], "strides": [2, 1], "group": 4, "pads": [1, 1, 1, 1]},
    "beyond_the_kernel": {"kernel": [2, 1], "strides": [3, 1]},
}


@pytest.mark.parametrize("case", PLANES)
@pytest.mark.parametrize("bins", [1, 5, 8])
def test_planes(check: Check, case: str, bins: int) -> None:
    """Frames of every size in memory, between layers that look ahead."""
    attrs = dict(PLANES[case])
    if case == "frequency_dilated" and bins == 1:
        bins = 3
    net = Net()
    x = net.input([1, 2, TIME, bins])
    h = net.op("Tanh", net.conv(x, 2, 4, [3, 1], pads=[1, 0, 1, 0]))
    h = net.conv_transpose(h, 4, 4, attrs.pop("kernel"), **attrs)
    check(net.model(net.conv(h, 4, 2, [3, 1], pads=[1, 0, 1, 0])), lengths=(1, 2, 4, 7, 12), steps=(None, 5))


@pytest.mark.parametrize("group", [2, 20])
def test_groups_of_frames_that_are_padded_in_memory(check: Check, group: int) -> None:
    net, x = stack(20)
    h = net.conv_transpose(x, 20, 20, 5, strides=[3], group=group, pads=[1, 1])
    check(net.model(net.conv(h, 20, 2, 3, pads=[1, 1])), lengths=(1, 2, 5, 9), steps=(None,))


def test_three_dimensional(check: Check) -> None:
    net = Net()
    x = net.input([1, 2, TIME, 3, 2])
    y = net.conv_transpose(x, 2, 3, [3, 2, 3], strides=[2, 2, 1], pads=[1, 0, 1, 0, 0, 1])
    check(net.model(y), lengths=(1, 2, 5, 9), steps=(None,))


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ({"output_shape": [64]}, "fixed number of frames"),
        ({"auto_pad": "SAME_UPPER", "strides": [7]}, "less than nothing"),
    ],
)
def test_refused(attrs: dict[str, Any], reason: str) -> None:
    net, x = stack(2)
    with pytest.raises(Refused, match=reason):
        oracle.check(net.model(net.conv_transpose(x, 2, 2, 4, **{"strides": [2], **attrs})))


@pytest.mark.parametrize("time_last", [False, True])
def test_over_frequency_alone(check: Check, time_last: bool) -> None:
    """As in decoders that raise the frequency resolution frame by frame, after a layer that looks ahead."""
    net = Net()
    x = net.input([1, 2, 5, TIME] if time_last else [1, 2, TIME, 5])
    kernel, strides, pads = ([1, 3], [1, 2], [0, 1, 0, 1])
    if time_last:
        kernel, strides, pads = kernel[::-1], strides[::-1], [1, 0, 1, 0]
    look = net.conv(x, 2, 2, [3, 3], pads=[1, 1, 1, 1])
    check(net.model(net.conv_transpose(look, 2, 3, kernel, strides=strides, pads=pads)), at_least=8)
