"""The attention of several frames of a prompt to one cache: what they share of it is read once for all of them.

Frames that come in together see the same slots but for those that they fill themselves: a frame sees what earlier ones
put there, and for later ones what was there before, if anything. Every sum is made in the order in which a single
frame makes it (cached.py), slot after slot, so the bits are the same.

``words``: the KV head; the most slots that a frame sees; before which of them the second queries count; whether any
slot was taken from an older frame; for each frame how many slots it sees; for each slot that was filled, in the order
of slots, and once more at the end, the slots from and to which nothing was filled before it, itself, the number of the
frame that filled it, and how many frames see what was there before (all before that one, or none).
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from runnel.compiler.codegen.builder import Buffer, Expr, int32, splat
from runnel.compiler.codegen.cache_shape import CacheShape, coded, stored_as, width_of
from runnel.compiler.codegen.cached import AttendKernel, Function, elements, tiles
from runnel.compiler.codegen.hadamard import rotate
from runnel.compiler.codegen.target import Target

QUERIES = 16
"""Rows of queries of a KV head that share a pass over its keys, at least."""
LEAST = 4
CHUNK = 64
"""Slots whose values are read again from the nearest cache for each few queries."""
HEAD_WORDS, EVENT_WORDS = 4, 5


def rows_of(shape: CacheShape) -> int:
    """Frames that attend together; 0 where single ones have enough queries, or see slots each in another way."""
    if shape.ranked or shape.shared or shape.bias or shape.group >= QUERIES:
        return 0
    rows = LEAST
    while rows * shape.group < QUERIES:
        rows *= 2
    return rows


class _Rows(AttendKernel):
    """attend(queries, keys, values, key_scales, value_scales, words, scores, sinks, old_keys, old_values,
    old_key_scales, old_value_scales, out): queries and out are rows of one KV head's query heads, frame after frame,
    second queries behind the others, out zero; old: what filled slots held before, keys as one block."""

    def __init__(self, target: Target, shape: CacheShape) -> None:
        self.target, self.shape, self.block = target, shape, width_of(target)
        self.rows = rows_of(shape)
        self.all = self.rows * shape.group
        self.f = Function(target)
        self.b = self.f.b
        keys, values = stored_as(shape.key_bits), stored_as(shape.value_bits)
        self.query = self.f.pointer("query")
        self.keys, self.values = self.f.pointer("keys", keys), self.f.pointer("values", values)
        self.key_scales, self.value_scales = self.f.pointer("key_scales"), self.f.pointer("value_scales")
        self.words = self.f.pointer("words", "int32")
        self.scores, self.sinks = self.f.pointer("scores"), self.f.pointer("sinks")
        self.old_keys, self.old_values = self.f.pointer("old_keys", keys), self.f.pointer("old_values", values)
        self.old_key_scales = self.f.pointer("old_key_scales")
        self.old_value_scales = self.f.pointer("old_value_scales")
        self.out = self.f.pointer("out")
        self.head, self.most, self.split, self.olds = (self._word(int32(i)) for i in range(HEAD_WORDS))

    def _word(self, at: Expr) -> Expr:
        return self.b.let(self.b.load_vector(self.words, at, 1))

    def _blocks(self, slots: Expr) -> Expr:
        return self.b.let(tirx.truncdiv(slots + (self.block - 1), int32(self.block)))

    def make(self) -> Any:
        b, shape = self.b, self.shape
        with b.repeat(self._blocks(self.most), "block") as block:
            self._all(self.keys, self.key_scales, block, int32(0), (block * self.block, shape.pitch), None)
        if shape.apart:
            with b.repeat(self._blocks(self.split), "block") as block:
                second, into = int32(self.all * shape.key_dim), (block * self.block, shape.pitch)
                self._all(self.keys, self.key_scales, block, second, into, self.split - block * self.block)
        with b.when(self.olds > int32(0)):
            self._see_old()
        with b.loop(self.rows, "row") as row:
            self.count = self._word(HEAD_WORDS + row)
            self.blocks = self._blocks(self.count)
            with b.loop(shape.group, "query") as g:
                i = row * shape.group + g
                self._softmax(i * shape.pitch, self.head * shape.group + g, self.all * shape.pitch + i)
        self._sums()
        with b.loop(self.all, "query") as i:
            inverse = b.let(b.load_vector(self.scores, self.all * shape.pitch + i, 1))
            for at, lanes in tiles(shape.value_dim, self.target.lanes * 4):
                place = i * shape.value_dim + at
                b.store_vector(self.out, place, b.let(b.load_vector(self.out, place, lanes) * splat(inverse, lanes)))
            if shape.rotates_values:
                rotate(b, self.out, i * shape.value_dim, shape.value_dim, shape.rotated(shape.value_dim))
        return self.f.finish()

    def _together(self, lanes: int) -> int:
        """Queries whose sums of ``lanes`` elements fit into half of the registers; they divide all of them."""
        most = max(1, self.target.registers // 2 // max(1, lanes // self.target.lanes))
        while self.all % most:
            most //= 2
        return most

    def _all(
        self, keys: Buffer, scales: Buffer, block: Expr, queries: Expr, into: tuple[Expr, int], before: Expr | None
    ) -> None:
        """Scores of a block of keys for all queries."""
        count = self._together(self.block)
        with self.b.loop(self.all // count, "tile") as tile:
            at = queries + tile * (count * self.shape.key_dim)
            self._tile(keys, scales, block, count, at, (tile * (count * into[1]) + into[0], into[1]), before)

    def _event(self, number: Expr, word: int) -> Expr:
        return self._word(number * EVENT_WORDS + (HEAD_WORDS + self.rows + word))

    def _see_old(self) -> None:
        """Gives frames that came before a slot was filled the scores of what was there."""
        b, shape = self.b, self.shape
        place = self.all * shape.pitch + -(-self.all // 16) * 16
        self._all(self.old_keys, self.old_key_scales, int32(0), int32(0), (int32(place), self.block), None)
        with b.loop(self.rows, "event") as number:
            slot, frame, seen = (self._event(number, word) for word in (2, 3, 4))
            with b.repeat(b.let(seen * shape.group), "query") as i:
                score = b.load_vector(self.scores, place + i * self.block + frame, 1)
                b.store_vector(self.scores, i * shape.pitch + slot, score)

    def _sums(self) -> None:
        """Sums of values times weights, slot after slot."""
        b, shape = self.b, self.shape
        with b.loop(self.rows + 1, "event") as number:
            start, stop, slot, frame, seen = (self._event(number, word) for word in range(EVENT_WORDS))
            with b.repeat(b.let(tirx.truncdiv(stop - start + (CHUNK - 1), int32(CHUNK))), "chunk") as chunk:
                first = b.let(start + chunk * CHUNK)
                self._span(first, b.let(tirx.Min(int32(CHUNK), stop - first)))
            with b.repeat(b.let(seen * shape.group), "query") as i:
                self._one(i, slot, self.old_values, self.old_value_scales, frame)
            before = b.let(frame * shape.group)
            with b.repeat(b.let(self.all - before), "query") as i:
                self._one(b.let(before + i), slot, self.values, self.value_scales, slot)

    def _span(self, first: Expr, count: Expr) -> None:
        """Adds slots that all frames see."""
        halves = 2 if self.shape.value_bits == 4 else 1
        size = self.shape.value_dim // halves
        for at, lanes in tiles(size, self.target.lanes * 4 // halves):
            queries = self._together(lanes * halves)
            with self.b.loop(self.all // queries, "tile") as tile:
                self._weighted_span(tile * queries, queries, (at, lanes, size), first, count)

    def _weighted_span(self, query: Expr, queries: int, part: tuple[int, int, int], first: Expr, count: Expr) -> None:
        b, shape = self.b, self.shape
        at, lanes, size = part
        sums = [[b.local("float32", lanes) for _ in range(shape.value_dim // size)] for _ in range(queries)]

        def place(g: int, half: int) -> Expr:
            return (query + g) * shape.value_dim + half * size + at

        for g, row in enumerate(sums):
            for half, memory in enumerate(row):
                b.store_vector(memory, 0, b.load_vector(self.out, place(g, half), lanes))
        with b.repeat(count, "slot") as n:
            slot = b.let(first + n)
            codes = b.load_vector(self.values, slot * size + at, lanes)
            parts = [b.let(x) for x in elements(b, codes, shape.value_bits)]
            for g, row in enumerate(sums):
                weight = self._weight(query + g, slot, self.value_scales, slot)
                for memory, x in zip(row, parts, strict=True):
                    b.store_vector(memory, 0, b.fma(splat(weight, lanes), x, b.load_vector(memory, 0, lanes)))
        for g, row in enumerate(sums):
            for half, memory in enumerate(row):
                b.store_vector(self.out, place(g, half), b.load_vector(memory, 0, lanes))

    def _weight(self, query: Expr, slot: Expr, scales: Buffer, row: Expr) -> Expr:
        weight = self.b.load_vector(self.scores, query * self.shape.pitch + slot, 1)
        if not coded(self.shape.value_bits):
            return weight
        return self.b.let(weight * self.b.load_vector(scales, row, 1))

    def _one(self, query: Expr, slot: Expr, values: Buffer, scales: Buffer, row: Expr) -> None:
        """Adds one row of values for one query."""
        b, shape = self.b, self.shape
        halves = 2 if shape.value_bits == 4 else 1
        size = shape.value_dim // halves
        weight = b.let(self._weight(query, slot, scales, row))
        for at, lanes in tiles(size, self.target.lanes * 4 // halves):
            codes = b.load_vector(values, row * size + at, lanes)
            for half, x in enumerate(elements(b, codes, shape.value_bits)):
                place = query * shape.value_dim + half * size + at
                total = b.fma(splat(weight, lanes), x, b.load_vector(self.out, place, lanes))
                b.store_vector(self.out, place, total)


def attend_rows(target: Target, shape: CacheShape) -> Any:
    """The kernel of one KV head and several frames, see ``_Rows``."""
    return _Rows(target, shape).make()
