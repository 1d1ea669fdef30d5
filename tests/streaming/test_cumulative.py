"""Cumulative sums: along time a running sum in onnxruntime's order, inside a frame as they are."""

from __future__ import annotations

import oracle
import pytest
from nets import TIME, Net, stack

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused


@pytest.mark.parametrize("exclusive", [0, 1])
def test_over_time(check: oracle.Check, exclusive: int) -> None:
    net, x = stack(3)
    h = net.conv(x, 3, 4, 3, pads=[1, 1])
    y = net.op("CumSum", h, net.const(-1), exclusive=exclusive)
    z = net.conv(net.op("Mul", y, net.const(0.01)), 4, 2, 3, pads=[2, 2])
    check(net.model(y, z))


def test_bits_are_the_offline_ones(check: oracle.Check) -> None:
    net, x = stack(3)
    proof = check(net.model(net.op("CumSum", x, net.const(2))), lengths=(1, 2, 500), steps=(None, 8), tolerance=0.0)
    assert proof.worst == 0.0


def test_of_integers(check: oracle.Check) -> None:
    net = Net()
    x = net.input([TIME, 3], dtype="int64")
    y = net.op("CumSum", x, net.const(0))
    check(net.model(y, dtypes={y: "int64"}))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("exclusive", "reverse"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_inside_a_frame(check: oracle.Check, axis: int, exclusive: int, reverse: int) -> None:
    net = Net()
    x = net.input([TIME, 4, 5])
    check(net.model(net.op("CumSum", x, net.const(axis), exclusive=exclusive, reverse=reverse)), steps=(None,))


def test_from_the_end_is_refused() -> None:
    net, x = stack(2)
    with pytest.raises(Refused, match="whole future"):
        analyse(load(net.model(net.op("CumSum", x, net.const(2), reverse=1))))
