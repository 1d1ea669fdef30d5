"""What is made from the number of a frame: ranges, tables by position, constants and masks that follow the length."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from lengths import C, column, first_rows, frames, length, positions, table
from nets import TIME, Net
from oracle import Check

from runnel.errors import Refused


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_range(check: Check, dtype: str) -> None:
    net = Net()
    x, size = frames(net)
    check(net.model(net.op("Add", x, column(net, positions(net, size, dtype)))))


def test_range_alone_is_an_output(check: Check) -> None:
    net = Net()
    x, size = frames(net)
    n = positions(net, size)
    y = net.op("Relu", x)
    check(net.model(y, n, dtypes={n: "int64"}))


def test_range_in_steps_follows_a_strided_layer(check: Check) -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    h = net.conv(x, 3, 4, 4, strides=[2], pads=[1, 1])
    n = net.op("Range", net.const(3), length(net, x, 2), net.const(2))
    start = net.op("Slice", h, net.const([1]), net.const([1 << 60]), net.const([2]))
    short = net.op("Unsqueeze", net.op("Cast", n, to=1), net.const([0, 1]))
    size = length(net, h, 2)
    every = net.op("Range", net.const(5), net.op("Add", net.op("Mul", size, net.const(3)), net.const(5)), net.const(3))
    y = net.op("Mul", h, net.op("Unsqueeze", net.op("Cast", every, to=1), net.const([0, 1])))
    check(net.model(net.op("Mul", start, short), y), at_least=3)


@pytest.mark.parametrize("pads", [[0, 0], [4, 0], [1, 3]])
def test_positions_meet_a_late_stream(check: Check, pads: list[int]) -> None:
    """A table of positions waits for the look-ahead of what it is added to."""
    net = Net()
    x = net.input([1, C, TIME])
    h = net.op("Relu", net.conv(x, C, C, 5, pads=pads))
    t = net.op("Transpose", h, perm=[0, 2, 1])
    y = net.op("Add", t, first_rows(net, length(net, t)))
    check(net.model(net.op("MatMul", y, net.weight(C, 4))), lengths=[*oracle.LENGTHS, 60])


def test_ones_and_their_places_are_positions(check: Check) -> None:
    """NonZero of ones, as older exporters write a range."""
    net = Net()
    x, size = frames(net)
    ones = net.op("ConstantOfShape", net.op("Unsqueeze", size, net.const([0])), value=_tensor(1, "int64"))
    n = net.op("Squeeze", net.op("Transpose", net.op("NonZero", ones), perm=[1, 0]), net.const([1]))
    check(net.model(net.op("Mul", x, column(net, n))))


def _tensor(value: float, dtype: str) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array([value], dtype))


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_a_sum_of_ones_is_a_position(check: Check, exclusive: int, dtype: str) -> None:
    """As masks are turned into positions; the table that they pick from ends."""
    net = Net()
    x, size = frames(net)
    shape = net.op("Concat", net.const([1]), net.op("Unsqueeze", size, net.const([0])), axis=0)
    ones = net.op("ConstantOfShape", shape, value=_tensor(1, dtype))
    n = net.op("CumSum", ones, net.const(1), exclusive=exclusive)
    rows = net.op("Gather", net.weight(60, C, scale=1.0), net.op("Cast", n, to=7), axis=0)
    check(net.model(net.op("Add", x, rows)))


def test_a_repeat_of_channels(check: Check) -> None:
    net = Net()
    x, _ = frames(net)
    check(net.model(net.op("Mul", net.op("Tile", x, net.const([1, 1, 3])), net.weight(3 * C))))


def test_a_repeat_of_time_is_refused() -> None:
    net = Net()
    x, _ = frames(net)
    with pytest.raises(Refused, match="repeats the whole recording"):
        oracle.check(net.model(net.op("Tile", x, net.const([1, 2, 1]))))


def sinusoid(net: Net, size: str) -> str:
    rates = np.exp(-np.arange(C // 2) / 2).astype(np.float32)
    angles = net.op("Mul", column(net, positions(net, size)), net.const(rates))
    return str(net.op("Concat", net.op("Sin", angles), net.op("Cos", angles), axis=-1))


def embedding(net: Net, size: str) -> str:
    rows = net.weight(64, C, scale=1.0)
    return str(net.op("Unsqueeze", net.op("Gather", rows, positions(net, size), axis=0), net.const([0])))


def buffered(net: Net, size: str) -> str:
    """The rows of an embedding by a buffer of position numbers, as BERT has them."""
    end = net.op("Unsqueeze", size, net.const([0]))
    numbers = net.op("Slice", net.const(np.arange(64)[None]), net.const([0]), end, net.const([1]))
    return str(net.op("Gather", net.weight(64, C, scale=1.0), numbers, axis=0))


def shifted(net: Net, size: str) -> str:
    """Positions from 2 on, as fairseq counts."""
    n = net.op("Add", positions(net, size), net.const(2))
    return str(net.op("Gather", net.weight(80, C, scale=1.0), net.op("Unsqueeze", n, net.const([0])), axis=0))


def clipped(net: Net, size: str) -> str:
    n = net.op("Min", positions(net, size), net.const(9))
    return str(net.op("Unsqueeze", net.op("Gather", net.weight(10, C), n, axis=0), net.const([0])))


POSITION_CODES = [sinusoid, embedding, buffered, shifted, first_rows]


@pytest.mark.parametrize("code", POSITION_CODES)
def test_position_codes(check: Check, code: Any) -> None:
    net = Net()
    x, size = frames(net)
    y = net.op("Add", x, code(net, size))
    check(net.model(net.op("MatMul", y, net.weight(C, 4))), steps=(None, 3))


def test_rotary(check: Check) -> None:
    net = Net()
    x, size = frames(net)
    rates = net.const(1.0 / 100 ** (np.arange(C // 2) / C * 2))
    angles = net.op("Mul", column(net, positions(net, size)), rates)
    angles = net.op("Concat", angles, angles, axis=-1)
    low, high = net.op("Split", x, axis=-1, outputs=2)
    turned = net.op("Concat", net.op("Neg", high), low, axis=-1)
    straight, cross = (net.op("Mul", a, net.op(f, angles)) for a, f in ((x, "Cos"), (turned, "Sin")))
    check(net.model(net.op("Add", straight, cross)))


def test_a_table_of_one_fixed_length_is_refused() -> None:
    net = Net()
    x, _ = frames(net)
    model = net.model(net.op("Add", x, table(net, 64)))
    with pytest.raises(Refused, match="own row of a constant table"):
        oracle.check(model)


def test_rows_counted_from_the_end_are_refused() -> None:
    net = Net()
    x, size = frames(net)
    start = net.op("Unsqueeze", net.op("Sub", net.const(64), size), net.const([0]))
    y = net.op("Add", x, net.op("Slice", table(net), start, net.const([1 << 60]), net.const([1])))
    with pytest.raises(Refused, match="move when the stream goes on"):
        oracle.check(net.model(y))


def test_counting_down_is_refused() -> None:
    net = Net()
    x, size = frames(net)
    last = net.op("Sub", size, net.const(1))
    n = net.op("Range", last, net.const(-1), net.const(-1))
    with pytest.raises(Refused, match="depends on the length"):
        oracle.check(net.model(net.op("Add", x, column(net, n))))


def test_the_length_as_data_is_refused() -> None:
    net = Net()
    x, size = frames(net)
    with pytest.raises(Refused, match="known only at its end"):
        oracle.check(net.model(net.op("Div", x, net.op("Cast", size, to=1))))


@pytest.mark.parametrize("form", ["mean", "root", "share", "half"])
def test_values_known_at_the_end_with_the_length(check: Check, form: str) -> None:
    """A sum over time divided by the length, and by what is computed from it."""
    net = Net()
    x, size = frames(net)
    total = net.op("ReduceSum", x, net.const([1]), keepdims=0)
    real = net.op("Cast", size, to=1)
    if form == "mean":
        y = net.op("Div", total, real)
    elif form == "root":
        y = net.op("Mul", total, net.op("Reciprocal", net.op("Sqrt", real)))
    elif form == "share":
        y = net.op("Mul", total, net.op("Div", net.const(3.0), net.op("Max", real, net.const(4.0))))
    else:
        half = net.op("Floor", net.op("Mul", net.op("Unsqueeze", real, net.const([0])), net.const([0.5])))
        y = net.op("Add", net.op("Add", total, half), net.op("Pow", real, net.const(2.0)))
    check(net.model(y))


def whole_shape(net: Net, x: str) -> str:
    return str(net.op("Shape", x))


@pytest.mark.parametrize("kind", ["constant_of_shape", "expand", "tile", "idiom"])
def test_constants_that_follow_the_length(check: Check, kind: str) -> None:
    net = Net()
    x, size = frames(net)
    vector = net.op("Unsqueeze", size, net.const([0]))
    if kind == "constant_of_shape":
        c = net.op("ConstantOfShape", whole_shape(net, x), value=_tensor(0.5, "float32"))
    elif kind == "expand":
        c = net.op("Expand", net.weight(1, 1, C), whole_shape(net, x))
    elif kind == "tile":
        c = net.op("Tile", net.weight(1, 1, C), net.op("Concat", net.const([1]), vector, net.const([1]), axis=0))
    else:  # torch's expand(-1, T, -1): -1 is replaced by ones through Equal and Where
        shape = net.op("Concat", net.const([-1]), vector, net.const([C]), axis=0)
        ones = net.op("ConstantOfShape", net.op("Shape", shape), value=_tensor(1, "int64"))
        minus = net.op("Mul", ones, net.const(-1))
        shape = net.op("Where", net.op("Equal", shape, minus), ones, shape)
        c = net.op("Expand", net.weight(1, 1, C), shape)
    joined = net.op("Concat", x, c, axis=2)
    check(net.model(net.op("MatMul", joined, net.weight(2 * C, 3))))


def test_a_constant_that_repeats_with_a_period(check: Check) -> None:
    net = Net()
    x = net.input([1, 2, TIME])
    h = net.conv_transpose(x, 2, 3, 3, strides=[3])
    size = net.op("Unsqueeze", length(net, x, 2), net.const([0]))
    c = net.op("Tile", net.weight(1, 3, 3), net.op("Concat", net.const([1, 1]), size, axis=0))
    check(net.model(net.op("Mul", h, c)))


def test_a_convolution_of_ones_is_the_overlap_at_the_edges(check: Check) -> None:
    """The envelope of an overlap-add: right at both ends."""
    net = Net()
    x = net.input([1, 1, TIME])
    ones = net.op("ConstantOfShape", whole_shape(net, x), value=_tensor(1.0, "float32"))
    kernel = net.const(np.hanning(8).reshape(1, 1, 8) + 0.1)
    attrs = {"strides": [2]}
    top, below = (net.op("ConvTranspose", v, kernel, **attrs) for v in (x, ones))
    check(net.model(net.op("Div", top, below)))


@pytest.mark.parametrize("op", ["Less", "Greater", "Equal", "GreaterOrEqual", "LessOrEqual"])
def test_masks_from_positions(check: Check, op: str) -> None:
    net = Net()
    x, size = frames(net)
    mask = net.op(op, column(net, positions(net, size), to=7), net.const(5))
    before = net.op("Sub", column(net, positions(net, size), to=7), net.const(20))
    even = net.op("Equal", net.op("Mod", before, net.const(-3)), net.const(-1))
    both = net.op("Or", mask, even)
    check(net.model(net.op("Where", both, x, net.const(0.25, "float32"))))


def test_positions_below_the_length_are_all_frames(check: Check) -> None:
    """A padding mask of a batch of one."""
    net = Net()
    x, size = frames(net)
    mask = net.op("Less", column(net, positions(net, size), to=7), size)
    check(net.model(net.op("Where", mask, x, net.const(-1.0, "float32"))))


def test_positions_before_the_last_ten_are_refused() -> None:
    net = Net()
    x, size = frames(net)
    mask = net.op("Less", column(net, positions(net, size), to=7), net.op("Sub", size, net.const(10)))
    with pytest.raises(Refused, match="known only at its end"):
        oracle.check(net.model(net.op("Where", mask, x, net.const(-1.0, "float32"))))


def test_rows_beyond_a_limit_stay_the_last(check: Check) -> None:
    net = Net()
    x, size = frames(net)
    check(net.model(net.op("Add", x, clipped(net, size))))
