"""GRU, LSTM and RNN as steps: the input's product for all frames at once, the recurrent part frame by frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.signals import NoKernel, Read, Signal, View
from runnel.compiler.streaming.ir import Pointwise, Recurrent, Stream, StreamNode

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

DEFAULTS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "RNN": ["Tanh"]}


class Cell:
    """The weights of one direction, transposed for products with row vectors.

    w: (inputs, gates·hidden). r: (hidden, gates·hidden). wb, rb: (gates·hidden,).
    """

    def __init__(self, op: str, operands: list[Any], attrs: dict[str, Any]) -> None:
        w, r, b = operands
        if w.shape[0] != 1 or attrs.get("direction", "forward") != "forward":
            raise NoKernel("runs in more than the forward direction")
        activations = [
            str(a).capitalize() if str(a).islower() else str(a) for a in attrs.get("activations", DEFAULTS[op])
        ]
        allowed = [DEFAULTS[op]] if op != "RNN" else [["Tanh"], ["Relu"]]
        if activations not in allowed or attrs.get("clip") or attrs.get("input_forget"):
            raise NoKernel("has unusual activations, clipping or coupled gates")
        self.op, self.activation = op, activations[0].lower()
        self.hidden = r.shape[2]
        self.w, self.r = w[0].T.astype(np.float32), r[0].T.astype(np.float32)
        rows = self.w.shape[1]
        bias = np.zeros(2 * rows, np.float32) if b is None else b[0].astype(np.float32)
        self.wb, self.rb = bias[:rows], bias[rows:]
        self.reset_after = bool(attrs.get("linear_before_reset", 0))


class Scribe:
    """Adds steps that share one count and one loop. rows: the batch, where it is more than one."""

    def __init__(self, low: Lowering, node: StreamNode, loop: int, rows: tuple[int, ...]) -> None:
        self.low, self.node, self.loop, self.rows = low, node, loop, rows

    def __call__(self, op: str, operands: list[Any], size: int, target: Signal | None = None, **attrs: Any) -> View:
        shape = (*self.rows, size)
        reads: list[Read] = []
        inputs: list[Any] = []
        for x in operands:
            if isinstance(x, View):
                reads.append(self.low.read(x))
                inputs.append(reads[-1].value)
            else:
                inputs.append(x)
        fact = self.node.output.fact
        signal = target or self.low.signal(f"{self.node.output.name}/{op}", shape, "float32", fact.made, fact.length)
        return self.low.add(FrameNode(op, tuple(inputs), FrameValue(op, shape), attrs), reads, signal, self.loop)


def lower_recurrent(low: Lowering, node: Recurrent) -> View:
    """A recurrence along time."""
    x = node.streams[0]
    rows = x.frame_shape[:1] if x.frame_shape[0] > 1 else ()
    cell = Cell(node.op, node.inputs[1:4], node.attrs)
    size = cell.hidden
    fact = node.output.fact
    view = low.view(x).reshaped((*rows, x.frame_shape[-1]))
    states: list[Signal] = []
    for kind, initial in zip("hc" if node.op == "LSTM" else "h", node.inputs[4:6], strict=False):
        shape = (*rows, size)
        first = np.zeros((1, *shape), np.float32) if not isinstance(initial, np.ndarray) else initial.reshape(1, *shape)
        states.append(low.signal(f"{node.output.name}/{kind}", shape, "float32", fact.made, fact.length, initial=first))
    previous = [View(s, -1, 1, s.shape, fact.length) for s in states]
    outside, inside = Scribe(low, node, 0, rows), Scribe(low, node, low.new_loop(), rows)
    _cell(cell, outside, inside, view, previous, states)
    return View(states[0], 0, 1, node.output.frame_shape, fact.length)


def one_step(low: Lowering, node: Pointwise) -> View:
    """A recurrence inside a frame: over a sequence of one element with given states, as in models with their own
    states."""
    x = node.inputs[0]
    if not isinstance(x, Stream) or len(x.frame_shape) != 3 or x.frame_shape[0] != 1 or x.frame_shape[1] != 1:
        raise NoKernel("recurs over a sequence or a batch inside a frame")
    cell = Cell(node.op, list(node.inputs[1:4]), node.attrs)
    size = cell.hidden
    scribe = Scribe(low, node, 0, ())
    previous: list[Any] = []
    for i in range(5, 5 + (2 if node.op == "LSTM" else 1)):
        state = node.inputs[i] if len(node.inputs) > i else None
        if isinstance(state, Stream):
            previous.append(low.view(state).reshaped((size,)))
        else:
            previous.append(np.zeros(size, np.float32) if state is None else np.asarray(state).reshape(size))
    made = _cell(cell, scribe, scribe, low.view(x).reshaped((x.frame_shape[-1],)), previous, [None, None])
    output = int(node.attrs.get("runnel.output", 0))
    return made[1 if output == 2 else 0].reshaped(node.output.frame_shape)


def _cell(cell: Cell, outside: Scribe, inside: Scribe, x: View, previous: list[Any], targets: list[Any]) -> list[View]:
    """The steps of one cell; returns the new h (and c)."""
    n, h = cell.hidden, previous[0]
    if cell.op == "LSTM":
        gx = outside("matmul", [x, cell.w, cell.wb + cell.rb], 4 * n)
        gh = inside("matmul", [h, cell.r, None], 4 * n)
        gates = inside("add", [gh, gx], 4 * n)
        c = inside("lstm_c", [gates, previous[1]], n, targets[1])
        return [inside("lstm_h", [gates, c], n, targets[0]), c]
    if cell.op == "RNN":
        gx = outside("matmul", [x, cell.w, cell.wb + cell.rb], n)
        total = inside("add", [inside("matmul", [h, cell.r, None], n), gx], n)
        return [inside(cell.activation, [total], n, targets[0])]
    gx = outside("matmul", [x, cell.w, cell.wb], 3 * n)
    if cell.reset_after:
        gh = inside("matmul", [h, cell.r, cell.rb], 3 * n)
        return [inside("gru_cell", [gx, gh, h], n, targets[0])]
    zr = inside("matmul", [h, np.ascontiguousarray(cell.r[:, : 2 * n]), cell.rb[: 2 * n]], 2 * n)
    gates = inside("sigmoid", [inside("add", [zr, _part(inside, gx, 0, 2 * n)], 2 * n)], 2 * n)
    kept = inside("mul", [_part(inside, gates, n, 2 * n), h], n)
    candidate = inside("matmul", [kept, np.ascontiguousarray(cell.r[:, 2 * n :]), cell.rb[2 * n :]], n)
    candidate = inside("tanh", [inside("add", [candidate, _part(inside, gx, 2 * n, 3 * n)], n)], n)
    z = _part(inside, gates, 0, n)
    change = inside("mul", [z, inside("sub", [h, candidate], n)], n)
    return [inside("add", [candidate, change], n, targets[0])]


def _part(scribe: Scribe, x: View, start: int, stop: int) -> View:
    rows = scribe.rows
    zeros, ones = [0] * len(rows), [1] * len(rows)
    return scribe("slice", [x], stop - start, starts=[*zeros, start], ends=[*rows, stop], steps=[*ones, 1])
