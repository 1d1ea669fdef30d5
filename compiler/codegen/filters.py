"""One filter a channel, and pools, over images whose channels lie last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from runnel.compiler.codegen import math as m
from runnel.compiler.codegen import ops
from runnel.compiler.codegen.arithmetic import Arithmetic, lowest
from runnel.compiler.codegen.builder import Expr, constant, int32, splat
from runnel.compiler.codegen.context import Context, View
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.images import Image, Tile, cut, image_axes
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.window import Axis
from runnel.compiler.lowering.frame import FrameNode

_UNROLLED = 9
"""Places of a row of the window up to which columns are loaded once for all."""


class _Each(Image):
    """Every channel by itself: a filter, or a pool. A column of the input is loaded once for all that read it."""

    def emit(self, most: int, column: Callable[[list[Expr], Expr, Tile, Expr, int], None]) -> None:
        """Call ``column`` (outer position, first inner position, tile, first channel, real channels) for all."""
        b = self.b
        vectors = self.vectors_of(self.outputs)
        whole = [p for p in vectors if p[2] == self.lanes]
        with b.loop(self.context.rows, "row") as row:
            self.context.row = row
            for tile in cut(self.axes[-1], most):
                with self.positions_of(tile) as (outer, start):
                    with b.loop(len(whole), "c") as c:
                        if whole:
                            column(outer, start, tile, c * self.lanes, self.lanes)
                    for first, _, real in vectors[len(whole) :]:
                        at = 0
                        while at < real:  # never past the last channel: the next position lies there
                            lanes = 1 << ((real - at).bit_length() - 1)
                            column(outer, start, tile, int32(first + at), lanes)
                            at += lanes

    def places(
        self, outer: list[Expr], start: Expr, tile: Tile, channel: Expr, lanes: int,
        step: Callable[[Expr, Expr, int, Expr], None],
    ) -> None:  # fmt: skip
        """Call ``step(number of the tap and outer places, inner place, position of the tile, input)`` for all."""
        b, inner = self.b, self.axes[-1]
        with b.loop(self.x.access.taps, "tap") as tap:
            frame = b.let(self.x.tap(tap) + self.context.at_row(self.x.access))
            with self.outer_places(outer) as (offset, number):
                base = b.let(frame + offset + self.inner_at(start, int32(0)) + channel)
                count = prod(a.taps for a in self.axes[:-1])
                number = b.let(tap * count + number)
                columns: dict[int, Expr] = {}

                def load(at: Expr) -> Expr:
                    return b.let(b.load_vector(self.x.memory, base + at * self.place_step, lanes))

                def column(at: int) -> Expr:
                    if at not in columns:
                        columns[at] = load(at)
                    return columns[at]

                for first, count, positions in tile.places(inner.taps):
                    if inner.taps > _UNROLLED:
                        with b.loop(count, "n") as i:
                            place = i + first
                            for p in positions:
                                step(number, place, p, load(place * inner.step + p * inner.in_step))
                        continue
                    for n in range(first, first + count):
                        place = int32(n)
                        for p in positions:
                            step(number, place, p, column(p * inner.in_step + n * inner.step))


def emit_filters(context: Context, node: FrameNode, x: View, axes: Sequence[Axis], w: np.ndarray) -> None:
    """w: (taps, places, channels)."""
    image, b, sums = _Each(context, node, x, axes), context.b, Arithmetic.of(context.b, node)
    pitch = round_up(image.outputs, LANES)
    packed = np.zeros((*w.shape[:2], pitch), w.dtype)
    packed[..., : image.outputs] = w
    memory = context.constant((id(node), "w"), packed)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    biases = None
    if bias is not None:
        values = np.zeros(pitch, np.float32)
        values[: image.outputs] = np.asarray(bias).reshape(-1)
        biases = context.constant((id(node), "b"), values)
    kernel = axes[-1].taps

    def column(outer: list[Expr], start: Expr, tile: Tile, channel: Expr, lanes: int) -> None:
        totals = [b.local(sums.kind, lanes) for _ in range(tile.size)]
        first = sums.start(lanes) if biases is None else b.let(b.load_vector(biases, channel, lanes))
        for total in totals:
            b.store_vector(total, 0, first)
        loaded: list[Expr] = []

        def step(number: Expr, n: Expr, p: int, value: Expr) -> None:
            if not loaded or loaded[0] is not n:
                at = (number * kernel + n) * pitch + channel
                loaded[:] = n, b.let(sums.weight(b.load_vector(memory, at, lanes)))
            total = sums.add_product(sums.input(value), loaded[1], b.load_vector(totals[p], 0, lanes))
            b.store_vector(totals[p], 0, total)

        image.places(outer, start, tile, channel, lanes, step)
        for p, total in enumerate(totals):
            image.store([*outer, start + p], channel, b.load_vector(total, 0, lanes), lanes)

    most = max(2, (context.target.registers - kernel) // 3)
    image.emit(min(most, 8), column)


def emit_pool(context: Context, node: FrameNode) -> None:
    """max_pool and avg_pool of images."""
    x, b = view_of(context, node), context.b
    kernel = [int(k) for k in node.attrs["kernel"]]
    axes = image_axes(node, x.value.shape[1:-1], node.output.shape[1:-1], kernel)
    average, kind = node.op == "avg_pool", x.value.dtype
    if average and kind != "float32":
        raise Unsupported(node.op, f"of {kind}; only float32")
    image = _Each(context, node, x, axes)
    volume = x.access.taps * prod(kernel)
    padded = any(axis.interior != (0, axis.count) for axis in axes)
    counted = average and padded and not node.attrs.get("count_include_pad", 0)

    def column(outer: list[Expr], start: Expr, tile: Tile, channel: Expr, lanes: int) -> None:
        totals = [b.local(kind, lanes) for _ in range(tile.size)]
        counts = [b.local("float32", 1) for _ in range(tile.size if counted else 0)]
        for total in totals:
            b.store_vector(total, 0, constant(0.0, "float32", lanes) if average else splat(lowest(kind), lanes))
        for count in counts:
            b.store_vector(count, 0, constant(0.0, "float32"))

        def step(number: Expr, n: Expr, p: int, value: Expr) -> None:
            so_far = b.load_vector(totals[p], 0, lanes)
            b.store_vector(totals[p], 0, so_far + value if average else ops.maximum(b, so_far, value))
            if counted:
                b.store_vector(counts[p], 0, b.load_vector(counts[p], 0, 1) + constant(1.0, "float32"))

        image.places(outer, start, tile, channel, lanes, step)
        for p, total in enumerate(totals):
            result = b.let(b.load_vector(total, 0, lanes))
            if average:
                by = splat(b.load_vector(counts[p], 0, 1), lanes) if counted else m.like(result, float(volume))
                result = b.let(result / by)
            image.store([*outer, start + p], channel, result, lanes)

    image.emit(4, column)
