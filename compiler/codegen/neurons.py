"""Kernels of a feed-forward layer that looks at a few of its neurons only.

A list of neurons is int32: how many, then their numbers in ascending order. Their weights are units: rows of the
matrices side by side, as float32, halves or codes, in slots that CHOOSE filled. Codes of the last matrix have scales
for blocks of neurons, which are constants beside the units. Sums go over inputs in 16 partial sums with a fixed tree at
the end, and over neurons in the order of the list, wherever their units lie.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import halves, ops
from runnel.compiler.codegen.builder import Buffer, Builder, Expr, constant, int32, splat, vector_type
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.elementwise import apply_epilogue, spill_and_apply
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.reduce import tree_sum
from runnel.compiler.codegen.rows import Units
from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.rows import Row

_TOGETHER = 4
"""Neurons whose products are made side by side."""
_MOST_SCALES = 4096
"""That are held as float32 at a time."""


def _memory(context: Context, value: object) -> Buffer:
    if not isinstance(value, FrameValue) or value not in context.views or context.views[value].access.taps != 1:
        raise Unsupported("neurons", "an operand is not a frame of the group's inputs")
    return context.views[value].memory


def _one_row(context: Context, node: FrameNode) -> None:
    if context.rows != 1:
        raise Unsupported(node.op, "it makes one frame at a time")


def emit_active(context: Context, node: FrameNode) -> None:
    """active: the list of the elements that are not zero or less, NaN among them."""
    b, x = context.b, node.inputs[0]
    assert isinstance(x, FrameValue)
    memory, access = _memory(context, x), context.views[x].access
    size = int(np.prod(x.shape, dtype=np.int64))
    count = b.local("int32", 1)
    with b.loop(context.rows, "row") as row:
        context.row = row
        at, to = b.let(context.at_row(access)), b.let(context.out_row)
        b.store_vector(count, 0, int32(0))
        with b.loop(size, "i") as i:
            found = b.load_vector(count, 0, 1)
            b.store_vector(context.out, to + 1 + found, i)  # if it is not active, the next one takes its place
            below = b.load_vector(memory, at + i, 1) <= constant(0.0, "float32")
            b.store_vector(count, 0, found + tirx.Select(below, int32(0), int32(1)))
        b.store_vector(context.out, to, b.load_vector(count, 0, 1))


def emit_active_part(context: Context, node: FrameNode) -> None:
    """active_part: what a list holds from its element ``first`` on, as many as fit."""
    b, x, first = context.b, node.inputs[0], int(node.attrs["first"])
    assert isinstance(x, FrameValue)
    memory, access = _memory(context, x), context.views[x].access
    most = node.output.shape[0] - 1
    with b.loop(context.rows, "row") as row:
        context.row = row
        at, to = b.let(context.at_row(access)), b.let(context.out_row)
        rest = b.load_vector(memory, at, 1) - first
        count = b.let(tirx.max(tirx.min(rest, int32(most)), int32(0)))
        b.store_vector(context.out, to, count)
        with b.repeat(count, "i") as i:  # a fence, else it becomes a call of memcpy
            b.store_vector(context.out, to + 1 + i, b.fence(b.load_vector(memory, at + (1 + first) + i, 1)))


class _Values:
    """Inner values of the listed neurons, a few neurons at a time."""

    def __init__(self, context: Context, node: FrameNode) -> None:
        self.context, self.node, self.b = context, node, context.b
        x, active, found, slots, gate_bias, up_bias = node.inputs
        self.found = _memory(context, found)
        self.x = None if x is None else _memory(context, x)
        self.active = None if active is None else _memory(context, active)
        self.inputs = 0 if x is None else int(np.prod(x.shape, dtype=np.int64))
        self.rows: list[Row] = list(node.attrs["rows"])  # the unit's rows of products
        self.units = None
        if self.rows:
            assert isinstance(slots, FrameValue)
            self.units = Units(context, slots, _memory(context, slots), int(node.attrs["unit"]))
        self.together = _TOGETHER
        while self.together > 1 and self.together * self._scales() > _MOST_SCALES:
            self.together //= 2
        self.biases = [
            None if v is None else context.constant((id(node), name), np.asarray(v, np.float32).reshape(-1))
            for name, v in (("gate", gate_bias), ("up", up_bias))
        ]

    def _scales(self) -> int:
        """Scales and zeros of a neuron."""
        return sum((1 + (r.zeros >= 0)) * -(-self.inputs // r.block) for r in self.rows if r.block)

    def emit(self) -> None:
        b, together = self.b, self.together
        count = b.let(b.load_vector(self.found, 0, 1))
        self._last_inputs()
        with b.repeat(tirx.truncdiv(count + (together - 1), int32(together)), "block") as block:
            places = [b.let(tirx.min(block * together + j, count - 1)) for j in range(together)]
            neurons = [b.let(b.load_vector(self.found, p + 1, 1)) for p in places]
            products = self._products(places)
            for j, (place, neuron) in enumerate(zip(places, neurons, strict=True)):
                value = self._value([p[j] for p in products], neuron)
                b.store_vector(self.context.out, place, b.fence(value))

    def _last_inputs(self) -> None:
        """Those that are no whole vector, with zeros behind them."""
        b, at, self.last = self.b, self.inputs - self.inputs % LANES, None
        if at == self.inputs or self.x is None:
            return
        self.last = b.local("float32", LANES)
        b.store_vector(self.last, 0, constant(0.0, "float32", LANES))
        for lanes in (8, 4, 2, 1):
            if self.inputs % LANES & lanes:
                b.store_vector(self.last, int32(at % LANES), b.load_vector(self.x, int32(at), lanes))
                at += lanes

    def _products(self, places: list[Expr]) -> list[list[Expr]]:
        """x times each row of each unit."""
        if self.units is None:
            return []
        b, inputs = self.b, self.inputs
        bases = [self.units.base(p) for p in places]
        parts = [[_Part(self.units, row, base, inputs) for base in bases] for row in self.rows]
        piece = max(row.piece for row in self.rows)

        def products(number: Expr, count: int) -> None:
            """Of the first ``count`` inputs of a piece."""
            for i in range(-(-count // LANES)):
                x = self._inputs(number * piece + i * LANES, count - i * LANES)
                for part in (p for row in parts for p in row):
                    part.add(x, number, piece, i)

        with b.loop(inputs // piece, "k") as k:
            products(k, piece)
        if inputs % piece:
            products(int32(inputs // piece), inputs % piece)
        return [[tree_sum(b, b.load_vector(part.total, 0, LANES)) for part in row] for row in parts]

    def _inputs(self, at: Expr, count: int) -> Expr:
        assert self.x is not None
        if count >= LANES:
            return self.b.let(self.b.load_vector(self.x, at, LANES))
        assert self.last is not None
        return self.b.let(self.b.load_vector(self.last, 0, LANES))

    def _value(self, products: list[Expr], neuron: Expr) -> Expr:
        """What the neuron gives: the activation of the gate, times the product with up where there is one."""
        b, form = self.b, self.node.attrs["form"]
        gate_bias, up_bias = self.biases
        if self.active is not None:
            gate = b.let(b.load_vector(self.active, neuron, 1))
        else:
            gate, products = products[0], products[1:]
            gate = gate if gate_bias is None else b.let(gate + b.load_vector(gate_bias, neuron, 1))
        value = b.let(ops.UNARY["relu"](b, gate, {}))
        value = b.let(value * value) if form["squared"] else value
        if form["gated"]:
            up = products[0] if up_bias is None else b.let(products[0] + b.load_vector(up_bias, neuron, 1))
            value = b.let(value * up)
        return value


class _Part:
    """The sum of inputs by one row of one unit."""

    def __init__(self, units: Units, row: Row, base: Expr, inputs: int) -> None:
        self.units, self.row, self.base, self.b = units, row, base, units.b
        self.total = self.b.local("float32", LANES)
        self.b.store_vector(self.total, 0, constant(0.0, "float32", LANES))
        blocks = -(-inputs // row.block) if row.block else 0
        self.scales = units.reals(row.scales, blocks, row.half, base) if blocks else None
        self.zeros = units.reals(row.zeros, blocks, row.half, base) if row.zeros >= 0 else None
        self.packed = self.scale = self.zero = base  # set with the first vector of each

    def add(self, x: Expr, number: Expr, piece: int, i: int) -> None:
        """The ``i``-th vector of a piece."""
        b, row = self.b, self.row
        words, within = divmod(i, row.together)
        if within == 0:
            each = piece // (LANES * row.together)
            self.packed = self.units.words(row, self.base, number * each + words)
        w = self.units.single(row, self.packed, within)
        if self.scales is not None:
            if i * LANES % row.block == 0:
                at = number * (piece // row.block) + i * LANES // row.block
                self.scale = splat(b.let(b.load_vector(self.scales, at, 1)), LANES)
                self.zero = None if self.zeros is None else splat(b.let(b.load_vector(self.zeros, at, 1)), LANES)
            w = b.let(w if self.zero is None else w - self.zero) * self.scale
        b.store_vector(self.total, 0, b.fma(x, b.let(w), b.load_vector(self.total, 0, LANES)))


def emit_values(context: Context, node: FrameNode) -> None:
    """neuron_values: what each listed neuron gives, in the order of the list."""
    _one_row(context, node)
    _Values(context, node).emit()


def emit_sum(context: Context, node: FrameNode) -> None:
    """neuron_sum: the listed neurons' rows of the last matrix times their values, from a bias or another sum on."""
    _one_row(context, node)
    b = context.b
    values, found, slots, bias, *reals = node.inputs
    assert isinstance(slots, FrameValue)
    row: Row = node.attrs["row"]
    given, lists = _memory(context, values), _memory(context, found)
    units = Units(context, slots, _memory(context, slots), int(node.attrs["unit"]))
    outputs = int(np.prod(node.output.shape, dtype=np.int64))
    padded = round_up(outputs, LANES)
    scales, zeros = (_wide(context, (id(node), i), x, padded) for i, x in enumerate(reals))
    start = None
    if isinstance(bias, FrameValue):
        start = _memory(context, bias)
    elif bias is not None:
        first_sums = np.zeros(padded, np.float32)
        first_sums[:outputs] = np.asarray(bias, np.float32).reshape(-1)
        start = context.constant((id(node), "bias"), first_sums)
    registers = LANES // min(context.target.lanes, LANES)
    most = max(1, (context.target.registers - 4) // registers)
    panels = -(-(padded // LANES) // most)
    each = -(-(padded // LANES) // panels) * LANES
    count = b.let(b.load_vector(lists, 0, 1))
    for first in range(0, padded, each):
        columns = range(first, min(first + each, padded), LANES)
        sums = [b.local("float32", LANES) for _ in columns]
        for total, column in zip(sums, columns, strict=True):
            zero = constant(0.0, "float32", LANES)
            b.store_vector(total, 0, zero if start is None else b.load_vector(start, column, LANES))
        with b.repeat(count, "n") as n:
            value = splat(b.let(b.load_vector(given, n, 1)), LANES)
            base, packed = units.base(n), None
            block = None
            if row.block:
                block = b.let(tirx.truncdiv(b.load_vector(lists, n + 1, 1), int32(row.block)) * padded)
            for total, column in zip(sums, columns, strict=True):
                number, within = divmod(column // LANES, row.together)
                if packed is None or within == 0:
                    packed = units.words(row, base, number)
                w = units.single(row, packed, within)
                if block is not None:
                    w = w if zeros is None else b.let(w - _real(b, zeros, block + column))
                    w = b.let(w) * _real(b, scales, block + column)
                b.store_vector(total, 0, b.fma(value, b.let(w), b.load_vector(total, 0, LANES)))
        for total, column in zip(sums, columns, strict=True):
            done = b.let(b.load_vector(total, 0, LANES))
            if outputs - column < LANES:
                spill_and_apply(context, node.output, done, int32(column), outputs - column)
                continue
            with b.vector(LANES) as lane:
                apply_epilogue(context, node.output, done, Index(node.output.shape, flat=column + lane))


def _wide(context: Context, key: object, values: object, padded: int) -> Buffer | None:
    """Scales or zeros (blocks, outputs) as a constant of whole vectors."""
    if not isinstance(values, np.ndarray):
        return None
    wide = np.zeros((len(values), padded), np.float32 if not context.target.halves else values.dtype)
    wide[:, : values.shape[1]] = values
    return context.constant(key, wide.view(np.int16) if wide.dtype == np.float16 else wide)


def _real(b: Builder, memory: Buffer, at: Expr) -> Expr:
    """A vector of such a constant as float32."""
    found = b.let(b.load_vector(memory, at, LANES))
    if str(memory.dtype) == "float32":
        return found
    return b.let(halves.single(b, tirx.reinterpret(vector_type("uint16", LANES), found)))
