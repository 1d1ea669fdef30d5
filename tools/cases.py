"""The recordings that a compiled model is judged on, and what the offline model makes of them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.emit import natural_hop
from runnel.compiler.streaming.ir import STACKED, Stream, StreamGraph
from runnel.compiler.streaming.kinds.cache import keeps_all, kept_at_least
from runnel.compiler.streaming.portable.cache import UNBOUNDED
from runnel.compiler.streaming.report import Report
from runnel.errors import InputError
from runnel.tools.prove import Arrays, Case, Offline, stepwise

if TYPE_CHECKING:
    from runnel.tools.rewritten import Rewritten


TOKENS = 80
"""Of the longest text on which a decoder is proved: more than a chunk of a prompt."""


def golden_cases(rewritten: Rewritten, figures: Report) -> list[Case]:
    """Random recordings of a few lengths and the offline model's answers; the first is kept in the bundle."""
    graph = rewritten.graph
    rng = np.random.default_rng(7)
    base = natural_hop(graph)
    reach = figures.receptive_field + figures.latency_frames
    lengths = [min(2 * reach, 40000) + 3 * base + 5, 2 * base + 1, max(1, figures.latency_frames // 2 + 3)]
    if graph.window is not None:
        lengths = [graph.window[0] + 5 * graph.window[1] + graph.window[1] // 2, graph.window[0]]
    if rewritten.states:
        lengths = [12]
    if graph.kv is not None:
        lengths[0] = max(lengths[0], TOKENS)
    if graph.max_frames is not None:
        lengths = [min(n, graph.max_frames) for n in lengths]
    if not keeps_all(graph.kv):
        most = min(kept_at_least(graph.kv or ""), UNBOUNDED if graph.modes else 1 << 44)
        lengths = [min(n, most) for n in lengths]
    cases = []
    least = 1 if rewritten.states or graph.window else graph.shortest
    if least > 1 or graph.remainders[0] > 1:
        lengths = [graph.next_length(n) for n in lengths]
    for frames in dict.fromkeys(min(max(n, least), graph.max_frames or max(n, least)) for n in lengths):
        inputs = {s.name: noise(s, frames, rng, graph) for s in [*graph.inputs, *graph.statics]}
        try:
            outputs = offline(rewritten, inputs)
        except Exception:  # a length that the offline model itself does not take
            continue
        cases.append(Case(inputs, {k: outputs[k] for k in graph.outputs}, frames))
    if not cases:
        raise InputError(f"{graph.name} runs in onnxruntime at none of the lengths {lengths}; check the model.")
    return cases


def offline(rewritten: Rewritten, inputs: Arrays) -> Arrays:
    """What the model gives on a whole recording; raises what onnxruntime raises for a length that it does not take."""
    graph = rewritten.graph
    if rewritten.states:
        frames = len(next(iter(inputs.values())))
        still = rewritten.fixed | {s.name: inputs[s.name] for s in graph.statics}
        fixed = {k: np.broadcast_to(v, (frames, *v.shape)) for k, v in still.items()}
        return stepwise(rewritten.proto, rewritten.states, rewritten.initial, inputs | fixed)
    return Offline(rewritten.proto, {s.name: s.axis for s in graph.inputs}, graph.window, rewritten.fixed).run(inputs)


def noise(stream: Stream, frames: int, rng: np.random.Generator, graph: StreamGraph) -> np.ndarray:
    """A random input of ``frames`` frames (or ticks) for a user; what is quantised at once covers all codes."""
    shape = [frames * int(stream.fact.rate) if d is None else d for d in stream.shape]
    shape = [frames, *shape] if stream.axis == STACKED and not stream.fact.static else shape
    kind = np.dtype(stream.dtype)
    readers = [n for n in graph.nodes if stream in n.streams]
    if kind.kind == "f":
        scale = next((n.inputs[1] for n in readers if n.op == "QuantizeLinear"), None)
        size = 0.3 if scale is None else 60 * float(np.max(np.asarray(scale)))
        return (rng.standard_normal(shape) * size).astype(stream.dtype)
    if kind in (np.int8, np.uint8) and not any(n.op == "Gather" for n in readers):
        return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)
    tables = [n.inputs[0] for n in readers if n.op == "Gather" and stream is n.inputs[1]]
    rows = min((len(t) for t in tables if isinstance(t, np.ndarray)), default=2)
    return rng.integers(0, rows, shape).astype(stream.dtype)


def as_npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, order="C"))
    return buffer.getvalue()
