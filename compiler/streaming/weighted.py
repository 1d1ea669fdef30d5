"""Attentive pooling: frames weighted by a softmax of scores over time, and summed over time.

The weights need the whole future. The weighted sum is kept up frame by frame, beside the largest score so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.count import Count, Ended
from runnel.compiler.streaming.deviation import deviating, reduced_axes
from runnel.compiler.streaming.ir import STACKED, Stream, Weights
from runnel.compiler.streaming.kinds.once import Total
from runnel.compiler.streaming.registry import MixesTime
from runnel.compiler.streaming.running import with_values

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


LAYOUT = ("Transpose", "Unsqueeze", "Squeeze", "Reshape", "Identity")


def known_too_late(weights: Weights) -> MixesTime:
    """The refusal of a softmax over time."""
    return MixesTime(
        "normalises over the whole of time", "attention over time needs a causal or sliding mask", node=weights.node
    )


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
        return [Weights(weights.scores, weights.node, x)]
    if node.op == "ReduceSum" and weights.x is not None:
        x = weights.x
        if reduced_axes(a, node, x) == {x.axis}:
            return [_summed(a, node, weights.scores, x)]
    if node.op == "MatMul" and weights.x is None and x is not None and len(x.shape) == len(weights.scores.shape):
        return [_product(a, node, weights, x, values[0] is weights)]
    if node.op in LAYOUT and weights.x is None:
        (moved,) = with_values(a, node, [weights.scores, *values[1:]])
        if isinstance(moved, Stream) and moved.fact.length == weights.scores.fact.length:
            return [Weights(moved, weights.node)]
    raise known_too_late(weights)


def _product(a: Analysis, node: Node, weights: Weights, x: Stream, first: bool) -> Stream:
    """weights (…, rows, T) · x (…, T, C), or x (…, C, T) · weights (…, T, columns)."""
    scores, rank = weights.scores, len(x.shape)
    time, other = (rank - 1, rank - 2) if first else (rank - 2, rank - 1)
    if scores.axis != time or x.axis != other or scores.shape[:-2] != x.shape[:-2] or rank < 2:
        raise known_too_late(weights)
    rows = scores.shape[other]
    assert rows is not None
    x = _with_axis(a, node, x, rank - 2 if first else rank, "/x")
    scores = _with_axis(a, node, scores, rank if first else rank - 2, "/scores")
    if rows > 1:
        ones = np.ones((rows, 1, 1) if first else (rows,), x.dtype)
        at = rank - 2 if first else rank
        shape = tuple(rows if i == at else d for i, d in enumerate(x.shape))
        x = a.pointwise(node, [x, ones], x.axis, attrs={}, op="Mul", suffix="/each", shape=shape)
    if not _fits(scores, x):
        raise known_too_late(weights)
    return _summed(a, node, scores, x)


def _with_axis(a: Analysis, node: Node, x: Stream, at: int, suffix: str) -> Stream:
    shape = (*x.shape[:at], 1, *x.shape[at:])
    axis = x.axis + (at <= x.axis)
    return a.pointwise(node, [x, np.array([at])], axis, attrs={}, op="Unsqueeze", suffix=suffix, shape=shape)


def _fits(scores: Stream, x: Stream) -> bool:
    """Whether the scores are broadcast to x, frame by frame."""
    same = len(scores.shape) == len(x.shape) and scores.axis == x.axis and scores.fact.length == x.fact.length
    return same and all(d in (1, e) for d, e in zip(scores.shape, x.shape, strict=True))


def _summed(a: Analysis, node: Node, scores: Stream, x: Stream) -> Stream:
    final = x.fact.final.minimum_with(scores.fact.final)
    made = final.minimum_with(x.fact.length.affine(1, 0))
    known = Ended(frozenset([(made, x.fact.length)]))
    return a.emit(node, Total, [x, scores], STACKED, known, Count.const(1), op="Total", how="weighted")
