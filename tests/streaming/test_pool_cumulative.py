"""pool=cumulative: pooled values as running answers, and frames that are weighted by them."""

from __future__ import annotations

import numpy as np
import oracle
import prefixes
import pytest
import runners
from nets import TIME, Net, stack
from test_once import head
from test_totals import REDUCTIONS, reduced

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

MODE = {"pool": "cumulative"}
RUNNERS = pytest.mark.parametrize("runner", ["reference", "native"])


@RUNNERS
@pytest.mark.parametrize("op", REDUCTIONS)
def test_running_answers(runner: str, op: str) -> None:
    net, x = stack(3)
    h = net.op("Abs", x) if op == "ReduceLogSum" else net.conv(x, 3, 4, 3, pads=[2, 0])
    prefixes.check(net.model(reduced(net, op, h, [2])), runner, MODE)


@RUNNERS
def test_running_classifier(runner: str) -> None:
    net, x = stack(3)
    h = net.op("Relu", net.conv(x, 3, 4, 3, pads=[2, 0]))
    pooled = net.op("Concat", reduced(net, "ReduceMean", h, [2]), reduced(net, "ReduceMax", h, [2]), axis=1)
    prefixes.check(net.model(head(net, pooled, 8)), runner, MODE)


def pooled_spread(net: Net, h: str, less: int) -> str:
    """Mean and variance over time, divided by T - less, as exporters write an unbiased variance."""
    apart = net.op("Sub", h, net.op("ReduceMean", h, axes=[2]))
    square = net.op("ReduceMean", net.op("Mul", apart, apart), axes=[2], keepdims=0)
    number = net.op("Cast", net.op("Gather", net.op("Shape", h), net.const(2), axis=0), to=1)
    spread = net.op("Div", net.op("Mul", square, number), net.op("Sub", number, net.const(np.float32(less))))
    return str(net.op("Concat", reduced(net, "ReduceMean", h, [2], 0), spread, axis=1))


@RUNNERS
@pytest.mark.parametrize("less", [0, -2])
def test_running_answers_that_are_divided_by_a_length(runner: str, less: int) -> None:
    net, x = stack(3)
    h = net.op("Relu", net.conv(x, 3, 4, 3, pads=[2, 0]))
    y = net.op("Gemm", pooled_spread(net, h, less), net.weight(8, 2))
    prefixes.check(net.model(y), runner, MODE)


@RUNNERS
def test_running_answers_of_a_stream_with_fewer_frames(runner: str) -> None:
    net, x = stack(3)
    model = net.model(pooled_spread(net, net.conv(x, 3, 4, 3), 0))
    offline, data = oracle.Offline(model), np.random.default_rng(0).standard_normal((1, 3, 9), np.float32)
    (got,) = runners.RUNNERS[runner](model, {"modes": MODE})().push({"x": data}).values()
    wanted = [next(iter(offline({"x": data[..., : n + 3]}).values())) for n in range(7)]  # type: ignore[union-attr]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_a_length_that_is_not_the_pooled_streams_is_refused() -> None:
    net, x = stack(3)
    mean = reduced(net, "ReduceSum", net.conv(x, 3, 4, 4, strides=[2]), [2])
    number = net.op("Cast", net.op("Gather", net.op("Shape", x), net.const(2), axis=0), to=1)
    with pytest.raises(Refused, match="is not the pooled stream's"):
        analyse(load(net.model(net.op("Div", mean, number))), modes=MODE)


def squeezed(net: Net, h: str, channels: int, rank: int = 1) -> str:
    """Squeeze and excite: channels weighted by a small network of their means."""
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", h), channels, 2, [1] * rank))
    return net.op("Mul", h, net.op("Sigmoid", net.conv(gate, 2, channels, [1] * rank)))


@RUNNERS
def test_squeeze_and_excite(runner: str) -> None:
    net, x = stack(3)
    h = squeezed(net, net.conv(x, 3, 6, 3, pads=[2, 0]), 6)
    y = net.conv(net.op("Relu", h), 6, 3, 1)
    prefixes.check(net.model(y), runner, MODE, {y: 2})


@RUNNERS
def test_squeeze_and_excite_in_two_dimensions(runner: str) -> None:
    net = Net()
    x = net.input([1, 2, TIME, 5])
    h = squeezed(net, net.conv(x, 2, 4, [3, 3], pads=[2, 1, 0, 1]), 4, 2)
    prefixes.check(net.model(h), runner, MODE, {h: 2})


@RUNNERS
def test_a_gate_without_the_axis_of_time(runner: str) -> None:
    net = Net()
    x = net.input([TIME, 4])
    mean = reduced(net, "ReduceMean", x, [0], 0)
    y = net.op("Mul", x, net.op("Sigmoid", net.op("MatMul", mean, net.weight(4, 4))))
    loud = net.op("Where", net.op("Greater", x, reduced(net, "ReduceMax", mean, [0], 0)), x, net.const(0.0))
    prefixes.check(net.model(y, loud), runner, MODE, {y: 0, loud: 0})


@RUNNERS
@pytest.mark.parametrize("gated", ["whole", "halved"])
def test_a_gate_among_strides(runner: str, gated: str) -> None:
    """A call of the portable form carries several frames there. The last frame is the offline one."""
    net, x = stack(3)
    h = net.conv(x, 3, 4, 2, strides=[2])
    h = squeezed(net, h, 4) if gated == "halved" else h
    h = net.conv_transpose(h, 4, 4, 2, strides=[2])
    y = squeezed(net, h, 4) if gated == "whole" else h
    model = net.model(y)
    offline, source = oracle.Offline(model), oracle.Source(model, 3, None, None, 1.0)
    for step in (None, 6):
        make = runners.RUNNERS[runner](model, {"modes": MODE} | ({"step": step} if step else {}))
        for length in (2, 4, 8, 14):
            x_whole = source(length)
            whole, single = (
                oracle.streamed(make(), x_whole, cuts, source, {y: 2})[y]
                for cuts in ([0, length], list(range(length + 1)))
            )
            assert whole.tobytes() == single.tobytes()
            wanted = offline(x_whole)
            assert wanted is not None
            np.testing.assert_allclose(whole[..., -1], wanted[y][..., -1], rtol=0, atol=1e-5)


def test_without_the_mode_it_is_refused_and_named() -> None:
    net, x = stack(3)
    with pytest.raises(Refused) as caught:
        analyse(load(net.model(squeezed(net, x, 3))))
    (reason,) = caught.value.reasons
    assert "known only at the end" in reason.reason
    assert reason.modes == ("pool=cumulative",)


def test_the_mode_is_recorded_where_it_was_needed() -> None:
    net, x = stack(3)
    graph = analyse(load(net.model(squeezed(net, x, 3))), modes=MODE)
    assert graph.modes == MODE
    assert [n.split()[0] for n in graph.mode_nodes["pool"]] == ["Mul"]
    exact = analyse(load(net.model(net.op("Relu", x))), modes=MODE)
    assert not exact.modes
