"""GEMV and thin GEMM: conv without spatial axes, and matmul with a constant weight.

Weights are packed [panel][tap, input][width] at compile time. Each output element is one chain of fused multiply-adds,
bias first, taps oldest first, inputs in order - whatever the number of rows. Where there are few outputs and many
inputs, the chain is instead 16 lanes of partial sums with a fixed tree at the end (``_emit_dot``).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from runnel.compiler.codegen.arithmetic import Arithmetic
from runnel.compiler.codegen.builder import Buffer, Expr, int32, splat
from runnel.compiler.codegen.context import FEWEST_TURNS, Context, View
from runnel.compiler.codegen.dots import EIGHT, QUAD, Dots
from runnel.compiler.codegen.elementwise import apply_epilogue, over_lanes, spill_and_apply
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.memory import LANES, frame_elements, round_up
from runnel.compiler.codegen.reduce import tree_sum
from runnel.compiler.codegen.tiles import pieces, runs
from runnel.compiler.codegen.totals import totals
from runnel.compiler.codegen.tuning import Schedule
from runnel.compiler.lowering.frame import FrameNode, FrameValue

_PANEL_VECTORS = 4
_LINE, _AHEAD = 16, 512
"""float32 of a cache line, and how far ahead of use a single row asks for weights: they are read once, at the second
cache's rate (a third faster on Zen 5). Arm's processors were not measured."""
_DOT_MAX_OUTPUTS = 8
_DOT_MIN_INPUTS = 32


@dataclass(frozen=True)
class _Problem:
    """y[m, n] = bias[n] + sum over taps t and inputs k of x[t][m, k] w[t, k, n], for each group of channels.

    weights: (groups, taps, inputs, outputs). bias: (groups, outputs). ``inner`` rows lie within one frame.
    """

    node: FrameNode
    x: View
    weights: np.ndarray
    bias: np.ndarray | None
    inner: int
    sums: Arithmetic

    @property
    def groups(self) -> int:
        return int(self.weights.shape[0])

    @property
    def taps(self) -> int:
        return int(self.weights.shape[1])

    @property
    def inputs(self) -> int:
        return int(self.weights.shape[2])

    @property
    def outputs(self) -> int:
        return int(self.weights.shape[3])

    @property
    def exact(self) -> bool:
        """Whether only real elements may be stored: the row's end is not the padded end of a frame."""
        return self.groups > 1 or self.inner > 1 or self.outputs < LANES


def view_of(context: Context, node: FrameNode) -> View:
    """The memory of a node's first input, which must be an input of the group."""
    x = node.inputs[0]
    if not isinstance(x, FrameValue) or x not in context.views:
        raise Unsupported(node.op, "its first operand must be an input of the group")
    return context.views[x]


def emit_conv(context: Context, node: FrameNode) -> None:
    """conv without spatial axes."""
    x, sums = view_of(context, node), Arithmetic.of(context.b, node)
    w = sums.weights(np.asarray(node.inputs[1]))
    bias = np.asarray(node.inputs[2], np.float32) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    groups = int(node.attrs.get("group", 1))
    outputs, inputs, taps = w.shape
    if taps != x.access.taps or inputs * groups != x.value.shape[1]:
        raise Unsupported("conv", f"weights {w.shape} do not fit {x.access.taps} taps of {x.value.shape}")
    if groups == outputs and inputs == 1:
        _emit_depthwise(context, node, x, w[:, 0, :].T, bias, sums)
        return
    packed = w.reshape(groups, outputs // groups, inputs, taps).transpose(0, 3, 2, 1)
    _emit(context, _Problem(node, x, packed, None if bias is None else bias.reshape(groups, -1), 1, sums))


def emit_matmul(context: Context, node: FrameNode) -> None:
    """matmul of a value by a constant (K, N)."""
    x, sums = view_of(context, node), Arithmetic.of(context.b, node)
    w = sums.weights(np.asarray(node.inputs[1]))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    while w.ndim > 2 and w.shape[0] == 1:
        w = w[0]
    if w.ndim != 2 or x.value.shape[-1] != w.shape[0] or x.access.taps != 1:
        raise Unsupported("matmul", f"{x.access.taps} taps of {x.value.shape} by a constant {w.shape}")
    inner = int(np.prod(x.value.shape[:-1], dtype=np.int64))
    row = None if bias is None else np.broadcast_to(np.asarray(bias, np.float32).reshape(-1), (w.shape[1],))
    _emit(context, _Problem(node, x, w[None, None], None if row is None else row[None], inner, sums))


def emit_product(context: Context, node: FrameNode, weights: np.ndarray) -> None:
    """A single frame by ``weights`` (groups, 1, inputs, outputs), bias as the node's third operand."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    row = None if bias is None else np.asarray(bias, np.float32).reshape(weights.shape[0], -1)
    _emit(context, _Problem(node, view_of(context, node), weights, row, 1, Arithmetic.of(context.b, node)))


def _emit(context: Context, p: _Problem) -> None:
    dot = p.outputs <= _DOT_MAX_OUTPUTS and p.inputs >= _DOT_MIN_INPUTS
    if dot:
        _emit_dot(context, p)
    else:
        _Panels(context, p).emit()


class _Panels:
    """Vectors over outputs: a tile of rows by a few vectors of accumulators in registers."""

    def __init__(self, context: Context, p: _Problem) -> None:
        self.context, self.p, self.b = context, p, context.b
        self.lanes = min(context.target.lanes, LANES)
        self.width = _PANEL_VECTORS * self.lanes
        self.padded = round_up(p.outputs, self.lanes)
        several = p.inputs >= EIGHT and (p.inner > 1 or bool(context.group.rows or context.group.apart))
        dots = Dots.of(context.target, p.sums, str(p.x.value.dtype), p.weights, several)
        self.dots = dots if p.inputs >= QUAD else None
        self.memory, self.bias = self._pack()

    def _pack(self) -> tuple[Buffer, Buffer | None]:
        p, key = self.p, id(self.p.node)
        w = np.zeros((p.groups, p.taps, p.inputs, self.padded), p.weights.dtype)
        w[..., : p.outputs] = p.weights
        panels = [w[g, ..., n : n + self.width] for g in range(p.groups) for n in range(0, self.padded, self.width)]
        panels = [self.dots.pack(panel) for panel in panels] if self.dots else panels
        memory = self.context.constant((key, "w"), np.concatenate([panel.reshape(-1) for panel in panels]))
        if p.bias is None and not (self.dots and self.dots.zero):
            return memory, None
        start = self.dots.start(p.weights) if self.dots else p.bias
        assert start is not None
        bias = np.zeros((p.groups, self.padded), start.dtype)
        bias[:, : p.outputs] = start
        return memory, self.context.constant((key, "b"), bias)

    def emit(self) -> None:
        """All groups, rows and panels."""
        p, context, b = self.p, self.context, self.b
        with self._loop("groups", p.groups, "g") as group:
            if p.inner == 1:
                self._rows(group, context.rows, inner=False)
            else:
                with b.loop(context.rows, "row") as row:
                    context.row = row
                    self._rows(group, p.inner, inner=True)

    def _rows(self, group: Expr, rows: int, inner: bool) -> None:
        """Tiles of rows that hold as many accumulators as there are registers for."""
        schedule = self._schedule(rows)
        for first, size, repeat in runs(0, rows, schedule.rows):
            with self._loop("tiles", repeat, "tile") as i:
                self._columns(group, [i * size + (first + r) for r in range(size)], inner, schedule)

    def _schedule(self, rows: int) -> Schedule:
        vectors, p = min(self.padded // self.lanes, _PANEL_VECTORS), self.p
        form = "blocks" if self.dots and self.dots.block else "rows"
        return self.context.schedule(form, p.sums.kind, rows, vectors, self.lanes, p.taps * p.inputs)

    def _tiles(self, rows: int) -> int:
        return len(pieces(0, rows, self._schedule(rows).rows))

    def _spread(self) -> str:
        """The loop that workers share: that over groups, tiles of rows within a frame, or panels."""
        if self.p.groups >= FEWEST_TURNS:
            return "groups"
        return "tiles" if self.p.inner > 1 and self._tiles(self.p.inner) >= FEWEST_TURNS else "panels"

    def _loop(self, what: str, extent: int, name: str) -> AbstractContextManager[Expr]:
        return self.context.spread(extent, name) if what == self._spread() else self.b.loop(extent, name)

    def _once(self, what: str) -> AbstractContextManager[None]:
        """What the shared loop leaves over."""
        return self.context.alone() if what == self._spread() else nullcontext()

    def _columns(self, group: Expr, rows: list[Expr], inner: bool, schedule: Schedule) -> None:
        """Panels, a few vectors of one at a time; two panels for a single row so that enough sums are under way."""
        together = 2 if len(rows) == 1 else 1
        tail = self.p.outputs % self.lanes if self.p.exact else 0
        full = (self.padded - (self.lanes if tail else 0)) // (self.width * together)
        with self._loop("panels", full, "panel") as i:
            self._parts(group, rows, inner, i * together, [self.width] * together, schedule, 0)
        done = full * together
        rest = self.padded - done * self.width
        widths = [self.width] * (rest // self.width) + ([rest % self.width] if rest % self.width else [])
        if widths:
            with self._once("panels"):
                self._parts(group, rows, inner, int32(done), widths, schedule, tail)

    def _parts(
        self, group: Expr, rows: list[Expr], inner: bool, panel: Expr, widths: list[int], schedule: Schedule, tail: int
    ) -> None:
        """Consecutive panels, from number ``panel`` on, for a tile of rows: as many vectors at a time as fit."""
        columns = [(i, v) for i, width in enumerate(widths) for v in range(0, width, self.lanes)]
        step = len(columns) if len(rows) == 1 else schedule.vectors
        for at in range(0, len(columns), step):
            part = columns[at : at + step]
            self._tile(group, rows, inner, panel, widths, part, tail if part[-1] == columns[-1] else 0, schedule.unroll)

    def _tile(
        self, group: Expr, rows: list[Expr], inner: bool, panel: Expr, widths: list[int],
        columns: list[tuple[int, int]], tail: int, unroll: int,
    ) -> None:  # fmt: skip
        """The outputs ``columns`` (panel, first of its outputs) of consecutive panels, for a tile of rows.

        tail: how many elements of the last vector are to be stored, 0 for all.
        """
        b, p, lanes = self.b, self.p, self.lanes
        depth = p.taps * p.inputs
        first = panel * self.width
        sums = totals(b, self.dots, p.sums.kind, len(rows), [lanes] * len(columns))
        for j, (i, v) in enumerate(columns):
            start: Expr = p.sums.start(lanes)
            if self.bias is not None:
                start = b.let(b.load_vector(self.bias, group * self.padded + first + (i * self.width + v), lanes))
            sums.begin(j, start)
        ahead = len(rows) == 1 and p.sums.kind == "float32" and self.context.target.arch == "x86_64"
        packed = [group * (depth * self.padded) + (panel + i) * (depth * self.width) for i in range(len(widths))]
        with b.loop(p.taps, "tap") as tap:
            offset = b.let(p.x.tap(tap) + self._group_offset(group))
            bases = [b.let(offset + self._row_offset(row, inner)) for row in rows]
            starts = [b.let(at + tap * (p.inputs * width)) for at, width in zip(packed, widths, strict=True)]

            def step(k: Expr) -> None:
                xs = [p.sums.input(b.load_vector(p.x.memory, base + k, 1)) for base in bases]
                for j, (i, v) in enumerate(columns):
                    if ahead and v % _LINE == 0:
                        b.prefetch(self.memory, starts[i] + k * widths[i] + (v + _AHEAD))
                    w = p.sums.weight(b.load_vector(self.memory, starts[i] + k * widths[i] + v, lanes))
                    w = b.let(w) if len(rows) > 1 else w
                    for r, x in enumerate(xs):
                        sums.update(r, j, partial(p.sums.add_product, splat(x, lanes), w))

            def group_step(size: int, k: Expr) -> None:
                loads = {r: partial(b.load_vector, p.x.memory, base + k * size, size) for r, base in enumerate(bases)}
                sums.multiply(self.memory, [starts[i] + (k * widths[i] + v) * size for i, v in columns], loads)

            unroll = self.dots.unit if self.dots else unroll
            with b.loop(p.inputs // unroll, "k") as k:
                each = self.dots.size if self.dots else 1
                for u in range(unroll // each):
                    if self.dots:
                        group_step(self.dots.size, k * (unroll // each) + u)
                    else:
                        step(k * unroll + u)
            for u in range(p.inputs - p.inputs % unroll, p.inputs):
                step(int32(u))
        for r, row in enumerate(rows):
            if not inner:
                self.context.row = row
            origin = group * p.outputs + (row * p.outputs if inner else 0) + first
            at = [origin + (i * self.width + v) for i, v in columns]
            self._finish(at, [sums.at(r, j) for j in range(len(columns))], tail)

    def _group_offset(self, group: Expr) -> Expr:
        return group * self.p.inputs

    def _row_offset(self, row: Expr, inner: bool) -> Expr:
        outer = self.context.at_row(self.p.x.access)
        return outer + row * self.p.inputs if inner else row * self.p.x.access.row_pitch

    def _finish(self, positions: list[Expr], sums: list[Expr], tail: int) -> None:
        """The epilogue and the store of one row's vectors."""
        b, context, anchor = self.b, self.context, self.p.node.output
        for j, (position, total) in enumerate(zip(positions, sums, strict=True)):
            if tail and j == len(sums) - 1:
                spill_and_apply(context, anchor, b.let(total), position, tail)
                continue
            with b.vector(self.lanes) as lane:
                apply_epilogue(context, anchor, b.let(total), Index(anchor.shape, flat=position + lane))


def _emit_dot(context: Context, p: _Problem) -> None:
    """Few outputs, many inputs: vectors over inputs, 16 partial sums an output, a fixed tree, then the bias."""
    b = context.b
    width = round_up(p.inputs, LANES)
    w = np.zeros((p.groups, p.outputs, p.taps, width), p.weights.dtype)
    w[..., : p.inputs] = p.weights.transpose(0, 3, 1, 2)
    memory = context.constant((id(p.node), "w"), w)
    bias = None if p.bias is None else context.constant((id(p.node), "b"), p.bias)
    pieces = [piece for piece in (8, 4, 2, 1) if p.inputs % LANES & piece]
    widths = ([LANES] if p.inputs >= LANES else []) + pieces

    def emit_row(group: Expr, offset: Expr, origin: Expr) -> None:
        sums = [[b.local(p.sums.kind, lanes) for lanes in widths] for _ in range(p.outputs)]
        for row in sums:
            for total, lanes in zip(row, widths, strict=True):
                b.store_vector(total, 0, p.sums.start(lanes))
        with b.loop(p.taps, "tap") as tap:
            base = b.let(p.x.tap(tap) + offset)

            def step(k: Expr, j: int) -> None:
                lanes = widths[j]
                x = p.sums.input(b.load_vector(p.x.memory, base + k, lanes))
                for n, row in enumerate(sums):
                    at = (group * p.outputs + n) * (p.taps * width) + tap * width + k
                    w = p.sums.weight(b.load_vector(memory, at, lanes))
                    total = p.sums.add_product(x, w, b.load_vector(row[j], 0, lanes))
                    b.store_vector(row[j], 0, total)

            with b.loop(p.inputs // LANES, "k") as k:
                step(k * LANES, 0)
            k_tail = p.inputs - p.inputs % LANES
            for j, lanes in enumerate(widths):
                if lanes < LANES:
                    step(int32(k_tail), j)
                    k_tail += lanes
        results = b.local(p.sums.kind, p.outputs)
        for n, row in enumerate(sums):
            parts = [tree_sum(b, b.load_vector(total, 0, lanes)) for total, lanes in zip(row, widths, strict=True)]
            value = parts[0]
            for part in parts[1:]:
                value = b.let(value + part)
            if bias is not None:
                value = b.let(value + b.load_vector(bias, group * p.outputs + n, 1))
            b.store_vector(results, n, value)

        def emit(at: Expr) -> None:
            value = b.let(b.load(results, at))
            apply_epilogue(context, p.node.output, value, Index(p.node.output.shape, flat=origin + at))

        over_lanes(b, p.outputs, emit)

    with b.loop(context.rows, "row") as row, b.loop(p.groups, "g") as group, b.loop(p.inner, "m") as inner:
        context.row = row
        offset = context.at_row(p.x.access) + group * p.inputs + inner * p.inputs
        emit_row(group, b.let(offset), group * p.outputs + inner * p.outputs)


def _emit_depthwise(
    context: Context, node: FrameNode, x: View, w: np.ndarray, bias: np.ndarray | None, sums: Arithmetic
) -> None:
    """One filter a channel: vectors over channels. w: (taps, channels)."""
    b, (taps, channels) = context.b, w.shape
    pitch = frame_elements((channels,))
    packed = np.zeros((taps, pitch), w.dtype)
    packed[:, :channels] = w
    memory = context.constant((id(node), "w"), packed)
    biases = None if bias is None else context.constant((id(node), "b"), bias)

    def emit(positions: list[Expr]) -> None:
        totals = [b.local(sums.kind, b.lanes) for _ in positions]
        for total, position in zip(totals, positions, strict=True):
            start = sums.start(b.lanes) if biases is None else b.load(biases, position)
            b.store_vector(total, 0, start)
        with b.loop(taps, "tap") as tap:
            base = b.let(x.tap(tap) + context.at_row(x.access))
            for total, position in zip(totals, positions, strict=True):
                frame = sums.input(b.load(x.memory, base + position))
                weight = sums.weight(b.load(memory, tap * pitch + position))
                product = sums.add_product(frame, weight, b.load_vector(total, 0, b.lanes))
                b.store_vector(total, 0, product)
        for total, position in zip(totals, positions, strict=True):
            value = b.let(b.load_vector(total, 0, b.lanes))
            apply_epilogue(context, node.output, value, Index(node.output.shape, flat=position))

    vectors = pitch // LANES
    together = max(1, context.target.registers // 2 * context.target.lanes // LANES)
    with b.loop(context.rows, "row") as row:
        context.row = row
        for first, size, repeat in runs(0, vectors, together):
            with b.loop(repeat, "block") as block, b.vector(LANES) as lane:
                emit([(block * size + (first + i)) * LANES + lane for i in range(size)])
        if not vectors:
            over_lanes(b, pitch, lambda position: emit([position]))
