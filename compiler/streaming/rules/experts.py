"""Mixtures of experts: each frame chooses its own, by scores of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.streaming.ir import Operand
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

_PARTS = {2: "first matrices", 3: "first biases", 4: "second matrices", 5: "second biases"}
ACTIVATIONS = ("relu", "gelu", "silu", "swiglu", "identity")


def text(value: object) -> str:
    """A string attribute."""
    return value.decode() if isinstance(value, bytes) else str(value)


@rule("MoE")
def mixture(a: Analysis, node: Node) -> list[Value]:
    x, scores = a.stream(node), a.stream(node, 1)
    if x.axis == len(x.shape) - 1 or scores.axis != len(scores.shape) - 2:
        raise MixesTime("chooses by scores that lie over time", "give it a row of scores for each frame")
    if any(d not in (None, 1) for d in (*x.shape[:-1], *scores.shape[:-1])):
        raise Refusal("has several rows for each frame", "export the model for one recording at a time")
    kind = text(node.attrs.get("activation_type", "relu"))
    fusion = int(node.attrs.get("swiglu_fusion", 0))
    if kind not in ACTIVATIONS or (kind == "swiglu" and fusion != 1) or len([n for n in node.inputs[6:] if n]):
        raise Refusal(
            f"has experts of {kind} with a gate of its own", "use SwiGLU, with gates interleaved or as silu and fc3"
        )
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
