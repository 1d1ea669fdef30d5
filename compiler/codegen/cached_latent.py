"""Attention to keys whose first features are the values (latent attention in its absorbed form): slots lie in rows, of
which scores take all and sums of values the beginning, so that nothing is stored twice."""

from __future__ import annotations

from typing import Any

from runnel.compiler.codegen.builder import Expr, constant, int32
from runnel.compiler.codegen.cache_shape import CacheShape, coded
from runnel.compiler.codegen.cached import AttendKernel, elements, tiles
from runnel.compiler.codegen.reduce import tree_sum
from runnel.compiler.codegen.target import Target

TOGETHER = 8
"""Query heads whose products with one key are summed at once."""


class _Latent(AttendKernel):
    """As ``AttendKernel``, with keys for values."""

    def __init__(self, target: Target, shape: CacheShape) -> None:
        super().__init__(target, shape)
        self.values, self.value_scales = self.keys, self.key_scales
        self.stride = shape.key_dim

    def _all_scores(self) -> None:
        b, shape = self.b, self.shape
        if shape.ranked:
            super()._all_scores()
            return
        with b.repeat(self.count, "slot") as slot:
            self._slot(slot, int32(0))
        if shape.apart:
            with b.repeat(self.split, "slot") as slot:
                self._slot(slot, int32(self.seconds))

    def _slot(self, slot: Expr, queries: Expr) -> None:
        """The scores of one slot."""
        shape = self.shape
        for first in range(0, shape.group, TOGETHER):
            count = min(TOGETHER, shape.group - first)
            base = queries + (self.head * shape.group + first) * shape.key_dim
            self._products(slot, base, count, first * shape.pitch)

    def _products(self, slot: Expr, queries: Expr, count: int, into: int) -> None:
        b, shape = self.b, self.shape
        size = shape.key_dim
        first, *rest = tiles(size, self.target.lanes)
        lanes = first[1]
        sums = [b.local("float32", lanes) for _ in range(count)]
        for memory in sums:
            b.store_vector(memory, 0, constant(0.0, "float32", lanes))
        with b.loop(size // lanes, "part") as part:
            (key,) = elements(b, b.load_vector(self.keys, slot * size + part * lanes, lanes), shape.key_bits)
            for g, memory in enumerate(sums):
                q = b.load_vector(self.query, queries + g * size + part * lanes, lanes)
                b.store_vector(memory, 0, b.fma(q, key, b.load_vector(memory, 0, lanes)))
        scores = [tree_sum(b, b.load_vector(memory, 0, lanes)) for memory in sums]
        for at, narrow in rest:
            if narrow == lanes:
                continue
            (key,) = elements(b, b.load_vector(self.keys, slot * size + at, narrow), shape.key_bits)
            for g, score in enumerate(scores):
                q = b.load_vector(self.query, queries + g * size + at, narrow)
                scores[g] = b.let(score + tree_sum(b, b.let(q * key)))
        for g, score in enumerate(scores):
            if coded(shape.key_bits):
                score = b.let(score * b.load_vector(self.key_scales, slot, 1))
            b.store_vector(self.scores, into + g * shape.pitch + slot, score)


def attend_latent(target: Target, shape: CacheShape) -> Any:
    """The kernel of one KV head, see ``AttendKernel``."""
    return _Latent(target, shape).make()
