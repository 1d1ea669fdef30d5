"""norm=running: norms over time with the statistics of the frames so far, against the offline model on every prefix."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import prefixes
import pytest
from nets import TIME, Net, stack
from test_totals import reduced

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

MODE = {"norm": "running"}
RUNNERS = pytest.mark.parametrize("runner", ["reference", "native"])


def instance(net: Net, x: str, channels: int) -> str:
    return net.op("InstanceNormalization", x, net.weight(channels), net.weight(channels), epsilon=1e-2)


@RUNNERS
def test_instance_norm(runner: str) -> None:
    net, x = stack(3)
    y = net.op("Relu", instance(net, net.conv(x, 3, 4, 3, pads=[2, 0]), 4))
    prefixes.check(net.model(y), runner, MODE, {y: 2})


@RUNNERS
@pytest.mark.parametrize("time", [2, 3])
def test_instance_norm_of_planes(runner: str, time: int) -> None:
    net = Net()
    x = net.input([1, 3, TIME, 5] if time == 2 else [1, 3, 5, TIME])
    y = instance(net, x, 3)
    prefixes.check(net.model(y), runner, MODE, {y: time})


@RUNNERS
@pytest.mark.parametrize("axes", [None, [2, 3], [0, 1, 2, 3]])
def test_mean_variance_normalization(runner: str, axes: list[int] | None) -> None:
    net = Net()
    x = net.input([1, 3, TIME, 5])
    h = net.op("MeanVarianceNormalization", x, axes=axes)
    y = net.op("Mul", h, net.const(0.5))
    prefixes.check(net.model(y), runner, MODE, {y: 2})


def test_mean_variance_normalization_over_other_axes() -> None:
    net, x = stack(4)
    oracle.check(net.model(net.op("MeanVarianceNormalization", x, axes=[0, 1])))


@RUNNERS
def test_group_norm(runner: str) -> None:
    net = Net(opset=21)
    x = net.input([1, 6, TIME])
    y = net.op("GroupNormalization", x, net.weight(6), net.weight(6), num_groups=3, epsilon=1e-2)
    prefixes.check(net.model(y), runner, MODE, {y: 2})


@RUNNERS
def test_group_norm_as_it_is_exported(runner: str) -> None:
    """All groups as channels of an instance norm."""
    net = Net()
    x = net.input([1, 6, TIME])
    h = net.op("Reshape", x, net.const([0, 2, 3, -1]))
    h = net.op("InstanceNormalization", h, net.const(np.ones(2)), net.const(np.zeros(2)), epsilon=1e-2)
    y = net.op("Mul", net.op("Reshape", h, net.const([0, 6, -1])), net.weight(6, 1))
    prefixes.check(net.model(y), runner, MODE, {y: 2})


@RUNNERS
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("spectrum", [False, True])
def test_group_norm_as_pytorch_exports_it(runner: str, groups: int, spectrum: bool) -> None:
    """All that is not a group in one axis, and the shape of before after it."""
    net = Net()
    x = net.input([1, 6, TIME, 2] if spectrum else [1, 6, TIME])
    h = net.op("Reshape", x, net.const([0, groups, -1]))
    ones, zeros = net.const(np.ones(groups)), net.const(np.zeros(groups))
    h = net.op("InstanceNormalization", h, ones, zeros, epsilon=1e-2)
    h = net.op("Reshape", h, net.op("Shape", x))
    y = net.op("Mul", h, net.weight(6, *([1, 1] if spectrum else [1])))
    prefixes.check(net.model(y), runner, MODE, {y: 2})


@RUNNERS
@pytest.mark.parametrize(("op", "opset"), [("LayerNormalization", 17), ("RMSNormalization", 23)])
def test_layer_norm_over_time_and_channels(runner: str, op: str, opset: int) -> None:
    net = Net(opset=opset)
    x = net.input([1, TIME, 4])
    extra = [net.weight(4)] if op == "LayerNormalization" else []
    y = net.op(op, x, net.weight(4), *extra, axis=1, epsilon=1e-2)
    prefixes.check(net.model(y), runner, MODE, {y: 1})


@RUNNERS
@pytest.mark.parametrize("p", [1, 2])
def test_lp_norm(runner: str, p: int) -> None:
    net, x = stack(3)
    y = net.op("LpNormalization", net.op("Mul", x, net.const([[0.0], [1.0], [2.0]])), axis=2, p=p)
    prefixes.check(net.model(y), runner, MODE, {y: 2})


def written_out(net: Net, x: str, axes: list[int], how: str) -> str:
    """A norm in primitive ops, in one of the ways that exporters write it."""
    mean = reduced(net, "ReduceMean", x, axes)
    apart = net.op("Sub", x, mean)
    square = net.op("Pow", apart, net.const(2.0)) if how != "mul" else net.op("Mul", apart, apart)
    spread = net.op("Add", reduced(net, "ReduceMean", square, axes), net.const(1e-2))
    if how == "reciprocal":
        return net.op("Mul", apart, net.op("Reciprocal", net.op("Sqrt", spread)))
    return net.op("Div", apart, net.op("Sqrt", spread))


@RUNNERS
@pytest.mark.parametrize("how", ["pow", "mul", "reciprocal"])
@pytest.mark.parametrize("axes", [[2], [1, 2]])
def test_written_out(runner: str, how: str, axes: list[int]) -> None:
    net, x = stack(3)
    y = net.op("Mul", written_out(net, net.conv(x, 3, 4, 3, pads=[2, 0]), axes, how), net.weight(4, 1))
    prefixes.check(net.model(y), runner, MODE, {y: 2})


@RUNNERS
def test_from_mean_square_and_mean(runner: str) -> None:
    net, x = stack(3)
    mean, square = reduced(net, "ReduceMean", x, [2]), reduced(net, "ReduceMean", net.op("Mul", x, x), [2])
    spread = net.op("Sub", square, net.op("Mul", mean, mean))
    y = net.op("Div", net.op("Sub", x, mean), net.op("Sqrt", net.op("Add", spread, net.const(0.1))))
    prefixes.check(net.model(y), runner, MODE, {y: 2})


@pytest.mark.parametrize("axes", [[2], [1, 2]])
def test_a_variance_alone_is_exact(check: oracle.Check, axes: list[int]) -> None:
    """Statistics pooling with the deviations written out: one pass, far from zero as well."""
    net, x = stack(3)
    h = net.op("Add", net.conv(x, 3, 4, 3, pads=[1, 1]), net.const(30.0))
    mean = reduced(net, "ReduceMean", h, axes)
    square = net.op("Pow", net.op("Sub", h, mean), net.const(2.0))
    check(net.model(net.op("Sqrt", reduced(net, "ReduceMean", square, axes, 0)), mean))


def test_the_unbiased_deviation_of_statistics_pooling(check: oracle.Check) -> None:
    """As exporters write it: the mean square deviation times T, by T - 1."""
    net, x = stack(3)
    h = net.conv(x, 3, 4, 3, pads=[1, 1])
    n = net.op("Cast", net.op("Gather", net.op("Shape", h), net.const(2), axis=0), to=1)
    apart = net.op("Sub", h, reduced(net, "ReduceMean", h, [2]))
    spread = net.op("Mul", reduced(net, "ReduceMean", net.op("Mul", apart, apart), [2], 0), n)
    spread = net.op("Div", spread, net.op("Sub", n, net.const(1.0)))
    check(net.model(net.op("Sqrt", spread)), lengths=(2, 3, 9, 30))


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("InstanceNormalization", 2, {}),
        ("LayerNormalization", 1, {"axis": 1}),
        ("LpNormalization", 0, {"axis": 2}),
    ],
)  # fmt: skip
def test_refused_without_the_mode(op: str, inputs: int, attrs: dict[str, Any]) -> None:
    net, x = stack(3)
    shapes = [net.weight(3, 1) if op == "LayerNormalization" else net.weight(3) for _ in range(inputs)]
    with pytest.raises(Refused) as caught:
        analyse(load(net.model(net.op(op, x, *shapes, **attrs))))
    assert caught.value.reasons[0].modes == ("norm=running",)


def test_written_out_is_refused_without_the_mode() -> None:
    net, x = stack(3)
    with pytest.raises(Refused) as caught:
        analyse(load(net.model(written_out(net, x, [2], "pow"))))
    assert caught.value.reasons[0].modes == ("norm=running",)


@RUNNERS
def test_a_deviation_is_an_output(runner: str) -> None:
    net, x = stack(3)
    y = net.op("Sub", x, reduced(net, "ReduceMean", x, [2]))
    prefixes.check(net.model(y), runner, MODE, {y: 2})
    with pytest.raises(Refused) as caught:
        analyse(load(net.model(y)))
    (reason,) = caught.value.reasons
    assert (reason.op, reason.modes) == ("Sub", ("norm=running",))


def test_softmax_over_time_has_no_running_form() -> None:
    net, x = stack(3)
    with pytest.raises(Refused) as caught:
        analyse(load(net.model(net.op("Softmax", x, axis=2))), modes=MODE | {"pool": "cumulative"})
    assert not caught.value.reasons[0].modes
