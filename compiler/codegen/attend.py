"""Attention of one query over a ring of keys and values.

Keys are taken in blocks of 16 whose first number is a multiple of 16, so a query's sums are grouped by the numbers of
its frames alone, wherever the ring wraps and however the stream was cut. The softmax runs along: the largest score so
far, the sum and the weighted values are rescaled with each block.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import math as m
from runnel.compiler.codegen import ops, wide
from runnel.compiler.codegen.builder import Buffer, Builder, Expr, constant, int32, splat
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.elementwise import apply_epilogue
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.reduce import tree, tree_sum
from runnel.compiler.lowering.frame import FrameNode, FrameValue

BLOCK = 16
LOWEST = -3.0e38
NOWHERE = float("-inf")


@dataclass(frozen=True)
class _Keys:
    """Where the keys of the present query lie, all numbers relative to its own: the first and last it sees, the first
    of their first block, how many blocks, and how far the ring's first slot lies behind."""

    first: Expr
    last: Expr
    start: Expr
    blocks: Expr
    back: int


def pieces(count: int) -> list[tuple[int, int]]:
    """(first, lanes): ``count`` elements as vectors of 16 and narrower ones."""
    found, at = [], 0
    for lanes in (16, 8, 4, 2, 1):
        while count - at >= lanes:
            found.append((at, lanes))
            at += lanes
    return found


def emit_attend(context: Context, node: FrameNode) -> None:
    """attend (docs/kernels.md): every head of one query."""
    q, k, v = node.inputs[:3]
    if not (isinstance(q, FrameValue) and isinstance(k, FrameValue) and isinstance(v, FrameValue)):
        raise Unsupported("attend", "an operand is constant")
    if any(x.dtype != "float32" for x in (q, k, v)):
        raise Unsupported("attend", "of values that are not float32")
    b, attrs = context.b, node.attrs
    keys = _keys(context, attrs)
    *batch, features = node.output.shape
    with ExitStack() as stack:
        coords = [stack.enter_context(b.loop(n, "head")) for n in batch]

        def head(shape: tuple[int, ...]) -> Expr:
            """Which of the heads of ``shape`` belongs to the present one."""
            return Index(tuple(batch), coords=coords).broadcast(shape).flat if shape else int32(0)

        queries = _query(context, q, head(q.shape[:-1]))
        key = _ring(context, k, keys, head(k.shape[:-1]) * k.shape[-1])
        value = _ring(context, v, keys, head(v.shape[:-1]) * features)
        extra = _relative(context, node, keys, head)
        result = _softmax(context, attrs, keys, queries, key, value, features, head, extra)
        flat = Index((*batch, 1), coords=[*coords, int32(0)]).flat * features
        for (at, lanes), vector in zip(pieces(features), result, strict=True):
            with b.vector(lanes) as lane:
                place = Index(node.output.shape, flat=flat + at + lane)
                apply_epilogue(context, node.output, vector, place)


def _keys(context: Context, attrs: dict[str, Any]) -> _Keys:
    b = context.b
    words = context.number(attrs["length"])

    def word(value: int) -> Expr:
        return constant(value, "int64")

    n, length = b.load_vector(words, 0, 1), b.load_vector(words, 1, 1)
    first = tirx.max(n - wide.remainder(b, n, word(attrs["low"])) - word(attrs["left"]), word(0))
    last = n - wide.remainder(b, n, word(attrs["high"])) + word(attrs["right"])
    last = tirx.Select(length < word(0), last, tirx.min(last, length - word(1)))
    start = first - tirx.truncmod(first, word(BLOCK)) - n
    first, last, start = (b.let(tirx.Cast("int32", x)) for x in (first - n, last - n, start))
    blocks = b.let(tirx.truncdiv(last - start, int32(BLOCK)) + 1)
    return _Keys(first, last, start, blocks, attrs["back"])


def _query(context: Context, q: FrameValue, head: Expr) -> Callable[[int, int], Expr]:
    """A vector of the query's features."""
    memory = context.views[q].memory
    return lambda at, lanes: context.b.load_vector(memory, head * q.shape[-1] + at, lanes)


def _ring(context: Context, x: FrameValue, keys: _Keys, head: Expr) -> Callable[[Expr], tuple[Buffer, Expr]]:
    """Where the features of a key begin, by its number less the query's."""
    b, view = context.b, context.views[x]
    assert view.offsets is not None
    slot, slots = (b.let(b.load_vector(view.offsets, i, 1)) for i in (0, 1))

    def place(number: Expr) -> tuple[Buffer, Expr]:
        at = b.let(slot + number + keys.back)
        at = b.let(tirx.Select(at >= slots, at - slots, at))
        return view.memory, b.let(at * view.access.row_pitch + head)

    return place


def _relative(
    context: Context, node: FrameNode, keys: _Keys, head: Callable[[tuple[int, ...]], Expr]
) -> Callable[[Expr], Expr] | None:
    """r·relative[distance] for a key, by its number less the query's."""
    if len(node.inputs) < 5:
        return None
    r, table = node.inputs[3:5]
    if not isinstance(r, FrameValue) or not isinstance(table, np.ndarray):
        raise Unsupported("attend", "its relative positions are no constant table")
    queries = _query(context, r, head(r.shape[:-1]))
    memory = context.constant((id(table), "relative"), table)
    rows, size = table.shape[-2:]
    base = head(table.shape[:-2]) * rows
    return lambda number: _dot(context.b, size, queries, memory, (base + (number + keys.back)) * size)


def _dot(b: Builder, size: int, queries: Callable[[int, int], Expr], memory: Buffer, at: Expr) -> Expr:
    """The product of a query and a key: sums of 16 lanes, then narrower ones, then a tree."""
    sums: dict[int, Buffer] = {}
    for first, lanes in pieces(size):
        x, y = queries(first, lanes), b.load_vector(memory, at + first, lanes)
        if lanes in sums:
            b.store_vector(sums[lanes], 0, b.fma(x, y, b.load_vector(sums[lanes], 0, lanes)))
        else:
            sums[lanes] = b.local("float32", lanes)
            b.store_vector(sums[lanes], 0, b.let(x * y))
    totals = [tree_sum(b, b.load_vector(memory, 0, lanes)) for lanes, memory in sums.items()]
    total = totals[0]
    for other in totals[1:]:
        total = b.let(total + other)
    return total


def _softmax(
    context: Context, attrs: dict[str, Any], keys: _Keys, queries: Callable[[int, int], Expr],
    key: Callable[[Expr], tuple[Buffer, Expr]], value: Callable[[Expr], tuple[Buffer, Expr]], features: int,
    head: Callable[[tuple[int, ...]], Expr], extra: Callable[[Expr], Expr] | None,
) -> list[Expr]:  # fmt: skip
    b, parts = context.b, pieces(features)
    top, total = b.local("float32", 1), b.local("float32", 1)
    sums = [b.local("float32", lanes) for _, lanes in parts]
    b.store_vector(top, 0, constant(LOWEST, "float32"))
    b.store_vector(total, 0, constant(0.0, "float32"))
    for memory, (_, lanes) in zip(sums, parts, strict=True):
        b.store_vector(memory, 0, constant(0.0, "float32", lanes))
    scores, weights = b.local("float32", BLOCK), b.local("float32", BLOCK)
    scale = _by_head(context, attrs["scale"], head)
    size = attrs["size"]
    with b.repeat(keys.blocks, "block") as block:
        begin = b.let(keys.start + block * BLOCK)
        low = b.let(tirx.max(keys.first - begin, int32(0)))
        high = b.let(tirx.min(keys.last - begin, int32(BLOCK - 1)))
        b.store_vector(scores, 0, constant(0.0, "float32", BLOCK))
        with b.repeat(high - low + 1, "key") as i:
            number = b.let(begin + low + i)
            score = b.let(_dot(b, size, queries, *key(number)) * scale)
            if extra is not None:
                score = b.let(score + extra(number))
            b.store_vector(scores, low + i, score)
        s = b.load_vector(scores, 0, BLOCK)
        if attrs["softcap"]:
            cap = constant(attrs["softcap"], "float32", BLOCK)
            s = b.let(m.tanh(b, b.let(s / cap)) * cap)
        if attrs.get("bias") is not None:
            s = b.let(s + _bias(context, attrs["bias"], keys, begin, head))
        lane = tirx.Ramp(int32(0), int32(1), BLOCK)
        seen = tirx.And(lane >= splat(low, BLOCK), lane <= splat(high, BLOCK))
        s = b.let(tirx.Select(seen, s, constant(NOWHERE, "float32", BLOCK)))
        before = b.let(b.load_vector(top, 0, 1))
        largest = ops.maximum(b, before, tree(b, s, lambda x, y: ops.maximum(b, x, y)))
        shrink = m.exp(b, b.let(before - largest))
        w = m.exp(b, b.let(s - splat(largest, BLOCK)))
        b.store_vector(weights, 0, w)
        b.store_vector(total, 0, b.fma(b.load_vector(total, 0, 1), shrink, tree_sum(b, w)))
        b.store_vector(top, 0, largest)
        for memory, (_, lanes) in zip(sums, parts, strict=True):
            b.store_vector(memory, 0, b.let(b.load_vector(memory, 0, lanes) * splat(shrink, lanes)))
        with b.repeat(high - low + 1, "key") as i:
            memory, at = value(b.let(begin + low + i))
            weight = b.let(b.load_vector(weights, low + i, 1))
            for part, (first, lanes) in zip(sums, parts, strict=True):
                v = b.load_vector(memory, at + first, lanes)
                b.store_vector(part, 0, b.fma(splat(weight, lanes), v, b.load_vector(part, 0, lanes)))
    whole = b.let(b.load_vector(total, 0, 1))
    return [b.let(b.load_vector(p, 0, n) / splat(whole, n)) for p, (_, n) in zip(sums, parts, strict=True)]


def _by_head(context: Context, value: np.ndarray | float, head: Callable[[tuple[int, ...]], Expr]) -> Expr:
    if np.size(value) == 1:
        return constant(float(np.reshape(value, -1)[0]), "float32")
    assert isinstance(value, np.ndarray)
    memory = context.constant((id(value), "scale"), value.astype(np.float32))
    return context.b.let(context.b.load_vector(memory, head(value.shape), 1))


def _bias(
    context: Context, table: np.ndarray, keys: _Keys, begin: Expr, head: Callable[[tuple[int, ...]], Expr]
) -> Expr:
    """The bias of a block: ``table`` (batch…, distances) by i - j, turned to rise with j, a block more at each end."""
    key = (id(table), "bias")
    rows = np.pad(table[..., ::-1], [(0, 0)] * (table.ndim - 1) + [(BLOCK, BLOCK)]).astype(np.float32)
    memory = context.constant(key, rows)
    at = head(table.shape[:-1]) * rows.shape[-1] + begin + keys.back + BLOCK
    return context.b.load_vector(memory, at, BLOCK)
