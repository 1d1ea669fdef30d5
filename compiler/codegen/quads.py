"""Convolutions of codes over images whose channels lie last, by dot products of four codes, or of two, a lane.

The codes of one place's input channels lie side by side, so that four of them are one word for all lanes. Sums begin
with what the zero point adds over all places; places in the padding take their part of that back. Integer sums have no
order. Convolutions with a filter a channel are in columns.py, groups narrower than a vector in groups.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import accumulate
from math import prod

import numpy as np
from tvm import tirx

from runnel.compiler.codegen.arithmetic import CODES, Arithmetic
from runnel.compiler.codegen.builder import Buffer, Expr, constant, int32
from runnel.compiler.codegen.context import Context, View
from runnel.compiler.codegen.dots import QUAD, Dots
from runnel.compiler.codegen.images import Image, Tile, cut
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.totals import Totals, totals
from runnel.compiler.codegen.window import Axis
from runnel.compiler.lowering.frame import FrameNode

_UNROLL = 4
_NARROWEST = 4
Vectors = list[tuple[int, int, int]]


class Codes(Image):
    """What both kinds have in common: where sums begin, and places in the padding."""

    def __init__(
        self, context: Context, node: FrameNode, x: View, axes: Sequence[Axis], places: np.ndarray, dots: Dots
    ) -> None:
        """places: (taps, outer places, inner places, outputs): the sum of each place's weights."""
        node, bias = _with_bias(context, node)
        super().__init__(context, node, x, axes)
        self.dots = dots
        self.taps, self.above, self.inner_places = places.shape[:3]
        self.pitch = round_up(self.outputs, self.lanes) + self.lanes  # the last group's vector may begin anywhere
        self.zero_code = Arithmetic.of(context.b, node).zero
        zero = self._offset()
        self.starts = self._row("start", (bias - zero * places.astype(np.int64).sum((0, 1, 2)))[None])
        rows = np.concatenate([places, places.sum(2, keepdims=True)], axis=2).astype(np.int64)
        outside = any(axis.interior != (0, axis.count) for axis in axes)
        self.back = self._row("back", zero * rows.reshape(-1, self.outputs)) if outside else None

    def _offset(self) -> int:
        """The zero point of the codes that are multiplied."""
        return self.dots.zero

    def _row(self, name: str, values: np.ndarray) -> Buffer | None:
        if not values.any():
            return None
        wide = np.zeros((len(values), self.pitch), np.int32)
        wide[:, : self.outputs] = values
        return self.context.constant((id(self.node), name), wide)

    def wide_vectors(self, count: int) -> Vectors:
        """(first, lanes, real elements) of vectors over ``count`` channels, with lanes that dot products have."""
        found = []
        for first, lanes, real in self.vectors_of(count):
            found.append((first, max(lanes, _NARROWEST), real))
        return found

    def start(self, channel: Expr, lanes: int) -> Expr:
        """What sums begin with."""
        if self.starts is None:
            return constant(0, "int32", lanes)
        return self.b.let(self.b.load_vector(self.starts, channel, lanes))

    def begin(self, channel: Expr, lanes: int, totals: Sequence[Buffer]) -> None:
        start = self.start(channel, lanes)
        for total in totals:
            self.b.store_vector(total, 0, start)

    def added(self, number: Expr, place: int, channel: Expr, lanes: int) -> Expr:
        """What a place in the padding added to the start; ``place`` = the number of inner places for all of a row."""
        at = self.b.let((number * (self.inner_places + 1) + place) * self.pitch + channel)
        return self.b.let(self.b.load_vector(self.back, at, lanes))

    def take_back(self, number: Expr, place: int, channel: Expr, totals: Sequence[Buffer]) -> None:
        """Take off what a place in the padding added."""
        if self.back is None or not totals:
            return
        lanes = int(totals[0].shape[0])
        part = self.added(number, place, channel, lanes)
        for total in totals:
            self.b.store_vector(total, 0, self.b.load_vector(total, 0, lanes) + part)

    def store_all(self, q: Sequence[Expr], channel: Expr, values: Sequence[tuple[int, int, Expr]]) -> None:
        """The epilogue and the store of neighbouring vectors at a position: (first channel, real elements, sums).

        Codes of several whole vectors are narrowed and stored together.
        """
        most = LANES // self.lanes if self.context.group.output.dtype in CODES else 1
        left = list(values)
        while left:
            first, real, value = left[0]
            count = 1
            while 2 * count <= min(most, len(left)) and all(v[1] == self.lanes for v in left[: 2 * count]):
                count *= 2
            if count > 1:
                value = self.b.let(tirx.Shuffle([v[2] for v in left[:count]], list(range(count * self.lanes))))
                real = count * self.lanes
            self.store(q, channel + first, value, real)
            left = left[count:]

    def window(
        self, q: Sequence[Expr], inside: Callable[[Expr, Expr], None], outside: Callable[[Expr], None]
    ) -> None:  # fmt: skip
        """All taps and places of the outer axes: ``inside(offset in memory, number)``, or ``outside(number)``."""
        b = self.b
        with b.loop(self.taps, "tap") as tap, ExitStack() as stack:
            offset = b.let(self.x.tap(tap) + self.context.at_row(self.x.access))
            number: Expr = tap
            checks = []
            for axis, at, stride in zip(self.axes[:-1], q, self.strides, strict=False):
                n = stack.enter_context(b.loop(axis.taps, "n"))
                place = at * axis.in_step + axis.first + n * axis.step
                checks += [c for c in (place >= 0, place < axis.size) if not b.analyzer.can_prove(c)]
                offset = offset + place * stride
                number = number * axis.taps + n
            if not checks:
                inside(offset, number)
                return
            valid = checks[0]
            for check in checks[1:]:
                valid = tirx.And(valid, check)
            with b.when(valid):
                inside(offset, number)
            if self.back is not None:
                with b.when(tirx.Not(valid)):
                    outside(number)


class Dense(Codes):
    """All inputs of a group to all its outputs; vectors over outputs, words of codes in every lane."""

    def __init__(
        self, context: Context, node: FrameNode, x: View, axes: Sequence[Axis], w: np.ndarray, dots: Dots
    ) -> None:
        """w: (groups, taps, outer places, inner places, inputs, outputs)."""
        super().__init__(context, node, x, axes, places_of(w), dots)
        inner = self.axes[-1]
        self.groups, self.each, self.wide = len(w), w.shape[-2], w.shape[-1]
        # Places whose channels fill no words share them with their neighbours.
        self.joined = self.groups == 1 and bool(self.inputs % dots.size) and inner.step == 1 and inner.taps > 1
        runs = w.reshape(*w.shape[:3], 1, -1, self.wide) if self.joined else w
        self.runs, self.length = runs.shape[3], runs.shape[4]
        self.words = -(-self.length // dots.size)
        # The last word ends where the run ends, so that it can be loaded whole; codes seen before have weights of 0.
        self.last_word = max(self.length - dots.size, 0)
        vectors = self.wide_vectors(self.wide)
        depth = prod(runs.shape[1:4]) * self.words
        form = "blocks" if dots.block else "codes"
        schedule = context.schedule(form, "int32", inner.count, len(vectors), self.lanes, depth)
        self.positions, self.most = schedule.rows, schedule.vectors
        self.panels = [vectors[i : i + self.most] for i in range(0, len(vectors), self.most)]
        full = np.zeros((*runs.shape[:4], self.words * dots.size, round_up(self.wide, self.lanes)), dots.dtype)
        whole = (self.words - 1) * dots.size
        ahead = whole - self.last_word
        full[..., :whole, : self.wide] = runs[..., :whole, :]
        full[..., whole + ahead : whole + ahead + self.length - whole, : self.wide] = runs[..., whole:, :]
        words = full.reshape(*runs.shape[:4], self.words, dots.size, -1).swapaxes(-1, -2)
        panels = [words[..., p[0][0] : p[0][0] + sum(v[1] for v in p), :].reshape(len(w), -1) for p in self.panels]
        packed = np.concatenate(panels, axis=1)
        self.group_size = packed.shape[1]
        self.memory = context.constant((id(node), "w"), packed)

    def emit(self) -> None:
        """All rows, panels of outputs, and positions."""
        b = self.b
        whole = [p for p in self.panels if len(p) == self.most and all(v[1] == v[2] == self.lanes for v in p)]
        with b.loop(self.context.rows, "row") as row, b.loop(self.groups, "g") as group:
            self.context.row = row
            if whole:
                with b.loop(len(whole), "panel") as panel:
                    self._panel(group, panel * (self.most * self.lanes), whole[0])
            for p in self.panels[len(whole) :]:
                self._panel(group, int32(p[0][0]), [(first - p[0][0], lanes, real) for first, lanes, real in p])

    def _panel(self, group: Expr, first: Expr, vectors: Vectors) -> None:
        for tile in cut(self.axes[-1], self.positions):
            with self.positions_of(tile) as (outer, start):
                self._tile(group, first, vectors, outer, start, tile)

    def _tile(
        self, group: Expr, of_group: Expr, vectors: Vectors, outer: list[Expr], start: Expr, tile: Tile
    ) -> None:  # fmt: skip
        """of_group: the first output channel, counted within the group."""
        b, channel = self.b, group * self.wide + of_group
        sums = totals(b, self.dots, "int32", tile.size, [lanes for _, lanes, _ in vectors])
        for j, (first, lanes, _) in enumerate(vectors):
            sums.begin(j, self.start(channel + first, lanes))
        width = sum(lanes for _, lanes, _ in vectors)
        panel = of_group * (self.taps * self.above * self.runs * self.words * self.dots.size) + group * self.group_size

        def inside(offset: Expr, number: Expr) -> None:
            base = b.let(offset + self.inner_at(start, int32(0)) + group * self.each)
            packed = b.let(panel + number * (self.runs * self.words * width * self.dots.size))
            self._row_of_window(base, packed, number, tile, channel, vectors, sums)

        def outside(number: Expr) -> None:
            self._take_back(number, self.inner_places, channel, vectors, sums, range(tile.size))

        self.window(outer, inside, outside)
        for p in range(tile.size):
            made = [(first, real, sums.at(p, j)) for j, (first, _, real) in enumerate(vectors)]
            self.store_all([*outer, start + p], channel, made)

    def _take_back(
        self, number: Expr, place: int, channel: Expr, vectors: Vectors, sums: Totals, positions: Sequence[int]
    ) -> None:  # fmt: skip
        for j, (first, lanes, _) in enumerate(vectors if self.back is not None and positions else []):
            part = self.added(number, place, channel + first, lanes)
            for p in positions:
                sums.update(p, j, lambda total: total + part)  # noqa: B023

    def _row_of_window(
        self, base: Expr, packed: Expr, number: Expr, tile: Tile, channel: Expr, vectors: Vectors,
        sums: Totals,
    ) -> None:  # fmt: skip
        """The places of the innermost axis."""
        b, inner, size = self.b, self.axes[-1], self.dots.size
        width = sum(lanes for _, lanes, _ in vectors)
        everywhere = list(range(tile.size))
        if self.joined:
            for word in range(self.words):
                first = min(word * size, self.last_word)
                flat = range(first, first + size)
                load = partial(self._mixed, base, flat=flat, tile=tile)
                self._step(packed + word * (width * size), vectors, sums, everywhere, load)
            return
        if tile.inside is None and inner.step == 1 and self.groups == 1 and not self.length % size:
            self._words(base, packed, self.runs * self.words, vectors, sums, everywhere)
            return
        for n in range(inner.taps):
            positions = everywhere if tile.inside is None else list(tile.inside[n])
            if positions:
                first = b.let(base + n * (inner.step * self.place_step))
                at = b.let(packed + n * (self.words * width * size))
                self._words(first, at, self.words, vectors, sums, positions)
            beyond = [p for p in everywhere if p not in positions]
            self._take_back(number, n, channel, vectors, sums, beyond)

    def _words(
        self, first: Expr, packed: Expr, count: int, vectors: Vectors, sums: Totals,
        positions: Sequence[int],
    ) -> None:  # fmt: skip
        """``count`` words of codes from ``first`` on."""
        b, size = self.b, self.dots.size
        width = sum(lanes for _, lanes, _ in vectors)
        step = self.axes[-1].in_step * self.place_step
        rest = self.length % size
        whole = count - (1 if rest else 0)

        def word(at: Expr, number: Expr) -> None:
            length = min(size, self.length)
            load = lambda p: self._word([at + p * step + i if i < length else None for i in range(size)])  # noqa: E731
            self._step(packed + number * (width * size), vectors, sums, positions, load)

        with b.loop(whole // _UNROLL, "k") as k:
            for u in range(_UNROLL):
                word(first + (k * _UNROLL + u) * size, k * _UNROLL + u)
        for k in range(whole - whole % _UNROLL, whole):
            word(first + k * size, int32(k))
        if rest:
            word(first + self.last_word, int32(whole))

    def _step(
        self, weight: Expr, vectors: Vectors, sums: Totals, positions: Sequence[int], load: Callable[[int], Expr]
    ) -> None:
        """One word of codes of each position, times its weights."""
        ahead = [weight + first * self.dots.size for first in accumulate([0, *(lanes for _, lanes, _ in vectors[:-1])])]
        sums.multiply(self.memory, ahead, {p: partial(load, p) for p in positions})

    def _word(self, places: Sequence[Expr | None]) -> Expr:
        """Codes at these positions in memory, side by side; None: any code."""
        b, kind = self.b, str(self.x.value.dtype)
        if all(p is not None for p in places):
            return b.let(b.load_vector(self.x.memory, places[0], len(places)))
        codes = [constant(0, kind) if p is None else b.load_vector(self.x.memory, p, 1) for p in places]
        return b.let(tirx.Shuffle(codes, list(range(len(codes)))))

    def _mixed(self, base: Expr, p: int, flat: Sequence[int], tile: Tile) -> Expr:
        """A word of codes of neighbouring places, of which some may lie in the padding."""
        b, inner, kind = self.b, self.axes[-1], str(self.x.value.dtype)
        at = base + p * (inner.in_step * self.place_step)
        codes: list[Expr] = []
        for k in flat:
            place = k // self.inputs
            if k >= self.length or (tile.inside is not None and p not in tile.inside[place]):
                codes.append(constant(self.zero_code, kind))
            else:
                codes.append(None)
        if all(c is None for c in codes):
            return b.let(b.load_vector(self.x.memory, at + flat[0], len(flat)))
        there = [k for k, c in zip(flat, codes, strict=True) if c is None]
        if len(flat) == QUAD and len(there) > 1 and inner.size * self.inputs >= QUAD and _one_end(codes):
            return self._shifted(at, flat, there, kind)
        loaded = [b.load_vector(self.x.memory, at + k, 1) if c is None else c for k, c in zip(flat, codes, strict=True)]
        return b.let(tirx.Shuffle(loaded, list(range(len(loaded)))))

    def _shifted(self, at: Expr, flat: Sequence[int], there: Sequence[int], kind: str) -> Expr:
        """A word whose codes lie in memory at one end only: the word of the row that begins or ends there, moved."""
        b, missing = self.b, QUAD - len(there)
        low = there[0] == flat[0]  # the last codes are missing: the word that ends where the codes do
        first = there[-1] - QUAD + 1 if low else there[0]
        word = tirx.reinterpret("uint32", b.let(b.load_vector(self.x.memory, at + first, QUAD)))
        by = constant(8 * missing, "uint32")
        code = self.zero_code & 0xFF
        places = range(len(there), QUAD) if low else range(missing)
        padding = constant(sum(code << 8 * i for i in places), "uint32")
        moved = tirx.shift_right(word, by) if low else tirx.shift_left(word, by)
        return b.let(tirx.reinterpret(f"{kind}x{QUAD}", b.let(tirx.bitwise_or(moved, padding))))


def _one_end(codes: Sequence[Expr | None]) -> bool:
    """Whether what is known (None: it lies in memory) stands at one end."""
    known = [c is not None for c in codes]
    return known in (sorted(known), sorted(known, reverse=True))


def places_of(w: np.ndarray) -> np.ndarray:
    """The sums of each place's weights. w: (groups, taps, outer places, inner places, inputs, outputs)."""
    sums = np.moveaxis(w.sum(4, dtype=np.int64), 0, 3)
    return sums.reshape(*sums.shape[:3], -1)


def _with_bias(context: Context, node: FrameNode) -> tuple[FrameNode, np.ndarray]:
    """The node together with the addition of a constant that follows it, and that constant (outputs,)."""
    readers = [n for n in context.group.nodes if any(x is node.output for x in n.inputs)]
    outputs = node.output.shape[-1]
    if len(readers) == 1 and readers[0].op == "add" and context.group.output is not node.output:
        bias = next((v for v in readers[0].inputs if isinstance(v, np.ndarray)), None)
        if bias is not None and bias.size in (1, outputs) and (bias.size == 1 or bias.shape[-1] == outputs):
            return replace(node, output=readers[0].output), bias.reshape(-1).astype(np.int64)
    return node, np.zeros(1, np.int64)
