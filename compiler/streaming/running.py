"""Named modes for what needs the whole future: a value known at the end is replaced by what it would be if the stream
ended with the present frame.

Frame n then holds what the offline model would give on the frames 0 … n. ``pool=cumulative`` allows it where a pooled
value meets the frames or is the answer, ``norm=running`` where frames are normalised by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import STACKED, Operand, Pointwise, Stream
from runnel.compiler.streaming.kinds.once import Accumulate, Last, Total
from runnel.compiler.streaming.kinds.positions import Extent, Positions
from runnel.compiler.streaming.kinds.running import Stack, Unstack
from runnel.compiler.streaming.registry import RULES, Refusal
from runnel.compiler.streaming.rules.elementwise import BINARY
from runnel.compiler.streaming.rules.positions import cast, generate

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

NORM, POOL = ("norm", "running"), ("pool", "cumulative")


def allow(a: Analysis, mode: tuple[str, str], reason: str) -> None:
    """Use a named mode, or refuse with the reason and the mode's name."""
    name, value = mode
    if a.modes.get(name) != value:
        what = "statistics" if mode == NORM else "values"
        raise Refusal(
            reason,
            f"train and export the model with {what} of the past, or use window mode (--window W)",
            (f"{name}={value}",),
        )
    a.used_modes[name] = value


def running(a: Analysis, node: Node, once: Stream, frames: Count | None = None) -> Stream:
    """The stacked stream whose frame n is the value if the stream ended with frame n.

    frames: how many frames the stream has that is pooled, if that is known from elsewhere.
    """
    if once in a.running:
        return a.running[once]
    made, suffix = once.node, f"/{once.name}/running"
    if isinstance(made, Total) and made.how != "weighted":
        x = made.streams[0]
        so_far = a.emit(
            node, Accumulate, made.inputs, x.axis, x.fact.final, x.fact.length, shape=x.shape, op="Accumulate",
            suffix=suffix, how=made.how,
        )  # fmt: skip
        so_far.dtype = once.dtype
        result = _stack(a, node, so_far, once, f"{suffix}/stack")
    elif isinstance(made, Last) and (made.start, made.stop) == (1, 0):
        result = _stack(a, node, made.streams[0], once, suffix)
    elif isinstance(made, Extent):
        result = _length_so_far(a, node, made, frames, suffix)
    elif isinstance(made, Pointwise):
        frames = frames or _pooled_frames(once)
        inputs: list[Operand] = [running(a, node, x, frames) if isinstance(x, Stream) else x for x in made.inputs]
        result = a.pointwise(
            node, inputs, STACKED, attrs=made.attrs, op=made.op, suffix=suffix, shape=once.shape
        )  # fmt: skip
    else:
        raise Refusal(
            "has no running form (frames from the start, several from the end, or pooled by attention)",
            "give it out alone, as a value at the end",
        )
    result.dtype = once.dtype
    a.running[once] = result
    return result


def _pooled_frames(once: Stream) -> Count | None:
    """How many frames the stream has that a value at the end is computed from; None for lengths alone."""
    for x in once.node.streams if once.node is not None else []:
        found = _pooled_frames(x) if x.fact.once else x.fact.length
        if found is not None:
            return found
    return None


def _length_so_far(a: Analysis, node: Node, made: Extent, frames: Count | None, suffix: str) -> Stream:
    """A length, if the stream ended with each frame: the number of that frame, and what the length has more or less."""
    more = 0 if frames is None else made.count(a.probe_length) - frames(a.probe_length)
    if frames is None or frames.affine(1, more, low=None).later(a.shortest) != made.count.later(a.shortest):
        raise Refusal(
            f"computes with a length, {made.count} for T input frames, that is not the pooled stream's",
            "give it out alone, as a value at the end",
        )
    number = generate(a, node, Positions, (None,), "int64", frames, f"{suffix}/number", start=1 + more)
    dtype = made.output.dtype
    number = cast(a, node, number, dtype, f"{suffix}/cast")
    if made.div != 1:
        div = np.array(made.div, dtype)
        number = a.pointwise(node, [number, div], 0, {}, op="Div", suffix=f"{suffix}/div", shape=(None,))
        number.dtype = dtype
    return _stack(a, node, number, made.output, f"{suffix}/stack")


def _stack(a: Analysis, node: Node, x: Stream, once: Stream, suffix: str) -> Stream:
    return a.emit(
        node, Stack, [x], STACKED, x.fact.final, x.fact.length, shape=once.shape, op="Stack", suffix=suffix
    )  # fmt: skip


def against(a: Analysis, node: Node, once: Stream, rank: int, axis: int) -> Stream:
    """The running form of a value, with time at ``axis`` of a result of ``rank`` axes that it is broadcast to."""
    stacked = running(a, node, once)
    at = axis - (rank - len(once.shape))
    shape: tuple[int | None, ...] = once.shape
    if at < 0:
        shape = (None, *(1,) * (-at - 1), *shape)
    elif shape[at] == 1:
        shape = tuple(None if i == at else d for i, d in enumerate(shape))
    else:
        raise Refusal(
            "combines the frames with a value that has an element for each of another axis",
            "reshape the model so that the value has one element along time",
        )
    time = shape.index(None)
    result = a.emit(
        node, Unstack, [stacked], time, stacked.fact.final, stacked.fact.length, shape=shape, op="Unstack",
        suffix=f"/{once.name}/time",
    )  # fmt: skip
    result.dtype = once.dtype
    return result


def mixed(
    a: Analysis, node: Node, mode: tuple[str, str] | None = None, values: list[Value | None] | None = None
) -> list[Value]:
    """A node that reads frames and values known only at the end. values: its inputs, where not those of the graph."""
    values = [a.value(name) for name in node.inputs] if values is None else values
    mode = mode or (NORM if node.op in ("Sub", "Div") else POOL)
    reason = "combines every frame with a value that is known only at the end of the stream"
    if node.op not in BINARY:
        raise Refusal(reason, "compute it from the frames so far, or make both of them outputs")
    allow(a, mode, reason)
    shapes = [v.shape for v in values if isinstance(v, (Stream, np.ndarray))]
    rank = max(map(len, shapes))
    frames = next(v for v in values if isinstance(v, Stream) and not v.fact.once)
    axis = rank - len(frames.shape) + frames.axis
    return with_values(
        a, node, [against(a, node, v, rank, axis) if isinstance(v, Stream) and v.fact.once else v for v in values]
    )


def with_values(a: Analysis, node: Node, values: list[Value | None]) -> list[Value]:
    """The node's rule with other values for its inputs."""
    saved = {name: a.values[name] for name in node.inputs if name}
    try:
        a.values.update({name: v for name, v in zip(node.inputs, values, strict=True) if v is not None})
        return RULES[node.op](a, node)
    finally:
        a.values.update(saved)


def answers_so_far(a: Analysis, node: Node, once: Stream) -> Stream:
    """A value at the end that is an output of the model: its running form where the user allows it."""
    if a.modes.get("pool") != "cumulative" or isinstance(once.node, Last):
        return once
    result = running(a, node, once)
    a.used_modes["pool"] = "cumulative"
    a.mode_nodes.setdefault("pool", []).append(f"Output '{node.name}'")
    return result
