"""Attention over a ring of keys and values in the portable form."""

from __future__ import annotations

import numpy as np

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.ir import Stream
from runnel.compiler.streaming.kinds.attention import Attend
from runnel.compiler.streaming.portable.registry import Chunks, writes

UNSEEN = np.array(-1e38, np.float32)


@writes(Attend)
def _attend(b: Builder, node: Attend, chunks: Chunks) -> Chunk:
    band, ahead = node.band, node.ahead
    q, k, v = node.streams[:3]
    held = []
    for x in (k, v):
        held.append(b.known(x, chunks[x]) if ahead else chunks[x])
    late = max(c.delay for c in held)
    delay = max(late + ahead, *(chunks[x].delay for x in node.streams if x not in (k, v)))
    past = delay - late + node.back
    rate, frames = k.fact.rate, held[0].frames
    keys, values = (_held(b, x, c, late, past) for x, c in zip((k, v), held, strict=True))
    i = b.node("Unsqueeze", [b.numbers(rate, delay, frames), b.constant([1])])
    j = b.numbers(rate, late + past, frames + past)
    queries = b.delayed(q, chunks[q], delay).name
    rank = len(k.shape)
    turned = b.node("Transpose", [keys], perm=[*range(rank - 2), rank - 1, rank - 2])
    scale = np.asarray(band.scale, np.float32)
    scores = b.node("MatMul", [queries, turned])
    distance = b.node("Sub", [i, j])
    distances = node.back + ahead + 1
    place = b.node("Add", [distance, b.constant(ahead)])
    place = b.node("Min", [b.node("Max", [place, b.constant(0)]), b.constant(distances - 1)])
    scores = b.node("Mul", [scores, b.constant(scale if scale.ndim == 0 else scale[..., None, None])])
    if node.relative is not None:
        r = node.streams[3]
        late_r = b.delayed(r, chunks[r], delay).name
        table = np.ascontiguousarray(np.moveaxis(node.relative, -1, -2))
        product = b.node("MatMul", [late_r, b.constant(table)])
        lead = np.broadcast_shapes(r.shape[:-2], table.shape[:-2])  # type: ignore[arg-type]
        whole = b.constant([*lead, frames, frames + past])
        scores = b.node("Add", [scores, b.node("GatherElements", [product, b.node("Expand", [place, whole])], axis=-1)])
    if band.softcap:
        cap = b.constant(np.array(band.softcap, np.float32))
        scores = b.node("Mul", [b.node("Tanh", [b.node("Div", [scores, cap])]), cap])
    if band.bias is not None:
        bias = np.maximum(band.bias, UNSEEN)
        scores = b.node("Add", [scores, b.node("Gather", [b.constant(bias), place], axis=bias.ndim - 1)])
    scores = b.node("Where", [_seen(b, node, i, j), scores, b.constant(UNSEEN)])
    weights = b.node("Softmax", [scores], axis=-1)
    return Chunk(b.node("MatMul", [weights, values], b.fresh(node.output.name)), delay, frames)


def _held(b: Builder, x: Stream, chunk: Chunk, delay: int, past: int) -> str:
    """The last ``past`` frames and the chunk's, zero where there is no frame."""
    name = b.masked(x, chunk, 0.0)
    late = delay - chunk.delay
    whole = b.history(x, name, chunk.frames, past + late, 0.0, f"attention.{x.name}")
    return b.slice(whole, 0, past + chunk.frames, x.axis) if late else whole


def _seen(b: Builder, node: Attend, i: str, j: str) -> str:
    """Whether query i sees key j, bool (queries, keys)."""
    band = node.band
    first = _stepped(b, i, band.low, -(band.left or 0))
    last = _stepped(b, i, band.high, node.ahead)
    seen = b.node("And", [b.node("LessOrEqual", [first, j]), b.node("LessOrEqual", [j, last])])
    exists = b.node(
        "And", [b.node("Less", [b.constant(-1), j]), b.node("Less", [j, b.length(node.streams[1].fact.length)])]
    )
    return b.node("And", [seen, exists])


def _stepped(b: Builder, i: str, step: int, add: int) -> str:
    """step·⌊i/step⌋ + add, for i >= 0."""
    value = i if step == 1 else b.node("Mul", [b.node("Div", [i, b.constant(step)]), b.constant(step)])
    return b.node("Add", [value, b.constant(add)]) if add else value
