"""The ports of a model: how its inputs become streams, and which streams its outputs are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.graph.model import Graph, Node, Port
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.decisions import why
from runnel.compiler.streaming.deviation import answer
from runnel.compiler.streaming.ir import (
    STACKED,
    Deviation,
    Feedback,
    Poisoned,
    Source,
    Stream,
    StreamFact,
    Tail,
    Weights,
)
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.running import answers_so_far
from runnel.compiler.streaming.weighted import known_too_late
from runnel.errors import InputError, Reason

if TYPE_CHECKING:
    from runnel.compiler.streaming.analysis import Analysis


def add_source(analysis: Analysis, port: Port, axis: int, per_tick: int = 1) -> None:
    """An input whose frames come in, ``per_tick`` of them for each of the stream's clock."""
    frames = Count.time().affine(per_tick, 0)
    shape = port.shape if axis == STACKED else tuple(None if a == axis else d for a, d in enumerate(port.shape))
    fact = StreamFact(axis, frames, frames, port.name)
    stream = Stream(port.name, shape, port.dtype, fact)  # type: ignore[arg-type]
    stream.node = Source(port.name, "Source", [], stream)
    analysis.nodes.append(stream.node)
    analysis.values[port.name] = stream


def add_feedback(analysis: Analysis, port: Port, source: str, initial: np.ndarray | None) -> None:
    """A state of the model's own: the frame before of the output ``source``."""
    time = Count.time()
    shape = tuple(int(d) for d in port.shape if isinstance(d, int))
    if initial is not None and tuple(initial.shape) != shape:
        raise InputError(
            f"the initial value of '{port.name}' has shape {list(initial.shape)}; the model needs {list(shape)}."
        )
    driver = next(p.name for p in analysis.graph.inputs if p.name != port.name)
    stream = Stream(port.name, shape, port.dtype, StreamFact(STACKED, time, time, driver))
    stream.node = Feedback(port.name, "Feedback", [], stream, source=source, initial=initial)
    analysis.nodes.append(stream.node)
    analysis.values[port.name] = stream


def collect_outputs(analysis: Analysis, graph: Graph) -> dict[str, Stream | Tail]:
    """The streams of the model's outputs; an output that depends on no input frame is among the refusals."""
    outputs: dict[str, Stream | Tail] = {}
    for port in graph.outputs:
        value = analysis.values.get(port.name)
        node = Node("Output", port.name, [port.name], [port.name])
        if isinstance(value, (Deviation, Weights)):
            try:
                if isinstance(value, Weights):
                    raise known_too_late(value)
                value = answer(analysis, node, value)
            except Refusal as refusal:
                analysis.reasons.append(why(_maker(graph, port.name), refusal))
                continue
        if isinstance(value, Stream) and value.fact.once:
            try:
                value = answers_so_far(analysis, node, value)
            except Refusal as refusal:
                analysis.reasons.append(why(_maker(graph, port.name), refusal))
                continue
        if isinstance(value, Tail) or (isinstance(value, Stream) and not value.fact.static):
            outputs[port.name] = value
        elif not isinstance(value, Poisoned):
            analysis.reasons.append(
                Reason(port.name, "Output", "does not depend on the input frames", "drop this output from the model")
            )
    return outputs


def _maker(graph: Graph, name: str) -> Node:
    """The node that makes a tensor."""
    return next(n for n in graph.nodes if name in n.outputs)


def most_frames(analysis: Analysis) -> tuple[int | None, str]:
    """The most input frames of a stream, and why."""
    limits = list(analysis.limits)
    if analysis.max_frames is not None:
        limits.append((analysis.max_frames, f"it was compiled with max_frames={analysis.max_frames}"))
    most, why = min(limits, default=(None, ""))
    if most is not None and most < analysis.shortest:
        raise InputError(
            f"a stream may have {most} frames ({why}), and the model takes no fewer than {analysis.shortest}."
        )
    return most, why
