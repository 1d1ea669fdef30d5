"""Norms whose statistics go over time: refused, or with the statistics of the frames so far (norm=running)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.deviation import WHOLE, variance
from runnel.compiler.streaming.ir import STACKED, Operand, Stream
from runnel.compiler.streaming.kinds.once import Total, ended
from runnel.compiler.streaming.registry import Refusal, rule
from runnel.compiler.streaming.rules.totals import inside_frames
from runnel.compiler.streaming.running import NORM, against, allow

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

LEAST = np.float32(1.2e-38)


class Norm:
    """Writes the steps of one norm of x over ``axes``, time among them."""

    def __init__(self, a: Analysis, node: Node, x: Stream, axes: list[int], reason: str = WHOLE) -> None:
        allow(a, NORM, reason)
        self.a, self.node, self.x, self.axes = a, node, x, axes
        self.kept = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
        self.count = 0

    def step(self, op: str, *inputs: Operand, shape: tuple[int | None, ...] | None = None, **attrs: Any) -> Stream:
        """A step on frames, or on values that are known once."""
        self.count += 1
        first = next(v for v in inputs if isinstance(v, Stream))
        return self.a.pointwise(
            self.node, list(inputs), first.axis, attrs=attrs, op=op, suffix=f"/norm{self.count}",
            shape=shape or first.shape,
        )  # fmt: skip

    def total(self, x: Stream, op: str, how: str) -> Stream:
        """A statistic of x over the axes of the norm."""
        self.count += 1
        inside = inside_frames(self.a, self.node, x, [v for v in self.axes if v != x.axis], op)
        return self.a.emit(
            self.node, Total, [inside], STACKED, ended(inside), Count.const(1), shape=self.kept, op="Total",
            suffix=f"/norm{self.count}", how=how,
        )  # fmt: skip

    def so_far(self, once: Stream) -> Stream:
        """A statistic's running form, for each frame of x."""
        return against(self.a, self.node, once, len(self.x.shape), self.x.axis)

    def root(self, square: Stream, epsilon: float) -> Stream:
        """√(square + ε), running."""
        return self.so_far(self.step("Sqrt", self.step("Add", square, np.array(epsilon, np.float32))))

    def standard(self, epsilon: float) -> Stream:
        """(x - mean) / √(variance + ε)."""
        mean = self.total(self.x, "ReduceMean", "mean")
        axes = frozenset(i for i in self.axes if self.x.shape[i] != 1)
        spread = variance(self.a, self.node, self.x, mean, axes, self.kept, "/variance")
        apart = self.step("Sub", self.x, self.so_far(mean))
        return self.step("Div", apart, self.root(spread, epsilon))

    def scaled(self, x: Stream, scale: np.ndarray | None, bias: np.ndarray | None) -> list[Value]:
        """x · scale + bias, as the node's output."""
        if scale is not None:
            x = self.step("Mul", x, scale)
        shift = np.zeros((), x.dtype) if bias is None else bias
        return [self.a.pointwise(self.node, [x, shift], x.axis, attrs={}, op="Add")]


def parameter(a: Analysis, node: Node, i: int, shape: list[int]) -> np.ndarray | None:
    """A scale or bias in the shape that it is broadcast in."""
    value = a.constant(node, i, "parameter")
    return None if value is None else value.reshape(shape)


@rule("InstanceNormalization")
def instance_normalization(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if x.axis == 1:
        raise Refusal("has another scale for every frame", "move the time axis off axis 1 before it")
    if x.axis == 0:
        return [a.pointwise(node, [x, *(a.constant(node, i, "parameter") for i in (1, 2))], 0)]
    norm = Norm(a, node, x, list(range(2, len(x.shape))))
    shape = [-1] + [1] * (len(x.shape) - 2)
    made = norm.standard(float(node.attrs.get("epsilon", 1e-5)))
    return norm.scaled(made, parameter(a, node, 1, shape), parameter(a, node, 2, shape))


@rule("MeanVarianceNormalization")
def mean_variance_normalization(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    axes = [int(v) % len(x.shape) for v in node.attrs.get("axes", [0, 2, 3])]
    if x.axis not in axes:
        return [a.pointwise(node, [x], x.axis)]
    norm = Norm(a, node, x, axes)
    mean = norm.total(x, "ReduceMean", "mean")
    counted = frozenset(i for i in axes if x.shape[i] != 1)
    spread = norm.step("Sqrt", variance(a, node, x, mean, counted, norm.kept, "/variance"))
    apart = norm.step("Sub", x, norm.so_far(mean))
    root = norm.so_far(norm.step("Add", spread, np.array(1e-9, np.float32)))
    return [a.pointwise(node, [apart, root], x.axis, attrs={}, op="Div")]


@rule("GroupNormalization")
def group_normalization(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if x.axis == 1:
        raise Refusal("has another scale for every frame", "move the time axis off axis 1 before it")
    scale, bias = (a.constant(node, i, "parameter") for i in (1, 2))
    if x.axis == 0:
        return [a.pointwise(node, [x, scale, bias], 0)]
    allow(a, NORM, WHOLE)
    groups, channels = int(node.attrs["num_groups"]), x.shape[1]
    assert channels is not None and scale is not None and bias is not None
    split: list[int | None] = [x.shape[0], groups, channels // groups, *x.shape[2:]]
    grouped = a.pointwise(
        node, [x], x.axis + 1, attrs={"shape": split}, op="Reshape", suffix="/groups", shape=tuple(split)
    )  # fmt: skip
    norm = Norm(a, node, grouped, list(range(2, len(split))))
    made = norm.standard(float(node.attrs.get("epsilon", 1e-5)))
    whole = a.pointwise(
        node, [made], x.axis, attrs={"shape": list(x.shape)}, op="Reshape", suffix="/channels", shape=x.shape
    )  # fmt: skip
    shape = [-1] + [1] * (len(x.shape) - 2)
    return norm.scaled(whole, scale.reshape(shape), bias.reshape(shape))


def layer_norm_over_time(a: Analysis, node: Node, x: Stream, axis: int) -> list[Value]:
    """LayerNormalization and RMSNormalization whose axes have time among them."""
    norm = Norm(a, node, x, list(range(axis, len(x.shape))))
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    if node.op == "LayerNormalization":
        made = norm.standard(epsilon)
    else:
        square = norm.total(norm.step("Mul", x, x), "ReduceMean", "mean")
        made = norm.step("Div", x, norm.root(square, epsilon))
    return norm.scaled(made, a.constant(node, 1, "parameter"), a.constant(node, 2, "parameter"))


def lp_norm_over_time(a: Analysis, node: Node, x: Stream) -> list[Value]:
    """LpNormalization over time."""
    norm = Norm(a, node, x, [x.axis])
    if int(node.attrs.get("p", 2)) == 1:
        size = norm.total(norm.step("Abs", x), "ReduceSum", "sum")
    else:
        size = norm.step("Sqrt", norm.total(norm.step("Mul", x, x), "ReduceSum", "sum"))
    least = norm.so_far(norm.step("Max", size, np.array(LEAST)))
    return [a.pointwise(node, [x, least], x.axis, attrs={}, op="Div")]
