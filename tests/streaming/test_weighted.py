"""Attentive pooling: sums over time whose weights are a softmax over time."""

from __future__ import annotations

import oracle
import pytest
from nets import Net, stack
from test_once import head

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused


def summed(net: Net, x: str, weights: str) -> str:
    return net.op("ReduceSum", net.op("Mul", x, weights), net.const([2]), keepdims=0)


@pytest.mark.parametrize("width", [1, 4])
def test_mean_and_deviation_by_attention(check: oracle.Check, width: int) -> None:
    """The scores come later than the frames that they weigh."""
    net, x = stack(3)
    h = net.conv(x, 3, 4, 3, pads=[2, 0])
    scores = net.op("Mul", net.op("Tanh", net.conv(h, 4, width, 5, pads=[2, 2])), net.const(6.0))
    weights = net.op("Softmax", scores, axis=2)
    mean = summed(net, h, weights)
    square = summed(net, net.op("Mul", h, h), weights)
    spread = net.op("Max", net.op("Sub", square, net.op("Mul", mean, mean)), net.const(1e-3))
    check(net.model(head(net, net.op("Concat", mean, net.op("Sqrt", spread), axis=1), 8)))


def test_large_scores(check: oracle.Check) -> None:
    net, x = stack(3)
    weights = net.op("Softmax", net.op("Mul", x, net.const(300.0)), axis=2)
    check(net.model(summed(net, x, weights)))


def test_the_weights_themselves_are_refused() -> None:
    net, x = stack(3)
    weights = net.op("Softmax", x, axis=2)
    for y in (weights, net.op("Relu", weights), net.op("Mul", weights, x)):
        with pytest.raises(Refused, match="normalises over the whole of time"):
            analyse(load(net.model(y)))
