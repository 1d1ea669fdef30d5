"""Kernels of a feed-forward layer that looks at a few of its neurons only.

A list of neurons is int32: how many, then their numbers in ascending order. Their weights are units: rows of the
matrices side by side, in slots that CHOOSE filled. Sums go over inputs in 16 partial sums with a fixed tree at the end,
and over neurons in the order of the list, wherever their units lie.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import ops
from runnel.compiler.codegen.builder import Buffer, Expr, constant, int32, splat
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.elementwise import apply_epilogue, spill_and_apply
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.reduce import tree_sum
from runnel.compiler.lowering.frame import FrameNode, FrameValue

_TOGETHER = 4
"""Neurons whose products are made side by side."""


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
        self.rows: list[int] = list(node.attrs["rows"])  # where a unit's rows of products begin
        self.unit = int(node.attrs["unit"])
        self.slots = None
        if self.rows:
            assert isinstance(slots, FrameValue)
            self.slots, self.units = _memory(context, slots), context.units(slots, node.attrs["kind"])
        self.biases = [
            None if v is None else context.constant((id(node), name), np.asarray(v, np.float32).reshape(-1))
            for name, v in (("gate", gate_bias), ("up", up_bias))
        ]

    def emit(self) -> None:
        b = self.b
        count = b.let(b.load_vector(self.found, 0, 1))
        with b.repeat(tirx.truncdiv(count + (_TOGETHER - 1), int32(_TOGETHER)), "block") as block:
            places = [b.let(tirx.min(block * _TOGETHER + j, count - 1)) for j in range(_TOGETHER)]
            neurons = [b.let(b.load_vector(self.found, p + 1, 1)) for p in places]
            products = self._products(places)
            for j, (place, neuron) in enumerate(zip(places, neurons, strict=True)):
                value = self._value([p[j] for p in products], neuron)
                b.store_vector(self.context.out, place, b.fence(value))

    def _products(self, places: list[Expr]) -> list[list[Expr]]:
        """x times each row of each unit."""
        if not self.rows:
            return []
        b, inputs = self.b, self.inputs
        assert self.slots is not None and self.x is not None
        bases = [b.let(b.load_vector(self.slots, p + 1, 1) * self.unit) for p in places]
        widths = ([LANES] if inputs >= LANES else []) + [piece for piece in (8, 4, 2, 1) if inputs % LANES & piece]
        sums = [[[b.local("float32", lanes) for lanes in widths] for _ in bases] for _ in self.rows]
        for row in sums:
            for each in row:
                for total, lanes in zip(each, widths, strict=True):
                    b.store_vector(total, 0, constant(0.0, "float32", lanes))

        def step(k: Expr, part: int) -> None:
            lanes = widths[part]
            x = b.let(b.load_vector(self.x, k, lanes))
            for begin, row in zip(self.rows, sums, strict=True):
                for base, each in zip(bases, row, strict=True):
                    w = self._weight(base + begin + k, lanes)
                    b.store_vector(each[part], 0, b.fma(x, w, b.load_vector(each[part], 0, lanes)))

        if inputs >= LANES:
            with b.loop(inputs // LANES, "k") as k:
                step(k * LANES, 0)
        at = inputs - inputs % LANES
        for part, lanes in enumerate(widths):
            if lanes < LANES:
                step(int32(at), part)
                at += lanes
        return [[self._joined(each, widths) for each in row] for row in sums]

    def _weight(self, at: Expr, lanes: int) -> Expr:
        return loaded(self.context, self.units, at, lanes, self.node.attrs["kind"])

    def _joined(self, parts: list[Buffer], widths: list[int]) -> Expr:
        b = self.b
        totals = [tree_sum(b, b.load_vector(part, 0, lanes)) for part, lanes in zip(parts, widths, strict=True)]
        value = totals[0]
        for total in totals[1:]:
            value = b.let(value + total)
        return value

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


def emit_values(context: Context, node: FrameNode) -> None:
    """neuron_values: what each listed neuron gives, in the order of the list."""
    _one_row(context, node)
    _Values(context, node).emit()


def loaded(context: Context, memory: Buffer, at: Expr, lanes: int, kind: str) -> Expr:
    """Weights of a unit as float32."""
    value = context.b.load_vector(memory, at, lanes)
    if kind == "float32":
        return value
    half = "float16" if lanes == 1 else f"float16x{lanes}"
    return tirx.Cast("float32" if lanes == 1 else f"float32x{lanes}", tirx.reinterpret(half, value))


def emit_sum(context: Context, node: FrameNode) -> None:
    """neuron_sum: the listed neurons' rows of the last matrix times their values, from a bias or another sum on."""
    _one_row(context, node)
    b = context.b
    values, found, slots, bias = node.inputs
    assert isinstance(slots, FrameValue)
    kind, unit, begin = node.attrs["kind"], int(node.attrs["unit"]), int(node.attrs["row"])
    given, lists, places = (_memory(context, v) for v in (values, found, slots))
    units = context.units(slots, kind)
    outputs = int(np.prod(node.output.shape, dtype=np.int64))
    padded = round_up(outputs, LANES)
    start = None
    if isinstance(bias, FrameValue):
        start = _memory(context, bias)
    elif bias is not None:
        row = np.zeros(padded, np.float32)
        row[:outputs] = np.asarray(bias, np.float32).reshape(-1)
        start = context.constant((id(node), "bias"), row)
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
            base = b.let(b.load_vector(places, n + 1, 1) * unit + begin)
            for total, column in zip(sums, columns, strict=True):
                w = loaded(context, units, base + column, LANES, kind)
                b.store_vector(total, 0, b.fma(value, w, b.load_vector(total, 0, LANES)))
        for total, column in zip(sums, columns, strict=True):
            done = b.let(b.load_vector(total, 0, LANES))
            if outputs - column < LANES:
                spill_and_apply(context, node.output, done, int32(column), outputs - column)
                continue
            with b.vector(LANES) as lane:
                apply_epilogue(context, node.output, done, Index(node.output.shape, flat=column + lane))
