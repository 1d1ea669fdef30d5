"""Images whose channels lie last, frames (1, *S, C): their windows and tiles, and how results are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import prod

from tvm import tirx

from runnel.compiler.codegen.builder import Expr, int32, lanes_of
from runnel.compiler.codegen.context import FEWEST_TURNS, Context, View
from runnel.compiler.codegen.elementwise import apply_epilogue, spill_and_apply
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.memory import LANES
from runnel.compiler.codegen.tiles import pieces, runs
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

    def places(self, taps: int) -> Iterator[tuple[int, int, Sequence[int]]]:
        """(first, count, positions of the tile) of neighbouring places that count for the same positions."""
        if self.inside is None:
            yield 0, taps, range(self.size)
            return
        for positions, same in groupby(range(taps), lambda n: self.inside[n]):  # type: ignore[index]
            numbers = list(same)
            if positions:
                yield numbers[0], len(numbers), positions


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


class Image:
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
        lanes = lanes_of(value)
        if real < lanes:
            spill_and_apply(self.context, self.node.output, b.let(value), flat, real)
            return
        with b.vector(lanes) as lane:
            coords = [int32(0), *q, channel + lane] if len(q) == len(shape) - 2 else None
            apply_epilogue(self.context, self.node.output, b.let(value), Index(shape, flat=flat + lane, coords=coords))

    @contextmanager
    def positions_of(self, tile: Tile) -> Iterator[tuple[list[Expr], Expr]]:
        """Loops over the outer axes, the first long one shared by workers, and over a tile's turns: where they are."""
        counts = [axis.count for axis in self.axes[:-1]]
        shared = next((i for i, count in enumerate(counts) if count >= FEWEST_TURNS), len(counts))
        with ExitStack() as stack:
            loops = [self.context.spread if i == shared else self.b.loop for i in range(len(counts) + 1)]
            *outer, turn = [
                stack.enter_context(loop(n, "q")) for loop, n in zip(loops, [*counts, tile.repeat], strict=True)
            ]
            yield outer, turn * tile.size + tile.first

    def inner_at(self, position: Expr, n: Expr) -> Expr:
        """Where place n of the innermost axis lies, from the row's first element on."""
        axis = self.axes[-1]
        return (position * axis.in_step + axis.first + n * axis.step) * self.place_step


def image_axes(node: FrameNode, sizes: Sequence[int], out: Sequence[int], kernel: Sequence[int]) -> list[Axis]:
    """The windows of a convolution's or pool's spatial axes."""
    strides, dilations, pads = spatial_attributes(node.attrs, len(sizes))
    return [windows(*a) for a in zip(sizes, out, kernel, strides, dilations, pads, strict=True)]
