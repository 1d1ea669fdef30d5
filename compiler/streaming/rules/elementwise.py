"""Element-wise ops, with numpy's broadcasting: frame n needs frame n."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.ir import Operand, Stream
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule
from runnel.compiler.streaming.rules.positions import compared_with_length, without_time

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
BINARY = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Mean", "Sum", "PRelu", "Where",
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor",
)  # fmt: skip


@rule(*UNARY)
def unary(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    return [a.pointwise(node, [x], x.axis)]


@rule("Dropout")
def dropout(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if any(node.outputs[1:]):
        raise Refusal("gives its mask as an output", "export the model in inference mode")
    return [a.pointwise(node, [x], x.axis, attrs={}, op="Identity")]


@rule("Cast")
def cast(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    return [a.pointwise(node, [x], x.axis)]


@rule("Clip")
def clip(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    bounds = [a.constant(node, i, "bound") for i in range(1, len(node.inputs))]
    return [a.pointwise(node, [x, *bounds], x.axis)]


@rule(*BINARY)
def binary(a: Analysis, node: Node) -> list[Value]:
    if (made := compared_with_length(a, node)) is not None:
        return made
    operands: list[Operand] = []
    for i, name in enumerate(node.inputs):
        value = a.value(name)
        operands.append(value if isinstance(value, np.ndarray) and value.dtype != object else a.stream(node, i))
    operands = without_time(operands)
    rank = max(len(x.shape) for x in operands if x is not None)
    return [a.pointwise(node, operands, broadcast_axis(operands, rank))]


def broadcast_axis(operands: list[Operand], rank: int) -> int:
    """The time axis of the result; refuses operands that meet it with something else than time or one."""
    axes = {rank - len(x.shape) + x.axis for x in operands if isinstance(x, Stream)}
    if len(axes) != 1:
        raise MixesTime(
            f"broadcasts the time axis of one input against another axis of the other (axes {sorted(axes)})",
            "attention and outer products over time need a window or a causal form",
        )
    axis = axes.pop()
    for x in operands:
        if x is None:
            continue
        at = axis - (rank - len(x.shape))
        if isinstance(x, np.ndarray) and at >= 0 and x.shape[at] != 1:
            raise MixesTime(
                f"combines every frame with its own row of a constant table of {x.shape[at]} rows",
                "export the model with the table sliced to the length of the input (table[:, :T])",
            )
        if isinstance(x, Stream) and at >= 0 and x.shape[at] is not None:
            raise MixesTime("broadcasts a constant axis along time", "reshape the model so that time meets time")
    return axis
