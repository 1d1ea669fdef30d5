"""Convolutions of images of codes in groups of few channels: a vector takes the outputs of several groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import tirx

from runnel.compiler.codegen.builder import Expr, int32, lanes_of
from runnel.compiler.codegen.context import Context, View
from runnel.compiler.codegen.dots import Dots
from runnel.compiler.codegen.images import Tile, cut
from runnel.compiler.codegen.quads import Codes, places_of
from runnel.compiler.codegen.window import Axis
from runnel.compiler.lowering.frame import FrameNode

_POSITIONS = 6
_LOADED = 64  # codes of a place that one load brings


def is_narrow(lanes: int, dots: Dots, inputs: int, outputs: int) -> bool:
    """Whether whole groups of so many channels fill a vector, and their inputs words of codes."""
    return outputs < lanes and lanes % outputs == 0 and inputs % dots.size == 0


class Narrow(Codes):
    """Vectors over the outputs of several groups; each lane has the codes of its own group."""

    def __init__(
        self, context: Context, node: FrameNode, x: View, axes: Sequence[Axis], w: np.ndarray, dots: Dots
    ) -> None:
        """w: (groups, taps, outer places, inner places, inputs, outputs)."""
        super().__init__(context, node, x, axes, places_of(w), dots)
        self.each, self.wide = w.shape[-2:]
        self.words = self.each // dots.size
        apart = np.moveaxis(w, 0, -2).reshape(*w.shape[1:4], self.words, dots.size, -1)
        packed = np.zeros((*apart.shape[:-2], self.pitch, dots.size), dots.dtype)
        packed[..., : self.outputs, :] = apart.swapaxes(-1, -2)
        self.memory = context.constant((id(node), "w"), packed)

    def _offset(self) -> int:
        return self.dots.code_zero if self.dots.wide else self.dots.zero

    def emit(self) -> None:
        """All rows, positions and channels."""
        b = self.b
        vectors = self.wide_vectors(self.outputs)
        whole = [v for v in vectors if v[2] == self.lanes]
        with b.loop(self.context.rows, "row") as row:
            self.context.row = row
            for tile in cut(self.axes[-1], _POSITIONS):
                with self.positions_of(tile) as (outer, start):
                    with b.loop(len(whole), "c") as c:
                        if whole:
                            self._vector(outer, start, tile, c, self.lanes, self.lanes)
                    for first, lanes, real in vectors[len(whole) :]:
                        self._vector(outer, start, tile, int32(first // self.lanes), lanes, real)

    def _vector(
        self, outer: list[Expr], start: Expr, tile: Tile, number: Expr, lanes: int, real: int
    ) -> None:  # fmt: skip
        """Vector ``number`` of the outputs, of whose ``lanes`` only the first ``real`` may be elements."""
        b, inner, size = self.b, self.axes[-1], self.dots.size
        channel = number * self.lanes
        totals = [b.local("int32", lanes) for _ in range(tile.size)]
        self.begin(channel, lanes, totals)
        source = number * (self.lanes // self.wide * self.each)
        step = self.words * self.pitch * size

        def inside(offset: Expr, number: Expr) -> None:
            base = b.let(offset + self.inner_at(start, int32(0)) + source)
            packed = b.let(number * (inner.taps * step) + channel * size)
            known: dict[int, list[Expr]] = {}
            for n in range(inner.taps):
                positions = [p for p in range(tile.size) if tile.inside is None or p in tile.inside[n]]
                if positions:
                    ws = [packed + n * step + k * (self.pitch * size) for k in range(self.words)]
                    weights = [b.let(b.load_vector(self.memory, at, size * lanes)) for at in ws]
                for p in positions:
                    place = p * inner.in_step + n * inner.step
                    if place not in known:
                        known[place] = self._codes(base + place * self.place_step, lanes, real)
                    for codes, weight in zip(known[place], weights, strict=True):
                        total = b.load_vector(totals[p], 0, lanes)
                        b.store_vector(totals[p], 0, self.dots.add(codes, weight, total))
                self.take_back(number, n, channel, [totals[p] for p in range(tile.size) if p not in positions])

        self.window(outer, inside, lambda number: self.take_back(number, self.inner_places, channel, totals))
        for p, total in enumerate(totals):
            self.store([*outer, start + p], channel, b.load_vector(total, 0, lanes), real)

    def _codes(self, at: Expr, lanes: int, real: int) -> list[Expr]:
        """Each word of the groups' codes of a place, in the lanes of their groups."""
        b, size = self.b, self.dots.size
        count = -(-real // self.wide)
        groups = [min(lane, real - 1) // self.wide for lane in range(lanes)]
        length = count * self.each
        whole = length <= _LOADED and length & (length - 1) == 0
        block = b.let(b.load_vector(self.x.memory, at, length)) if whole else None
        mixed = []
        for k in range(self.words):
            first = [g * self.each + k * size for g in range(count)]
            parts = [block] if whole else [b.load_vector(self.x.memory, at + i, size) for i in first]
            order = [(first[g] if whole else g * size) + i for g in groups for i in range(size)]
            parts *= -(-len(order) // sum(map(lanes_of, parts)))  # the result has no more elements than they have
            mixed.append(self.dots.lanewise(b.let(tirx.Shuffle(parts, order))))
        return mixed
