"""Attention with a cache in the portable form, which keeps everything that the stream may have."""

from __future__ import annotations

import numpy as np

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.ir import Stream
from runnel.compiler.streaming.kinds.cache import CachedAttend, Rotary
from runnel.compiler.streaming.portable.registry import Chunks, writes

UNSEEN = np.array(-1e38, np.float32)
FLOAT, DOUBLE = 1, 11
UNBOUNDED = 256
"""Tokens that the form holds where a policy bounds the cache, which it does not follow: it is not in the bundle."""


@writes(CachedAttend)
def _cached(b: Builder, node: CachedAttend, chunks: Chunks) -> Chunk:
    q, k = (x for x in node.inputs[:2] if isinstance(x, Stream))
    v = node.inputs[2] if isinstance(node.inputs[2], Stream) else None
    streams = [x for x in (q, k, v, node.inputs[4]) if isinstance(x, Stream)]
    delay = max(chunks[x].delay for x in streams)
    late = {x: b.delayed(x, chunks[x], delay) for x in streams}
    frames, rate = late[q].frames, k.fact.rate
    past = (node.window or b.graph.max_frames or UNBOUNDED) - 1
    queries, fresh = late[q].name, late[k].name
    if node.rotary is not None:
        angles = _angles(b, node, chunks, delay, b.numbers(rate, delay, frames))
        queries, fresh = (_turned(b, x, node.rotary, angles) for x in (queries, fresh))
    keys = _held(b, k, Chunk(fresh, delay, frames), past)
    if v is not None:
        values = _held(b, v, late[v], past)
    else:
        values = _held(b, k, late[k], past)
        values = b.slice(values, 0, node.value_dim, 3)
    i = b.node("Unsqueeze", [b.numbers(rate, delay, frames), b.constant([1])])
    j = b.numbers(rate, delay + past, frames + past)
    group = node.heads // node.kv_heads
    queries = b.node("Reshape", [queries, b.constant([1, node.kv_heads, group, frames, node.key_dim])])
    turned = b.node("Transpose", [b.node("Unsqueeze", [keys, b.constant([2])])], perm=[0, 1, 2, 4, 3])
    scores = b.node("MatMul", [queries, turned])
    scores = b.node("Mul", [scores, b.constant(np.array(node.scale, np.float32))])
    if node.softcap:
        cap = b.constant(np.array(node.softcap, np.float32))
        scores = b.node("Mul", [b.node("Tanh", [b.node("Div", [scores, cap])]), cap])
    scores = _biased(b, node, scores, i, j)
    seen = b.node("And", [b.node("LessOrEqual", [j, i]), b.node("Less", [b.constant(-1), j])])
    if node.window:
        seen = b.node("And", [seen, b.node("Less", [b.node("Sub", [i, j]), b.constant(node.window)])])
    scores = b.node("Where", [seen, scores, b.constant(UNSEEN)])
    weights = _weights(b, node, scores, frames + past)
    y = b.node("MatMul", [weights, b.node("Unsqueeze", [values, b.constant([2])])])
    shape = b.constant([1, node.heads, frames, node.value_dim])
    return Chunk(b.node("Reshape", [y, shape], b.fresh(node.output.name)), delay, frames)


def _held(b: Builder, x: Stream, chunk: Chunk, past: int) -> str:
    """The last ``past`` frames and the chunk's, zero where there is no frame."""
    return b.history(x, b.masked(x, chunk, 0.0), chunk.frames, past, 0.0, f"cache.{x.name}")


def _angles(b: Builder, node: CachedAttend, chunks: Chunks, delay: int, numbers: str) -> str:
    """(frames, pairs) float64: by the numbers of the frames, or by the positions that they are told."""
    rotary = node.rotary
    assert rotary is not None
    told = node.inputs[4] if len(node.inputs) > 4 else None
    if isinstance(told, Stream):
        places = b.node("Squeeze", [b.delayed(told, chunks[told], delay).name, b.constant([0])])
        sections = rotary.sections or (0,) * len(rotary.frequencies)
        numbers = b.node("Gather", [b.node("Transpose", [places], perm=[1, 0]), b.constant([*sections])], axis=1)
    else:
        numbers = b.node("Unsqueeze", [numbers, b.constant([1])])
    return b.node("Mul", [b.node("Cast", [numbers], to=DOUBLE), b.constant(rotary.frequencies[None])])


def _turned(b: Builder, x: str, rotary: Rotary, angle: str) -> str:
    """(1, heads, frames, features) turned by angles."""
    key = ("rotary", id(rotary), angle)
    if key not in b.shared:
        made = [b.node("Cast", [b.node(op, [angle])], to=FLOAT) for op in ("Cos", "Sin")]
        factor = b.constant(np.array(rotary.factor, np.float32))
        b.shared[key] = made if rotary.factor == 1 else [b.node("Mul", [m, factor]) for m in made]
    cos, sin = b.shared[key]
    pairs, start = len(rotary.frequencies), rotary.start
    p = start + np.arange(pairs)
    places = (start + 2 * np.arange(pairs), start + 2 * np.arange(pairs) + 1) if rotary.interleaved else (p, p + pairs)
    first, second = (b.node("Gather", [x, b.constant(at)], axis=3) for at in places)
    turned = [
        b.node("Sub", [b.node("Mul", [first, cos]), b.node("Mul", [second, sin])]),
        b.node("Add", [b.node("Mul", [second, cos]), b.node("Mul", [first, sin])]),
    ]
    if rotary.interleaved:
        pairs_apart = b.node("Concat", [b.node("Unsqueeze", [t, b.constant([4])]) for t in turned], axis=4)
        turned = [b.node("Reshape", [pairs_apart, b.constant([0, 0, 0, 2 * pairs])])]
    parts = [b.slice(x, 0, start, 3)] if start else []
    parts += [*turned, b.slice(x, start + 2 * pairs, 1 << 40, 3)]
    return b.node("Concat", parts, axis=3)


def _biased(b: Builder, node: CachedAttend, scores: str, i: str, j: str) -> str:
    """The scores (1, kv heads, group, queries, keys) with the bias of their distances."""
    heads = [1, node.kv_heads, node.heads // node.kv_heads]
    if node.slopes is not None:
        slopes = (-node.slopes).astype(np.float32).reshape(*heads, 1, 1)
        distance = b.node("Cast", [b.node("Sub", [i, j])], to=FLOAT)
        scores = b.node("Add", [scores, b.node("Mul", [b.constant(slopes), distance])])
    if node.bias is not None:
        last = b.constant(node.bias.shape[1] - 1)
        place = b.node("Max", [b.node("Min", [b.node("Sub", [i, j]), last]), b.constant(0)])
        table = b.constant(node.bias.reshape(*heads, -1))
        scores = b.node("Add", [scores, b.node("Gather", [table, place], axis=3)])
    return scores


def _weights(b: Builder, node: CachedAttend, scores: str, keys: int) -> str:
    if node.sinks is None:
        return b.node("Softmax", [scores], axis=-1)
    heads = [1, node.kv_heads, node.heads // node.kv_heads, 1, 1]
    shape = b.node("Shape", [b.slice(scores, 0, 1, 4)])
    sinks = b.node("Expand", [b.constant(node.sinks.astype(np.float32).reshape(heads)), shape])
    weights = b.node("Softmax", [b.node("Concat", [scores, sinks], axis=4)], axis=-1)
    return b.slice(weights, 0, keys, 4)
