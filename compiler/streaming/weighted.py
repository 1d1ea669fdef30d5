"""Attentive pooling: frames weighted by a softmax of scores over time, and summed over time.

The weights need the whole future. The weighted sum is kept up frame by frame, beside the largest score so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.streaming.count import Count, Ended
from runnel.compiler.streaming.deviation import deviating, reduced_axes
from runnel.compiler.streaming.ir import STACKED, Stream, Weights
from runnel.compiler.streaming.kinds.once import Total
from runnel.compiler.streaming.registry import MixesTime

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


def known_too_late() -> MixesTime:
    """The refusal of a softmax over time."""
    return MixesTime("normalises over the whole of time", "attention over time needs a causal or sliding mask")


def held_back(a: Analysis, node: Node) -> list[Value]:
    """A node that reads what is not known before the end, but may be followed by what is."""
    if any(isinstance(a.value(name), Weights) for name in node.inputs):
        return weighting(a, node)
    return deviating(a, node)


def weighting(a: Analysis, node: Node) -> list[Value]:
    """A node that reads a softmax over time."""
    values = [a.value(name) for name in node.inputs]
    weights = next(v for v in values if isinstance(v, Weights))
    x = next((v for v in values if isinstance(v, Stream)), None)
    if node.op == "Mul" and weights.x is None and x is not None and _fits(weights.scores, x):
        return [Weights(weights.scores, x)]
    if node.op == "ReduceSum" and weights.x is not None:
        x = weights.x
        if reduced_axes(a, node, x) == {x.axis}:
            return [_summed(a, node, weights.scores, x)]
    raise known_too_late()


def _fits(scores: Stream, x: Stream) -> bool:
    """Whether the scores are broadcast to x, frame by frame."""
    same = len(scores.shape) == len(x.shape) and scores.axis == x.axis and scores.fact.length == x.fact.length
    return same and all(d in (1, e) for d, e in zip(scores.shape, x.shape, strict=True))


def _summed(a: Analysis, node: Node, scores: Stream, x: Stream) -> Stream:
    final = x.fact.final.minimum_with(scores.fact.final)
    made = final.minimum_with(x.fact.length.affine(1, 0))
    known = Ended(frozenset([(made, x.fact.length)]))
    return a.emit(node, Total, [x, scores], STACKED, known, Count.const(1), op="Total", how="weighted")
