"""Convolutions with spatial axes, transposed ones, and pools.

Weights are packed [group, tap, input channel, place in the kernel, output channel]. Sums run bias first, taps oldest
first, then input channels, then places; places in the padding are left out. Vectors go over the innermost spatial axis,
or over output channels where a window reaches into the padding or the axis is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product
from math import prod

import numpy as np

from runnel.compiler.codegen import linear, ops
from runnel.compiler.codegen import math as m
from runnel.compiler.codegen.arithmetic import Arithmetic, lowest
from runnel.compiler.codegen.builder import Expr, constant, int32, splat
from runnel.compiler.codegen.context import FEWEST_TURNS, Context, View
from runnel.compiler.codegen.elementwise import apply_epilogue, over_lanes
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.memory import LANES, frame_elements
from runnel.compiler.codegen.window import Axis, over_window, spatial_attributes, transposed_windows, windows
from runnel.compiler.lowering.frame import FrameNode

_MIN_POSITIONS = 8


class _Conv:
    """A convolution over one phase of the output; see the module for the order of sums."""

    def __init__(
        self,
        context: Context,
        node: FrameNode,
        x: View,
        packed: np.ndarray,
        kernel: Sequence[int],
        axes: Sequence[Axis],
    ) -> None:
        self.context, self.node, self.x, self.axes, self.kernel = context, node, x, tuple(axes), tuple(kernel)
        self.b = context.b
        self.arithmetic = Arithmetic.of(context.b, node)
        self.groups, self.taps, self.inputs, self.places, self.outputs = packed.shape
        self.memory = context.constant((id(node), "w"), packed)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        self.bias = None if bias is None else context.constant((id(node), "b"), np.asarray(bias, np.float32))
        self.channel = prod(axis.size for axis in axes)
        self.strides = [prod(a.size for a in axes[i + 1 :]) for i in range(len(axes))]

    def emit(self) -> None:
        """All positions of the phase."""
        inner = self.axes[-1]
        begin, end = inner.interior
        if end - begin < min(_MIN_POSITIONS, inner.count) and self.outputs >= 4:
            begin = end = 0
        for first, last, wide in ((0, begin, False), (begin, end, True), (end, inner.count, False)):
            if last > first and wide:
                self._by_position(first, last)
            elif last > first:
                self._by_channel(first, last)

    def _outer(self, stack: ExitStack) -> tuple[Expr, list[Expr]]:
        """Loops over rows, groups and outer positions."""
        self.context.row = stack.enter_context(self.b.loop(self.context.rows, "row"))
        counts = [self.groups, *(axis.count for axis in self.axes[:-1])]
        shared = next((i for i, count in enumerate(counts) if count >= FEWEST_TURNS), -1)
        loops = [self.context.spread if i == shared else self.b.loop for i in range(len(counts))]
        group, *outer = [stack.enter_context(loop(n, "q")) for loop, n in zip(loops, counts, strict=True)]
        return group, outer

    def _sum(self, group: Expr, q: list[Expr], step: Callable[[Expr, Expr], None]) -> None:
        """Call ``step(position in the input, position of the first output channel's weight)`` for all summands."""
        b = self.b
        with b.loop(self.taps, "tap") as tap:
            frame = b.let(self.x.tap(tap) + self.context.at_row(self.x.access))
            with b.loop(self.inputs, "c") as channel, over_window(b, self.axes, q, self.kernel) as place:
                source = frame + (group * self.inputs + channel) * self.channel
                for stride, at in zip(self.strides, place.inputs, strict=True):
                    source = source + at * stride
                weight = ((group * self.taps + tap) * self.inputs + channel) * self.places + place.weight
                step(source, weight * self.outputs)

    def _starts(self, group: Expr, channels: Sequence[Expr]) -> list[Expr]:
        if self.bias is None:
            return [self.arithmetic.start(self.b.lanes) for _ in channels]
        at = [group * self.outputs + c for c in channels]
        return [self.b.let(splat(self.b.load(self.bias, position), self.b.lanes)) for position in at]

    def _store(self, group: Expr, channel: Expr, q: list[Expr], value: Expr) -> None:
        place = [at * axis.out_step + axis.out_first for at, axis in zip(q, self.axes, strict=True)]
        shape, output = self.node.output.shape, group * self.outputs + channel
        spatial = list(shape[2:])
        coords = None
        if len(spatial) == len(place):
            coords = [int32(0), output, *place]
        else:
            spatial = [prod(spatial)]
        flat: Expr = output
        for size, at in zip(spatial, place, strict=True):
            flat = flat * size + at
        apply_epilogue(self.context, self.node.output, value, Index(shape, flat=flat, coords=coords))

    def _by_position(self, first: int, last: int) -> None:
        """Vectors over the innermost axis, a few output channels together."""
        b, together = self.b, 8 if self.context.target.lanes >= LANES else 4

        def tile(group: Expr, outer: list[Expr], channels: list[Expr], position: Expr) -> None:
            q = [*outer, position + first]
            sums = [b.local(self.arithmetic.kind, b.lanes) for _ in channels]
            for total, start in zip(sums, self._starts(group, channels), strict=True):
                b.store_vector(total, 0, start)

            def step(source: Expr, weight: Expr) -> None:
                x = self.arithmetic.input(splat(b.load(self.x.memory, source), b.lanes))
                for total, channel in zip(sums, channels, strict=True):
                    w = splat(self.arithmetic.weight(b.load(self.memory, weight + channel)), b.lanes)
                    product = self.arithmetic.add_product(x, w, b.load_vector(total, 0, b.lanes))
                    b.store_vector(total, 0, product)

            self._sum(group, q, step)
            for total, channel in zip(sums, channels, strict=True):
                self._store(group, channel, q, b.let(b.load_vector(total, 0, b.lanes)))

        with ExitStack() as stack:
            group, outer = self._outer(stack)
            with b.loop(self.outputs // together, "o") as block:
                channels = [block * together + i for i in range(together)]
                over_lanes(b, last - first, lambda position: tile(group, outer, channels, position))
            done = self.outputs - self.outputs % together
            if done < self.outputs:
                rest: list[Expr] = [int32(c) for c in range(done, self.outputs)]
                over_lanes(b, last - first, lambda position: tile(group, outer, rest, position))

    def _by_channel(self, first: int, last: int) -> None:
        """Vectors over output channels, one position at a time."""
        b = self.b

        def tile(group: Expr, q: list[Expr], starts: list[Expr]) -> None:
            sums = [b.local(self.arithmetic.kind, b.lanes) for _ in starts]
            for total, start in zip(sums, self._starts(group, starts), strict=True):
                b.store_vector(total, 0, start)

            def step(source: Expr, weight: Expr) -> None:
                x = splat(self.arithmetic.input(b.load(self.x.memory, source)), b.lanes)
                for total, channel in zip(sums, starts, strict=True):
                    w = self.arithmetic.weight(b.load(self.memory, weight + channel))
                    product = self.arithmetic.add_product(x, w, b.load_vector(total, 0, b.lanes))
                    b.store_vector(total, 0, product)

            self._sum(group, q, step)
            for total, channel in zip(sums, starts, strict=True):
                self._store(group, channel, q, b.let(b.load_vector(total, 0, b.lanes)))

        with ExitStack() as stack:
            group, outer = self._outer(stack)
            q = [*outer, stack.enter_context(b.loop(last - first, "q")) + first]
            wide = 4 * LANES
            with b.loop(self.outputs // wide, "o") as block, b.vector(LANES) as lane:
                if self.outputs >= wide:
                    tile(group, q, [block * wide + i * LANES + lane for i in range(4)])
            done = self.outputs - self.outputs % wide
            if done < self.outputs:
                over_lanes(b, self.outputs - done, lambda position: tile(group, q, [position + done]))


def emit_conv(context: Context, node: FrameNode) -> None:
    """conv: (1, Cin, *S) through taps by (Cout, Cin/g, K, *kS)."""
    x = linear.view_of(context, node)
    w = Arithmetic.of(context.b, node).weights(np.asarray(node.inputs[1]))
    rank = w.ndim - 3
    if rank == 0:
        linear.emit_conv(context, node)
        return
    groups = int(node.attrs.get("group", 1))
    sizes, out = x.value.shape[2:], node.output.shape[2:]
    if w.shape[2] != x.access.taps or len(sizes) != rank or w.shape[1] * groups != x.value.shape[1]:
        raise Unsupported("conv", f"weights {w.shape} do not fit {x.access.taps} taps of {x.value.shape}")
    strides, dilations, pads = spatial_attributes(node.attrs, rank)
    kernel = w.shape[3:]
    axes = [windows(*a) for a in zip(sizes, out, kernel, strides, dilations, pads, strict=True)]
    if prod(kernel) == 1 and sizes == out and set(strides) == {1} and not any(pads):
        axes, kernel = [windows(prod(sizes), prod(out), 1, 1, 1, 0)], (1,)
    packed = w.reshape(groups, w.shape[0] // groups, w.shape[1], w.shape[2], -1).transpose(0, 3, 2, 4, 1)
    _Conv(context, node, x, packed, kernel, axes).emit()


def emit_conv_transpose(context: Context, node: FrameNode) -> None:
    """conv_transpose: (1, Cin, *S) by (Cin, Cout/g, *kS), or through K taps by (Cin, Cout/g, K, *kS)."""
    x = linear.view_of(context, node)
    w = np.asarray(node.inputs[1], np.float32)
    rank, groups = len(x.value.shape) - 2, int(node.attrs.get("group", 1))
    taps = w.shape[2] if w.ndim == rank + 3 else 1
    if x.access.taps != taps or w.ndim < rank + 2:
        raise Unsupported("conv_transpose", f"weights {w.shape} do not fit {x.access.taps} taps of {x.value.shape}")
    if rank == 0 and taps == 1:
        linear.emit_product(context, node, w.reshape(groups, 1, -1, w.shape[1]))
        return
    strides, dilations, pads = spatial_attributes(node.attrs, rank)
    sizes, out, kernel = x.value.shape[2:], node.output.shape[2:], w.shape[w.ndim - rank :]
    packed = w.reshape(groups, w.shape[0] // groups, w.shape[1], taps, -1).transpose(0, 3, 1, 4, 2)
    phases = [transposed_windows(*a) for a in zip(sizes, out, kernel, strides, dilations, pads, strict=True)]
    for axes in product(*phases):
        _Conv(context, node, x, packed, kernel, axes).emit()


def emit_pool(context: Context, node: FrameNode) -> None:
    """max_pool and avg_pool of (1, C, *S) through taps."""
    x, b = linear.view_of(context, node), context.b
    sizes, out = x.value.shape[2:], node.output.shape[2:]
    rank, taps = len(sizes), x.access.taps
    strides, dilations, pads = spatial_attributes(node.attrs, rank)
    kernel = [int(k) for k in node.attrs.get("kernel") or [1] * rank]
    if len(kernel) != rank:
        raise Unsupported(node.op, f"kernel {kernel} over spatial axes {sizes}")
    axes = [windows(*a) for a in zip(sizes, out, kernel, strides, dilations, pads, strict=True)]
    average, channels, kind = node.op == "avg_pool", x.value.shape[1], x.value.dtype
    if average and kind != "float32":
        raise Unsupported(node.op, f"of {kind}; only float32")
    volume = taps * prod(kernel)
    if not rank:
        padded = frame_elements((channels,))
        axes, kernel, sizes, channels = [windows(padded, padded, 1, 1, 1, 0)], [1], (padded,), 1
    count_padding = bool(node.attrs.get("count_include_pad", 0))

    def place(channel: Expr, q: list[Expr], inside: bool) -> None:
        total, count = b.local(kind, b.lanes), b.local("float32", 1)
        b.store_vector(total, 0, constant(0.0, "float32", b.lanes) if average else splat(lowest(kind), b.lanes))
        b.store_vector(count, 0, constant(0.0, "float32"))
        with b.loop(taps, "tap") as tap:
            frame = b.let(x.tap(tap) + context.at_row(x.access))
            with over_window(b, axes, q, kernel) as at:
                source = channel
                for size, c in zip(sizes, at.inputs, strict=True):
                    source = source * size + c
                value = b.let(splat(b.load(x.memory, frame + source), b.lanes))
                so_far = b.load_vector(total, 0, b.lanes)
                b.store_vector(total, 0, so_far + value if average else ops.maximum(b, so_far, value))
                if average and not inside:
                    b.store_vector(count, 0, b.load_vector(count, 0, 1) + constant(1.0, "float32"))
        result = b.let(b.load_vector(total, 0, b.lanes))
        if average:
            whole = inside or count_padding
            divisor = m.like(result, float(volume)) if whole else splat(b.load_vector(count, 0, 1), b.lanes)
            result = b.let(result / divisor)
        flat = channel
        for axis, c in zip(axes, q, strict=True):
            flat = flat * axis.count + c
        apply_epilogue(context, node.output, result, Index(node.output.shape, flat=flat))

    begin, end = axes[-1].interior
    whole_rows = all(axis.interior == (0, axis.count) for axis in axes[:-1])
    with ExitStack() as stack:
        context.row = stack.enter_context(b.loop(context.rows, "row"))
        channel = stack.enter_context(b.loop(channels, "c"))
        outer = [stack.enter_context(b.loop(axis.count, "q")) for axis in axes[:-1]]
        for first, last in ((0, begin), (end, axes[-1].count)):
            if last > first:
                with b.loop(last - first, "q") as q:
                    place(channel, [*outer, q + first], inside=False)
        if end > begin:
            over_lanes(b, end - begin, lambda q: place(channel, [*outer, q + begin], inside=whole_rows))
