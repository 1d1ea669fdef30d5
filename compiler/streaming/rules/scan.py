"""Scan over time, and Loop whose turns take one frame each: the body as a graph of whole frames with states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from runnel.compiler.graph.fold import RANDOM, captured_names, fold, probe_shapes
from runnel.compiler.graph.model import Graph, Node, Port, body_nodes
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import STACKED, Stream, StreamFact
from runnel.compiler.streaming.kinds.once import last_frames
from runnel.compiler.streaming.kinds.scan import Body, Carried, Scan
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule
from runnel.compiler.streaming.symbolic import is_symbolic
from runnel.errors import InputError

if TYPE_CHECKING:
    from runnel.compiler.streaming.analysis import Analysis, Value

REMEDY = "export recurrence as GRU, LSTM, RNN or Scan nodes"


@dataclass
class _Turns:
    """A loop as the rules of both ops read it: what each turn takes, keeps and gives, by the names of its body."""

    frames: list[tuple[str, Stream]]
    states: list[tuple[str, np.ndarray, str]]
    outputs: list[tuple[str, int]]
    nodes: list[Node]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    results: list[tuple[bool, int]] = field(default_factory=list)
    """For each output of the loop: whether it is the last value of a state, and the number of the state or output."""


@rule("Scan")
def scan(a: Analysis, node: Node) -> list[Value]:
    body: onnx.GraphProto = node.attrs["body"]
    count = int(node.attrs["num_scan_inputs"])
    states = len(node.inputs) - count
    given = len(body.output) - states
    axes = list(node.attrs.get("scan_input_axes") or [0] * count)
    if any(node.attrs.get("scan_input_directions") or []) or any(node.attrs.get("scan_output_directions") or []):
        raise Refusal("is a loop that runs backwards through time, which needs the whole future", REMEDY)
    frames = []
    for i in range(count):
        x = a.stream(node, states + i)
        if axes[i] % len(x.shape) != x.axis:
            raise MixesTime("is a loop over another axis than time", "export it unrolled")
        frames.append((body.input[states + i].name, x))
    kept = [(body.input[i].name, _initial(a, name), body.output[i].name) for i, name in enumerate(node.inputs[:states])]
    places = list(node.attrs.get("scan_output_axes") or [0] * given)
    outputs = [(body.output[states + i].name, places[i]) for i in range(given)]
    nodes, constants = body_nodes(body)
    turns = _Turns(frames, kept, outputs, nodes, constants, _order(len(kept), len(outputs)))
    for name in sorted(captured_names(body) & a.values.keys() - {i.name for i in body.input} - _made(nodes)):
        turns.constants[name] = _captured(a, name)
    return _stream(a, node, turns)


@rule("Loop")
def loop(a: Analysis, node: Node) -> list[Value]:
    body: onnx.GraphProto = node.attrs["body"]
    trips, going = (a.value(name) for name in (*node.inputs[:2], "", "")[:2])
    if isinstance(going, Stream) or (isinstance(going, np.ndarray) and not bool(going.reshape(-1)[0])):
        raise Refusal("is a loop that data ends", REMEDY)
    if not isinstance(trips, np.ndarray) or not is_symbolic(trips):
        raise Refusal("is a loop with a number of turns that is not the stream's length", REMEDY)
    nodes, constants = body_nodes(body)
    number, condition, *names = (i.name for i in body.input)
    constants[condition] = np.array(True)
    gathered = _gathered(nodes, names, [o.name for o in body.output[1:]])
    kept = [
        (name, _initial(a, x), out.name)
        for name, x, out in zip(names, node.inputs[2:], body.output[1:])
        if name not in gathered
    ]
    outputs = [*gathered.values(), *(o.name for o in body.output[1 + len(names) :])]
    goes_on = _evaluated(nodes, constants, body.output[0].name, a)
    if goes_on is None or not bool(goes_on.reshape(-1)[0]):
        raise Refusal("is a loop that data ends", REMEDY)
    order = _order(len(kept), len(outputs), [name in gathered for name in names])
    turns = _Turns([], kept, [(name, 0) for name in outputs], [], constants, order)
    _take_frames(a, turns, nodes, number, Count.of(trips.reshape(-1)[0]))
    if not turns.frames:
        raise Refusal("is a loop that takes no frame by its number", REMEDY)
    return _stream(a, node, turns)


@rule("ConcatFromSequence")
def concat_from_sequence(a: Analysis, node: Node) -> list[Value]:
    """The frames that a loop gathered in a list, [time, ...], put where the axis says."""
    x = a.stream(node)
    new, rank = bool(node.attrs.get("new_axis", 0)), len(x.shape) - 1
    at = int(node.attrs["axis"]) % (rank + new)
    if not new and x.shape[1 + at] != 1:
        raise Refusal("joins frames of several rows each into one axis", "stack them along an axis of their own")
    rest = [i for i in range(1, rank + 1) if new or i != 1 + at]
    perm = [*rest[:at], 0, *rest[at:]]
    if not new:
        perm.append(1 + at)
        shape = tuple(None if i == 0 else x.shape[i] for i in perm)
        moved = a.pointwise(node, [x], at, attrs={"perm": perm}, op="Transpose", suffix="/moved", shape=shape)
        return [a.pointwise(node, [moved, np.array([rank], np.int64)], at, attrs={}, op="Squeeze")]
    return [a.pointwise(node, [x], at, attrs={"perm": perm}, op="Transpose")]


def _order(states: int, outputs: int, gathered: list[bool] | None = None) -> list[tuple[bool, int]]:
    """What each output of the loop is: states in their order, those that gather frames in a list being outputs."""
    gathered = gathered or [False] * states
    lists, kept = iter(range(outputs)), iter(range(states))
    order = [(False, next(lists)) if each else (True, next(kept)) for each in gathered]
    return order + [(False, i) for i in lists]


def _gathered(nodes: list[Node], names: list[str], outputs: list[str]) -> dict[str, str]:
    """{state: what is appended} of states that are lists to which every turn appends one tensor."""
    makers = {o: n for n in nodes for o in n.outputs}
    found = {}
    for name, out in zip(names, outputs):
        maker = makers.get(out)
        readers = [n for n in nodes if name in n.inputs]
        if maker is not None and maker.op == "SequenceInsert" and len(maker.inputs) == 2 and readers == [maker]:
            found[name] = maker.inputs[1]
            nodes.remove(maker)
    return found


def _take_frames(a: Analysis, turns: _Turns, nodes: list[Node], number: str, trips: Count) -> None:
    """Nodes that pick frame i of a stream become the loop's frames; the number of a turn becomes a state."""
    numbers = {number: 0}
    taken: dict[str, str] = {}
    for node in nodes:
        if node.op == "Identity" and node.inputs[0] in numbers:
            numbers[node.outputs[0]] = numbers[node.inputs[0]]
        elif node.op == "Unsqueeze" and numbers.get(node.inputs[0]) == 0:
            numbers[node.outputs[0]] = 1
        x = a.values.get(node.inputs[0]) if node.op == "Gather" else None
        if isinstance(x, Stream) and int(node.attrs.get("axis", 0)) % len(x.shape) == x.axis:
            if node.inputs[1] not in numbers or x.fact.length != trips:
                raise Refusal("is a loop that takes other frames than that of its turn", REMEDY)
            if node.inputs[0] not in taken:
                taken[node.inputs[0]] = f"{node.inputs[0]}/frame"
                turns.frames.append((taken[node.inputs[0]], x))
            frame, flat = taken[node.inputs[0]], numbers[node.inputs[1]] == 0
            name = f"{node.name}/axis"
            turns.constants[name] = np.array([x.axis], np.int64)
            inputs = [frame] if flat else [frame, name]
            turns.nodes.append(Node("Identity" if flat else "Unsqueeze", node.name, inputs, node.outputs))
        else:
            turns.nodes.append(node)
    kept = _needed(turns)
    if number in {i for n in kept for i in n.inputs}:
        one, after = f"{number}/one", f"{number}/next"
        turns.constants[one] = np.array(1, np.int64)
        kept.append(Node("Add", after, [number, one], [after]))
        turns.states.append((number, np.array(0, np.int64), after))
    turns.nodes = kept
    own = {number, *(name for name, _ in turns.frames), *(name for name, _, _ in turns.states)}
    for name in {i for n in turns.nodes for i in n.inputs if i} - own - _made(turns.nodes) - turns.constants.keys():
        turns.constants[name] = _captured(a, name)


def _needed(turns: _Turns) -> list[Node]:
    """The nodes that a state or an output is made of."""
    needed, kept = {name for _, _, name in turns.states} | {name for name, _ in turns.outputs}, []
    for node in reversed(turns.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _evaluated(nodes: list[Node], constants: dict[str, np.ndarray], name: str, a: Analysis) -> np.ndarray | None:
    """A value of the body that depends on nothing that changes."""
    part = Graph("loop", list(nodes), dict(constants), [], [Port(name, "bool", ())], a.graph.opset, a.graph.proto)
    fold(part)
    return part.constants.get(name)


def _initial(a: Analysis, name: str) -> np.ndarray:
    value = a.values.get(name)
    if not isinstance(value, np.ndarray) or is_symbolic(value):
        raise Refusal("is a loop that starts from a state that depends on the input", "give it a constant state")
    return value


def _captured(a: Analysis, name: str) -> np.ndarray:
    value = a.values[name]
    if not isinstance(value, np.ndarray) or is_symbolic(value):
        raise Refusal(
            "is a loop that reads a tensor around it that depends on the input", "make that tensor one of its inputs"
        )
    return value


def _made(nodes: list[Node]) -> set[str]:
    return {o for n in nodes for o in n.outputs}


def _stream(a: Analysis, node: Node, turns: _Turns) -> list[Value]:
    """The loop's outputs as streams, and its last states."""
    streams = [x for _, x in turns.frames]
    final, length = streams[0].fact.final, streams[0].fact.length
    for other in streams[1:]:
        if other.fact.length != length:
            raise Refusal(
                f"its inputs have different lengths, {length} and {other.fact.length} frames for T input frames",
                "pad or slice them to the same length",
            )
        final = final.minimum_with(other.fact.final)
    fact = StreamFact(STACKED, final, length, streams[0].fact.clock)
    results: list[Value] = []
    body = _body(a, turns, fact)
    for i, (name, (is_state, at)) in enumerate(zip(node.outputs, turns.results)):
        if not name:
            results.append(streams[0])
            continue
        if not is_state:
            body.axes[at] %= len(body.outputs[at].shape) + 1
            frame = body.outputs[at]
            shape = None if name in a.shapes else (None, *frame.shape)  # a list of frames
            y = a.emit(node, Scan, streams, body.axes[at], final, length, i, shape, body=body, index=at)
            y.dtype = frame.dtype
            results.append(y)
            continue
        state = body.states[at]
        body.outputs.append(state.next)
        body.axes.append(0)
        y = a.emit(node, Scan, streams, 0, final, length, i, (None, *state.next.shape), suffix="/states",
                   body=body, index=len(body.outputs) - 1)  # fmt: skip
        y.dtype = state.next.dtype
        results.append(last_frames(a, node, y, 1, shape=y.frame_shape, suffix="/last"))
    return results


def _body(a: Analysis, turns: _Turns, fact: StreamFact) -> Body:
    """The nodes of one turn, on streams of whole frames."""
    from runnel.compiler.streaming.analysis import Analysis

    ports = [Port(name, x.dtype, x.frame_shape) for name, x in turns.frames]
    ports += [Port(name, v.dtype.name, v.shape) for name, v, _ in turns.states]
    nodes, given = list(turns.nodes), []
    for i, name in enumerate([n for _, _, n in turns.states] + [n for n, _ in turns.outputs]):
        given.append(f"{name}/out{i}")
        nodes.append(Node("Identity", given[-1], [name], [given[-1]]))
    outputs = [Port(name, "float32", ()) for name in given]
    graph = Graph("the loop's body", nodes, dict(turns.constants), ports, outputs, a.graph.opset, a.graph.proto)
    try:
        fold(graph)
        graph.outputs = []
        sub = Analysis(graph, {}, None)
        sub.probe_length, sub.shapes = probe_shapes(graph, {}, [1])
    except InputError as error:
        raise Refusal(f"is a loop whose body cannot be run alone: {error}", REMEDY) from None
    if any(isinstance(v, onnx.GraphProto) for n in graph.nodes for v in n.attrs.values()):
        raise Refusal("is a loop with a loop or a branch inside", REMEDY)
    if any(n.op in RANDOM for n in graph.nodes):
        raise Refusal("is a loop with random numbers inside", "export the model in inference mode")
    for port in graph.inputs:
        shape = tuple(int(d) for d in port.shape if isinstance(d, int))
        sub.values[port.name] = Stream(port.name, shape, port.dtype, fact)
    for inner in graph.nodes:
        sub.visit(inner)
    if sub.reasons:
        raise Refusal(f"is a loop in which {sub.reasons[0].op} {sub.reasons[0].reason}", sub.reasons[0].remedy)
    values: list[Any] = [sub.values.get(name, graph.constants.get(name)) for name in given]
    if not all(isinstance(v, Stream) for v in values):
        raise Refusal("is a loop with a result that does not depend on its frames or states", "drop that result")
    states = [
        Carried(sub.values[name], initial, after)  # type: ignore[arg-type]
        for (name, initial, _), after in zip(turns.states, values)
    ]
    frames: list[Any] = [sub.values[name] for name, _ in turns.frames]
    return Body(frames, states, sub.nodes, values[len(states) :], [axis for _, axis in turns.outputs])
