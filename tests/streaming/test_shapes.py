"""Shape arithmetic as exporters write it: exact functions of the stream's length, decided where they can be."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import oracle
import pytest
from lengths import length
from nets import TIME, Net
from onnx import TensorProto, helper
from oracle import Check

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.symbolic import Ratio, relation
from runnel.errors import Refused

T = Count.time()


@pytest.mark.parametrize(
    ("op", "a", "b", "holds"),
    [
        ("Less", T, T + 1, True), ("Less", T + 1, T, False), ("Equal", T, -1, False), ("Greater", T, 0, True),
        ("Greater", T, 5, None), ("Equal", T // 2, T, False), ("LessOrEqual", T // 2, T, True),
        ("GreaterOrEqual", T % 4, 0, True), ("Equal", T % 2, 0, None), ("Less", Ratio(T, 2), T, True),
        ("Equal", T - T, 0, True),
    ],
)  # fmt: skip
def test_relations_of_lengths(op: str, a: Any, b: Any, holds: bool | None) -> None:
    assert relation(op, a, b) is holds


def test_real_numbers_are_exact_or_refused() -> None:
    half = Ratio.of(T) * Fraction(1, 2)
    assert [half.floor()(t) for t in range(5)] == [0, 0, 1, 1, 2]
    assert [half.ceil()(t) for t in range(5)] == [0, 1, 1, 2, 2]
    assert [((half + 3) / 2).floor()(t) for t in range(5)] == [1, 1, 2, 2, 2]
    with pytest.raises(Refusal, match="and rounds"):
        Ratio.of(T) * Fraction(float(np.float32(0.7)))


def condition(net: Net, flag: str, x: str, then: str, otherwise: str) -> str:
    """If ``flag`` then one op on x, else another."""

    def branch(op: str, name: str) -> Any:
        made = helper.make_node(op, [x], [name])
        port = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([made], name, [], [port])

    return str(net.op("If", flag, then_branch=branch(then, "a"), else_branch=branch(otherwise, "b")))


def test_a_branch_on_a_fixed_dimension(check: Check) -> None:
    """squeeze(1) as torch exports it for shapes that it does not know."""
    net = Net()
    x = net.input([1, 3, TIME])
    h = net.conv(x, 3, 2, 3)
    one = net.op("Equal", length(net, h, 1), net.const(1))
    y = condition(net, one, h, "Neg", "Relu")
    two = net.op("Equal", length(net, y, 1), net.const(2))
    check(net.model(condition(net, two, y, "Tanh", "Abs")))


def test_a_branch_on_a_length_that_decides_it(check: Check) -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    h = net.conv(x, 3, 2, 3, pads=[1, 1])
    same = net.op("Equal", length(net, h, 2), length(net, x, 2))
    check(net.model(condition(net, same, h, "Sigmoid", "Exp")))


def test_a_branch_on_how_long_the_input_is_is_refused() -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    y = condition(net, net.op("Greater", length(net, x, 2), net.const(10)), x, "Neg", "Relu")
    with pytest.raises(Refused, match="short inputs"):
        oracle.check(net.model(y))


def test_a_branch_on_data_is_refused() -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    flag = net.op("Greater", net.op("Squeeze", net.op("ReduceMax", x, keepdims=1)), net.const(0.0))
    with pytest.raises(Refused, match="If .*known only at the end"):
        oracle.check(net.model(condition(net, flag, x, "Neg", "Relu")))


@pytest.mark.parametrize("how", ["ceil", "max", "prod", "split"])
def test_padding_by_shape_arithmetic(check: Check, how: str) -> None:
    """Pads of an amount that is computed from the length, by real numbers, maxima, products and parts."""
    net = Net()
    x = net.input([1, 3, TIME])
    size = length(net, x, 2)
    if how == "ceil":
        blocks = net.op("Ceil", net.op("Div", net.op("Cast", size, to=1), net.const(4.0)))
        amount = net.op("Sub", net.op("Mul", net.op("Cast", blocks, to=7), net.const(4)), size)
    elif how == "max":
        amount = net.op("Sub", net.op("Max", net.op("Add", size, net.const(2)), size), size)
    elif how == "prod":
        whole = net.op("ReduceProd", net.op("Shape", x), keepdims=0)
        amount = net.op("Mod", net.op("Neg", net.op("Div", whole, net.const(3))), net.const(5))
    else:
        _, _, amount = net.op("Split", net.op("Shape", x), outputs=3, axis=0)
        amount = net.op("Mod", net.op("Neg", net.op("Squeeze", amount)), net.const(3))
    pads = net.op("Concat", net.const([0] * 5), net.op("Unsqueeze", amount, net.const([0])), axis=0)
    check(net.model(net.op("Pad", x, pads)))
