"""GRU, LSTM and RNN as steps: the input's product for all frames at once, the recurrent part frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.signals import NoKernel, Read, Signal, View
from runnel.compiler.lowering.weights import block_operands, coded
from runnel.compiler.streaming.ir import STACKED, Pointwise, Recurrent, Stream, StreamNode

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

DEFAULTS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "RNN": ["Tanh"]}


class Cell:
    """The weights of a recurrence, transposed for products with row vectors.

    w: (inputs, directions·gates·hidden). wb: (directions·gates·hidden,). r: (directions, hidden, gates·hidden).
    rb: (directions, gates·hidden).
    """

    def __init__(self, op: str, operands: Sequence[Any], attrs: dict[str, Any]) -> None:
        w, r, b = (*operands, None)[:3]
        if not isinstance(w, np.ndarray) or not isinstance(r, np.ndarray) or isinstance(b, Stream):
            raise NoKernel("has weights that are computed")
        ways = self.ways = w.shape[0]
        activations = [
            str(a).capitalize() if str(a).islower() else str(a) for a in attrs.get("activations", DEFAULTS[op])
        ]
        allowed = [DEFAULTS[op]] if op != "RNN" else [["Tanh"], ["Relu"]]
        usual = activations in [way * n for way in allowed for n in (1, ways)]
        if not usual or attrs.get("clip") or attrs.get("input_forget"):
            raise NoKernel("has unusual activations, clipping or coupled gates")
        self.op, self.activation = op, activations[0].lower()
        direction = str(attrs.get("direction", "forward"))
        self.reverse = [direction == "reverse", True][:ways] if ways == 1 else [False, True]
        self.hidden = r.shape[2]
        rows = r.shape[1]
        self.w = np.ascontiguousarray(w.reshape(ways * rows, -1).T, np.float32)
        self.r = np.ascontiguousarray(r.transpose(0, 2, 1), np.float32)
        bias = np.zeros((ways, 2 * rows), np.float32) if b is None else b.astype(np.float32)
        self.wb, self.rb = bias[:, :rows].reshape(-1), bias[:, rows:]
        self.reset_after = bool(attrs.get("linear_before_reset", 0))


class Scribe:
    """Adds steps that share one count and one loop. rows: the batch, where it is more than one."""

    def __init__(self, low: Lowering, node: StreamNode, loop: int, rows: tuple[int, ...]) -> None:
        self.low, self.node, self.loop, self.rows = low, node, loop, rows

    def __call__(self, op: str, operands: list[Any], size: int, target: Signal | None = None, **attrs: Any) -> View:
        shape = (*self.rows, size)
        if op == "matmul" and (blocks := coded(self.low.graph.modes, [operands[1]])) is not None:
            op = "matmul_blocks"
            weights, attrs = block_operands(blocks)
            operands = [operands[0], *weights, operands[2]]
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
    """A recurrence along time, forward."""
    states = _shared(low, node.op, node.attrs, node.inputs, lambda: _states(low, node))
    return states[1 if node.cells else 0].reshaped(node.output.frame_shape)


def _states(low: Lowering, node: Recurrent) -> list[View]:
    """h (and c) after every frame."""
    x = node.streams[0]
    rows = x.frame_shape[:1] if x.frame_shape[0] > 1 else ()
    if any(v is not None for v in node.inputs[6:]):
        raise NoKernel("has peephole weights")
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
    return [View(s, 0, 1, s.shape, fact.length) for s in states]


def inside_frame(low: Lowering, node: Pointwise) -> View:
    """A recurrence inside a frame: over another axis than time, or of a model that has its own states and one frame."""
    x = node.inputs[0]
    assert isinstance(x, Stream)
    if any(v is not None for v in node.inputs[7:]):
        raise NoKernel("has peephole weights")
    cell = Cell(node.op, node.inputs[1:4], node.attrs)
    turned = bool(node.attrs.get("layout", 0))
    if x.axis != STACKED:  # time is the batch
        steps, batch = x.frame_shape[0], 1
    else:
        steps, batch = x.frame_shape[1::-1] if turned else x.frame_shape[:2]
    if turned and batch > 1:
        raise NoKernel("has several sequences, batch first, inside a frame")
    shape = (cell.ways, batch, cell.hidden)
    states = [_state(low, node, i, shape) for i in range(5, 7 if node.op == "LSTM" else 6)]
    output = int(node.attrs.get("runnel.output", 0))
    if steps == cell.ways == 1 and (batch == 1 or cell.op == "LSTM"):
        made = _made_once(low, node, lambda: _one_element(low, node, cell, batch, states))
        return made[1 if output == 2 else 0].reshaped(node.output.frame_shape)
    if output == 2:
        raise NoKernel("gives its cell state after a sequence inside a frame")
    (y,) = _made_once(low, node, lambda: [_sequence(low, node, cell, (steps, batch), states)])
    if output == 1 and steps > 1:
        ends = np.array([0 if back else (steps - 1) * cell.ways for back in cell.reverse]) + np.arange(cell.ways)
        flat = y.reshaped((steps * cell.ways, batch * cell.hidden))
        y = low.step(node, "gather", [flat, ends], (cell.ways, batch * cell.hidden), {"axis": 0})
    return y.reshaped(node.output.frame_shape)


def _state(low: Lowering, node: Pointwise, i: int, shape: tuple[int, ...]) -> View | np.ndarray:
    state = node.inputs[i] if len(node.inputs) > i else None
    if isinstance(state, Stream):
        return low.view(state).reshaped(shape)
    return np.zeros(shape, np.float32) if state is None else np.asarray(state, np.float32).reshape(shape)


def _made_once(low: Lowering, node: Pointwise, make: Callable[[], list[View]]) -> list[View]:
    """What another output of the same recurrence has made already, or ``make()``."""
    return _shared(
        low, node.op, {k: v for k, v in node.attrs.items() if not k.startswith("runnel.")}, node.inputs, make
    )


def _shared(
    low: Lowering, op: str, attrs: dict[str, Any], inputs: Sequence[Any], make: Callable[[], list[View]]
) -> list[View]:
    key = (op, repr(attrs), *(x if isinstance(x, Stream) else id(x) for x in inputs))
    if key not in low.shared:
        low.shared[key] = make()
    return low.shared[key]


def _one_element(low: Lowering, node: Pointwise, cell: Cell, batch: int, states: list[View | np.ndarray]) -> list[View]:
    """A sequence of one element: h (and c)."""
    rows = (batch,) if batch > 1 else ()
    scribe = Scribe(low, node, low.loop, rows)
    shape = (*rows, cell.hidden)
    previous = [state.reshaped(shape) if isinstance(state, View) else state.reshape(shape) for state in states]
    x = low.view(node.streams[0]).reshaped((*rows, cell.w.shape[0]))
    return _cell(cell, scribe, scribe, x, previous, [None, None])


def _sequence(
    low: Lowering, node: Pointwise, cell: Cell, sizes: tuple[int, int], states: list[View | np.ndarray]
) -> View:
    """The state after every element: (steps, directions, batch, hidden)."""
    reset_after = cell.op == "GRU" and cell.reset_after
    bias = cell.wb if reset_after else cell.wb + cell.rb.reshape(-1)
    x = low.view(node.streams[0])
    gx = low.linear(node, x.reshaped((*sizes, cell.w.shape[0])), cell.w, bias, (*sizes, cell.w.shape[1]))
    attrs = {"reverse": cell.reverse, "linear_before_reset": int(reset_after), "activation": cell.activation}
    operands = [gx, cell.r, cell.rb if reset_after else None, *states]
    shape = (sizes[0], cell.ways, sizes[1], cell.hidden)
    return low.step(node, f"{cell.op.lower()}_sequence", operands, shape, attrs)


def _cell(cell: Cell, outside: Scribe, inside: Scribe, x: View, previous: list[Any], targets: list[Any]) -> list[View]:
    """The steps of one cell; returns the new h (and c)."""
    n, h = cell.hidden, previous[0]
    r, rb = cell.r[0], cell.rb[0]
    if cell.op == "LSTM":
        gx = outside("matmul", [x, cell.w, cell.wb + rb], 4 * n)
        gh = inside("matmul", [h, r, None], 4 * n)
        gates = inside("add", [gh, gx], 4 * n)
        c = inside("lstm_c", [gates, previous[1]], n, targets[1])
        return [inside("lstm_h", [gates, c], n, targets[0]), c]
    if cell.op == "RNN":
        gx = outside("matmul", [x, cell.w, cell.wb + rb], n)
        total = inside("add", [inside("matmul", [h, r, None], n), gx], n)
        return [inside(cell.activation, [total], n, targets[0])]
    gx = outside("matmul", [x, cell.w, cell.wb], 3 * n)
    if cell.reset_after:
        gh = inside("matmul", [h, r, rb], 3 * n)
        return [inside("gru_cell", [gx, gh, h], n, targets[0])]
    zr = inside("matmul", [h, np.ascontiguousarray(r[:, : 2 * n]), rb[: 2 * n]], 2 * n)
    gates = inside("sigmoid", [inside("add", [zr, _part(inside, gx, 0, 2 * n)], 2 * n)], 2 * n)
    kept = inside("mul", [_part(inside, gates, n, 2 * n), h], n)
    candidate = inside("matmul", [kept, np.ascontiguousarray(r[:, 2 * n :]), rb[2 * n :]], n)
    candidate = inside("tanh", [inside("add", [candidate, _part(inside, gx, 2 * n, 3 * n)], n)], n)
    z = _part(inside, gates, 0, n)
    change = inside("mul", [z, inside("sub", [h, candidate], n)], n)
    return [inside("add", [candidate, change], n, targets[0])]


def _part(scribe: Scribe, x: View, start: int, stop: int) -> View:
    rows = scribe.rows
    zeros, ones = [0] * len(rows), [1] * len(rows)
    return scribe("slice", [x], stop - start, starts=[*zeros, start], ends=[*rows, stop], steps=[*ones, 1])
