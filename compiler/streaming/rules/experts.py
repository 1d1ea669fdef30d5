"""Mixtures of experts: each frame chooses its own, by scores of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.streaming.ir import Operand
from runnel.compiler.streaming.registry import Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

_PARTS = {2: "first matrices", 3: "first biases", 4: "second matrices", 5: "second biases"}


@rule("MoE")
def mixture(a: Analysis, node: Node) -> list[Value]:
    x, scores = a.stream(node), a.stream(node, 1)
    if any(d not in (None, 1) for d in (*x.shape[:-1], *scores.shape[:-1])):
        raise Refusal("has several rows for each frame", "export the model for one recording at a time")
    if int(node.attrs.get("use_sparse_mixer", 0)):
        raise Refusal("mixes by a sparse mixer", "export it with use_sparse_mixer=0")
    operands: list[Operand] = [x, scores, *(a.constant(node, i, what) for i, what in _PARTS.items())]
    return [a.pointwise(node, operands, x.axis)]


@rule("QMoE")
def coded_mixture(a: Analysis, node: Node) -> list[Value]:
    raise Refusal(
        "has codes of another kind than integers of 2, 4 or 8 bits in blocks of a power of two from 16 on, as they "
        "are exported, or mixes by weights apart from its scores",
        "export it with quant_type=int, weights_prepacked=0 and without router_weights",
    )
