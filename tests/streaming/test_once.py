"""Values that are known only at the end of the stream, and what is computed with them."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from nets import TIME, Net, stack

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

END = 1 << 62
LENGTHS = tuple(n for n in oracle.LENGTHS if n > 4)


def tail(net: Net, x: str, axis: int, start: int, stop: int = 0) -> str:
    return net.op("Slice", x, net.const([-start]), net.const([-stop if stop else END]), net.const([axis]))


def head(net: Net, x: str, size: int, classes: int = 5) -> str:
    """Flatten, two dense layers, softmax."""
    h = net.op("Relu", net.op("Gemm", net.op("Flatten", x), net.weight(size, 8), net.weight(8)))
    return net.op("Softmax", net.op("Add", net.op("MatMul", h, net.weight(8, classes)), net.weight(classes)), axis=-1)


@pytest.mark.parametrize(("start", "stop"), [(1, 0), (2, 0), (3, 1), (5, 2), (15, 0)])
def test_head_behind_the_last_frames(check: oracle.Check, start: int, stop: int) -> None:
    net, x = stack(3)
    h = net.conv(x, 3, 4, 3, pads=[1, 1])
    check(net.model(head(net, tail(net, h, 2, start, stop), 4 * (start - stop))))


def test_two_ends_of_different_lateness(check: oracle.Check) -> None:
    net, x = stack(3)
    early, late = net.conv(x, 3, 4, 3, pads=[2, 0]), net.conv(x, 3, 4, 9, pads=[4, 4])
    a, b = tail(net, early, 2, 1), tail(net, net.op("Tanh", late), 2, 2, 1)
    both = net.op("Concat", a, net.op("Mul", a, b), axis=1)
    check(net.model(head(net, both, 8), net.op("Relu", late), net.op("Exp", b)), lengths=LENGTHS)


def test_behind_strides_and_transposed_convolutions(check: oracle.Check) -> None:
    net, x = stack(3)
    down = net.conv(x, 3, 4, 3, pads=[1, 1], strides=[3])
    up = net.conv_transpose(down, 4, 3, 4, strides=[2])
    a = net.op("Neg", tail(net, up, 2, 3))
    b = net.op("Neg", tail(net, tail_less(net, x), 2, 2))
    check(net.model(a, b), lengths=LENGTHS)


def tail_less(net: Net, x: str) -> str:
    return net.op("Slice", x, net.const([1]), net.const([-2]), net.const([2]))


def test_a_tail_that_is_an_output_too(check: oracle.Check) -> None:
    net, x = stack(2)
    a = tail(net, x, 2, 2)
    check(net.model(a, net.op("Mul", a, net.const(3.0))), lengths=LENGTHS)


@pytest.mark.parametrize("op", ["GRU", "RNN", "LSTM"])
def test_head_behind_the_last_state(check: oracle.Check, op: str) -> None:
    net = Net()
    x = net.input([TIME, 1, 3])
    _, h = net.recurrent(op, x, 3, 6, outputs=2)
    check(net.model(head(net, h, 6)))


def test_a_shorter_recording_is_refused_at_the_end(check: oracle.Check) -> None:
    net, x = stack(2)
    proof = check(net.model(net.op("Relu", tail(net, x, 2, 4))), lengths=(4, 5, 9))
    assert not proof.refused_lengths
    assert analyse(load(net.model(net.op("Relu", tail(net, x, 2, 4))))).shortest == 4


def test_mixing_with_the_stream_is_refused() -> None:
    net, x = stack(2)
    with pytest.raises(Refused, match="known only at the end"):
        analyse(load(net.model(net.op("Mul", x, net.op("Relu", tail(net, x, 2, 1))))))


def test_outputs_without_time_have_no_axis() -> None:
    net, x = stack(2)
    graph = analyse(load(net.model(net.op("Relu", tail(net, x, 2, 3)))))
    (value,) = graph.outputs.values()
    assert value.fact.once  # type: ignore[union-attr]
    assert np.prod(value.shape) == 6  # type: ignore[union-attr]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 3), (2, 4), (0, 15)])
def test_head_behind_the_first_frames(check: oracle.Check, start: int, stop: int) -> None:
    net, x = stack(3)
    h = net.conv(x, 3, 4, 3, pads=[1, 1])
    first = net.op("Slice", h, net.const([start]), net.const([stop]), net.const([2]))
    lengths = tuple(n for n in (1, 3, 4, 5, 15, 16, 17, 40) if n >= stop)
    check(net.model(head(net, first, 4 * (stop - start)), net.op("Relu", h)), lengths=lengths)


@pytest.mark.parametrize("indices", [-1, 0, 2, [-1], [1], [-3, -1], [2, 0, 0]])
def test_frames_picked_by_number(check: oracle.Check, indices: int | list[int]) -> None:
    net = Net()
    x = net.input([1, TIME, 3])
    y = net.recurrent("GRU", net.op("Transpose", x, perm=[1, 0, 2]), 3, 4)
    y = net.op("Transpose", net.op("Squeeze", y, net.const([1])), perm=[1, 0, 2])
    picked = net.op("Gather", y, net.const(indices), axis=1)
    check(net.model(net.op("MatMul", picked, net.weight(4, 5))), lengths=LENGTHS)


def test_the_first_and_the_last_frame(check: oracle.Check) -> None:
    net, x = stack(3)
    late = net.conv(x, 3, 3, 5, pads=[2, 2])
    first, last = (net.op("Gather", late, net.const(i), axis=2) for i in (0, -1))
    check(net.model(net.op("Sub", last, first), first))


def test_frames_from_both_ends_are_refused() -> None:
    net, x = stack(3)
    with pytest.raises(Refused, match="both ends"):
        analyse(load(net.model(net.op("Gather", x, net.const([0, -1]), axis=2))))
