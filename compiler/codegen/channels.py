"""Convolutions and pools over images whose channels lie last: frames (1, *S, C).

Vectors go over channels. A dense convolution holds a tile of positions of the innermost axis by a few vectors of output
channels in registers; weights are packed [panel][tap, place][input channel][width]. Sums run bias first, taps oldest
first, then places, then input channels; places in the padding are left out. The tiles at an image's edges are code of
their own, in which it is known which places lie inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import math as m
from runnel.compiler.codegen import ops
from runnel.compiler.codegen.arithmetic import Arithmetic, lowest
from runnel.compiler.codegen.builder import Expr, constant, int32, splat
from runnel.compiler.codegen.context import Context, View
from runnel.compiler.codegen.elementwise import apply_epilogue, spill_and_apply
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.tiles import pieces, register_tile, runs
from runnel.compiler.codegen.window import Axis, spatial_attributes, windows
from runnel.compiler.lowering.frame import FrameNode


@dataclass(frozen=True)
class Tile:
    """Consecutive positions of the innermost axis, ``repeat`` times over. inside: the places of the window that count
    for each position, None where all do."""

    first: int
    size: int
    repeat: int = 1
    inside: tuple[tuple[int, ...], ...] | None = None


def cut(axis: Axis, most: int) -> list[Tile]:
    """Tiles of at most ``most`` positions: edges apart, and the rest in pieces as equal as can be."""
    begin, end = axis.interior
    if begin == end:
        begin = end = axis.count
    tiles = []

    def edge(first: int, last: int) -> None:
        for start, size in pieces(first, last - first, most):
            reach = [[q * axis.in_step + n * axis.step + axis.first for q in range(start, start + size)]
                     for n in range(axis.taps)]  # fmt: skip
            inside = tuple(tuple(p for p, at in enumerate(row) if 0 <= at < axis.size) for row in reach)
            tiles.append(Tile(start, size, 1, inside))

    if end - begin < most and axis.count <= 2 * most:  # too short to have a middle
        edge(0, axis.count)
        return tiles
    edge(0, begin)
    tiles += [Tile(*run) for run in runs(begin, end - begin, most)]
    edge(end, axis.count)
    return tiles


class _Image:
    """What convolutions and pools have in common: where windows lie and how results are stored."""

    def __init__(self, context: Context, node: FrameNode, x: View, axes: Sequence[Axis]) -> None:
        self.context, self.node, self.x, self.axes = context, node, x, tuple(axes)
        self.b = context.b
        self.outputs = node.output.shape[-1]
        self.lanes = min(context.target.lanes, LANES)
        self.last = node.attrs["channels_last"] == "both"
        places = prod(a.size for a in axes)
        self.inputs = prod(x.value.shape) // places
        self.place_step = self.inputs if self.last else 1
        self.channel_step = 1 if self.last else places
        self.strides = [prod(a.size for a in axes[i + 1 :]) * self.place_step for i in range(len(axes))]

    @contextmanager
    def outer_places(self, q: Sequence[Expr]) -> Iterator[tuple[Expr, Expr]]:
        """Loops over the places of a window's outer axes that lie inside: (offset in the frame, the place's number)."""
        b = self.b
        with ExitStack() as stack:
            offset, number = int32(0), int32(0)
            for axis, at, stride in zip(self.axes[:-1], q, self.strides, strict=False):
                start = at * axis.in_step + axis.first
                if axis.interior == (0, axis.count):
                    n = stack.enter_context(b.loop(axis.taps, "n"))
                else:
                    zero = int32(0)
                    low = b.let(tirx.truncdiv(tirx.max(int32(axis.step - 1) - start, zero), int32(axis.step)))
                    ahead = tirx.max(int32(axis.size + axis.step - 1) - start, zero)
                    high = tirx.min(tirx.truncdiv(ahead, int32(axis.step)), int32(axis.taps))
                    n = low + stack.enter_context(b.repeat(b.let(high - low), "n"))
                offset = offset + (start + n * axis.step) * stride
                number = number * axis.taps + n
            yield offset, number

    def vectors_of(self, count: int) -> list[tuple[int, int, int]]:
        """(first, lanes, real elements) of vectors over ``count`` channels, the last ones as narrow as serves."""
        whole = count // self.lanes * self.lanes
        found = [(i, self.lanes, self.lanes) for i in range(0, whole, self.lanes)]
        rest = count - whole
        if rest:
            lanes = 1 << (rest - 1).bit_length()
            found.append((whole, lanes, rest))
        return found

    def store(self, q: Sequence[Expr], channel: Expr, value: Expr, real: int) -> None:
        """The epilogue and the store of a vector of channels at a position."""
        b, shape = self.b, self.node.output.shape
        place: Expr = int32(0)
        for at, axis in zip(q, self.axes, strict=True):
            place = place * axis.count + at
        flat = place * self.outputs + channel
        lanes = int(str(value.ty).split("x")[1]) if "x" in str(value.ty) else 1
        if real < lanes:
            spill_and_apply(self.context, self.node.output, b.let(value), flat, real)
            return
        with b.vector(lanes) as lane:
            coords = [int32(0), *q, channel + lane] if len(q) == len(shape) - 2 else None
            apply_epilogue(self.context, self.node.output, b.let(value), Index(shape, flat=flat + lane, coords=coords))

    def rows(self, stack: ExitStack) -> list[Expr]:
        """Loops over the positions of the outer axes."""
        return [stack.enter_context(self.b.loop(axis.count, "q")) for axis in self.axes[:-1]]

    def inner_at(self, position: Expr, n: Expr) -> Expr:
        """Where place n of the innermost axis lies, from the row's first element on."""
        axis = self.axes[-1]
        return (position * axis.in_step + axis.first + n * axis.step) * self.place_step


class _Dense(_Image):
    """All input channels to all output channels."""

    def __init__(self, context: Context, node: FrameNode, x: View, axes: Sequence[Axis], w: np.ndarray) -> None:
        super().__init__(context, node, x, axes)
        self.sums = Arithmetic.of(context.b, node)
        self.taps, self.places = w.shape[:2]
        vectors = self.vectors_of(self.outputs)
        inner = self.axes[-1]
        self.positions, self.vectors = register_tile(context.target, self.lanes, len(vectors), inner.count)
        self.panels = [vectors[i : i + self.vectors] for i in range(0, len(vectors), self.vectors)]
        packed = [w[..., p[0][0] : p[-1][0] + p[-1][2]] for p in self.panels]
        widths = [sum(lanes for _, lanes, _ in p) for p in self.panels]
        padded = [np.pad(p, [(0, 0)] * 3 + [(0, n - p.shape[-1])]) for p, n in zip(packed, widths, strict=True)]
        self.memory = context.constant((id(node), "w"), np.concatenate([p.reshape(-1) for p in padded]))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        self.bias = None
        if bias is not None:
            values = np.zeros(round_up(self.outputs, LANES), np.float32)
            values[: self.outputs] = np.asarray(bias).reshape(-1)
            self.bias = context.constant((id(node), "b"), values)

    def emit(self) -> None:
        b = self.b
        whole = [p for p in self.panels if all(real == lanes == self.lanes for _, lanes, real in p)]
        whole = [p for p in whole if len(p) == self.vectors]
        width = self.vectors * self.lanes
        with b.loop(self.context.rows, "row") as row:
            self.context.row = row
            if whole:
                with b.loop(len(whole), "panel") as panel:
                    self._panel(panel * width, whole[0])
            for p in self.panels[len(whole) :]:
                self._panel(int32(p[0][0]), [(i - p[0][0], lanes, real) for i, lanes, real in p])

    def _panel(self, channel: Expr, vectors: list[tuple[int, int, int]]) -> None:
        for tile in cut(self.axes[-1], self.positions):
            with ExitStack() as stack:
                outer = self.rows(stack)
                start = tile.first
                if tile.repeat > 1:
                    start = stack.enter_context(self.b.loop(tile.repeat, "tile")) * tile.size + tile.first
                self._tile(channel, vectors, outer, start, tile)

    def _tile(
        self, channel: Expr, vectors: list[tuple[int, int, int]], outer: list[Expr], start: Expr, tile: Tile
    ) -> None:
        b, inner = self.b, self.axes[-1]
        totals = [[b.local(self.sums.kind, lanes) for _, lanes, _ in vectors] for _ in range(tile.size)]
        for j, (first, lanes, _) in enumerate(vectors):
            value = self.sums.start(lanes)
            if self.bias is not None:
                value = b.let(b.load_vector(self.bias, channel + first, lanes))
            for row in totals:
                b.store_vector(row[j], 0, value)
        width = sum(lanes for _, lanes, _ in vectors)
        panel = channel * (self.taps * self.places * self.inputs)

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
                base = b.let(frame + offset)
                packed = b.let(panel + (tap * self.places + number * inner.taps) * (self.inputs * width))
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
        everywhere = range(tile.size)
        if tile.inside is None and self.last and inner.step == 1:  # places and channels lie one after the other
            first = b.let(base + self.inner_at(start, int32(0)))
            with b.loop(inner.taps * self.inputs, "k") as k:
                step(first + k, packed + k * width, everywhere)
            return

        def channels(n: Expr, positions: Sequence[int]) -> None:
            first = b.let(base + self.inner_at(start, n))
            weight = b.let(packed + n * (self.inputs * width))
            with b.loop(self.inputs, "c") as c:
                step(first + c * self.channel_step, weight + c * width, positions)

        if tile.inside is None:
            with b.loop(inner.taps, "n") as n:
                channels(n, everywhere)
            return
        for n, positions in enumerate(tile.inside):
            if positions:
                channels(int32(n), positions)


class _Each(_Image):
    """Every channel by itself: a filter, or a pool. A column of the input is loaded once for all that read it."""

    def emit(self, most: int, column: Callable[[list[Expr], Expr, Tile, Expr, int], None]) -> None:
        """Call ``column`` (outer position, first inner position, tile, first channel, real channels) for all."""
        b = self.b
        vectors = self.vectors_of(self.outputs)
        whole = [p for p in vectors if p[2] == self.lanes]
        with b.loop(self.context.rows, "row") as row:
            self.context.row = row
            for tile in cut(self.axes[-1], most):
                with ExitStack() as stack:
                    outer = self.rows(stack)
                    start: Expr = int32(tile.first)
                    if tile.repeat > 1:
                        start = stack.enter_context(b.loop(tile.repeat, "tile")) * tile.size + tile.first
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
        step: Callable[[Expr, int, int, Callable[[], Expr]], None],
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

                def load(at: int) -> Expr:
                    if at not in columns:
                        columns[at] = b.let(b.load_vector(self.x.memory, base + at * self.place_step, lanes))
                    return columns[at]

                for n in range(inner.taps):
                    for p in range(tile.size) if tile.inside is None else tile.inside[n]:
                        at = p * inner.in_step + n * inner.step
                        step(number, n, p, lambda at=at: load(at))  # type: ignore[misc]


def _emit_filters(context: Context, node: FrameNode, x: View, axes: Sequence[Axis], w: np.ndarray) -> None:
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
        weights: dict[int, Expr] = {}

        def step(number: Expr, n: int, p: int, value: Callable[[], Expr]) -> None:
            if n not in weights:
                at = (number * kernel + n) * pitch + channel
                weights[n] = b.let(sums.weight(b.load_vector(memory, at, lanes)))
            total = sums.add_product(sums.input(value()), weights[n], b.load_vector(totals[p], 0, lanes))
            b.store_vector(totals[p], 0, total)

        image.places(outer, start, tile, channel, lanes, step)
        for p, total in enumerate(totals):
            image.store([*outer, start + p], channel, b.load_vector(total, 0, lanes), lanes)

    most = max(2, (context.target.registers - kernel) // 3)
    image.emit(min(most, 8), column)


def emit_conv(context: Context, node: FrameNode) -> None:
    """conv of images: dense, or one filter a channel."""
    x = view_of(context, node)
    w = Arithmetic.of(context.b, node).weights(np.asarray(node.inputs[1]))
    groups, kernel = int(node.attrs.get("group", 1)), w.shape[3:]
    last = node.attrs["channels_last"] == "both"
    sizes = x.value.shape[1:-1] if last else x.value.shape[2:]
    channels = x.value.shape[-1] if last else x.value.shape[1]
    out = node.output.shape[1:-1]
    if w.shape[2] != x.access.taps or w.shape[1] * groups != channels or w.shape[0] != node.output.shape[-1]:
        raise Unsupported("conv", f"weights {w.shape} do not fit {x.access.taps} taps of {x.value.shape}")
    axes = _axes(node, sizes, out, kernel)
    if groups == 1:
        if prod(kernel) == 1 and sizes == out and all(a.in_step == 1 and not a.first for a in axes):
            axes = [windows(prod(sizes), prod(out), 1, 1, 1, 0)]
        packed = w.reshape(w.shape[0], w.shape[1], w.shape[2], -1).transpose(2, 3, 1, 0)
        _Dense(context, node, x, axes, packed).emit()
    elif groups == channels == w.shape[0] and last:
        _emit_filters(context, node, x, axes, w.reshape(groups, w.shape[2], -1).transpose(1, 2, 0))
    else:
        raise Unsupported("conv", f"{groups} groups of channels that lie last")


def _axes(node: FrameNode, sizes: Sequence[int], out: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
    strides, dilations, pads = spatial_attributes(node.attrs, len(sizes))
    return [windows(*a) for a in zip(sizes, out, kernel, strides, dilations, pads, strict=True)]


def emit_pool(context: Context, node: FrameNode) -> None:
    """max_pool and avg_pool of images."""
    x, b = view_of(context, node), context.b
    kernel = [int(k) for k in node.attrs["kernel"]]
    axes = _axes(node, x.value.shape[1:-1], node.output.shape[1:-1], kernel)
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

        def step(number: Expr, n: int, p: int, value: Callable[[], Expr]) -> None:
            so_far = b.load_vector(totals[p], 0, lanes)
            b.store_vector(totals[p], 0, so_far + value() if average else ops.maximum(b, so_far, value()))
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
