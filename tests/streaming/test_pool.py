"""Pools over time and off it: padding fills, integer frames, and the forms that are refused."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.errors import Refused

CASES: dict[str, dict[str, Any]] = {
    "valid": {"kernel_shape": [3]},
    "strided": {"kernel_shape": [2], "strides": [2]},
    "strided_valid": {"kernel_shape": [3], "strides": [2]},
    "padded": {"kernel_shape": [3], "pads": [1, 1]},
    "causal": {"kernel_shape": [4], "pads": [3, 0]},
    "all_right": {"kernel_shape": [4], "pads": [0, 3]},
    "strided_padded": {"kernel_shape": [4], "strides": [3], "pads": [2, 1]},
    "dilated": {"kernel_shape": [3], "dilations": [2], "pads": [2, 2]},
    "same_upper": {"kernel_shape": [4], "auto_pad": "SAME_UPPER"},
    "stride_beyond_the_kernel": {"kernel_shape": [2], "strides": [5]},
    "ceil": {"kernel_shape": [3], "strides": [2], "ceil_mode": 1},
    "ceil_padded": {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "ceil_mode": 1},
    "ceil_all_right": {"kernel_shape": [4], "strides": [3], "pads": [0, 3], "ceil_mode": 1},
    "ceil_all_left": {"kernel_shape": [2], "strides": [4], "pads": [1, 0], "ceil_mode": 1},
    "ceil_wide": {"kernel_shape": [5], "strides": [4], "pads": [2, 1], "ceil_mode": 1},
    "ceil_dilated": {"kernel_shape": [3], "strides": [3], "dilations": [2], "ceil_mode": 1},
    "ceil_without_stride": {"kernel_shape": [3], "pads": [1, 0], "ceil_mode": 1},
    "same_lower": {"kernel_shape": [3], "auto_pad": "SAME_LOWER"},
    "same_upper_strided": {"kernel_shape": [2], "strides": [2], "auto_pad": "SAME_UPPER"},
    "same_lower_strided": {"kernel_shape": [1], "strides": [2], "auto_pad": "SAME_LOWER"},
}


@pytest.mark.parametrize("case", CASES)
def test_max_pool(check: Check, case: str) -> None:
    """All values below zero: a pad of zero instead of minus infinity would win every maximum."""
    net, x = stack(3)
    h = net.op("Neg", net.op("Exp", net.conv(x, 3, 3, 3, pads=[1, 1])))
    h = net.op("MaxPool", h, **CASES[case])
    check(net.model(net.conv(h, 3, 2, 3, pads=[1, 1])), at_least=7)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_average_pool(check: Check, case: str, include: int) -> None:
    """Without the padding, a window at the edge is divided by what it holds; so is one that passes the end by
    ceil_mode, even where padding counts."""
    net, x = stack(3, opset=19)
    h = net.op("Exp", net.conv(x, 3, 3, 3, pads=[1, 1]))
    h = net.op("AveragePool", h, count_include_pad=include, **CASES[case])
    check(net.model(net.conv(h, 3, 2, 3, pads=[1, 1])), at_least=7)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool_off_time_is_pointwise(check: Check, op: str) -> None:
    net = Net()
    x = net.input([1, 2, TIME, 9])
    check(net.model(net.op(op, x, kernel_shape=[1, 3], strides=[1, 2], pads=[0, 1, 0, 1])), at_least=8)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool_over_time_and_frequency(check: Check, op: str) -> None:
    net = Net()
    x = net.input([1, 2, 8, TIME])
    extra = {"count_include_pad": 1} if op == "AveragePool" else {}
    check(net.model(net.op(op, x, kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 0, 1], **extra)), at_least=8)


@pytest.mark.parametrize("time_last", [False, True])
@pytest.mark.parametrize("include", [0, 1])
def test_average_of_padded_time_and_frequency(check: Check, include: int, time_last: bool) -> None:
    net = Net()
    x = net.input([1, 2, 7, TIME] if time_last else [1, 2, TIME, 7])
    kernel, strides, pads = ([3, 4], [2, 2], [1, 2, 1, 1])
    if time_last:
        kernel, strides, pads = kernel[::-1], strides[::-1], [2, 1, 1, 1]
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": 1}
    y = net.op("AveragePool", net.op("Exp", x), count_include_pad=include, **attrs)
    check(net.model(y, net.op("MaxPool", x, **attrs)), at_least=8)


LP = {
    "valid": {"kernel_shape": [3]},
    "padded": {"kernel_shape": [3], "pads": [1, 1], "p": 1},
    "strided": {"kernel_shape": [4], "strides": [3], "pads": [2, 1], "p": 3},
    "ceil": {"kernel_shape": [3], "strides": [2], "ceil_mode": 1},
    "dilated": {"kernel_shape": [3], "dilations": [2], "pads": [2, 2]},
}


@pytest.mark.parametrize("case", LP)
def test_lp_pool(check: Check, case: str) -> None:
    net, x = stack(3, opset=19)
    h = net.op("LpPool", net.conv(x, 3, 3, 3, pads=[1, 1]), **LP[case])
    check(net.model(net.conv(h, 3, 2, 3, pads=[1, 1])), at_least=7)


def test_lp_pool_over_time_and_frequency(check: Check) -> None:
    net = Net()
    x = net.input([1, 2, TIME, 6])
    check(net.model(net.op("LpPool", x, kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 0, 1])), at_least=8)


def test_empty_windows(check: Check) -> None:
    """Dilated windows of short inputs may lie in the padding alone: an average of nothing is 0."""
    net, x = stack(2, opset=19)
    y = net.op("AveragePool", x, kernel_shape=[2], dilations=[2], pads=[1, 1])
    check(net.model(y), at_least=8)


def test_max_pool_of_integers(check: Check) -> None:
    net = Net()
    x = net.input([1, 2, TIME], dtype="int8")
    y = net.op("MaxPool", net.op("Sub", x, net.const(9, "int8")), kernel_shape=[3], pads=[2, 1])
    check(net.model(y, dtypes={y: "int8"}), at_least=8)


@pytest.mark.parametrize(
    ("op", "attrs", "reason"),
    [
        ("MaxPool", {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}, "depends on the length"),
        ("AveragePool", {"kernel_shape": [2], "strides": [2], "auto_pad": "SAME_LOWER"}, "depends on the length"),
    ],
)
def test_refused(op: str, attrs: dict[str, Any], reason: str) -> None:
    net, x = stack(2)
    with pytest.raises(Refused, match=reason):
        oracle.check(net.model(net.op(op, x, **attrs)))


def test_indices_are_refused() -> None:
    net, x = stack(2)
    y, _ = net.op("MaxPool", x, outputs=2, kernel_shape=[3])
    z, indices = net.op("MaxPool", y, outputs=2, kernel_shape=[3])
    with pytest.raises(Refused, match="indices"):
        oracle.check(net.model(z, indices, dtypes={indices: "int64"}))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool_with_time_as_batch(check: Check, op: str) -> None:
    net = Net()
    x = net.input([TIME, 2, 9])
    y = net.op(op, x, kernel_shape=[3], strides=[2], pads=[1, 1])
    check(net.model(y), time_axis={"x": 0})
