"""Sums, means and maxima over the whole window: of blocks that windows share, then over blocks and edges.

Every window adds its blocks anew: subtracting old columns and adding new ones would let rounding errors pile up.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.ir import Operand, Stream, Window
from runnel.compiler.streaming.windows.columns import Columns
from runnel.compiler.streaming.windows.local import frame_local
from runnel.compiler.streaming.windows.walk import Value, Walk, window_rule

MEAN, SUM, MAX = ("GlobalAveragePool", "ReduceMean"), ("ReduceSum",), ("GlobalMaxPool", "ReduceMax")
WORTH = 0.7


def reduced_axes(walk: Walk, node: Node, rank: int) -> list[int] | None:
    """The axes that the node reduces; None where they are not constant."""
    if node.op.startswith("Global"):
        return list(range(2, rank))
    listed = node.attrs.get("axes")
    if listed is None and len(node.inputs) > 1 and node.inputs[1]:
        listed = walk.values[node.inputs[1]]
        if not isinstance(listed, np.ndarray):
            return None
    axes = [] if listed is None else [int(v) % rank for v in np.asarray(listed).reshape(-1)]
    return axes or (None if node.attrs.get("noop_with_empty_axes") else list(range(rank)))


@window_rule(*MEAN, *SUM, *MAX)
def over_window(walk: Walk, node: Node) -> list[Value] | None:
    x = walk.values[node.inputs[0]]
    if not isinstance(x, Columns) or x.stream.dtype != "float32":
        return None
    axes = reduced_axes(walk, node, len(x.stream.shape))
    if axes is None:
        return None
    if x.axis not in axes:
        return frame_local(walk, node)
    op = "ReduceMax" if node.op in MAX else "ReduceSum"
    y = _in_place(walk, node, x, [a for a in axes if a != x.axis], op)
    if y is None or (parts := _parts(walk, node, y, op)) is None:
        return None
    joined = walk.joined(node, parts, y.axis, "/parts")
    total = reduce(walk, node, joined, y.axis, op, "/total")
    count = np.prod([x.frames if a == x.axis else x.stream.shape[a] or 1 for a in axes]) if node.op in MEAN else 1
    return [finish(walk, node, total, float(count))]


def reduce(walk: Walk, node: Node, x: Stream, axis: int, op: str, suffix: str) -> Stream:
    """A stacked tensor reduced over one axis, which stays as one."""
    shape = [1 if a == axis else d for a, d in enumerate(x.shape)]
    operands: list[Operand] = [x]
    attrs: dict[str, object] = {"keepdims": 1}
    if op == "ReduceSum" or walk.graph.opset >= 18:
        operands.append(np.array([axis], np.int64))
    else:
        attrs["axes"] = [axis]
    return walk.apply(node, op, operands, shape, suffix, attrs)


def finish(walk: Walk, node: Node, total: Stream, count: float) -> Stream:
    """The total over ``count``, in the shape of the node's output."""
    if count != 1:
        factor: list[Operand] = [total, np.array(1 / count, np.float32)]
        total = walk.apply(node, "Mul", factor, total.shape, "/mean")
    shape = walk.shapes[node.outputs[0]][0]
    return walk.apply(node, "Reshape", [total, np.array(shape, np.int64)], shape)


def _in_place(walk: Walk, node: Node, x: Columns, others: list[int], op: str) -> Columns | None:
    """x reduced over its other axes, with time on a spatial axis."""
    rank = len(x.stream.shape)
    steps: list[Node] = []
    name = node.inputs[0]

    def step(kind: str, inputs: list[str], shape: list[int | None], **attrs: object) -> None:
        nonlocal name
        made = f"{node.outputs[0]}/{len(steps)}"
        steps.append(Node(kind, node.name, [name, *inputs], [made], dict(attrs)))
        walk.trial.shapes[made] = (tuple(x.frames if d is None else d for d in shape), "float32")
        name = made

    shape = list(x.stream.shape)
    if others:
        shape = [1 if a in others else d for a, d in enumerate(shape)]
        if op == "ReduceSum" or walk.graph.opset >= 18:
            axes = f"{node.outputs[0]}/axes"
            walk.values[axes] = np.array(others, np.int64)
            step(op, [axes], shape, keepdims=1)
        else:
            step(op, [], shape, keepdims=1, axes=others)
    if x.axis < 2:
        if rank < 3:
            return None
        perm = [a for a in range(rank) if a != x.axis] + [x.axis]
        shape = [shape[a] for a in perm]
        step("Transpose", [], shape, perm=perm)
    for made in steps:
        results = frame_local(walk, made)
        if results is None:
            return None
        walk.values[made.outputs[0]] = results[0]
    value = walk.values[name]
    return value if isinstance(value, Columns) else None


def _parts(walk: Walk, node: Node, x: Columns, op: str) -> list[Operand] | None:
    """Blocks, the columns behind them and the edges, which together are the window; None where blocks save little."""
    begin, end = x.inner
    columns = end - begin

    def work(block: int) -> float:
        return x.hop // gcd(x.hop, block * x.spacing) * block + columns // block + columns % block

    block = min(range(2, columns + 1), key=work, default=1)
    if columns < 2 or work(block) > WORTH * columns or x.stream.shape[1] is None:
        return None
    count = columns // block
    every = gcd(x.hop, block * x.spacing) if count > 1 else x.hop
    first = x.offset + begin * x.spacing
    base = first % every
    source = walk.shifted(x.stream, base)
    reach = (block - 1) * x.spacing + 1 - every
    time, rank, channels = x.axis - 2, len(x.stream.shape) - 2, int(x.stream.shape[1])
    attrs = {
        "kernel_shape": [block if a == time else 1 for a in range(rank)],
        "strides": [every if a == time else 1 for a in range(rank)],
        "dilations": [x.spacing if a == time else 1 for a in range(rank)],
        "pads": [0] * (2 * rank),
    }  # fmt: skip
    inputs: list[Operand] = [source]
    if op == "ReduceSum":
        inputs.append(np.ones((channels, 1, *attrs["kernel_shape"]), np.float32))
    fact = source.fact
    blocks = walk.add(
        Window, f"{node.outputs[0]}/blocks", "Conv" if op == "ReduceSum" else "MaxPool", inputs, x.stream.shape,
        x.stream.dtype, fact.final.affine(1, -reach, every), fact.length.affine(1, -reach, every), node=node.name,
        kernel=block, stride=every, dilation=x.spacing, fill=0.0 if op == "ReduceSum" else -np.inf,
        attrs=attrs | ({"group": channels} if op == "ReduceSum" else {}),
    )  # fmt: skip
    spacing = block * x.spacing // every if count > 1 else 1
    whole = Columns(blocks, count, (first - base) // every, x.hop // every, spacing)
    parts: list[Operand] = [walk.span(node, whole, 0, count)]
    if begin + count * block < end:
        parts.append(walk.span(node, x, begin + count * block, end))
    return [*parts, *(edge for edge in (x.left, x.right) if edge is not None)]
