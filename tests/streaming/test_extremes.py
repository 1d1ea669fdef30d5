"""ArgMax and ArgMin over time: the number of a frame, at the end or so far."""

from __future__ import annotations

import oracle
import prefixes
import pytest
from nets import TIME, Net, stack

MODE = {"pool": "cumulative"}
RUNNERS = pytest.mark.parametrize("runner", ["reference", "native"])
OPS = pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])


@OPS
@pytest.mark.parametrize("keepdims", [0, 1])
def test_behind_look_ahead_and_a_stride(check: oracle.Check, op: str, keepdims: int) -> None:
    net, x = stack(3)
    h = net.conv(net.conv(x, 3, 4, 3, pads=[1, 1]), 4, 5, 3, pads=[2, 1], strides=[2])
    y = net.op(op, h, axis=-1, keepdims=keepdims)
    check(net.model(y, dtypes={y: "int64"}), steps=(None, 12))


@OPS
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("dtype", [6, 3, 7])
def test_the_first_or_the_last_of_equal_frames(check: oracle.Check, op: str, last: int, dtype: int) -> None:
    """Whole numbers from a small range, time first."""
    net = Net()
    x = net.input([TIME, 1, 3])
    whole = net.op("Cast", net.op("Clip", net.op("Round", x), net.const(-1.0), net.const(1.0)), to=dtype)
    y = net.op(op, whole, axis=0, select_last_index=last)
    check(net.model(y, dtypes={y: "int64"}), steps=(None, 5))


@OPS
@pytest.mark.parametrize("last", [0, 1])
def test_of_infinities(check: oracle.Check, op: str, last: int) -> None:
    """All frames equal what no frames amount to."""
    net, x = stack(2)
    same = net.op("Where", net.op("Less", x, net.const(1e9)), net.const(float("-inf" if op == "ArgMax" else "inf")), x)
    y = net.op(op, same, axis=2, select_last_index=last)
    check(net.model(y, dtypes={y: "int64"}), steps=(None, 4))


def test_computing_with_the_number(check: oracle.Check) -> None:
    """The moment of the peak in seconds, beside the peak."""
    net, x = stack(3)
    at = net.op("Cast", net.op("ArgMax", x, axis=2, keepdims=0), to=1)
    peak = net.op("ReduceMax", x, axes=[2], keepdims=0)
    check(net.model(net.op("Concat", net.op("Mul", at, net.const(0.01)), peak, axis=1)))


@RUNNERS
@OPS
def test_running(runner: str, op: str) -> None:
    net, x = stack(3)
    y = net.op(op, net.conv(x, 3, 4, 3, pads=[2, 0]), axis=2)
    prefixes.check(net.model(y, dtypes={y: "int64"}), runner, MODE)
