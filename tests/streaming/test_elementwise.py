"""Every element-wise op, and every way in which operands broadcast."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.compiler.streaming.rules.elementwise import BINARY, UNARY
from runnel.errors import Refused

POSITIVE = {"Log", "Sqrt", "Reciprocal"}
INSIDE_ONE = {"Acos", "Asin", "Atanh"}
ABOVE_ONE = {"Acosh"}
NEEDS_OPSET = {"Gelu": 20, "Mish": 18, "HardSwish": 14, "Celu": 12}
LOGICAL = {"And", "Or", "Xor"}
COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
SHORT: dict[str, Any] = {"lengths": (1, 2, 5, 9, 14), "steps": (None, 4)}


@pytest.mark.parametrize("op", UNARY)
def test_unary(check: Check, op: str) -> None:
    net = Net(opset=max(17, NEEDS_OPSET.get(op, 17)))
    x = net.input([1, 3, TIME])
    h = net.op("Sigmoid", x) if op in POSITIVE | INSIDE_ONE | ABOVE_ONE else x
    h = net.op("Add", h, net.const(1.0)) if op in ABOVE_ONE else h
    if op == "Not":
        y = net.op("Not", net.op("Less", h, net.const(0.0)))
    else:
        y = net.op(op, h)
    logical = {"Not", "IsInf", "IsNaN"}
    check(net.model(y, dtypes={y: "bool"} if op in logical else None), **SHORT)


def operands(net: Net, op: str, other: str, x: str) -> list[str]:
    """Inputs that suit the op: another stream or a constant."""
    shape = {"column": (3, 1), "row": (1,), "scalar": (), "batch": (1, 1, 1)}
    if op in LOGICAL:
        a = net.op("Less", x, net.const(0.0))
        b = (
            net.op("Less", net.conv(x, 3, 3, 1), net.const(0.0))
            if other == "stream"
            else net.const(np.ones(shape[other], bool), "bool")
        )
        return [a, b]
    if other == "stream":
        b = net.op("Sigmoid", net.conv(x, 3, 3, 3, pads=[1, 1]))
    else:
        b = net.const(net.rng.uniform(0.5, 1.5, shape[other]))
    if op == "Where":
        return [net.op("Less", x, net.const(0.0)), x, b]
    if op == "Pow":
        return [net.op("Sigmoid", x), b]
    return [x, b]


@pytest.mark.parametrize("other", ["stream", "column", "row", "scalar", "batch"])
@pytest.mark.parametrize("op", BINARY)
def test_binary(check: Check, op: str, other: str) -> None:
    if op == "PRelu" and other == "stream":
        pytest.skip("a slope that depends on time is not PRelu's use")
    net, x = stack(3)
    attrs = {"fmod": 1} if op == "Mod" else {}
    y = net.op(op, *operands(net, op, other, x), **attrs)
    check(net.model(y, dtypes={y: "bool"} if op in LOGICAL | COMPARISONS else None), **SHORT)


@pytest.mark.parametrize("op", ["Sub", "Div", "Less", "Where"])
def test_constant_first(check: Check, op: str) -> None:
    net, x = stack(3)
    positive = net.op("Exp", x)
    first = [net.op("Less", x, net.const(0.0))] if op == "Where" else []
    y = net.op(op, *first, net.const(net.rng.uniform(0.5, 1.5, (3, 1))), positive)
    check(net.model(y, dtypes={y: "bool"} if op == "Less" else None), **SHORT)


def test_operand_of_lower_rank_with_time(check: Check) -> None:
    """[T, 4] meets [1, 2, T, 4]: time is axis 0 of one and 2 of the other."""
    net = Net()
    x = net.input([1, 2, TIME, 4])
    low = net.op("Squeeze", net.op("ReduceMean", x, axes=[1]), net.const([0, 1]))
    check(net.model(net.op("Mul", x, low)), **SHORT)


def test_constant_of_higher_rank(check: Check) -> None:
    net = Net()
    x = net.input([TIME, 4])
    check(net.model(net.op("Add", x, net.weight(1, 3, 1, 4))), **SHORT)


def test_three_operands_with_three_delays(check: Check) -> None:
    net, x = stack(3)
    branches = [net.conv(x, 3, 3, k, pads=[k // 2, k // 2]) for k in (1, 3, 7)]
    check(net.model(net.op("Sum", *branches), net.op("Max", *branches), net.op("Mean", *branches)))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (None, 0.5), (-0.5, None), (None, None)])
def test_clip(check: Check, low: float | None, high: float | None) -> None:
    net, x = stack(3)
    bounds = ["" if v is None else net.const(v) for v in (low, high)]
    check(net.model(net.op("Clip", x, *bounds)), **SHORT)


@pytest.mark.parametrize("to", [1, 6, 7, 9, 10, 11])
def test_cast(check: Check, to: int) -> None:
    names = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
    net, x = stack(3)
    y = net.op("Cast", net.op("Mul", x, net.const(10.0)), to=to)
    check(net.model(y, dtypes={y: names[to]}), **SHORT)


def test_integer_and_bool_inputs(check: Check) -> None:
    net = Net()
    x = net.input([1, 2, TIME], dtype="int64")
    y = net.op("Mul", net.op("Add", x, net.const(3)), net.const([[2], [5]]))
    flag = net.op("Greater", y, net.const(20))
    check(net.model(y, flag, dtypes={y: "int64", flag: "bool"}), **SHORT)
    net = Net()
    b = net.input([1, TIME], dtype="bool")
    z = net.op("Not", b)
    check(net.model(z, dtypes={z: "bool"}), **SHORT)


def test_embedding_of_token_numbers(check: Check) -> None:
    net = Net()
    x = net.input([1, TIME], dtype="int64")
    h = net.op("Transpose", net.op("Gather", net.weight(9, 4), x, axis=0), perm=[0, 2, 1])
    check(net.model(net.conv(h, 4, 2, 3, pads=[1, 1])), **SHORT)


def test_late_bool_waits_for_its_partner(check: Check) -> None:
    """A delay line of bools beside a convolution that looks ahead."""
    net, x = stack(3)
    mask = net.op("Less", x, net.const(0.0))
    y = net.conv(x, 3, 3, 5, pads=[2, 2])
    check(net.model(net.op("Where", mask, y, net.const(0.0))))


def test_dropout_in_inference(check: Check) -> None:
    net, x = stack(3)
    check(net.model(net.op("Dropout", x)), **SHORT)


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub"])
def test_two_inputs(check: Check, op: str) -> None:
    net = Net()
    a, b = net.input([1, 3, TIME], "a"), net.input([1, 3, TIME], "b")
    check(net.model(net.op(op, net.conv(a, 3, 3, 3, pads=[1, 1]), b)))


def test_positional_table_is_refused() -> None:
    net, x = stack(3)
    with pytest.raises(Refused, match="own row of a constant table"):
        oracle.check(net.model(net.op("Add", x, net.weight(1, 3, 64))))


def test_outer_product_over_time_is_refused() -> None:
    net, x = stack(3)
    with pytest.raises(Refused, match="time axis"):
        oracle.check(
            net.model(net.op("Mul", net.op("Unsqueeze", x, net.const([3])), net.op("Unsqueeze", x, net.const([2]))))
        )


def test_different_lengths_are_refused_with_both_formulas() -> None:
    net, x = stack(3)
    y = net.op("Add", net.conv(x, 3, 3, 2), net.conv(x, 3, 3, 1))
    with pytest.raises(Refused) as caught:
        oracle.check(net.model(y))
    assert "different lengths, T-1 and T" in str(caught.value)


def test_lengths_that_agree_for_even_inputs(check: Check) -> None:
    net, x = stack(3)
    y = net.op("Add", net.conv(x, 3, 3, 2, strides=[2]), net.conv(x, 3, 3, 1, strides=[2]))
    check(net.model(y), lengths=range(2, 30, 2))
