"""A tensor less its mean over time, as graphs write a variance or a norm: sub, pow or mul, mean, add, sqrt, div.

The difference needs the mean first, and so the whole future. Its mean square does not: that is a variance, which is
kept up frame by frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import STACKED, Deviation, Pointwise, Stream
from runnel.compiler.streaming.kinds.once import Total, ended
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.running import NORM, against, allow, mixed, with_values

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

SAME_ORDER = ("Reshape", "Unsqueeze", "Squeeze", "Identity")
WHOLE = "normalises by statistics of the whole of time"


def deviation(a: Analysis, node: Node) -> Deviation | None:
    """The node's value where it is x less the mean of x over time."""
    if node.op != "Sub":
        return None
    x, mean = (a.value(name) for name in node.inputs)
    if not isinstance(x, Stream) or not isinstance(mean, Stream) or x.fact.once or not mean.fact.once:
        return None
    axes = _averaged(x, mean)
    return Deviation(x, mean, axes) if axes else None


def _averaged(x: Stream, mean: Stream) -> frozenset[int] | None:
    """The axes of x that ``mean`` is its mean over, where it is that and keeps these axes as ones."""
    made = mean.node
    while isinstance(made, Pointwise) and made.op in SAME_ORDER:
        made = made.streams[0].node
    if not isinstance(made, Total) or made.how != "mean":
        return None
    source = made.streams[0]
    inside = source.node
    reduced = isinstance(inside, Pointwise) and inside.op == "ReduceMean" and inside.streams[0] is x
    if source is not x and not reduced:
        return None
    axes = frozenset(i for i, d in enumerate(x.shape) if d is None or (source.shape[i] == 1 and d != 1))
    kept = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    return axes if mean.shape == kept else None


def deviating(a: Analysis, node: Node) -> list[Value]:
    """A node that reads a deviation."""
    values = [a.value(name) for name in node.inputs]
    apart = next(v for v in values if isinstance(v, Deviation))
    if apart.power == 1 and _squares(node, values):
        return [Deviation(apart.stream, apart.mean, apart.axes, 2)]
    if apart.power == 2 and node.op == "ReduceMean" and reduced_axes(a, node, apart.stream) == apart.axes:
        return [variance(a, node, apart.stream, apart.mean, apart.axes)]
    allow(a, NORM, WHOLE)
    known = {v: _so_far(a, node, v) for v in dict.fromkeys(v for v in values if isinstance(v, Deviation))}
    values = [known[v] if isinstance(v, Deviation) else v for v in values]
    if any(isinstance(v, Stream) and v.fact.once for v in values):
        return mixed(a, node, NORM, values)
    return with_values(a, node, values)


def answer(a: Analysis, node: Node, apart: Deviation) -> Stream:
    """A deviation that is an output of the model: from the mean of the frames so far, where the user allows it."""
    allow(a, NORM, WHOLE)
    a.mode_nodes.setdefault(NORM[0], []).append(f"{node.op} '{node.name}'")
    return _so_far(a, node, apart)


def _squares(node: Node, values: list[Value | None]) -> bool:
    if node.op == "Mul":
        return values[0] is values[1]
    exponent = values[1] if node.op == "Pow" else None
    return isinstance(exponent, np.ndarray) and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0


def reduced_axes(a: Analysis, node: Node, x: Stream) -> frozenset[int]:
    """The axes of x that a reduction goes over, without those of one."""
    listed = node.attrs.get("axes", a.constant(node, 1, "list of axes"))
    axes = range(len(x.shape)) if listed is None or not len(listed) else [int(v) % len(x.shape) for v in listed]
    return frozenset(i for i in axes if x.shape[i] != 1)


def _so_far(a: Analysis, node: Node, apart: Deviation) -> Stream:
    """The deviation from the mean of the frames so far."""
    x = apart.stream
    suffix = f"/{x.name}/deviation{apart.power}"
    mean = against(a, node, apart.mean, len(x.shape), x.axis)
    result = a.pointwise(node, [x, mean], x.axis, attrs={}, op="Sub", suffix=suffix, shape=x.shape)
    if apart.power == 2:
        result = a.pointwise(
            node, [result, result], x.axis, attrs={}, op="Mul", suffix=f"{suffix}/squared", shape=x.shape
        )  # fmt: skip
    return result


def variance(
    a: Analysis, node: Node, x: Stream, mean: Stream, axes: frozenset[int], shape: tuple[int | None, ...] | None = None,
    suffix: str = "",
) -> Stream:  # fmt: skip
    """The variance of x over time and perhaps other axes, as one value. mean: its mean, with these axes as ones."""
    if np.dtype(x.dtype).kind != "f":
        raise Refusal("takes the variance of integers over time", "cast to float32 before it")
    shape = a.shapes[node.outputs[0]][0] if shape is None else shape
    ones = tuple(1 if d is None else d for d in x.shape)
    others = [i for i in sorted(axes) if x.shape[i] is not None]

    def total(how: str, last: bool) -> Stream:
        return a.emit(
            node, Total, [x], STACKED, ended(x), Count.const(1), shape=shape if last else ones, op="Total",
            suffix=suffix if last else f"{suffix}/over_time/{how}", how=how,
        )  # fmt: skip

    def local(op: str, inputs: list[Stream | np.ndarray | None], name: str, of: tuple[int | None, ...]) -> Stream:
        attrs = {"axes": others, "keepdims": 1} if op == "ReduceMean" and a.graph.opset < 18 else {}
        if op == "ReduceMean" and not attrs:
            inputs, attrs = [*inputs, np.array(others, np.int64)], {"keepdims": 1}
        return a.pointwise(node, inputs, STACKED, attrs=attrs, op=op, suffix=f"{suffix}/{name}", shape=of)

    if not others:
        return total("variance", True)
    kept = tuple(1 if i in others else d for i, d in enumerate(ones))
    within = local("ReduceMean", [total("variance", False)], "within", kept)
    apart = local("Sub", [total("mean", False), mean], "apart", ones)
    between = local("ReduceMean", [local("Mul", [apart, apart], "squared", ones)], "between", kept)
    both = local("Add", [within, between], "both", kept)
    return a.pointwise(
        node, [both, np.array(shape, np.int64)], STACKED, attrs={}, op="Reshape", suffix=suffix, shape=shape
    )  # fmt: skip
