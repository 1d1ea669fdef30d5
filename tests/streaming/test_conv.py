"""Convolution over time: every kernel, padding, stride, dilation and group, on any spatial axis."""

from __future__ import annotations

from typing import Any

import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.errors import Refused

ONE_D = {
    "pointwise": {"kernel": 1},
    "valid": {"kernel": 4},
    "symmetric": {"kernel": 5, "pads": [2, 2]},
    "causal": {"kernel": 5, "pads": [4, 0]},
    "all_right": {"kernel": 5, "pads": [0, 4]},
    "asymmetrical": {"kernel": 4, "pads": [1, 2]},
    "left_beyond_the_kernel": {"kernel": 3, "pads": [7, 0]},
    "right_beyond_the_kernel": {"kernel": 3, "pads": [0, 7]},
    "both_beyond_the_kernel": {"kernel": 2, "pads": [6, 5]},
    "dilated": {"kernel": 3, "dilations": [4], "pads": [4, 4]},
    "dilated_valid": {"kernel": 3, "dilations": [3]},
    "strided": {"kernel": 4, "strides": [2], "pads": [1, 1]},
    "strided_causal": {"kernel": 4, "strides": [3], "pads": [3, 0]},
    "strided_valid": {"kernel": 3, "strides": [2]},
    "stride_beyond_the_kernel": {"kernel": 2, "strides": [5], "pads": [3, 1]},
    "stride_beyond_the_kernel_valid": {"kernel": 1, "strides": [3]},
    "strided_dilated": {"kernel": 3, "strides": [2], "dilations": [3], "pads": [2, 5]},
    "grouped": {"kernel": 3, "group": 2, "pads": [1, 1]},
    "depthwise": {"kernel": 3, "group": 4, "pads": [2, 0]},
    "depthwise_strided": {"kernel": 5, "group": 4, "strides": [2], "dilations": [2], "pads": [4, 4]},
    "same_upper": {"kernel": 4, "auto_pad": "SAME_UPPER"},
    "same_lower": {"kernel": 4, "auto_pad": "SAME_LOWER"},
    "auto_valid": {"kernel": 4, "auto_pad": "VALID", "strides": [2]},
    "no_bias": {"kernel": 3, "pads": [1, 1], "bias": False},
}


@pytest.mark.parametrize("case", ONE_D)
def test_conv_1d(check: Check, case: str) -> None:
    net, x = stack(4)
    attrs: dict[str, Any] = dict(ONE_D[case])
    y = net.conv(x, 4, 4, attrs.pop("kernel"), **attrs)
    check(net.model(y), at_least=10)


@pytest.mark.parametrize("case", ONE_D)
def test_conv_that_reads_what_another_pads(check: Check, case: str) -> None:
    """Bias and activation make values before frame 0 and after the end that the second layer must not see."""
    net, x = stack(4)
    attrs: dict[str, Any] = dict(ONE_D[case])
    h = net.op("Sigmoid", net.conv(x, 4, 4, 3, pads=[1, 1]))
    h = net.op("Sigmoid", net.conv(h, 4, 4, attrs.pop("kernel"), **attrs))
    check(net.model(net.conv(h, 4, 2, 3, pads=[1, 1])), at_least=10)


TWO_D: dict[str, dict[str, Any]] = {
    "same": {"kernel": [3, 3], "pads": [1, 1, 1, 1]},
    "frequency_strided": {"kernel": [3, 3], "strides": [1, 2], "pads": [2, 1, 0, 1]},
    "time_strided": {"kernel": [4, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]},
    "dilated": {"kernel": [2, 3], "dilations": [3, 2], "pads": [3, 2, 0, 2]},
    "depthwise": {"kernel": [3, 3], "group": 2, "pads": [1, 0, 1, 0]},
    "same_upper_both": {"kernel": [2, 4], "auto_pad": "SAME_UPPER"},
    "same_lower_strided_frequency": {"kernel": [2, 3], "strides": [1, 2], "auto_pad": "SAME_LOWER"},
}


@pytest.mark.parametrize("time_last", [False, True])
@pytest.mark.parametrize("case", TWO_D)
def test_conv_2d(check: Check, case: str, time_last: bool) -> None:
    net = Net()
    x = net.input([1, 2, 7, TIME] if time_last else [1, 2, TIME, 7])
    attrs = dict(TWO_D[case])
    if time_last:
        pads = attrs.get("pads")
        for key in ("kernel", "strides", "dilations"):
            if key in attrs:
                attrs[key] = attrs[key][::-1]
        if pads:
            attrs["pads"] = [pads[1], pads[0], pads[3], pads[2]]
    y = net.conv(net.op("Tanh", net.conv(x, 2, 2, [1, 1])), 2, 4, attrs.pop("kernel"), **attrs)
    check(net.model(y), at_least=8)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_conv_3d_with_time_on_any_axis(check: Check, axis: int) -> None:
    net = Net()
    shape: list[int | str] = [1, 2, 4, 5, 3]
    shape[axis] = TIME
    x = net.input(shape)
    y = net.conv(x, 2, 3, [3, 2, 3], pads=[1, 1, 0, 1, 0, 2])
    check(net.model(y), at_least=8)


def test_time_as_batch(check: Check) -> None:
    net = Net()
    x = net.input([TIME, 3, 6])
    h = net.op("Relu", net.conv(x, 3, 4, 3, pads=[1, 1]))
    check(net.model(net.conv(h, 4, 2, 4, strides=[2])), at_least=10, time_axis={"x": 0})


def test_opset_11_and_newest(check: Check) -> None:
    for opset in (11, 12, 13, 17, 21, 22):
        net, x = stack(2, opset=opset)
        check(net.model(net.conv(x, 2, 2, 3, pads=[2, 0])), lengths=(1, 2, 5, 9), steps=(None, 4))


@pytest.mark.parametrize(
    ("kernel", "stride", "mode"),
    [
        (2, 2, "SAME_UPPER"),
        (4, 2, "SAME_UPPER"),
        (3, 2, "SAME_LOWER"),
        (2, 3, "SAME_UPPER"),
        (1, 2, "SAME_LOWER"),
        (1, 2, "SAME_UPPER"),
    ],
)
def test_auto_pad_with_a_stride_that_pads_every_length_alike(check: Check, kernel: int, stride: int, mode: str) -> None:
    check(auto_padded(kernel, stride, mode), at_least=10)


def auto_padded(kernel: int, stride: int, mode: str) -> bytes:
    net, x = stack(2)
    h = net.op("Sigmoid", net.conv(x, 2, 2, kernel, strides=[stride], auto_pad=mode))
    return net.model(net.conv(h, 2, 2, 3, pads=[1, 1]))


def test_auto_pad_after_padding_to_a_multiple(check: Check) -> None:
    """Then the amount is known: kernel 3 and stride 2 add one frame behind the last."""
    net, x = stack(2)
    odd = net.op("Mod", net.length(x, 2), net.const([2]))
    x = net.op("Pad", net.op("Exp", x), net.op("Concat", net.const([0] * 5), odd, axis=0))
    check(net.model(net.conv(x, 2, 2, 3, strides=[2], auto_pad="SAME_UPPER")), at_least=10)


@pytest.mark.parametrize(
    ("kernel", "stride", "mode", "reason"),
    [
        (3, 2, "SAME_UPPER", "depends on the length"),
        (5, 2, "SAME_UPPER", "depends on the length"),
        (2, 2, "SAME_LOWER", "depends on the length"),
        (5, 3, "SAME_LOWER", "depends on the length"),
        (1, 4, "SAME_UPPER", "less than nothing"),
    ],
)
def test_auto_pad_that_pads_lengths_differently_is_refused(kernel: int, stride: int, mode: str, reason: str) -> None:
    import oracle

    with pytest.raises(Refused, match=reason):
        oracle.check(auto_padded(kernel, stride, mode))


def test_time_on_the_channel_axis_is_refused() -> None:
    import oracle

    net = Net()
    x = net.input([1, TIME, 8])
    y = net.op("Conv", x, net.weight(2, 64, 3), pads=[1, 1])
    with pytest.raises(Refused, match="channel axis"):
        oracle.check(net.model(y))
