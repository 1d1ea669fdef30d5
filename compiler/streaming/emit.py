"""The portable form: a stream graph as plain ONNX that takes a fixed hop and carries its states as inputs and outputs.

Every call takes ``hop`` frames and the scalars ``runnel.position`` (frames before this call) and ``runnel.length``
(frames of
the whole stream, ``UNKNOWN_LENGTH`` until it ends). A tensor of rate r carries r·hop frames a call, the first of which
is frame r·position - delay. Frames outside a tensor's own range are replaced by its padding before a layer reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, lcm
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runnel.compiler.graph.fold import captured_names
from runnel.compiler.streaming.clocks import AFFINE, CONST, INPUT, MIN, ClockProgram
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import STACKED, Feedback, Stream, StreamFact, StreamGraph, Tail
from runnel.errors import InputError

UNKNOWN_LENGTH = 1 << 48
POSITION, LENGTH = "runnel.position", "runnel.length"


@dataclass(frozen=True)
class Chunk:
    """What a call carries of a stream: ``frames`` frames from r·position - ``delay`` on, in the ONNX value ``name``.

    each: where frames are whole tensors and a call carries several, the ONNX value of each of them.
    """

    name: str
    delay: int
    frames: int
    each: tuple[str, ...] = ()


@dataclass
class PortableForm:
    """The ONNX model and what a runner must know of it (the bundle's ``onnx`` section)."""

    model: onnx.ModelProto
    hop: int
    inputs: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def manifest(self) -> dict[str, Any]:
        """The bundle's ``onnx`` section."""
        return {
            "hop": self.hop, "position": POSITION, "length": LENGTH, "unknown_length": UNKNOWN_LENGTH,
            "inputs": self.inputs, "states": self.states, "outputs": self.outputs,
        }  # fmt: skip


def natural_hop(graph: StreamGraph) -> int:
    """The smallest number of input frames after which every tensor has made a whole number of frames."""
    if graph.window is not None:
        return graph.window[1]
    return lcm(*(s.fact.rate.denominator for s in graph.streams))


class Builder:
    """Collects ONNX nodes, constants and states; helpers for frame ranges, masks, history and delays."""

    def __init__(self, graph: StreamGraph, hop: int, steady: bool) -> None:
        self.graph, self.hop, self.steady = graph, hop, steady
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.states: list[dict[str, Any]] = []
        self.state_ports: list[tuple[str, str, tuple[int, ...], str]] = []
        self._constant_names: dict[tuple[Any, ...], str] = {}
        self._cache: dict[Any, Any] = {}
        self.shared: dict[Any, list[str]] = {}
        """What several outputs of one node have in common."""
        self._names = 0
        self._taken = {p.name for p in [*graph.inputs, *graph.statics]} | set(graph.outputs)
        self._taken |= {n for f in graph.nodes if isinstance(f, Feedback) for n in (f.output.name, f.source)}
        if reserved := self._taken & {POSITION, LENGTH}:
            raise InputError(f"the model has a port named '{reserved.pop()}', which runnel uses itself; rename it.")

    # Pieces ---------------------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        while True:
            self._names += 1
            if (name := f"{hint}#{self._names}") not in self._taken:
                return name

    def constant(self, value: np.ndarray | int | list[int]) -> str:
        array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else np.array(value, np.int64))
        array = array.reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constant_names:
            name = self.fresh("runnel.constant")
            self.constants[name] = array
            self._constant_names[key] = name
        return self._constant_names[key]

    def node(self, op: str, inputs: list[str], output: str | None = None, domain: str = "", **attrs: Any) -> str:
        output = output or self.fresh(op)
        attrs = {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attrs.items()}
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attrs))
        return output

    def slice(self, x: str, start: int | str, stop: int | str, axis: int, output: str | None = None) -> str:
        bounds = [v if isinstance(v, str) else self.constant([v]) for v in (start, stop)]
        return self.node("Slice", [x, *bounds, self.constant([axis])], output)

    def state(self, hint: str, shape: tuple[int, ...], dtype: str, initial: np.ndarray | float) -> tuple[str, str]:
        """Names of a new state's input and output."""
        taken = self._taken | {s["in"] for s in self.states}
        base = f"state.{hint}"
        name, i = base, 1
        while name in taken or f"{name}.next" in taken:
            i += 1
            name = f"{base}.{i}"
        self.add_state(name, f"{name}.next", shape, dtype, initial)
        return name, f"{name}.next"

    def add_state(self, name: str, out: str, shape: tuple[int, ...], dtype: str, initial: np.ndarray | float) -> None:
        fill = initial if isinstance(initial, float) else None
        values = None if fill is not None else np.asarray(initial).astype(dtype).reshape(shape)
        self.states.append(
            {"in": name, "out": out, "shape": list(shape), "dtype": dtype, "fill": fill, "values": values}
        )
        self.state_ports.append((name, out, shape, dtype))

    # Time -----------------------------------------------------------------------------------------------------------

    def frames_of(self, x: Stream) -> int:
        frames = x.fact.rate * self.hop
        assert frames.denominator == 1, (x, frames)
        return int(frames)

    def start(self, rate: Fraction, delay: int) -> str:
        """Scalar: the number of the first frame that a chunk carries."""
        key = ("start", rate, delay)
        if key not in self._cache:
            value = POSITION
            if rate.numerator != 1:
                value = self.node("Mul", [value, self.constant(rate.numerator)])
            if rate.denominator != 1:
                value = self.node("Div", [value, self.constant(rate.denominator)])
            if delay:
                value = self.node("Sub", [value, self.constant(delay)])
            self._cache[key] = value
        return self._cache[key]

    def length(self, count: Count, of: str = LENGTH) -> str:
        """Scalar: the length of a tensor, from the length ``of`` the stream."""
        key = ("length", count.key, of)
        if key not in self._cache:
            program = ClockProgram()
            program.add(count)
            names: list[str] = []
            for op, a, b, mul, div, add in program.words:
                if op == INPUT:
                    names.append(of)
                elif op == AFFINE:
                    v = self.node("Mul", [names[a], self.constant(mul)]) if mul != 1 else names[a]
                    v = self.node("Add", [v, self.constant(add)]) if add else v
                    v = self.node("Div", [v, self.constant(div)]) if div != 1 else v
                    names.append(self.node("Max", [v, self.constant(0)]))
                elif op == CONST:
                    names.append(self.constant(add))
                else:
                    names.append(self.node("Min" if op == MIN else "Max", [names[a], names[b]]))
            self._cache[key] = names[program.add(count)]
        return self._cache[key]

    def numbers(self, rate: Fraction, delay: int, frames: int) -> str:
        """The frame numbers of a chunk, int64 (frames,)."""
        key = ("numbers", rate, delay, frames)
        if key not in self._cache:
            self._cache[key] = self.node("Add", [self.start(rate, delay), self.constant(np.arange(frames))])
        return self._cache[key]

    def known(self, stream: Stream, x: Chunk) -> Chunk:
        """The chunk, so late that while the stream goes on every frame it carries is certain to exist."""
        return x if self.steady else self.delayed(stream, x, max(x.delay, _uncertain(stream.fact, self.hop)))

    def masked(self, stream: Stream, x: Chunk, fill: float) -> str:
        """The chunk with frames outside [0, length) replaced by ``fill``."""
        if self.steady:
            return x.name
        fact = stream.fact
        key = ("masked", x.name, x.delay, fact.length.key, fill)  # a crop of time shares its chunk with what it crops
        if key in self._cache:
            return self._cache[key]
        mask_key = ("mask", fact.rate, x.delay, x.frames, fact.length.key, x.delay > 0)
        if mask_key not in self._cache:
            numbers = self.numbers(fact.rate, x.delay, x.frames)
            mask = self.node("Less", [numbers, self.length(fact.length)])
            if x.delay > 0:
                started = self.node("Less", [self.constant(-1), numbers])
                mask = self.node("And", [mask, started])
            self._cache[mask_key] = mask
        shape = [x.frames if d is None else 1 for d in stream.shape]
        mask = self.node("Reshape", [self._cache[mask_key], self.constant(shape)])
        value = self.constant(np.array(fill, stream.dtype))
        self._cache[key] = self.node("Where", [mask, x.name, value])
        return self._cache[key]

    def history(self, stream: Stream, name: str, frames: int, past: int, fill: float, hint: str) -> str:
        """The last ``past`` frames before this chunk, then the chunk."""
        if past <= 0:
            return name if past == 0 else self.slice(name, -past, 1 << 40, stream.axis)
        shape = tuple(past if d is None else d for d in stream.shape)
        state, out = self.state(hint, shape, stream.dtype, float(fill))
        whole = self.node("Concat", [state, name], axis=stream.axis)
        self.slice(whole, frames, frames + past, stream.axis, out)
        return whole

    def delayed(self, stream: Stream, x: Chunk, delay: int) -> Chunk:
        """The same stream, ``delay`` frames late."""
        if stream.node is not None and stream.node.op == "Spread":
            return Chunk(x.name, delay, x.frames)  # every frame is the same
        late = delay - x.delay
        assert late >= 0
        if late == 0:
            return x
        key = ("delayed", x.name, late)
        if key not in self._cache:
            hint = f"delay.{stream.name}"
            if stream.axis == STACKED:
                self._cache[key] = self._delayed_tensors(stream, x, late, hint)
            else:
                whole = self.history(stream, x.name, x.frames, late, 0.0, hint)
                self._cache[key] = (self.slice(whole, 0, x.frames, stream.axis),)
        names = self._cache[key]
        return Chunk(names[0], delay, x.frames, names if x.each else ())

    def _delayed_tensors(self, stream: Stream, x: Chunk, late: int, hint: str) -> tuple[str, ...]:
        state, out = self.state(hint, (late, *stream.frame_shape), stream.dtype, 0.0)
        fresh = [self.node("Unsqueeze", [name, self.constant([0])]) for name in x.each or (x.name,)]
        whole = self.node("Concat", [state, *fresh], axis=0)
        self.slice(whole, len(fresh), len(fresh) + late, 0, out)
        firsts = [self.slice(whole, i, i + 1, 0) for i in range(len(fresh))]
        return tuple(self.node("Squeeze", [first, self.constant([0])]) for first in firsts)


def _uncertain(fact: StreamFact, hop: int) -> int:
    """The most frames that a call could carry although a stream that ends with it does not have them."""
    length = fact.length
    n = length.start + lcm(length.period, hop) + hop
    ticks = np.arange(hop, n + 1, hop)
    most = fact.rate.numerator * ticks - length.table(n + 1)[ticks] * fact.rate.denominator
    return max(0, -(-int(most.max()) // fact.rate.denominator))


def emit(graph: StreamGraph, hop: int | None = None, *, steady: bool = False) -> PortableForm:
    """The portable form for at least ``hop`` frames a call (rounded up to the natural hop).

    steady: leave out what only the stream's start and end need; for benchmarks of other runtimes, never for results.
    """
    from runnel.compiler.streaming.portable.basic import emit_tail
    from runnel.compiler.streaming.portable.halves import initializers
    from runnel.compiler.streaming.portable.registry import WRITERS

    base = natural_hop(graph)
    hop = (
        base
        if graph.window is not None or any(s.axis == STACKED for s in graph.inputs)
        else -(-max(hop or 1, 1) // base) * base
    )
    b = Builder(graph, hop, steady)
    chunks: dict[Stream, Chunk] = {}
    for node in graph.nodes:
        chunks[node.output] = WRITERS[type(node)](b, node, chunks)
    form = PortableForm(onnx.ModelProto(), hop)
    ports_in, ports_out = [], []
    for stream in graph.inputs:
        shape = [b.frames_of(stream) if d is None else d for d in stream.shape]
        ports_in.append(value_info(stream.name, stream.dtype, shape))
        form.inputs.append({"name": stream.name, "axis": stream.axis, "shape": shape})
    ports_in += [value_info(s.name, s.dtype, s.shape) for s in graph.statics]
    ports_in.append(helper.make_tensor_value_info(POSITION, onnx.TensorProto.INT64, []))
    ports_in.append(helper.make_tensor_value_info(LENGTH, onnx.TensorProto.INT64, []))
    for name, value in graph.outputs.items():
        stream = value.stream if isinstance(value, Tail) else value
        chunk = b.known(stream, chunks[stream])
        if name in graph.aligned:
            chunk = b.delayed(stream, chunk, late_enough(b, graph, chunks, stream))
        described = {"name": name, "axis": stream.axis} | _progress(stream, chunk)
        if stream.fact.once:
            described["after"] = [_progress(s, b.known(s, chunks[s])) for s in _waits_for(stream)]
        if isinstance(value, Tail):
            shape = emit_tail(b, name, value, chunk)
            described["tail"] = [value.start, value.stop]
        elif chunk.each:
            described["axis"] = 0
            each = [b.node("Unsqueeze", [frame, b.constant([0])]) for frame in chunk.each]
            b.node("Concat", each, name, axis=0)
            shape = [chunk.frames, *stream.frame_shape]
        else:
            shape = [chunk.frames if d is None else d for d in stream.shape]
            b.node("Identity", [chunk.name], name)
        ports_out.append(value_info(name, stream.dtype, shape))
        form.outputs.append(described)
    for name, stream in graph.carried.items():
        b.node("Identity", [chunks[stream].name], name)
    for name, out, dims, dtype in b.state_ports:
        ports_in.append(value_info(name, dtype, dims))
        ports_out.append(value_info(out, dtype, dims))
    form.states = b.states
    used = {i for n in b.nodes for i in n.input}
    used |= {i for n in b.nodes for at in n.attribute if at.HasField("g") for i in captured_names(at.g)}
    ports_in = [
        p
        for p in ports_in
        if p.name in used or p.name in (POSITION, LENGTH) or p.name in {s.name for s in [*graph.inputs, *graph.statics]}
    ]
    first, tensors = initializers(b.constants, used)
    proto = helper.make_graph([*first, *b.nodes], "runnel", ports_in, ports_out, tensors)
    opsets = [helper.make_opsetid("", graph.opset)]
    opsets += [helper.make_opsetid(d, 1) for d in sorted({n.domain for n in b.nodes} - {"", "ai.onnx"})]
    form.model = helper.make_model(
        proto, opset_imports=opsets, producer_name="runnel", ir_version=10 if graph.opset >= 21 else 8
    )
    onnx.checker.check_model(form.model)
    return form


def _progress(stream: Stream, chunk: Chunk) -> dict[str, Any]:
    """How a runner tells which frames a call carries, and when it has had all of them."""
    program = ClockProgram()
    last = program.add(stream.fact.length)
    return {"delay": chunk.delay, "frames": chunk.frames, "length": program.words[: max(last, 0) + 1]}


def _waits_for(stream: Stream) -> list[Stream]:
    """The streams whose end a value that is known once waits for."""
    found: dict[Stream, None] = {}
    waiting = [stream]
    while waiting:
        node = waiting.pop().node
        for x in node.streams if node else []:
            if x.fact.once:
                waiting.append(x)
            elif not x.fact.static:
                found[x] = None
    return list(found)


def late_enough(b: Builder, graph: StreamGraph, chunks: dict[Stream, Chunk], stream: Stream) -> int:
    """The delay with which an output is as late as the latest of those that are aligned."""
    others = [v for k, v in graph.outputs.items() if k in graph.aligned and isinstance(v, Stream)]
    latest = max(Fraction(b.known(s, chunks[s]).delay) / s.fact.rate for s in others)
    return ceil(latest * stream.fact.rate)


def value_info(name: str, dtype: str, shape: Any) -> onnx.ValueInfoProto:
    """An input or output as ONNX."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
