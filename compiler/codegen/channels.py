"""Dense convolutions over images whose channels lie last: frames (1, *S, C).

Vectors go over channels. A kernel holds a tile of positions of the innermost axis by a few vectors of output
channels in registers; weights are packed [panel][tap, place][input channel][width]. Sums run bias first, taps oldest
first, then places, then input channels; places in the padding are left out. The tiles at an image's edges are code of
their own, in which it is known which places lie inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from runnel.compiler.codegen.arithmetic import Arithmetic
from runnel.compiler.codegen.builder import Expr, int32, splat
from runnel.compiler.codegen.context import Context, View
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.filters import emit_filters
from runnel.compiler.codegen.images import Image, Tile, cut, image_axes
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.window import Axis, windows
from runnel.compiler.lowering.frame import FrameNode


class _Dense(Image):
    """All input channels of a group to all of its output channels."""

    def __init__(self, context: Context, node: FrameNode, x: View, axes: Sequence[Axis], w: np.ndarray) -> None:
        """w: (groups, taps, places, inputs, outputs)."""
        super().__init__(context, node, x, axes)
        self.sums = Arithmetic.of(context.b, node)
        self.groups, self.taps, self.places, self.each, self.wide = w.shape
        vectors = self.vectors_of(self.wide)
        inner = self.axes[-1]
        depth = self.taps * self.places * self.each
        schedule = context.schedule("image", self.sums.kind, inner.count, len(vectors), self.lanes, depth)
        self.positions, self.vectors = schedule.rows, schedule.vectors
        self.panels = [vectors[i : i + self.vectors] for i in range(0, len(vectors), self.vectors)]
        packed = [w[..., p[0][0] : p[-1][0] + p[-1][2]] for p in self.panels]
        widths = [sum(lanes for _, lanes, _ in p) for p in self.panels]
        padded = [np.pad(p, [(0, 0)] * 4 + [(0, n - p.shape[-1])]) for p, n in zip(packed, widths, strict=True)]
        panels = np.concatenate([p.reshape(len(w), -1) for p in padded], axis=1)
        self.group_size = panels.shape[1]
        self.memory = context.constant((id(node), "w"), panels)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        self.bias = None
        if bias is not None:
            values = np.zeros(round_up(self.outputs, LANES) + LANES, np.float32)  # groups' vectors begin anywhere
            values[: self.outputs] = np.asarray(bias).reshape(-1)
            self.bias = context.constant((id(node), "b"), values)

    def emit(self) -> None:
        b = self.b
        whole = [p for p in self.panels if all(real == lanes == self.lanes for _, lanes, real in p)]
        whole = [p for p in whole if len(p) == self.vectors]
        width = self.vectors * self.lanes
        with b.loop(self.context.rows, "row") as row, b.loop(self.groups, "g") as group:
            self.context.row = row
            if whole:
                with b.loop(len(whole), "panel") as panel:
                    self._panel(group, panel * width, whole[0])
            for p in self.panels[len(whole) :]:
                self._panel(group, int32(p[0][0]), [(i - p[0][0], lanes, real) for i, lanes, real in p])

    def _panel(self, group: Expr, first: Expr, vectors: list[tuple[int, int, int]]) -> None:
        for tile in cut(self.axes[-1], self.positions):
            with self.positions_of(tile) as (outer, start):
                self._tile(group, first, vectors, outer, start, tile)

    def _tile(
        self, group: Expr, of_group: Expr, vectors: list[tuple[int, int, int]], outer: list[Expr], start: Expr,
        tile: Tile,
    ) -> None:  # fmt: skip
        """of_group: the first output channel, counted within the group."""
        b, inner, channel = self.b, self.axes[-1], group * self.wide + of_group
        totals = [[b.local(self.sums.kind, lanes) for _, lanes, _ in vectors] for _ in range(tile.size)]
        for j, (first, lanes, _) in enumerate(vectors):
            value = self.sums.start(lanes)
            if self.bias is not None:
                value = b.let(b.load_vector(self.bias, channel + first, lanes))
            for row in totals:
                b.store_vector(row[j], 0, value)
        width = sum(lanes for _, lanes, _ in vectors)
        panel = of_group * (self.taps * self.places * self.each) + group * self.group_size

        def step(source: Expr, weight: Expr, positions: Sequence[int]) -> None:
            """One input channel and place, at the given positions of the tile."""
            ws = []
            at = 0
            for _, lanes, _ in vectors:
                ws.append(b.let(self.sums.weight(b.load_vector(self.memory, weight + at, lanes))))
                at += lanes
            for p in positions:
                x = self.sums.input(b.load_vector(self.x.memory, source + p * (inner.in_step * self.place_step), 1))
                for j, (_, lanes, _) in enumerate(vectors):
                    total = self.sums.add_product(splat(x, lanes), ws[j], b.load_vector(totals[p][j], 0, lanes))
                    b.store_vector(totals[p][j], 0, total)

        with b.loop(self.taps, "tap") as tap:
            frame = b.let(self.x.tap(tap) + self.context.at_row(self.x.access))
            with self.outer_places(outer) as (offset, number):
                base = b.let(frame + offset + group * (self.each * self.channel_step))
                packed = b.let(panel + (tap * self.places + number * inner.taps) * (self.each * width))
                self._inner(base, packed, width, start, tile, step)
        for p, row in enumerate(totals):
            for j, (first, lanes, real) in enumerate(vectors):
                self.store([*outer, start + p], channel + first, b.load_vector(row[j], 0, lanes), real)

    def _inner(
        self, base: Expr, packed: Expr, width: int, start: Expr, tile: Tile,
        step: Callable[[Expr, Expr, Sequence[int]], None],
    ) -> None:  # fmt: skip
        """Loops over the places of the innermost axis and the input channels."""
        b, inner = self.b, self.axes[-1]
        for first, count, positions in tile.places(inner.taps):
            if self.last and inner.step == 1 and self.groups == 1:  # places and channels lie one after the other
                source = b.let(base + self.inner_at(start, int32(first)))
                weight = b.let(packed + first * self.each * width)
                with b.loop(count * self.each, "k") as k:
                    step(source + k, weight + k * width, positions)
                continue
            with b.loop(count, "n") as i:
                source = b.let(base + self.inner_at(start, i + first))
                weight = b.let(packed + (i + first) * (self.each * width))
                with b.loop(self.each, "c") as c:
                    step(source + c * self.channel_step, weight + c * width, positions)


def emit_conv(context: Context, node: FrameNode) -> None:
    """conv of images: in groups, or one filter a channel."""
    x = view_of(context, node)
    w = Arithmetic.of(context.b, node).weights(np.asarray(node.inputs[1]))
    groups, kernel = int(node.attrs.get("group", 1)), w.shape[3:]
    last = node.attrs["channels_last"] == "both"
    sizes = x.value.shape[1:-1] if last else x.value.shape[2:]
    channels = x.value.shape[-1] if last else x.value.shape[1]
    out = node.output.shape[1:-1]
    if w.shape[2] != x.access.taps or w.shape[1] * groups != channels or w.shape[0] != node.output.shape[-1]:
        raise Unsupported("conv", f"weights {w.shape} do not fit {x.access.taps} taps of {x.value.shape}")
    axes = image_axes(node, sizes, out, kernel)
    if groups == channels == w.shape[0] and last:
        emit_filters(context, node, x, axes, w.reshape(groups, w.shape[2], -1).transpose(1, 2, 0))
        return
    if prod(kernel) == 1 and sizes == out and all(a.in_step == 1 and not a.first for a in axes):
        axes = [windows(prod(sizes), prod(out), 1, 1, 1, 0)]
    packed = w.reshape(groups, w.shape[0] // groups, w.shape[1], w.shape[2], -1).transpose(0, 3, 4, 2, 1)
    _Dense(context, node, x, axes, packed).emit()
