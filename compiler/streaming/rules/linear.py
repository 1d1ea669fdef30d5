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
    left, right = (a.value(i) for i in node.inputs)
    operands: list[Operand] = [
        v if isinstance(v, np.ndarray) else a.stream(node, i) for i, v in enumerate((left, right))
    ]
    ranks = [len(x.shape) for x in operands if x is not None]
    rank = max(ranks)
    axes = set()
    for i, x in enumerate(operands):
        if not isinstance(x, Stream):
            continue
        contracted = len(x.shape) - 1 if i == 0 or len(x.shape) == 1 else len(x.shape) - 2
        if x.axis == contracted:
            raise MixesTime("sums over time", _ATTENTION)
        axes.add(rank - len(x.shape) + x.axis)
    if len(axes) != 1:
        raise MixesTime("multiplies every frame with every frame", _ATTENTION)
    axis = axes.pop()
    for x in operands:
        if isinstance(x, np.ndarray):
            at = axis - (rank - x.ndim)
            if 0 <= at < x.ndim - 2 and x.shape[at] != 1:
                raise Refusal("uses another matrix for every frame", "export the model without absolute positions")
    if len([x for x in operands if isinstance(x, Stream)]) == 2 and axis >= rank - 2:
        raise MixesTime("multiplies every frame with every frame", _ATTENTION)
    return [a.pointwise(node, operands, axis - (1 if len(operands[1].shape) == 1 and axis == rank - 1 else 0))]  # type: ignore[union-attr]


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
