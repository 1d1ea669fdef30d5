"""Reductions over the whole of time: the answer comes at the end, with whatever is computed from it."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import runners
from nets import TIME, Net, stack
from test_once import head

REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip


def reduced(net: Net, op: str, x: str, axes: list[int], keepdims: int = 1) -> str:
    if op == "ReduceSum" or net.opset >= 18:
        return net.op(op, x, net.const(axes), keepdims=keepdims)
    return net.op(op, x, axes=axes, keepdims=keepdims)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_over_time(check: oracle.Check, op: str) -> None:
    net, x = stack(3)
    h = net.op("Abs" if op == "ReduceLogSum" else "Identity", net.conv(x, 3, 4, 3, pads=[1, 1]))
    check(net.model(reduced(net, op, h, [2])), steps=(None, 11))


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_over_time_and_channels(check: oracle.Check, op: str, opset: int) -> None:
    net, x = stack(3, opset=opset)
    h = net.op("Abs", net.conv(x, 3, 4, 3, pads=[2, 0])) if op == "ReduceLogSum" else x
    check(net.model(reduced(net, op, h, [1, -1], keepdims=0)), steps=(None, 4), lengths=(1, 2, 3, 9, 20))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pools_with_a_head(check: oracle.Check, op: str) -> None:
    net = Net()
    x = net.input([1, 1, 6, TIME])
    h = net.op("Relu", net.conv(x, 1, 4, [3, 3], pads=[1, 2, 1, 2], strides=[2, 2]))
    check(net.model(head(net, net.op(op, h), 4)))


def test_every_op_of_a_classifier(check: oracle.Check) -> None:
    net, x = stack(3)
    h = net.op("Relu", net.conv(x, 3, 8, 5, pads=[2, 2], strides=[2]))
    pooled = net.op("Concat", reduced(net, "ReduceMean", h, [2]), reduced(net, "ReduceMax", h, [2]), axis=1)
    flat = net.op("Squeeze", pooled, net.const([2]))
    norm = [net.const(np.abs(net.rng.standard_normal(16)) + 0.1) for _ in range(4)]
    h = net.op("BatchNormalization", flat, *norm)
    h = net.op("LayerNormalization", h, net.weight(16), net.weight(16))
    check(net.model(head(net, net.op("Reshape", h, net.const([1, -1])), 16)))


def test_statistics_pooling(check: oracle.Check) -> None:
    """Mean and standard deviation, the latter from the mean square."""
    net, x = stack(3)
    h = net.conv(x, 3, 6, 3, pads=[1, 1])
    mean = reduced(net, "ReduceMean", h, [2], 0)
    square = reduced(net, "ReduceMean", net.op("Mul", h, h), [2], 0)
    variance = net.op("Max", net.op("Sub", square, net.op("Mul", mean, mean)), net.const(1e-3))
    pooled = net.op("Concat", mean, net.op("Sqrt", variance), axis=1)
    check(net.model(head(net, pooled, 12)))


def test_mean_over_time_first_and_integers(check: oracle.Check) -> None:
    net = Net()
    x = net.input([TIME, 1, 3])
    n = net.op("Cast", net.op("Mul", x, net.const(10.0)), to=7)
    y = net.recurrent("GRU", x, 3, 4)
    largest, total = reduced(net, "ReduceMax", n, [0]), reduced(net, "ReduceSum", n, [0], 0)
    mean, least = reduced(net, "ReduceMean", y, [0], 0), reduced(net, "ReduceMin", n, [0])
    check(net.model(largest, least, total, mean, dtypes=dict.fromkeys((largest, least, total), "int64")))


@pytest.mark.parametrize("runner", ["reference", "native"])
def test_a_long_stream_leaves_no_trace_of_rounding(runner: str) -> None:
    """100,000 frames far from zero, against sums in float64; onnxruntime's own float32 sum is off by more."""
    net, x = stack(2)
    names = [reduced(net, op, x, [2]) for op in ("ReduceMean", "ReduceL2", "ReduceLogSumExp")]
    made = runners.RUNNERS[runner](net.model(*names), {"step": 64})()
    data = np.random.default_rng(0).standard_normal((1, 2, 100_000)).astype(np.float32) + np.float32(10)
    for i in range(0, data.shape[2], 1000):
        made.push({"x": data[:, :, i : i + 1000]})
    wide = data.astype(np.float64)
    wanted = [wide.mean(2), np.sqrt((wide**2).sum(2)), np.log(np.exp(wide).sum(2))]
    for got, exact in zip(made.flush().values(), wanted, strict=True):
        np.testing.assert_allclose(got[..., 0], exact, rtol=3e-7)


@pytest.mark.parametrize("axis", [0, 1])
def test_pools_that_leave_time_alone(check: oracle.Check, axis: int) -> None:
    net = Net()
    x = net.input([TIME, 3, 5] if axis == 0 else [1, TIME, 5])
    check(net.model(net.op("GlobalAveragePool", x), net.op("GlobalMaxPool", x)))
