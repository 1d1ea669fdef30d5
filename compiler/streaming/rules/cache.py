"""Attention whose keys and values a cache keeps: what it takes in, and what the model itself says of its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.attention.band import Band, Observer, edges, with_bias
from runnel.compiler.streaming.attention.cached import FRAMES, Cut
from runnel.compiler.streaming.attention.likeness import likeness
from runnel.compiler.streaming.attention.looking import check_zeroed, look
from runnel.compiler.streaming.attention.pattern import Pattern
from runnel.compiler.streaming.attention.scores import Scores, TooLarge
from runnel.compiler.streaming.attention.turned import Turned
from runnel.compiler.streaming.ir import Stream
from runnel.compiler.streaming.kinds.cache import CachedAttend
from runnel.compiler.streaming.registry import Refusal
from runnel.kv import parse

if TYPE_CHECKING:
    from runnel.compiler.streaming.analysis import Analysis, Value

SAME = 2e-6
SATURATED = 64
"""Distances over which a bias must stay the same to be taken as the same for all that are farther."""


def cached(a: Analysis, node: Node, cut: Cut | Refusal) -> list[Value]:
    """The attention as one with a cache; raises the refusal that was found on the way."""
    if isinstance(cut, Refusal):
        raise cut
    pattern: Pattern = node.attrs["pattern"]
    if pattern.relative is not None:
        raise Refusal("adds relative positions that depend on the query", "use rotary positions or a bias by distance")
    q, k, v = (_operand(a, node, t, cut.heads(t), s) for t, s in ((cut.q, "/q"), (cut.k, "/k"), (cut.v, "/v")))
    limits = [t.limit for t in (cut.q, cut.k) if t.limit is not None]
    if limits:
        a.limits.append((min(limits), f"the model turns its positions otherwise beyond {min(limits)} tokens"))
    band, bias, slopes = _scores(a, pattern, cut)
    if not isinstance(band.scale, float):
        raise Refusal("scales each head's scores by a factor of its own", "use one scale")
    window = 0 if band.left is None else band.left + 1
    spec = parse(a.kv or "full")
    if not window and spec.policy == "full":
        bounds = [n for n in (a.max_frames, spec.slots) if n]
        if not bounds:
            raise Refusal(
                "lets every token see all of the past, so that what it keeps grows with the stream",
                "state the most tokens of a stream (--max-frames N), or what a cache keeps (--kv sink=4,window=512)",
            )
        a.limits.append((min(bounds), "its cache keeps all of the past, and this is what it holds"))
    ranks = _ranks(a, node, cut, k.shape[1] or 0) if cut.ranks else None
    told = _told(a, node, cut.told) if cut.told else None
    final = q.fact.final.minimum_with(k.fact.final).minimum_with(v.fact.final)
    final = final if ranks is None else final.minimum_with(ranks.fact.final)
    heads, wide = cut.queries, v.shape[-1]
    layer = sum(isinstance(n, CachedAttend) for n in a.nodes)
    inputs = [q, k, None if cut.shared else v, ranks, told]
    y = a.emit(
        node, CachedAttend, inputs, 2, final, k.fact.length, shape=(1, heads, None, wide), op="CachedAttention",
        suffix="/attention", layer=layer, scale=band.scale * cut.q.gain * cut.k.gain, softcap=band.softcap,
        window=window, rotary=cut.rotary, slopes=slopes, bias=bias, sinks=cut.sinks, shared=cut.shared,
    )  # fmt: skip
    if (order := cut.back_in_order) is not None:
        y = _step(a, node, "Gather", [y, order], "/heads", y.shape, 2, 1)
    shape = (*cut.batch, None, wide)
    labels = pattern.weighted.labels
    if shape != y.shape:
        y = _step(a, node, "Reshape", [y], "/shaped" if labels else "", shape, len(shape) - 2)
    if labels:
        made = labels.left[:-1] + next(c for c in labels.right if c not in labels.left)
        return [transposed(a, node, y, [made.index(c) for c in labels.out], "")]
    return [y if y.name == node.outputs[0] else _step(a, node, "Identity", [y], "", shape, len(shape) - 2)]


def _step(
    a: Analysis, node: Node, op: str, inputs: list[Stream | np.ndarray], suffix: str, shape: Sequence[int | None],
    axis: int, along: int | None = None,
) -> Stream:  # fmt: skip
    plain = Node(op, node.name, node.inputs, node.outputs)
    attrs: dict[str, object] = {"shape": list(shape)} if op == "Reshape" else {}
    attrs |= {} if along is None else {"axis": along}
    return a.pointwise(plain, inputs, axis, attrs=attrs, op=op, suffix=suffix, shape=tuple(shape))


def transposed(a: Analysis, node: Node, x: Stream, perm: Sequence[int], suffix: str) -> Stream:
    """The stream with its axes in another order."""
    if list(perm) == list(range(len(perm))) and suffix:
        return x
    plain = Node("Transpose", node.name, node.inputs, node.outputs)
    shape = tuple(x.shape[p] for p in perm)
    return a.pointwise(
        plain, [x], list(perm).index(x.axis), attrs={"perm": list(perm)}, suffix=suffix,
        shape=shape if suffix else None,
    )  # fmt: skip


def _told(a: Analysis, node: Node, name: str) -> Stream:
    """The positions that a stream is told, (1, axes, time)."""
    x = a.values[name]
    if not isinstance(x, Stream) or x.dtype != "int64" or x.axis != len(x.shape) - 1:
        raise Refusal(f"takes positions from '{name}', which are no int64 (axes, 1, tokens)", "give them so")
    axes = int(np.prod(x.frame_shape, dtype=np.int64))
    return _step(a, node, "Reshape", [x], "/positions", (1, axes, None), 2)


def _ranks(a: Analysis, node: Node, cut: Cut, heads: int) -> Stream:
    """What ranks the tokens of this cache, (1, heads, time)."""
    x = a.values.get(cut.ranks)
    if x is None:
        raise Refusal(
            f"is ranked by '{cut.ranks}', which waits for its own result", "rank each layer by an output of its own"
        )
    if not isinstance(x, Stream) or x.dtype != "float32" or len(x.shape) != 3 or x.axis not in (1, 2):
        raise Refusal(
            f"is ranked by '{cut.ranks}', which is no float32 (1, heads, tokens)", "export one number a head and token"
        )
    if x.axis == 1:
        x = transposed(a, node, x, [0, 2, 1], "/ranks")
    if x.shape != (1, heads, None):
        raise Refusal(
            f"is ranked by '{cut.ranks}' with {x.shape[1]} numbers a token, not {heads}", "give one a KV head"
        )
    return x


# The operands as (1, heads, time, features) ------------------------------------------------------------------------


def _operand(a: Analysis, node: Node, turned: Turned, columns: np.ndarray, suffix: str) -> Stream:
    streams = []
    for name, axis in zip(turned.names, turned.axes, strict=True):
        x = a.values[name]
        if not isinstance(x, Stream) or x.axis != axis:
            raise Refusal("reads something that is no stream of tokens", "attend between tokens of one sequence")
        streams.append(x)
    heads, size = columns.shape
    if len(streams) == 1:
        x = streams[0]
        if np.array_equal(columns.reshape(-1), np.arange(int(np.prod(x.frame_shape, dtype=np.int64)))):
            if x.shape == (1, heads, None, size):
                return x
            if x.shape == (1, None, heads, size):
                return transposed(a, node, x, [0, 2, 1, 3], suffix)
        x = _flat(a, node, x, suffix)
    else:
        parts: list[Stream | np.ndarray] = [_flat(a, node, x, f"{suffix}/{i}") for i, x in enumerate(streams)]
        width = sum(p.shape[2] or 0 for p in parts)
        x = _step(a, node, "Concat", parts, f"{suffix}/both", (1, None, width), 1, 2)
    flat = columns.reshape(-1)
    if not np.array_equal(flat, np.arange(x.shape[2] or 0)):
        shape = (1, None, len(flat))
        if np.array_equal(flat, flat[0] + np.arange(len(flat))):
            bounds = [np.array([n], np.int64) for n in (flat[0], flat[-1] + 1, 2)]
            x = _step(a, node, "Slice", [x, *bounds], f"{suffix}/part", shape, 1)
        else:
            x = _step(a, node, "Gather", [x, flat.astype(np.int64)], f"{suffix}/part", shape, 1, 2)
    x = _step(a, node, "Reshape", [x], f"{suffix}/heads", (1, None, heads, size), 1)
    return transposed(a, node, x, [0, 2, 1, 3], suffix)


def _flat(a: Analysis, node: Node, x: Stream, suffix: str) -> Stream:
    """(1, time, features)."""
    width = int(np.prod(x.frame_shape, dtype=np.int64))
    if x.shape == (1, None, width):
        return x
    if any(d != 1 for d in x.shape[: x.axis]):
        order = [x.axis, *(i for i in range(len(x.shape)) if i != x.axis)]
        x = transposed(a, node, x, order, f"{suffix}/turned")
    return _step(a, node, "Reshape", [x], f"{suffix}/flat", (1, None, width), 1)


# What the model says of its scores ---------------------------------------------------------------------------------


def _scores(a: Analysis, pattern: Pattern, cut: Cut) -> tuple[Band, np.ndarray | None, np.ndarray | None]:
    """The band, the bias by distance (heads, distances), and slopes (heads). Masks that are alike are looked at
    once."""
    leaf = pattern.scores.node.outputs[0]
    made = likeness(
        pattern.nodes, [leaf], a.graph.constants, pattern.weights,
        lambda name: tuple(cut.shape(name, n) for n in FRAMES),
    )  # fmt: skip
    key = (made, cut.batch, tuple(cut.groups))
    if key not in a.masks:
        a.masks[key] = _looked_at(a, pattern, cut, leaf)
    return a.masks[key]


def _looked_at(a: Analysis, pattern: Pattern, cut: Cut, leaf: str) -> tuple[Band, np.ndarray | None, np.ndarray | None]:
    def one_head(name: str, frames: int) -> tuple[int, ...] | None:
        """Scores as if there were one head: ops between them and the softmax spread them over more, if at all."""
        return (*[1] * len(cut.batch), frames, frames) if name == leaf else cut.shape(name, frames)

    for shape in (one_head, cut.shape):
        observer = Observer(Scores(a.graph, pattern, shape), lambda t: t, lambda n: n)
        try:
            sights, _ = look(observer, observer.scores)
            scale, softcap = observer.gain()
            check_zeroed(observer, pattern)
            break
        except TooLarge:
            raise Refusal(
                "has more scores than can be looked at for what its mask names", "use a smaller window"
            ) from None
        except Refusal:
            if shape is cut.shape:
                raise
    if np.ptp(scale) <= SAME * np.abs(scale).max():  # what a bias rounds away is no factor of a head
        scale = float(np.median(scale))
    band = edges(sights)
    if band.right != 0 or band.high != 1 or band.low != 1:
        raise Refusal(
            "lets tokens see what comes after them, or sees in chunks, which a cache of the past cannot",
            "use a causal or a sliding mask",
        )
    most = max(s.length for s in sights) - 1
    bounded = with_bias(
        Band(most if band.left is None else band.left, 0, scale=scale, softcap=softcap), sights,
        most if band.left is None else min(band.left, most), 0,
    )  # fmt: skip
    band = Band(band.left, 0, scale=scale, softcap=softcap)
    if bounded.bias is None:
        return band, None, None
    heads = np.broadcast_to(bounded.bias, (*cut.batch, bounded.bias.shape[-1]))
    table = cut.in_order(heads.reshape(cut.queries, -1))
    slopes = _slopes(table)
    if slopes is not None:
        return band, None, slopes
    if band.left is None and (table[:, -SATURATED:] != table[:, -1:]).any():
        raise Refusal(
            "adds a bias to its scores that goes on changing with the distance", "use slopes, or one that settles"
        )
    return band, _settled(table), None


def _slopes(table: np.ndarray) -> np.ndarray | None:
    """The slopes of biases that fall evenly with the distance."""
    if table.shape[1] < 3:
        return None
    distance = np.arange(table.shape[1])
    slopes = (table[:, :1] - table[:, -1:]).astype(np.float64)[:, 0] / distance[-1]
    exact = table[:, 0].astype(np.float64) - table[:, 1]
    apart = np.abs(table - table[:, :1] + slopes[:, None] * distance).max()
    if apart > 2e-6 * max(1.0, float(np.abs(table).max())):
        return None
    return np.where(np.abs(exact - slopes) <= 1e-6 * np.abs(slopes), exact, slopes)


def _settled(table: np.ndarray) -> np.ndarray:
    """The table up to where it no longer changes."""
    changes = np.flatnonzero((table[:, 1:] != table[:, :-1]).any(axis=0))
    return np.ascontiguousarray(table[:, : (changes[-1] + 2 if len(changes) else 1)], np.float32)
