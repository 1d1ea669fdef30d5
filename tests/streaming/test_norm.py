"""Normalisations, softmax and reductions over every axis but time."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.errors import Refused

SHORT: dict[str, Any] = {"lengths": (1, 2, 5, 9, 14), "steps": (None, 4)}
REDUCTIONS = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSumExp",
]  # fmt: skip


def test_batch_normalization(check: Check) -> None:
    net, x = stack(3)
    h = net.conv(x, 3, 3, 3, pads=[1, 1])
    parameters = [net.const(net.rng.uniform(0.5, 1.5, 3)) for _ in range(4)]
    check(net.model(net.conv(net.op("BatchNormalization", h, *parameters, epsilon=1e-3), 3, 2, 3, pads=[1, 1])))


@pytest.mark.parametrize("axis", [-1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization(check: Check, axis: int, bias: bool) -> None:
    net = Net()
    x = net.input([1, TIME, 4])
    extra = [net.weight(4)] if bias else []
    check(net.model(net.op("LayerNormalization", x, net.weight(4), *extra, axis=axis)), **SHORT)


def test_layer_normalization_over_two_axes(check: Check) -> None:
    net = Net()
    x = net.input([1, TIME, 4, 3])
    check(net.model(net.op("LayerNormalization", x, net.weight(4, 3), axis=-2)), **SHORT)


def test_layer_normalization_spelt_out(check: Check) -> None:
    net = Net()
    x = net.input([1, TIME, 4])
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Pow", centred, net.const(2.0)), axes=[-1])
    y = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.const(1e-5))))
    check(net.model(net.op("Add", net.op("Mul", y, net.weight(4)), net.weight(4))), **SHORT)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax", "LpNormalization"])
@pytest.mark.parametrize("axis", [1, -1])
def test_softmax_over_channels(check: Check, op: str, axis: int) -> None:
    net = Net()
    x = net.input([1, 3, TIME] if axis == 1 else [1, TIME, 3])
    check(net.model(net.op(op, x, axis=axis)), **SHORT)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[1], [-1], [0, 1], [1, 3]])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reduction(check: Check, op: str, axes: list[int], keep: int) -> None:
    net = Net()
    x = net.input([1, 2, TIME, 3])
    y = net.op(op, x, net.const(axes), keepdims=keep) if op == "ReduceSum" else net.op(op, x, axes=axes, keepdims=keep)
    check(net.model(y), **SHORT)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_reduction_with_axes_as_an_input(check: Check, op: str) -> None:
    net = Net(opset=18)
    x = net.input([1, 2, TIME, 3])
    check(net.model(net.op(op, x, net.const([1, -1]), keepdims=0)), **SHORT)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_arg(check: Check, op: str, keep: int) -> None:
    net, x = stack(5)
    y = net.op(op, x, axis=1, keepdims=keep)
    check(net.model(y, dtypes={y: "int64"}), **SHORT)


@pytest.mark.parametrize(
    ("op", "attrs", "reason"),
    [
        ("Softmax", {"axis": -1}, "normalises over the whole of time"),
        ("LogSoftmax", {"axis": 2}, "normalises over the whole of time"),
        ("LpNormalization", {"axis": -1}, "statistics of the whole of time"),
    ],
)
def test_over_time_is_refused(op: str, attrs: dict[str, Any], reason: str) -> None:
    net, x = stack(3)
    with pytest.raises(Refused, match=reason):
        oracle.check(net.model(net.op(op, x, **attrs)))


@pytest.mark.parametrize("op", ["InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization"])
def test_statistics_over_time_are_refused(op: str) -> None:
    net = Net(opset=21 if op == "GroupNormalization" else 17)
    x = net.input([1, 4, TIME])
    parameters = [net.weight(4), net.weight(4)] if op != "MeanVarianceNormalization" else []
    attrs: dict[str, Any] = {"num_groups": 2} if op == "GroupNormalization" else {}
    with pytest.raises(Refused) as caught:
        oracle.check(net.model(net.op(op, x, *parameters, **attrs)))
    assert caught.value.reasons[0].op == op


def test_layer_normalization_over_time_is_refused() -> None:
    net = Net()
    x = net.input([1, TIME, 4])
    t = net.op("Transpose", x, perm=[0, 2, 1])
    with pytest.raises(Refused, match="statistics of the whole of time"):
        oracle.check(net.model(net.op("LayerNormalization", t, net.weight(1), axis=-1)))


def test_rms_normalization(check: Check) -> None:
    net = Net(opset=23)
    x = net.input([1, TIME, 5])
    check(net.model(net.op("RMSNormalization", x, net.weight(5, scale=1.0), axis=-1, epsilon=0.01)))
