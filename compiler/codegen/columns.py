"""Convolutions of images of codes with a filter a channel, and which convolutions dot products make."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
from tvm import tirx

from runnel.compiler.codegen.arithmetic import Arithmetic
from runnel.compiler.codegen.builder import Expr, constant, dtype_of, int32, lanes_of, shuffle, splat
from runnel.compiler.codegen.context import FEWEST_TURNS, Context, View
from runnel.compiler.codegen.dots import EIGHT, QUAD, Dots
from runnel.compiler.codegen.groups import Narrow, is_narrow
from runnel.compiler.codegen.images import Tile, cut, image_axes
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.codegen.memory import LANES
from runnel.compiler.codegen.neighbours import zipped
from runnel.compiler.codegen.quads import Codes, Dense
from runnel.compiler.codegen.window import Axis, windows
from runnel.compiler.lowering.frame import FrameNode


class Filters(Codes):
    """A filter a channel: vectors over channels. The codes of one column of the window, over taps and outer places, are
    interleaved once for all positions that read them."""

    def __init__(
        self, context: Context, node: FrameNode, x: View, axes: Sequence[Axis], w: np.ndarray, dots: Dots
    ) -> None:
        """w: (taps, outer places, inner places, channels)."""
        super().__init__(context, node, x, axes, w, dots)
        size = dots.size
        column = w.reshape(-1, *w.shape[2:])
        self.groups = -(-len(column) // size)
        full = np.zeros((self.groups * size, w.shape[2], self.pitch), dots.dtype)
        full[: len(column), :, : self.outputs] = column
        # Arm's vectors have four lanes, and sixteen codes of one place.
        self.together = LANES // self.lanes if context.target.arch == "aarch64" else 1
        packed = full.reshape(self.groups, size, w.shape[2], self.pitch).transpose(2, 0, 3, 1)
        self.memory = context.constant((id(node), "w"), packed)

    def _offset(self) -> int:
        return self.dots.code_zero if self.dots.wide else self.dots.zero

    def emit(self) -> None:
        """All rows, positions and channels."""
        b = self.b
        each = self.axes[-1].taps * self.groups * self.together
        spare = self.context.target.registers - each - 4
        most = min(max(spare // (2 if self.together == 1 else self.together + 1), 2), 8)
        with b.loop(self.context.rows, "row") as row:
            self.context.row = row
            for tile, (checked, ranges) in product(cut(self.axes[-1], most), self._outer_ranges()):
                with ExitStack() as stack:
                    counts = [*(n for _, n in ranges), tile.repeat]
                    shared = next((i for i, n in enumerate(counts) if n >= FEWEST_TURNS), -1)
                    loops = [self.context.spread if i == shared else b.loop for i in range(len(counts))]
                    *at, turn = [stack.enter_context(loop(n, "q")) for loop, n in zip(loops, counts, strict=True)]
                    outer = [q + first for q, (first, _) in zip(at, ranges, strict=True)]
                    self._channels(outer, turn * tile.size + tile.first, tile, checked)

    def _outer_ranges(self) -> list[tuple[bool, list[tuple[int, int]]]]:
        """Parts of the outer positions, (first, count) an axis, and whether windows may reach into the padding."""
        outer = self.axes[:-1]
        everywhere = [(0, axis.count) for axis in outer]
        if len(outer) != 1 or outer[0].interior in ((0, 0), everywhere[0]):
            return [(any(axis.interior != (0, axis.count) for axis in outer), everywhere)]
        begin, end = outer[0].interior
        parts = [(True, 0, begin), (False, begin, end), (True, end, outer[0].count)]
        return [(checked, [(first, last - first)]) for checked, first, last in parts if last > first]

    def _channels(self, outer: list[Expr], start: Expr, tile: Tile, checked: bool) -> None:
        b = self.b
        rows = self._places(outer, checked)
        at = self.inner_at(start, int32(0))
        bases = [(b.let(offset + at), valid) for offset, valid in rows]
        vectors = self.wide_vectors(self.outputs)
        done = 0
        for together in sorted({self.together, -(-self.together // 2), 1}, reverse=True):
            count = sum(v[2] == self.lanes for v in vectors[done:]) // together
            with b.loop(count, "c") as c:
                if count:
                    channel = c * (together * self.lanes) + done * self.lanes
                    self._vectors(bases, outer, start, tile, channel, self.lanes, [self.lanes] * together)
            done += count * together
        for first, lanes, real in vectors[done:]:
            self._vectors(bases, outer, start, tile, int32(first), lanes, [real])

    def _places(self, outer: list[Expr], checked: bool) -> list[tuple[Expr, Expr | None]]:
        """Where the frame or row of every tap and outer place begins, and what must hold for it to be inside."""
        b, found = self.b, []
        for tap, *places in product(range(self.taps), *(range(axis.taps) for axis in self.axes[:-1])):
            offset = self.x.tap(int32(tap)) + self.context.at_row(self.x.access)
            valid: Expr | None = None
            for axis, at, n, stride in zip(self.axes[:-1], outer, places, self.strides, strict=False):
                place = at * axis.in_step + (axis.first + n * axis.step)
                if checked:
                    inside = tirx.And(place >= 0, place < axis.size)
                    valid = inside if valid is None else tirx.And(valid, inside)
                    place = tirx.max(tirx.min(place, int32(axis.size - 1)), int32(0))
                offset = offset + place * stride
            found.append((b.let(offset), None if valid is None else b.let(valid)))
        return found

    def _vectors(
        self, rows: list[tuple[Expr, Expr | None]], outer: list[Expr], start: Expr, tile: Tile, channel: Expr,
        lanes: int, real: list[int],
    ) -> None:  # fmt: skip
        """Neighbouring vectors of so many ``real`` channels each."""
        b, inner, size = self.b, self.axes[-1], self.dots.size
        vectors = range(len(real))
        totals = [[b.local("int32", lanes) for _ in vectors] for _ in range(tile.size)]
        for v in vectors:
            self.begin(channel + v * lanes, lanes, [row[v] for row in totals])
        uses: dict[int, list[tuple[int, int]]] = {}
        for p, n in product(range(tile.size), range(inner.taps)):
            uses.setdefault(p * inner.in_step + n * inner.step, []).append((p, n))
        weights = {}
        for n, group, v in product(range(inner.taps), range(self.groups), vectors):
            at = ((n * self.groups + group) * self.pitch + channel + v * lanes) * size
            weights[n, group, v] = b.let(b.load_vector(self.memory, at, size * lanes))
        width = len(real) * lanes
        padding = constant(self.zero_code, str(self.x.value.dtype), size * lanes)
        for column, readers in uses.items():
            inside = tile.inside is None or readers[0][0] in tile.inside[readers[0][1]]
            at = channel + column * self.place_step
            parts = [self._load(row, at, width, sum(real)) for row in rows] if inside else []
            parts += parts[-1:] * (-len(parts) % size)
            for group in range(self.groups):
                mixed = [padding] * len(real)
                if inside:
                    mixed = self._mixed(parts[group * size : (group + 1) * size], lanes)
                for v, codes in enumerate(map(self.dots.lanewise, mixed)):
                    for p, n in readers:
                        total = b.load_vector(totals[p][v], 0, lanes)
                        b.store_vector(totals[p][v], 0, self.dots.add(codes, weights[n, group, v], total))
        for p, row in enumerate(totals):
            made = [(v * lanes, real[v], b.load_vector(total, 0, lanes)) for v, total in enumerate(row)]
            self.store_all([*outer, start + p], channel, made)

    def _mixed(self, parts: list[Expr], lanes: int) -> list[Expr]:
        """The parts' codes side by side for each channel, in vectors of ``lanes`` channels."""
        b, width = self.b, lanes_of(parts[0])
        if width == len(parts) == QUAD:
            words = tirx.Shuffle([b.let(tirx.reinterpret("int32", part)) for part in parts], list(range(QUAD)))
            codes = b.let(tirx.reinterpret(f"{dtype_of(parts[0])}x{QUAD * QUAD}", words))
            return [b.let(shuffle(codes, [i * QUAD + k for k, i in product(range(QUAD), range(QUAD))]))]
        if width == lanes:
            return [b.let(tirx.Shuffle(parts, [i * lanes + k for k, i in product(range(lanes), range(len(parts)))]))]
        step = lanes * len(parts)
        turns, each = zipped(b.let, parts), step // width
        if each > 1:
            joined = [turns[i : i + each] for i in range(0, len(turns), each)]
            return [b.let(tirx.Shuffle(vectors, list(range(step)))) for vectors in joined]
        return [b.let(shuffle(v, range(i, i + step))) for v in turns for i in range(0, width, step)]

    def _load(self, row: tuple[Expr, Expr | None], at: Expr, lanes: int, real: int) -> Expr:
        """Codes of ``lanes`` channels, of which ``real`` lie in memory; the zero point outside of the image."""
        b, kind = self.b, str(self.x.value.dtype)
        first, valid = b.let(row[0] + at), row[1]
        if real == lanes:
            codes = b.load_vector(self.x.memory, first, lanes)
        else:
            each = [b.load_vector(self.x.memory, first + min(i, real - 1), 1) for i in range(lanes)]
            codes = tirx.Shuffle(each, list(range(lanes)))
        if valid is not None:
            codes = tirx.Select(splat(valid, lanes), codes, constant(self.zero_code, kind, lanes))
        return b.let(codes)


def emit_conv(context: Context, node: FrameNode) -> bool:
    """conv of images of codes, or of frames in groups narrower than a vector; False for others, and where there are no
    dots."""
    x, sums = view_of(context, node), Arithmetic.of(context.b, node)
    w, groups = np.asarray(node.inputs[1]), int(node.attrs.get("group", 1))
    dots = Dots.of(context.target, sums, str(x.value.dtype), w)
    outputs, inputs, taps, *kernel = w.shape
    image = node.attrs.get("channels_last") == "both"
    if dots is None or not (image or (groups > 1 and not kernel)):  # a frame of channels alone is an image of one place
        return False
    node = replace(node, attrs=node.attrs | {"channels_last": "both"})
    sizes, out = x.value.shape[1:-1], node.output.shape[1:-1]
    each = groups == x.value.shape[-1] == outputs
    if taps != x.access.taps or inputs * groups != x.value.shape[-1]:
        return False
    narrow = groups > 1 and is_narrow(min(context.target.lanes, LANES), dots, inputs, outputs // groups)
    if not (image or each or narrow):
        return False
    axes = image_axes(node, sizes, out, kernel)
    if prod(kernel) == 1 and sizes == out and all(a.in_step == 1 and not a.first for a in axes):
        axes = [windows(prod(sizes), prod(out), 1, 1, 1, 0)]
    packed = w.reshape(groups, outputs // groups, inputs, taps, -1, axes[-1].taps).transpose(0, 3, 4, 5, 2, 1)
    if each:
        Filters(context, node, x, axes, np.moveaxis(packed[..., 0, 0], 0, -1), dots).emit()
    elif narrow:
        Narrow(context, node, x, axes, packed, dots).emit()
    else:
        run = inputs * (axes[-1].taps if groups == 1 and axes[-1].step == 1 else 1)
        several = axes[-1].count > 1 and run >= EIGHT
        dots = Dots.of(context.target, sums, str(x.value.dtype), w, several) or dots
        Dense(context, node, x, axes, packed, dots).emit()
    return True
