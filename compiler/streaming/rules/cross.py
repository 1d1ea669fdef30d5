"""Attention of every frame to a value that a stream is given once, such as what an encoder heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.attention.band import MASKED, PROBE
from runnel.compiler.streaming.attention.pattern import Pattern
from runnel.compiler.streaming.attention.scores import Scores
from runnel.compiler.streaming.ir import Stream, StreamFact
from runnel.compiler.streaming.kinds.statics import spread
from runnel.compiler.streaming.registry import Refusal

if TYPE_CHECKING:
    from runnel.compiler.streaming.analysis import Analysis, Value

FRAMES = 3


def to_statics(a: Analysis, node: Node) -> list[Value] | None:
    """The attention of frames to static keys and values; None where it is another kind."""
    pattern = node.attrs.get("pattern")
    values = [a.values.get(i) for i in node.inputs[:3]]
    if not isinstance(pattern, Pattern) or not all(isinstance(v, Stream) for v in values):
        return None
    q, k, v = (x for x in values if isinstance(x, Stream))
    if q.fact.static or not (k.fact.static and v.fact.static):
        return None
    if pattern.scores.labels or pattern.weighted.labels or pattern.relative or q.axis != len(q.shape) - 2:
        raise Refusal("attends to a static input in products over named axes", "use softmax(scale·Q·Kᵀ)·V")
    gain, bias = _scores(a, pattern, q, k)
    rank = len(q.shape)
    lead = q.shape[:-2]
    order = [rank - 2, *range(rank - 2), rank - 1, rank]
    apart = (*lead, None, 1, q.shape[-1])
    x = _step(a, node, "Reshape", [q], "/apart", apart, rank - 2)
    x = _step(a, node, "Transpose", [x], "/first", (None, *lead, 1, q.shape[-1]), 0, order)
    lead = np.broadcast_shapes(lead, k.shape[:-2])  # type: ignore[arg-type]
    keys = k.shape[-1]
    x = _step(a, node, "MatMul", [x, _every(a, node, k, x)], "/scores", (None, *lead, 1, keys), 0)
    x = _step(a, node, "Mul", [x, np.array(gain, np.float32)], "/scaled", x.shape, 0)
    if bias is not None:
        x = _step(a, node, "Add", [x, bias], "/biased", x.shape, 0)
    x = _step(a, node, "Softmax", [x], "/weights", x.shape, 0)
    x = _step(a, node, "MatMul", [x, _every(a, node, v, x)], "/heard", (None, *lead, 1, v.shape[-1]), 0)
    back = [*range(1, rank - 1), 0, rank - 1, rank]
    x = _step(a, node, "Transpose", [x], "/back", (*lead, None, 1, v.shape[-1]), rank - 2, back)
    return [_step(a, node, "Reshape", [x], "", (*lead, None, v.shape[-1]), rank - 2)]


def _step(
    a: Analysis, node: Node, op: str, inputs: list[Stream | np.ndarray], suffix: str, shape: tuple[int | None, ...],
    axis: int, order: list[int] | None = None,
) -> Stream:  # fmt: skip
    attrs: dict[str, object] = {"perm": order} if order else {"axis": -1} if op == "Softmax" else {}
    attrs |= {"shape": list(shape)} if op == "Reshape" else {}
    plain = Node(op, node.name, node.inputs, node.outputs)
    return a.pointwise(plain, inputs, axis, attrs=attrs, op=op, suffix=suffix, shape=shape)


def _every(a: Analysis, node: Node, value: Stream, like: Stream) -> Stream:
    """The static value beside every frame, whose time is the first axis."""
    shape = (None, *[1] * (len(like.shape) - 1 - len(value.shape)), *value.frame_shape)
    fact = StreamFact(0, like.fact.final, like.fact.length, like.fact.clock)
    return spread(a, node, value, shape, fact)


def _scores(a: Analysis, pattern: Pattern, q: Stream, k: Stream) -> tuple[float, np.ndarray | None]:
    """What scores are multiplied with, and what is added to those of each key; the same for every frame."""
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2])  # type: ignore[arg-type]
    shape = (*lead, FRAMES, int(k.shape[-1] or 0))

    def known(name: str, frames: int) -> tuple[int, ...] | None:
        if name == pattern.scores.node.outputs[0]:
            return shape
        value = a.values.get(name)
        if isinstance(value, Stream):
            return tuple(value.fact.length(frames) if d is None else d for d in value.shape)
        return None

    scores = Scores(a.graph, pattern, known)
    leaf = scores.leaves[0]
    rng = np.random.default_rng(3)

    def at(values: np.ndarray) -> np.ndarray:
        return scores.run(FRAMES, {leaf: np.asarray(values, np.float32)}, pattern.logits).astype(np.float64)

    try:
        base, noise = at(np.zeros(shape)), rng.standard_normal(shape)
        gain = float((at(np.full(shape, PROBE)) - base).max() / PROBE)
        got = at(noise)
    except Refusal:
        raise
    except Exception:  # onnxruntime's exceptions share no base class of their own
        raise Refusal("has a mask that could not be computed from lengths alone", "bind the mask (--bind)") from None
    if base.shape != shape or np.abs(got - base - gain * noise)[base > MASKED].max() > 1e-5 * max(1.0, abs(gain) * 4):
        raise Refusal("does something else with its scores than to scale and mask them", "use softmax(scale·Q·Kᵀ)·V")
    if (base != base[..., :1, :]).any():
        raise Refusal("masks what it was given once otherwise for every frame", "use one mask for all frames")
    if pattern.weights != pattern.softmax.outputs[0]:
        raise Refusal("changes its weights behind the softmax", "mask the scores instead of the weights")
    if not base.any():
        return gain, None
    return gain, np.maximum(base[..., :1, :], -1e30).astype(np.float32)[None]
