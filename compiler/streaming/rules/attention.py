"""Attention over time: a ring of keys and values where its mask bounds what a frame sees."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.attention.band import Band, Observer, Sight, edges, with_bias
from runnel.compiler.streaming.attention.looking import check_zeroed, look
from runnel.compiler.streaming.attention.pattern import ATTEND, Pattern, Product
from runnel.compiler.streaming.attention.relative import relative_table
from runnel.compiler.streaming.attention.scores import Scores, TooLarge
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Stream
from runnel.compiler.streaming.kinds.attention import Attend
from runnel.compiler.streaming.modes import numbers
from runnel.compiler.streaming.registry import Refusal, rule
from runnel.compiler.streaming.rules.cache import cached, transposed

if TYPE_CHECKING:
    from runnel.compiler.streaming.analysis import Analysis, Value


@rule(ATTEND)
def attend(a: Analysis, node: Node) -> list[Value]:
    if "pattern" not in node.attrs:
        raise Refusal(
            "keeps a past of its own, or gives more than its result",
            "export the model without a cache: the stream keeps the past",
        )
    if "cut" in node.attrs:
        return cached(a, node, node.attrs["cut"])
    pattern: Pattern = node.attrs["pattern"]
    parts = _canonical(a, node, pattern)
    if parts is None:
        for inner in pattern.inner:
            a.visit(inner)
        return [a.values[o] for o in node.outputs]
    q, k, v = parts[:3]
    streams = [q, k, v]
    if pattern.relative is not None:
        streams.append(_queries_of_table(a, pattern))
    for x in (q, v, *streams[3:]):
        if x.fact.length != k.fact.length and x.fact.length.later(a.shortest) != k.fact.length.later(a.shortest):
            raise Refusal(
                f"attends between sequences of {q.fact.length} and {x.fact.length if x is v else k.fact.length} "
                "frames for T input frames",
                "attend within one sequence, or to a constant",
            )
    band, endless, table = _band(a, pattern, k)
    final = _final(_keys(k, band).minimum_with(_keys(v, band)), band).minimum_with(q.fact.final)
    for r in streams[3:]:
        final = final.minimum_with(r.fact.final)
    labels = pattern.weighted.labels
    heads = a.shapes[pattern.logits][0][:-2]
    batch = np.broadcast_shapes(heads, *(x.shape[:-2] for x in (q, k, v)))  # type: ignore[arg-type]
    shape = (*batch, None, v.shape[-1])
    y = a.emit(
        node, Attend, streams, len(batch), final, k.fact.length, shape=shape, op="Attention",
        suffix="/attention" if labels else "", band=band, endless=endless, relative=table,
    )  # fmt: skip
    if labels:
        made = labels.left[:-1] + next(c for c in labels.right if c not in labels.left)
        y = transposed(a, node, y, [made.index(c) for c in labels.out], "")
    return [y]


def _keys(x: Stream, band: Band) -> Count:
    """How many keys are sure: one that lies ahead has to exist, or its frame ends before it."""
    assert band.right is not None
    return x.fact.made if band.right > 0 else x.fact.final


def _final(keys: Count, band: Band) -> Count:
    """How many frames have all the keys they see, when so many keys are final."""
    assert band.right is not None
    return keys.affine(1, band.high - 1 - band.right, band.high).affine(band.high, 0)


# The operands as (batch…, time, features) ------------------------------------------------------------------------


def _canonical(a: Analysis, node: Node, pattern: Pattern) -> list[Stream] | None:
    """q, k, v with time on the last axis but one; None where time is not what this attention mixes."""
    q, k, v = (a.value(i) for i in node.inputs[:3])
    if not (isinstance(q, Stream) and isinstance(k, Stream) and isinstance(v, Stream)):
        return None
    logits = a.shapes[pattern.logits][0]
    if int(pattern.softmax.attrs.get("axis", -1)) % len(logits) != len(logits) - 1:
        return None
    first, second = pattern.scores.labels, pattern.weighted.labels
    if first is None:
        if q.axis != len(q.shape) - 2 or k.axis != len(k.shape) - 1:
            return None
        k = transposed(a, node, k, _swap(len(k.shape)), "/k")
    else:
        i, j = first.out[-2], first.out[-1]
        if i not in first.left or j not in first.right or i in first.right or j in first.left:
            return None
        if first.left[q.axis] != i or first.right[k.axis] != j:
            return None
        moved = _by_labels(a, node, pattern.scores, q, k)
        if moved is None:
            return None
        q, k = moved
    if second is None:
        if v.axis != len(v.shape) - 2:
            return None
    else:
        j = second.left[-1]
        features = [c for c in second.right if c not in second.left]
        if second.right[v.axis] != j or len(features) != 1 or j in second.out:
            return None
        batch = [c for c in second.left[:-2] if c in second.right]
        if len(batch) != len(second.left) - 2 or sorted(second.out) != sorted(second.left[:-1] + features[0]):
            return None
        v = transposed(a, node, v, [second.right.index(c) for c in (*batch, j, *features)], "/v")
    return [q, k, v]


def _by_labels(a: Analysis, node: Node, product: Product, q: Stream, k: Stream) -> tuple[Stream, Stream] | None:
    labels = product.labels
    assert labels is not None
    i, j = labels.out[-2], labels.out[-1]
    batch = labels.out[:-2]
    inner = [c for c in labels.left if c in labels.right and c not in labels.out]
    if len(inner) != 1 or set(labels.left) != {*batch, i, *inner} or set(labels.right) != {*batch, j, *inner}:
        return None
    left = [labels.left.index(c) for c in (*batch, i, *inner)]
    right = [labels.right.index(c) for c in (*batch, j, *inner)]
    return transposed(a, node, q, left, "/q"), transposed(a, node, k, right, "/k")


def _swap(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


# What a frame sees --------------------------------------------------------------------------------------------------


def _queries_of_table(a: Analysis, pattern: Pattern) -> Stream:
    assert pattern.relative is not None
    r = a.value(pattern.relative.node.inputs[0])
    if not isinstance(r, Stream) or r.axis != len(r.shape) - 2:
        raise Refusal("adds a product to its scores that is no relative position", "use q·kᵀ and a relative bias")
    return r


def _band(a: Analysis, pattern: Pattern, k: Stream) -> tuple[Band, bool, np.ndarray | None]:
    """The band of keys, with both sides definite, whether its left side is all of the past, and the table of relative
    positions."""
    scores = Scores(a.graph, pattern, lambda name, frames: _shape(a, pattern, k, name, frames))
    observer = Observer(scores, k.fact.length, lambda n: max(k.fact.length.first(n - 1), 1))
    try:
        sights, limit = look(observer, scores)
        scale, softcap = observer.gain()
    except TooLarge:
        raise Refusal(
            "has more scores than can be looked at for the window that its mask names", "use a smaller window"
        ) from None
    if limit is not None:
        a.limits.append((limit, f"the mask of its attention ends after {observer.length(limit)} frames"))
    check_zeroed(observer, pattern)
    model = edges(sights)
    band = _by_mode(a, model)
    most = _most_keys(a, k, limit) if band.left is None and band.right is not None else None
    if band.left is None or band.right is None:
        if most is None:
            raise _unbounded(band)
        band = replace(band, left=most - 1, low=1)
    assert band.back is not None and band.right is not None
    if most is not None:
        sights = _up_to(a, observer, sights, most, scores)
    band = with_bias(
        replace(band, scale=scale, softcap=softcap), sights, min(band.back, max(s.length for s in sights) - 1),
        band.right,
    )  # fmt: skip
    table = None
    if pattern.relative is not None and band.back is not None and band.right is not None:
        if softcap:
            raise Refusal("bends scores with relative positions", "apply no cap to them")
        ticks = [t for t, s in observer.known.items() if s is not None]
        table, end = relative_table(observer, ticks, band, band.back, band.right)
        if end is not None:
            frames = observer.length(end)
            a.limits.append((end, f"the table of relative positions of its attention ends after {frames} frames"))
    return band, most is not None, table


def _shape(a: Analysis, pattern: Pattern, k: Stream, name: str, frames: int) -> tuple[int, ...] | None:
    value = a.values.get(name)
    if isinstance(value, Stream):
        return tuple(value.fact.length(frames) if d is None else d for d in value.shape)
    if isinstance(value, np.ndarray):
        return value.shape
    if name not in a.shapes:
        return None
    length, probed = k.fact.length(frames), a.shapes[name][0]
    table = pattern.relative is not None and name == pattern.relative.node.outputs[0]
    if len(probed) < 2 or (probed[-2:] != a.shapes[pattern.logits][0][-2:] and not table):
        return None
    return (*probed[:-2], length, length)


def _most_keys(a: Analysis, k: Stream, limit: int | None) -> int | None:
    """The most frames that the attention may ever have."""
    bounds = [n for n in (a.max_frames, limit) if n is not None]
    if not bounds:
        return None
    if a.max_frames is not None:
        a.limits.append((a.max_frames, "its attention looks at all of the past, and max_frames is what it keeps"))
    return max(1, k.fact.length(min(bounds)))


def _up_to(a: Analysis, observer: Observer, sights: list[Sight], most: int, scores: Scores) -> list[Sight]:
    """The sights with one of the most frames, for what may change until then."""
    largest = max(s.length for s in sights)
    if most <= largest:
        return sights
    varies = len(scores.leaves) > 1 or any(np.any(s.value[..., s.seen] != 0) for s in sights)
    if not varies and not any(largest <= n <= most for n in scores.numbers()):
        return sights
    try:
        sight = observer.look(observer.ticks(most))
    except TooLarge:
        sight = None
    if sight is None:
        raise Refusal(
            f"has a mask or bias that cannot be looked at for {most} frames", "state fewer frames with --max-frames"
        )
    sights = [*sights, sight]
    edges(sights)
    return sights


def _by_mode(a: Analysis, band: Band) -> Band:
    """The band with sides that the model leaves open bounded as the user allows."""
    named = a.modes.get("attention")
    if named is None or (band.left is not None and band.right is not None):
        return band
    given = numbers(named)
    if band.right is None:
        band = replace(band, right=given.get("right", 0), high=1)
    elif a.max_frames is not None and band.left is None:
        return band
    if band.left is None and "left" in given:
        band = replace(band, left=given["left"], low=1)
    a.used_modes["attention"] = named
    return band


def _unbounded(band: Band) -> Refusal:
    if band.right is None:
        return Refusal(
            "is attention of every frame with every frame: without a mask it needs the whole future",
            "train it with a causal or chunked mask",
            ("attention=left:64,right:8",),
        )
    return Refusal(
        "lets every frame see all of the past, so that what it keeps grows with the stream",
        "state the most frames of a stream (--max-frames N)",
        ("attention=left:64",),
    )
