"""Attentive pooling: sums over time whose weights are a softmax over time."""

from __future__ import annotations

import oracle
import pytest
from nets import TIME, Net, stack
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


@pytest.mark.parametrize("heads", [1, 3])
def test_a_product_with_weights_on_the_left(check: oracle.Check, heads: int) -> None:
    """(1, heads, T) · (1, T, C), the scores later than x."""
    net, x = stack(3)
    h = net.conv(x, 3, 4, 3, pads=[2, 0])
    weights = net.op("Softmax", net.conv(h, 4, heads, 5, pads=[2, 2]), axis=-1)
    pooled = net.op("MatMul", weights, net.op("Transpose", h, perm=[0, 2, 1]))
    check(net.model(net.op("Tanh", net.op("Reshape", pooled, net.const([1, -1])))))


@pytest.mark.parametrize("heads", [1, 3])
def test_a_product_with_weights_on_the_right(check: oracle.Check, heads: int) -> None:
    """(1, C, T) · (1, T, heads), the weights transposed behind the softmax or before it."""
    net, x = stack(3)
    scores = net.conv(x, 3, heads, 3, pads=[1, 1])
    behind = net.op("Transpose", net.op("Softmax", scores, axis=2), perm=[0, 2, 1])
    before = net.op("Softmax", net.op("Transpose", scores, perm=[0, 2, 1]), axis=1)
    check(net.model(net.op("MatMul", x, behind), net.op("MatMul", net.op("Neg", x), before)))


def test_heads_apart(check: oracle.Check) -> None:
    """A learned query for each head."""
    net = Net()
    x = net.input([1, TIME, 8])
    v = net.op("Transpose", net.op("Reshape", x, net.const([1, -1, 2, 4])), perm=[0, 2, 1, 3])
    keys = net.op("MatMul", v, net.weight(4, 3))
    weights = net.op("Softmax", net.op("Transpose", keys, perm=[0, 1, 3, 2]), axis=-1)
    check(net.model(net.op("MatMul", weights, v)))


def test_weights_that_get_an_axis(check: oracle.Check) -> None:
    net = Net()
    x = net.input([1, TIME, 6])
    scores = net.op("Squeeze", net.op("MatMul", x, net.weight(6, 1)), net.const([2]))
    weights = net.op("Unsqueeze", net.op("Softmax", scores, axis=1), net.const([2]))
    check(net.model(net.op("ReduceSum", net.op("Mul", x, weights), net.const([1]), keepdims=0)))


def test_the_weights_themselves_are_refused() -> None:
    net, x = stack(3)
    weights = net.op("Softmax", x, axis=2)
    for y in (weights, net.op("Relu", weights), net.op("Mul", weights, x), net.op("Transpose", weights)):
        with pytest.raises(Refused, match="normalises over the whole of time"):
            analyse(load(net.model(y)))
