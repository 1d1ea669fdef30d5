"""Kernels of attention over a cache: turn a frame's queries and keys to its position, store a key and its value in a
slot, attend to the slots that are kept.

Keys lie in blocks of as many slots as two vector registers have lanes: ``[block][feature][slot]``, so that a block's
scores are sums over features with no sum across lanes. Values lie in rows, ``[slot][feature]``. All query heads of a
KV head share one pass over its keys and one over its values. Codes of 8 bits are signed, of 4 bits unsigned with 8 for
zero: feature i in the low half of byte i, feature i + size / 2 in the high half; each slot has one scale. Rows are
rotated before they are coded (hadamard.py): queries are with the keys, and sums of values are turned back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tvm import ir, tirx

from runnel.compiler.codegen import math as m
from runnel.compiler.codegen import ops
from runnel.compiler.codegen.attend import LOWEST, NOWHERE, pieces
from runnel.compiler.codegen.builder import Buffer, Builder, Expr, constant, int32, lanes_of, splat, vector_type
from runnel.compiler.codegen.cache_shape import CacheShape, block_of, coded, stored_as, width_of
from runnel.compiler.codegen.hadamard import rotate
from runnel.compiler.codegen.reduce import tree, tree_sum
from runnel.compiler.codegen.target import Target

TOGETHER = 4
"""Query heads whose sums are in registers at once, where there are enough."""


class Function:
    """A kernel under construction: its builder and its pointers in order."""

    def __init__(self, target: Target) -> None:
        self.b = Builder(target.fused, target.rounds, target.wide, halves=target.halves, arm=target.arm)
        self._params: list[Any] = []

    def pointer(self, name: str, dtype: str = "float32") -> Buffer:
        var, memory = self.b.parameter(name, dtype)
        self._params.append(var)
        return memory

    def finish(self) -> Any:
        return tirx.PrimFunc(self._params, self.b.body(), ir.PrimType("int32"))


def turn(target: Target, shape: CacheShape, heads: int, scale: float, unturned: bool = False) -> Any:
    """turn(rows, angles, turned): ``heads`` rows of a key's size, turned (or not) and scaled. Interleaved pairs are
    told apart: first their first features, then their second ones."""
    f = Function(target)
    b, rows, angles, turned = f.b, f.pointer("rows"), f.pointer("angles"), f.pointer("turned")
    size, pairs, start = shape.key_dim, shape.pairs, shape.start

    def put(at: Expr, value: Expr) -> None:
        b.store_vector(turned, at, b.let(value * constant(scale, "float32", lanes_of(value))) if scale != 1 else value)

    with b.loop(heads, "head") as head:
        base = head * size
        for first, stop in ((0, start), (start + 2 * pairs, size)):
            for at, lanes in pieces(stop - first):
                put(base + first + at, b.load_vector(rows, base + first + at, lanes))
        for at, lanes in pieces(pairs):
            cosine, sine = b.load_vector(angles, at, lanes), b.load_vector(angles, pairs + at, lanes)
            with b.vector(lanes) as lane:
                step, second = (2, 1) if shape.interleaved else (1, pairs)
                x = b.let(splat(b.load(rows, base + start + step * (at + lane)), lanes))
                y = b.let(splat(b.load(rows, base + start + step * (at + lane) + second), lanes))
            if unturned:
                put(base + start + at, x)
                put(base + start + pairs + at, y)
                continue
            put(base + start + at, b.let(b.let(x * cosine) - b.let(y * sine)))
            put(base + start + pairs + at, b.let(b.let(y * cosine) + b.let(x * sine)))
        if shape.rotates_keys:
            rotate(b, turned, base, size, shape.rotated(size))
    return f.finish()


def store(target: Target, shape: CacheShape) -> Any:
    """store(key, value, keys, values, key_scales, value_scales, words): rows of all KV heads; words: the KV head, the
    slot."""
    f = Function(target)
    b, block = f.b, block_of(target, shape)
    key, value = f.pointer("key"), f.pointer("value")
    keys, values = f.pointer("keys", stored_as(shape.key_bits)), f.pointer("values", stored_as(shape.value_bits))
    key_scales, value_scales = f.pointer("key_scales"), f.pointer("value_scales")
    words = f.pointer("words", "int32")
    head, slot = b.let(b.load_vector(words, 0, 1)), b.let(b.load_vector(words, 1, 1))
    rows = shape.key_dim // (2 if shape.key_bits == 4 else 1)
    place = b.let(tirx.truncdiv(slot, int32(block)) * (rows * block) + tirx.truncmod(slot, int32(block)))
    row = _coded(b, key, head * shape.key_dim, shape.key_dim, shape.key_bits, key_scales, slot)
    if block == 1:  # a loop would become a call of memcpy
        for at, lanes in pieces(rows):
            b.store_vector(keys, place + at, b.load_vector(row[0], row[1] + at, lanes))
    else:
        with b.loop(rows, "feature") as feature:
            b.store_vector(keys, place + feature * block, b.load_vector(row[0], row[1] + feature, 1))
    if shape.shared:
        return f.finish()
    size = shape.value_dim if shape.value_bits != 4 else shape.value_dim // 2
    first = head * shape.value_dim
    if coded(shape.value_bits):
        rotated = b.local("float32", shape.value_dim)
        for at, lanes in pieces(shape.value_dim):
            b.store_vector(rotated, at, b.load_vector(value, first + at, lanes))
        rotate(b, rotated, int32(0), shape.value_dim, shape.rotated(shape.value_dim))
        value, first = rotated, int32(0)
    row = _coded(b, value, first, shape.value_dim, shape.value_bits, value_scales, slot)
    for at, lanes in pieces(size):
        b.store_vector(values, slot * size + at, b.load_vector(row[0], row[1] + at, lanes))
    return f.finish()


def _coded(
    b: Builder, source: Buffer, at: Expr, size: int, bits: int, scales: Buffer, slot: Expr
) -> tuple[Buffer, Expr]:
    """A row as it is stored: where its elements are, after its scale was written."""
    if not coded(bits):
        return source, at
    largest = 127 if bits == 8 else 7
    tops = []
    for first, lanes in pieces(size):
        x = b.let(b.intrinsic("llvm.fabs", b.load_vector(source, at + first, lanes)))
        tops.append(tree(b, x, lambda p, q: ops.maximum(b, p, q)))
    top = tops[0]
    for other in tops[1:]:
        top = ops.maximum(b, top, other)
    zero, most = constant(0.0, "float32"), constant(float(largest), "float32")
    inverse = b.let(tirx.Select(top > zero, most / top, zero))
    b.store_vector(scales, slot, b.let(top * constant(1.0 / largest, "float32")))
    codes = b.local("int32", size)
    for first, lanes in pieces(size):
        x = b.let(b.load_vector(source, at + first, lanes) * splat(inverse, lanes))
        b.store_vector(codes, first, tirx.Cast(vector_type("int32", lanes), b.intrinsic("llvm.roundeven", x)))
    if bits == 8:
        narrow = b.local("int8", size)
        for first, lanes in pieces(size):
            b.store_vector(narrow, first, tirx.Cast(vector_type("int8", lanes), b.load_vector(codes, first, lanes)))
        return narrow, int32(0)
    packed = b.local("uint8", size // 2)
    for first, lanes in pieces(size // 2):
        low, high = (b.load_vector(codes, first + half, lanes) for half in (0, size // 2))
        eight, four = constant(8, "int32", lanes), constant(4, "int32", lanes)
        both = (low + eight) | ((high + eight) << four)
        b.store_vector(packed, first, tirx.Cast(vector_type("uint8", lanes), both))
    return packed, int32(0)


class AttendKernel:
    """attend(query, keys, values, key_scales, value_scales, words, scores, bias, sinks, ranks, angles, out); words: the
    KV head, how many slots are kept, and before which of them the second queries count."""

    def __init__(self, target: Target, shape: CacheShape) -> None:
        self.target, self.shape, self.block = target, shape, width_of(target)
        self.f = Function(target)
        self.b = self.f.b
        self.query = self.f.pointer("query")
        self.keys = self.f.pointer("keys", stored_as(shape.key_bits))
        self.values = self.f.pointer("values", stored_as(shape.value_bits))
        self.key_scales, self.value_scales = self.f.pointer("key_scales"), self.f.pointer("value_scales")
        words = self.f.pointer("words", "int32")
        self.scores, self.bias = self.f.pointer("scores"), self.f.pointer("bias")
        self.sinks, self.ranks = self.f.pointer("sinks"), self.f.pointer("ranks", "int32")
        self.angles, self.out = self.f.pointer("angles"), self.f.pointer("out")
        self.head, self.count, self.split = (self.b.let(self.b.load_vector(words, i, 1)) for i in range(3))
        self.seconds = -(-shape.heads * shape.key_dim // 16) * 16  # where second queries begin
        self.stride = shape.value_dim // (2 if shape.value_bits == 4 else 1)  # of a slot's values
        self.blocks = self.b.let(tirx.truncdiv(self.count + (self.block - 1), int32(self.block)))

    def make(self) -> Any:
        shape, b = self.shape, self.b
        self._all_scores()
        with b.loop(shape.group, "query") as g:
            self._softmax(g * shape.pitch, self.head * shape.group + g, shape.group * shape.pitch + g)
        self._values()
        if shape.rotates_values:
            with b.loop(shape.group, "query") as g:
                at, size = (self.head * shape.group + g) * shape.value_dim, shape.value_dim
                rotate(b, self.out, at, size, shape.rotated(size))
        return self.f.finish()

    def _all_scores(self) -> None:
        b, shape = self.b, self.shape
        if shape.ranked:
            with b.repeat(self.count, "slot") as slot:
                self._ranked(slot)
        else:
            with b.repeat(self.blocks, "block") as block:
                self._scores(block, int32(0), None)
        if shape.apart:
            with b.repeat(tirx.truncdiv(self.split + (self.block - 1), int32(self.block)), "block") as block:
                self._scores(block, int32(self.seconds), self.split - block * self.block)

    def _groups(self, lanes: int) -> Iterator[tuple[int, int]]:
        """(first, count) of the query heads whose sums of ``lanes`` elements fit into half of the registers."""
        most = max(1, min(TOGETHER, self.target.registers // 2 // max(1, lanes // self.target.lanes)))
        for first in range(0, self.shape.group, most):
            yield first, min(most, self.shape.group - first)

    def _scores(self, block: Expr, queries: Expr, before: Expr | None) -> None:
        """The scores of a block of slots, or of those of its first ``before`` ones."""
        shape, pitch = self.shape, self.shape.pitch
        for first, count in self._groups(self.block):
            base = queries + (self.head * shape.group + first) * shape.key_dim
            into = (first * pitch + block * self.block, pitch)
            self._tile(self.keys, self.key_scales, block, count, base, into, before)

    def _tile(
        self, keys: Buffer, scales: Buffer, block: Expr, count: int, queries: Expr, into: tuple[Expr, int],
        before: Expr | None = None,
    ) -> None:  # fmt: skip
        """Scores of a block of ``keys`` for ``count`` queries that lie behind each other. into: where those of the
        first go, and how far behind those of the next."""
        b, shape, width = self.b, self.shape, self.block
        sums = [b.local("float32", width) for _ in range(count)]
        for memory in sums:
            b.store_vector(memory, 0, constant(0.0, "float32", width))
        halves = 2 if shape.key_bits == 4 else 1
        rows = shape.key_dim // halves
        with b.loop(rows, "feature") as row:
            codes = b.load_vector(keys, (block * rows + row) * width, width)
            for half, key in enumerate(elements(b, codes, shape.key_bits)):
                for g, memory in enumerate(sums):
                    q = b.load_vector(self.query, queries + g * shape.key_dim + half * rows + row, 1)
                    b.store_vector(memory, 0, b.fma(splat(q, width), key, b.load_vector(memory, 0, width)))
        for g, memory in enumerate(sums):
            score = b.load_vector(memory, 0, width)
            if coded(shape.key_bits):
                score = b.let(score * b.load_vector(scales, block * width, width))
            at = into[0] + g * into[1]
            if before is not None:
                first = tirx.Ramp(int32(0), int32(1), width) < splat(before, width)
                score = tirx.Select(first, score, b.load_vector(self.scores, at, width))
            b.store_vector(self.scores, at, score)

    def _ranked(self, slot: Expr) -> None:
        """The scores of one slot, whose key is turned to its rank first."""
        b, shape = self.b, self.shape
        size, pairs, start = shape.key_dim, shape.pairs, shape.start
        row = b.local("float32", size)
        stored = size // (2 if shape.key_bits == 4 else 1)
        for at, lanes in pieces(stored):
            parts = elements(b, b.load_vector(self.keys, slot * stored + at, lanes), shape.key_bits)
            for half, part in enumerate(parts):
                b.store_vector(row, half * stored + at, part)
        rank = b.let(b.load_vector(self.ranks, slot, 1))
        for at, lanes in pieces(pairs):
            cosine = b.load_vector(self.angles, rank * (2 * pairs) + at, lanes)
            sine = b.load_vector(self.angles, rank * (2 * pairs) + pairs + at, lanes)
            x = b.let(b.load_vector(row, start + at, lanes))
            y = b.let(b.load_vector(row, start + pairs + at, lanes))
            b.store_vector(row, start + at, b.let(b.let(x * cosine) - b.let(y * sine)))
            b.store_vector(row, start + pairs + at, b.let(b.let(y * cosine) + b.let(x * sine)))
        with b.loop(shape.group, "query") as g:
            base = (self.head * shape.group + g) * size
            totals: list[Expr] = []
            for at, lanes in tiles(size, self.target.lanes):
                q, k = b.load_vector(self.query, base + at, lanes), b.load_vector(row, at, lanes)
                if totals and lanes_of(totals[-1]) == lanes:
                    totals[-1] = b.let(b.fma(q, k, totals[-1]))
                else:
                    totals.append(b.let(q * k))
            score = tree_sum(b, totals[0])
            for total in totals[1:]:
                score = b.let(score + tree_sum(b, total))
            if coded(shape.key_bits):
                score = b.let(score * b.load_vector(self.key_scales, slot, 1))
            b.store_vector(self.scores, g * shape.pitch + slot, score)

    def _softmax(self, base: Expr, head: Expr, inverse_at: Expr) -> None:
        """Turns the scores of a query head into weights that are still to be divided by their sum, whose inverse it
        gives beside them."""
        b, shape, width = self.b, self.shape, self.block
        tops, sums = b.local("float32", width), b.local("float32", width)
        b.store_vector(tops, 0, constant(LOWEST, "float32", width))
        b.store_vector(sums, 0, constant(0.0, "float32", width))
        with b.repeat(self.blocks, "block") as block:
            at = base + block * width
            s = b.load_vector(self.scores, at, width)
            if shape.softcap:
                cap = constant(shape.softcap, "float32", width)
                s = b.let(m.tanh(b, b.let(s / cap)) * cap)
            if shape.bias:
                s = b.let(s + b.load_vector(self.bias, at, width))
            lane = tirx.Ramp(block * width, int32(1), width)
            s = b.let(tirx.Select(lane < splat(self.count, width), s, constant(NOWHERE, "float32", width)))
            b.store_vector(self.scores, at, s)
            b.store_vector(tops, 0, ops.maximum(b, b.load_vector(tops, 0, width), s))
        top = tree(b, b.load_vector(tops, 0, width), lambda p, q: ops.maximum(b, p, q))
        sink = b.let(b.load_vector(self.sinks, head, 1)) if shape.sinks else None
        top = top if sink is None else ops.maximum(b, top, sink)
        with b.repeat(self.blocks, "block") as block:
            at = base + block * width
            w = m.exp(b, b.let(b.load_vector(self.scores, at, width) - splat(top, width)))
            b.store_vector(self.scores, at, w)
            b.store_vector(sums, 0, b.let(b.load_vector(sums, 0, width) + w))
        total = tree_sum(b, b.load_vector(sums, 0, width))
        if sink is not None:
            total = b.let(total + m.exp(b, b.let(sink - top)))
        b.store_vector(self.scores, inverse_at, b.let(constant(1.0, "float32") / total))

    def _values(self) -> None:
        shape = self.shape
        halves = 2 if shape.value_bits == 4 else 1
        size = shape.value_dim // halves
        for at, lanes in tiles(size, self.target.lanes * 4 // halves):
            for first, count in self._groups(lanes * halves):
                self._weighted(first, count, at, lanes, halves, size)

    def _weighted(self, first: int, count: int, at: int, lanes: int, halves: int, size: int) -> None:
        """Sums of values times weights: ``lanes`` stored elements from ``at`` on, for some of the query heads."""
        b, shape = self.b, self.shape
        sums = [[b.local("float32", lanes) for _ in range(halves)] for _ in range(count)]
        for memory in (x for row in sums for x in row):
            b.store_vector(memory, 0, constant(0.0, "float32", lanes))
        with b.repeat(self.count, "slot") as slot:
            codes = b.load_vector(self.values, slot * self.stride + at, lanes)
            parts = [b.let(x) for x in elements(b, codes, shape.value_bits)]
            for g, row in enumerate(sums):
                weight = b.load_vector(self.scores, (first + g) * shape.pitch + slot, 1)
                if coded(shape.value_bits):
                    weight = b.let(weight * b.load_vector(self.value_scales, slot, 1))
                for memory, part in zip(row, parts, strict=True):
                    b.store_vector(memory, 0, b.fma(splat(weight, lanes), part, b.load_vector(memory, 0, lanes)))
        for g, row in enumerate(sums):
            inverse = splat(b.load_vector(self.scores, shape.group * shape.pitch + first + g, 1), lanes)
            place = (self.head * shape.group + first + g) * shape.value_dim + at
            for half, memory in enumerate(row):
                b.store_vector(self.out, place + half * size, b.let(b.load_vector(memory, 0, lanes) * inverse))


def tiles(size: int, widest: int) -> Iterator[tuple[int, int]]:
    """(first, lanes): ``size`` elements as vectors of at most ``widest``, a power of two."""
    at = 0
    while at < size:
        lanes = widest
        while lanes > size - at:
            lanes //= 2
        yield at, lanes
        at += lanes


def elements(b: Builder, codes: Expr, bits: int) -> Sequence[Expr]:
    """Stored elements as float32; two vectors where a byte holds two."""
    lanes = lanes_of(codes)
    if not coded(bits):
        return [codes]
    if bits == 8:
        return [tirx.Cast(vector_type("float32", lanes), codes)]
    wide = b.let(tirx.Cast(vector_type("int32", lanes), codes))
    eight = constant(8, "int32", lanes)
    low, high = wide & constant(15, "int32", lanes), wide >> constant(4, "int32", lanes)
    return [tirx.Cast(vector_type("float32", lanes), half - eight) for half in (low, high)]


def attend(target: Target, shape: CacheShape) -> Any:
    """The kernel of one KV head, see ``AttendKernel``."""
    return AttendKernel(target, shape).make()
