"""Matrix products on channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.ir import Operand, Stream
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

_ATTENTION = "attention over time needs a causal, sliding or chunked mask that runnel can see; none was found"


@rule("MatMul")
def matmul(a: Analysis, node: Node) -> list[Value]:
    values = [a.value(i) for i in node.inputs]
    operands: list[Operand] = [v if isinstance(v, np.ndarray) else a.stream(node, i) for i, v in enumerate(values)]
    left, right = operands
    assert left is not None and right is not None
    ranks = [len(left.shape), len(right.shape)]
    rows, columns = (int(rank > 1) for rank in ranks)  # whether the result has these axes
    rank = max(2, *ranks) - 2 + rows + columns
    axes = set()
    for i, x in enumerate(operands):
        if not isinstance(x, Stream):
            continue
        from_end = x.axis - len(x.shape)
        if from_end == (-1 if i == 0 or len(x.shape) == 1 else -2):
            raise MixesTime("sums over time", _ATTENTION)
        if from_end < -2:
            axes.add(rank + from_end + 2 - rows - columns)
        else:
            axes.add(rank - 1 - columns if i == 0 else rank - 1)
    if len(axes) != 1:
        raise MixesTime("multiplies every frame with every frame", _ATTENTION)
    axis = axes.pop()
    batch = rank - rows - columns
    if isinstance(left, Stream) and isinstance(right, Stream) and axis >= batch:
        raise MixesTime("multiplies every frame with every frame", _ATTENTION)
    for x in operands:
        at = axis - batch + (x.ndim - 2 if isinstance(x, np.ndarray) else 0)
        if isinstance(x, np.ndarray) and axis < batch and at >= 0 and x.shape[at] != 1:
            raise Refusal("uses another matrix for every frame", "export the model without absolute positions")
    return [a.pointwise(node, operands, axis)]


@rule("Gemm")
def gemm(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    weight = a.constant(node, 1, "weight")
    bias = a.constant(node, 2, "bias")
    if x.axis != (1 if node.attrs.get("transA") else 0):
        raise MixesTime("sums over time", "use window mode (--window W) for a fixed-window classifier")
    if bias is not None and bias.ndim == 2 and bias.shape[0] != 1:
        raise MixesTime("adds another bias to every frame", "export the model without absolute positions")
    return [a.pointwise(node, [x, weight, bias], 0)]
