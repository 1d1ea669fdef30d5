"""Reductions over the whole of time: one value a stream, at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import STACKED, Operand, Stream
from runnel.compiler.streaming.kinds.once import Total, ended
from runnel.compiler.streaming.registry import Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

WAYS: dict[str, tuple[str, str, str]] = {
    "ReduceSum": ("ReduceSum", "sum", ""),
    "ReduceMean": ("ReduceMean", "mean", ""),
    "ReduceMax": ("ReduceMax", "max", ""),
    "ReduceMin": ("ReduceMin", "min", ""),
    "ReduceProd": ("ReduceProd", "prod", ""),
    "ReduceL1": ("ReduceL1", "sum", ""),
    "ReduceL2": ("ReduceSumSquare", "sum", "Sqrt"),
    "ReduceSumSquare": ("ReduceSumSquare", "sum", ""),
    "ReduceLogSum": ("ReduceSum", "sum", "Log"),
    "ReduceLogSumExp": ("ReduceLogSumExp", "logsumexp", ""),
}
"""Op → what it is inside a frame, over time, and what follows."""
ALONE = {"ReduceL1": "Abs", "ReduceSumSquare": "Mul"}
"""What is done to a frame whose own axes are all kept."""


def total(a: Analysis, node: Node, x: Stream, axes: list[int], op: str) -> Stream:
    """``op`` over time and perhaps other axes, as one value with the shape of the node's output."""
    inside, how, after = WAYS[op]
    if x.dtype == "bool":
        raise Refusal("reduces truth values over time", "cast to int32 before it")
    if how == "mean" and np.dtype(x.dtype).kind != "f":
        raise Refusal("averages integers over time", "cast to float32 before it")
    x = inside_frames(a, node, x, [v for v in axes if v != x.axis], inside)
    shape = a.shapes[node.outputs[0]][0]
    whole = a.emit(
        node, Total, [x], STACKED, ended(x), Count.const(1), shape=shape, op="Total", suffix="/total" if after else "",
        how=how,
    )  # fmt: skip
    return a.pointwise(node, [whole], STACKED, attrs={}, op=after) if after else whole


def extreme_frame(a: Analysis, node: Node, x: Stream) -> Stream:
    """The number of the frame with the largest or least value over time, for every place of a frame."""
    if x.dtype == "bool":
        raise Refusal("compares truth values over time", "cast to int32 before it")
    how = node.op.lower() + ("_last" if node.attrs.get("select_last_index", 0) else "")
    shape = a.shapes[node.outputs[0]][0]
    number = a.emit(node, Total, [x], STACKED, ended(x), Count.const(1), shape=shape, op="Total", how=how)
    number.dtype = "int64"
    return number


def inside_frames(a: Analysis, node: Node, x: Stream, axes: list[int], op: str) -> Stream:
    """The reduction of each frame, with the reduced axes kept as ones."""
    if not axes:
        if op not in ALONE:
            return x
        operands: list[Operand] = [x, x] if ALONE[op] == "Mul" else [x]
        return a.pointwise(node, operands, x.axis, attrs={}, op=ALONE[op], suffix="/frames", shape=x.shape)
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    attrs: dict[str, Any] = {"keepdims": 1}
    operands = [x]
    if a.graph.opset >= 18 or (op == "ReduceSum" and a.graph.opset >= 13):
        operands.append(np.array(axes, np.int64))
    else:
        attrs["axes"] = axes
    return a.pointwise(node, operands, x.axis, attrs=attrs, op=op, suffix="/frames", shape=shape)


GLOBAL = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if x.axis < 2:
        return [a.pointwise(node, [x], x.axis)]
    axes = list(range(2, len(x.shape)))
    if node.op in GLOBAL:
        return [total(a, node, x, axes, GLOBAL[node.op])]
    p = int(node.attrs.get("p", 2))
    if p in (1, 2):
        return [total(a, node, x, axes, f"ReduceL{p}")]
    raise Refusal(f"pools with the norm of power {p}", "use a mean, a maximum or the norm of power 1 or 2")
