"""GRU, LSTM and RNN over a sequence inside a frame: one kernel that steps through the elements, its state on the stack.

Every sum over the state goes in one order, even units apart from odd ones, whatever the width; the directions take
turns, so that one works while the other waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runnel.compiler.codegen import math as m
from runnel.compiler.codegen import ops
from runnel.compiler.codegen.builder import Buffer, Expr, constant, int32, splat
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.elementwise import apply_epilogue, over_lanes
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.lowering.frame import FrameNode, FrameValue

GATES = {"gru_sequence": 3, "lstm_sequence": 4, "rnn_sequence": 1}
_CHAINS = 2
_MOST_STACK = 14 << 10


@dataclass
class _Direction:
    """One direction's state. arrays: h and the next h; then c and the next c (LSTM) or z and r·h (GRU)."""

    number: int
    reverse: bool
    arrays: list[Buffer]


def emit_sequence(context: Context, node: FrameNode) -> None:
    """gru_sequence, lstm_sequence, rnn_sequence."""
    _Sequence(context, node).emit()


class _Sequence:
    def __init__(self, context: Context, node: FrameNode) -> None:
        self.context, self.b, self.node = context, context.b, node
        self.gates = GATES[node.op]
        self.x = view_of(context, node)
        r = np.asarray(node.inputs[1], np.float32)
        self.ways, self.hidden = r.shape[:2]
        self.steps, self.batch = self.x.value.shape[:2]
        width = self.ways * self.gates * self.hidden
        if r.shape[2] != self.gates * self.hidden or self.x.value.shape != (self.steps, self.batch, width):
            raise Unsupported(node.op, f"recurrent weights {r.shape} do not fit {self.x.value.shape}")
        self.reset_after = bool(node.attrs.get("linear_before_reset", 0))
        self.r = context.constant((id(node), "r"), r)
        bias = node.inputs[2]
        self.bias = None if bias is None else context.constant((id(node), "b"), np.asarray(bias, np.float32))
        self.initial = [self._initial(state) for state in node.inputs[3:]]

    def _initial(self, state: Any) -> Callable[[Expr], Expr]:
        """Reads a given state (directions, batch, hidden)."""
        context = self.context
        if isinstance(state, FrameValue):
            if state not in context.views or state.dtype != "float32":
                raise Unsupported(self.node.op, "its state must be an input of the group, of float32")
            view = context.views[state]
            return lambda at: self.b.load(view.memory, context.at_row(view.access) + at)
        memory = context.constant((id(self.node), id(state)), np.asarray(state, np.float32))
        return lambda at: self.b.load(memory, at)

    def emit(self) -> None:
        """All rows and sequences."""
        b, context, hidden = self.b, self.context, self.hidden
        reset_first = self.node.op == "gru_sequence" and not self.reset_after
        count = 4 if reset_first or self.node.op == "lstm_sequence" else 2
        if self.ways * count * hidden * 4 > _MOST_STACK:
            raise Unsupported(self.node.op, f"{hidden} hidden units do not fit on a kernel's stack")
        reverse = self.node.attrs["reverse"]
        directions = [
            _Direction(d, bool(reverse[d]), [b.local("float32", hidden) for _ in range(count)])
            for d in range(self.ways)
        ]
        with b.loop(context.rows, "row") as row, b.loop(self.batch, "n") as n:
            context.row = row
            for d in directions:
                origin = (d.number * self.batch + n) * hidden
                for read, memory in zip(self.initial, d.arrays[::2], strict=False):
                    self._copy(lambda at, read=read, o=origin: read(o + at), memory)  # type: ignore[misc]
            with b.loop(self.steps, "s") as step:
                for d in directions:
                    self._step(d, n, self.steps - 1 - step if d.reverse else step)
                for d in directions:
                    for state, new in list(zip(d.arrays[::2], d.arrays[1::2], strict=True))[: len(self.initial)]:
                        self._copy(lambda at, new=new: b.load(new, at), state)  # type: ignore[misc]

    def _copy(self, read: Callable[[Expr], Expr], target: Buffer) -> None:
        # Fenced, else it becomes a call of memcpy, which an image cannot import.
        b = self.b
        over_lanes(b, self.hidden, lambda at: b.store(target, at, b.fence(b.let(read(at)))))

    def _step(self, d: _Direction, n: Expr, s: Expr) -> None:
        """One element of the sequence: h from the first array goes to the second, and out."""
        b, hidden = self.b, self.hidden
        gates = self.gates * hidden
        x_at = b.let(int32(s * self.batch + n) * (self.ways * gates) + d.number * gates)
        cell = {"gru_sequence": self._gru, "lstm_sequence": self._lstm, "rnn_sequence": self._rnn}[self.node.op]
        if self.node.op == "gru_sequence" and not self.reset_after:
            over_lanes(b, hidden, lambda at: self._reset(d, x_at, at))

        def unit(at: Expr) -> None:
            h = cell(d, x_at, at)
            b.store(d.arrays[1], at, h)
            anchor = self.node.output
            apply_epilogue(self.context, anchor, h, Index(anchor.shape, coords=[s, int32(d.number), n, at]))

        over_lanes(b, hidden, unit)

    def _x(self, x_at: Expr, gate: int, at: Expr) -> Expr:
        offset = self.context.at_row(self.x.access)
        return self.b.let(self.b.load(self.x.memory, offset + x_at + (gate * self.hidden + at)))

    def _start(self, d: _Direction, gate: int, at: Expr) -> Expr:
        """The recurrent bias of a gate, 0 where there is none."""
        if self.bias is None:
            return constant(0.0, "float32", self.b.lanes)
        return self.b.let(self.b.load(self.bias, (d.number * self.gates + gate) * self.hidden + at))

    def _sums(self, d: _Direction, state: Buffer, gates: list[int], at: Expr) -> list[Expr]:
        """bias + state · R of the named gates, for the units ``at``."""
        b, hidden, lanes = self.b, self.hidden, self.b.lanes
        sums = [[b.local("float32", lanes) for _ in range(min(_CHAINS, hidden))] for _ in gates]
        for gate, chains in zip(gates, sums, strict=True):
            for i, chain in enumerate(chains):
                zero = constant(0.0, "float32", lanes)
                b.store_vector(chain, 0, zero if i else self._start(d, gate, at))

        def add(k: Expr, chain: int) -> None:
            h = splat(b.let(b.load_vector(state, k, 1)), lanes)
            for gate, chains in zip(gates, sums, strict=True):
                row = (d.number * hidden + k) * (self.gates * hidden) + gate * hidden
                total = b.load_vector(chains[chain], 0, lanes)
                b.store_vector(chains[chain], 0, b.fma(h, b.load(self.r, row + at), total))

        unroll = 2 * _CHAINS
        with b.loop(hidden // unroll, "k") as k:
            if hidden >= unroll:
                for u in range(unroll):
                    add(k * unroll + u, u % _CHAINS)
        for u in range(hidden - hidden % unroll, hidden):
            add(int32(u), u % _CHAINS)
        results = []
        for chains in sums:
            total = b.let(b.load_vector(chains[0], 0, lanes))
            for chain in chains[1:]:
                total = b.let(total + b.load_vector(chain, 0, lanes))
            results.append(total)
        return results

    def _reset(self, d: _Direction, x_at: Expr, at: Expr) -> None:
        """GRU with the reset before the product: z and r·h of all units."""
        b = self.b
        h, _, update, kept = d.arrays
        z, r = self._sums(d, h, [0, 1], at)
        b.store(update, at, m.sigmoid(b, b.let(self._x(x_at, 0, at) + z)))
        b.store(kept, at, b.let(m.sigmoid(b, b.let(self._x(x_at, 1, at) + r)) * b.load(h, at)))

    def _gru(self, d: _Direction, x_at: Expr, at: Expr) -> Expr:
        b, h = self.b, d.arrays[0]
        if self.reset_after:
            gh = self._sums(d, h, [0, 1, 2], at)
            return ops.gru_cell(b, [self._x(x_at, g, at) for g in range(3)], gh, b.let(b.load(h, at)))
        z = b.let(b.load(d.arrays[2], at))
        n = m.tanh(b, b.let(self._x(x_at, 2, at) + self._sums(d, d.arrays[3], [2], at)[0]))
        return b.let(b.fma(z, b.let(b.load(h, at) - n), n))

    def _lstm(self, d: _Direction, x_at: Expr, at: Expr) -> Expr:
        b, state = self.b, d.arrays[2]
        sums = self._sums(d, d.arrays[0], [0, 1, 2, 3], at)
        i, o, f, g = (b.let(self._x(x_at, gate, at) + total) for gate, total in enumerate(sums))
        c = ops.lstm_c(b, i, f, g, b.let(b.load(state, at)))
        b.store(d.arrays[3], at, c)
        return ops.lstm_h(b, o, c)

    def _rnn(self, d: _Direction, x_at: Expr, at: Expr) -> Expr:
        b = self.b
        total = b.let(self._x(x_at, 0, at) + self._sums(d, d.arrays[0], [0], at)[0])
        return ops.UNARY[str(self.node.attrs.get("activation", "tanh"))](b, total, {})
