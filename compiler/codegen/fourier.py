"""The two thin products that a windowed Fourier basis is made of (lowering/fourier.py), in either order.

comb_product: output (o, l) is the sum over i of input (i, l) times a weight (i, o, l): vectors over l, no element is
broadcast. picked_product: a product for each group of inputs, which are picked from anywhere or whose outputs are put
anywhere. Both are one chain of fused multiply-adds an element, in order of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runnel.compiler.codegen.builder import Buffer, Expr, constant, int32, splat
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.elementwise import apply_epilogue
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.tiles import pieces, runs
from runnel.compiler.lowering.frame import FrameNode

_SUMS = 8
"""Sums under way at a time."""


def emit_comb(context: Context, node: FrameNode) -> None:
    """x, in one piece, of I·L elements from q·``step`` on for each of ``positions`` q; w (I, O, L), L a multiple of 16
    → (positions, O·L)."""
    b, x, w = context.b, view_of(context, node), np.asarray(node.inputs[1], np.float32)
    if x.offsets is not None:
        raise Unsupported(node.op, "its input must lie in one piece")
    terms, outputs, width = w.shape
    lanes = min(context.target.lanes, LANES)
    columns = [w[:, :, at : at + lanes] for at in range(0, width, lanes)]
    cut = [part[:, at : at + n].reshape(-1) for part in columns for at, n in pieces(0, outputs, _SUMS)]
    memory = context.constant((id(node), "w"), np.concatenate(cut))

    def tile(base: Expr, column: Expr, first: Expr, size: int, position: Expr) -> None:
        weights = b.let((column * outputs + first) * (terms * lanes))
        start = b.let(base + column * lanes)
        sums = [b.local("float32", lanes) for _ in range(size)]
        for total in sums:
            b.store_vector(total, 0, constant(0, "float32", lanes))
        with b.loop(terms, "i") as i:
            value = b.let(b.load_vector(x.memory, start + i * width, lanes))
            for t, total in enumerate(sums):
                weight = b.load_vector(memory, weights + (i * size + t) * lanes, lanes)
                b.store_vector(total, 0, b.fma(value, weight, b.load_vector(total, 0, lanes)))
        for t, total in enumerate(sums):
            at = (position * outputs + first + t) * width + column * lanes
            _finish(context, node, b.load_vector(total, 0, lanes), at, lanes)

    with b.loop(context.rows, "row") as row:
        context.row = row
        with b.loop(int(node.attrs.get("positions", 1)), "position") as position:
            base = b.let(x.tap(int32(0)) + context.at_row(x.access) + position * int(node.attrs.get("step", 0)))
            for first, size, repeat in runs(0, outputs, _SUMS):
                with context.spread(repeat, "tile") as i, b.loop(len(columns), "column") as column:
                    tile(base, column, i * size + first, size, position)


def emit_picked(context: Context, node: FrameNode) -> None:
    """x, w (G, K, R), bias or None; attributes ``picks`` (G, K) or ``puts`` (G, R).

    With picks, input k of group g is element picks[g, k] of x, and G·R elements come out, R a multiple of 16, without a
    bias. With puts, x is (positions, G·K), and output r of group g is row puts[g, r] of (rows, positions); the bias has
    an element a row. A row that nothing is put in is its bias.
    """
    _Picked(context, node).emit()


@dataclass
class _Picked:
    context: Context
    node: FrameNode

    def __post_init__(self) -> None:
        node, context = self.node, self.context
        weights = np.asarray(node.inputs[1], np.float32)
        self.groups, self.inputs, self.outputs = weights.shape
        self.lanes = min(context.target.lanes, LANES)
        self.width = round_up(self.outputs, self.lanes)
        self.positions = int(node.attrs.get("positions", 1))
        self.x = view_of(context, node)
        self.memory = context.constant((id(node), "w"), self._wide(weights))
        picks, puts = node.attrs.get("picks"), node.attrs.get("puts")
        self.picks = None if picks is None else context.constant((id(node), "picks"), np.asarray(picks, np.int32))
        self.puts: Buffer | None = None
        self.start: Buffer | None = None
        self.idle: list[tuple[int, float]] = []
        if puts is None:
            return
        self.puts = context.constant((id(node), "puts"), np.asarray(puts, np.int32))
        rows = int(np.prod(node.output.shape)) // self.positions
        bias = np.zeros(rows, np.float32) if node.inputs[2] is None else np.asarray(node.inputs[2], np.float32)
        if node.inputs[2] is not None:
            self.start = context.constant((id(node), "b"), self._wide(bias[puts]))
        self.idle = [(int(row), float(bias[row])) for row in np.setdiff1d(np.arange(rows), puts)]

    def _wide(self, values: np.ndarray) -> np.ndarray:
        """The last axis as whole vectors."""
        wide = np.zeros((*values.shape[:-1], self.width), np.float32)
        wide[..., : self.outputs] = values
        return wide

    def emit(self) -> None:
        """All rows, positions and groups, as many groups at a time as there are sums under way."""
        b, context = self.context.b, self.context
        together = max(1, _SUMS * self.lanes // self.width)
        with b.loop(context.rows, "row") as row:
            context.row = row
            with b.loop(self.positions, "position") as position:
                within = 0 if self.picks is not None else position * (self.groups * self.inputs)
                base = b.let(context.at_row(self.x.access) + within)
                for first, size, repeat in runs(0, self.groups, together):
                    with context.spread(repeat, "tile") as i:
                        groups = [i * size + (first + g) for g in range(size)]
                        for group, sums in zip(groups, self._sums(groups, base), strict=True):
                            self._store(group, sums, position)
            with context.alone():
                for at, bias in self.idle:
                    value = constant(bias, "float32")
                    for position in range(self.positions):
                        self._apply(value, int32(at * self.positions + position))

    def _sums(self, groups: list[Expr], base: Expr) -> list[list[Buffer]]:
        """The vectors of some groups."""
        b, lanes = self.context.b, self.lanes
        made = [[b.local("float32", lanes) for _ in range(0, self.width, lanes)] for _ in groups]
        for group, row in zip(groups, made, strict=True):
            for v, total in enumerate(row):
                start = constant(0, "float32", lanes)
                if self.start is not None:
                    start = b.load_vector(self.start, group * self.width + v * lanes, lanes)
                b.store_vector(total, 0, start)
        with b.loop(self.inputs, "k") as k:
            places = [b.let(group * self.inputs + k) for group in groups]
            for at, row in zip(places, made, strict=True):
                place = at if self.picks is None else b.load(self.picks, at)
                value = b.let(b.load_vector(self.x.memory, base + place, 1))
                for v, total in enumerate(row):
                    weight = b.load_vector(self.memory, at * self.width + v * lanes, lanes)
                    b.store_vector(total, 0, b.fma(splat(value, lanes), weight, b.load_vector(total, 0, lanes)))
        return made

    def _store(self, group: Expr, sums: list[Buffer], position: Expr) -> None:
        b, lanes = self.context.b, self.lanes
        if self.puts is None:
            for v, total in enumerate(sums):
                at = group * self.outputs + v * lanes
                _finish(self.context, self.node, b.load_vector(total, 0, lanes), at, lanes)
            return
        line = b.local("float32", self.width)
        for v, total in enumerate(sums):
            b.store_vector(line, v * lanes, b.load_vector(total, 0, lanes))
        with b.loop(self.outputs, "r") as r:
            at = b.let(b.load(self.puts, group * self.outputs + r) * self.positions + position)
            self._apply(b.let(b.load(line, r)), at)

    def _apply(self, value: Expr, at: Expr) -> None:
        apply_epilogue(self.context, self.node.output, value, Index(self.node.output.shape, flat=at))


def _finish(context: Context, node: FrameNode, value: Expr, at: Expr, lanes: int) -> None:
    value = context.b.let(value)
    with context.b.vector(lanes) as lane:
        apply_epilogue(context, node.output, value, Index(node.output.shape, flat=at + lane))
