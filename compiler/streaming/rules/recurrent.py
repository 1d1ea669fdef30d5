"""GRU, LSTM and RNN: along time, or along another axis with time as the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Operand, Recurrent, Stream
from runnel.compiler.streaming.kinds.once import last_frames
from runnel.compiler.streaming.kinds.recurrence import Backward
from runnel.compiler.streaming.modes import numbers
from runnel.compiler.streaming.registry import Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

MODE = "rnn"


@rule("GRU", "LSTM", "RNN")
def recurrent(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if node.attrs.get("layout"):
        raise Refusal("has its batch first (layout 1), which no backend runs", "export it with layout 0")
    time, batch = 0, 1
    _check_lengths(a, node, x)
    weights = [a.constant(node, i, "weight") for i in (1, 2, 3)]
    peephole = a.constant(node, 7, "peephole weight")
    if x.axis == batch:
        return _inside_frame(a, node, [x, *weights, None, *_states_of_frames(a, node), peephole])
    initial = [a.constant(node, i, "initial state") for i in (5, 6)]
    if x.axis != time:
        raise Refusal("has time on its feature axis", "move time to the sequence axis")
    return _along_time(a, node, x, [*weights, *initial, peephole])


def _check_lengths(a: Analysis, node: Node, x: Stream) -> None:
    """The lengths of the sequences, where given, must be all of the sequence."""
    lengths = a.value(node.inputs[4]) if len(node.inputs) > 4 else None
    if lengths is None:
        return
    full: Any = x.fact.length if x.axis == 0 else x.shape[0]
    if isinstance(lengths, np.ndarray) and all(bool(Count.of(v) == full) for v in lengths.reshape(-1)):
        return
    raise Refusal("takes the lengths of its sequences as an input", "export the model without sequence_lens")


def _states_of_frames(a: Analysis, node: Node) -> list[Stream | None]:
    """Initial states where time is the batch: one for every frame."""
    states: list[Stream | None] = []
    for i in (5, 6):
        value = a.value(node.inputs[i]) if len(node.inputs) > i else None
        if value is not None and not (isinstance(value, Stream) and value.axis == 1):
            raise Refusal("has as many initial states as the stream has frames", "export it without an initial state")
        states.append(value)
    return states


def _inside_frame(a: Analysis, node: Node, operands: list[Operand]) -> list[Value]:
    """A recurrence over another axis, with time as the batch: any direction, states known frame by frame."""
    x = a.stream(node)
    while operands[-1] is None:
        operands.pop()
    results: list[Value] = []
    for i, name in enumerate(node.outputs):
        attrs = dict(node.attrs) | ({"runnel.output": i} if any(node.outputs[1:]) else {})
        results.append(a.pointwise(node, operands, 2 if i == 0 else 1, attrs=attrs, output=i) if name else x)
    return results


@dataclass
class _Direction:
    """One direction of a recurrence along time: its operands (x, W, R, B, h, c, peephole) and attributes."""

    operands: list[Operand]
    attrs: dict[str, Any]
    backward: bool


def _along_time(a: Analysis, node: Node, x: Stream, weights: list[np.ndarray | None]) -> list[Value]:
    ways = _directions(node, x, weights)
    ahead = 0
    if any(way.backward for way in ways):
        if MODE not in a.modes:
            raise Refusal(
                f"is {node.attrs['direction']}: a recurrence that runs backwards needs the whole future",
                "train or export the model with forward recurrence only",
                ["rnn=lookahead:FRAMES"],
            )
        ahead = max(1, numbers(a.modes[MODE])["lookahead"])
        a.used_modes[MODE] = a.modes[MODE]
        if any(node.outputs[1:]):
            raise Refusal(
                "gives the state of a recurrence that runs backwards, which is known only with the whole future",
                "use the sequence output",
            )
    parts = [_sequence(a, node, way, ahead, f"/{i}" if len(ways) > 1 else "") for i, way in enumerate(ways)]
    y = parts[0] if len(parts) == 1 else a.pointwise(node, parts, 0, attrs={"axis": 1}, op="Concat")
    results: list[Value] = [y]
    for i, name in enumerate(node.outputs[1:], 1):
        of = _cells(a, node, ways[0]) if name and i == 2 else y
        results.append(last_frames(a, node, of, 1, shape=of.frame_shape, suffix=f"/last{i}") if name else y)
    return results


def _directions(node: Node, x: Stream, weights: list[np.ndarray | None]) -> list[_Direction]:
    direction = str(node.attrs.get("direction", "forward"))
    count = 2 if direction == "bidirectional" else 1
    ways = []
    for i in range(count):
        attrs = dict(node.attrs)
        for key in ("activations", "activation_alpha", "activation_beta"):
            if count == 2 and (given := node.attrs.get(key)):
                half = len(given) // 2
                attrs[key] = list(given)[i * half : (i + 1) * half]
        backward = direction == "reverse" or i == 1
        attrs["direction"] = "reverse" if backward else "forward"
        operands: list[Operand] = [x, *(None if w is None else w[i : i + 1] for w in weights)]
        ways.append(_Direction(operands, attrs, backward))
    return ways


def _sequence(a: Analysis, node: Node, way: _Direction, ahead: int, suffix: str) -> Stream:
    """The states of one direction after every frame: [time, 1, batch, hidden]."""
    x, shape = way.operands[0], None
    assert isinstance(x, Stream)
    output = next(i for i, name in enumerate(node.outputs) if name)
    if suffix or output:
        shape = _shape(way)
        suffix += "/sequence"
    if way.backward:
        final = x.fact.made.affine(1, -ahead, ahead).affine(ahead, 0)
        return a.emit(node, Backward, way.operands, 0, final, x.fact.length, output, shape, suffix=suffix,
                      attrs=way.attrs, ahead=ahead)  # fmt: skip
    return a.emit(node, Recurrent, way.operands, 0, x.fact.final, x.fact.length, output, shape, suffix=suffix,
                  attrs=way.attrs)  # fmt: skip


def _cells(a: Analysis, node: Node, way: _Direction) -> Stream:
    """An LSTM's cell states after every frame, of which the last one is right in every form."""
    x = way.operands[0]
    assert isinstance(x, Stream)
    return a.emit(node, Recurrent, way.operands, 0, x.fact.final, x.fact.length, 2, _shape(way), suffix="/cells",
                  attrs=way.attrs, cells=True)  # fmt: skip


def _shape(way: _Direction) -> tuple[int | None, ...]:
    x, recurrence = way.operands[0], way.operands[2]
    assert isinstance(x, Stream) and isinstance(recurrence, np.ndarray)
    return (None, 1, x.shape[1], recurrence.shape[2])
