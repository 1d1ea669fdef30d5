"""Static inputs: values without time that belong to a stream, such as a speaker's embedding or a language tag."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx

from runnel.compiler.graph.model import Node, Port
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import STACKED, Operand, Pointwise, Stream, StreamFact, StreamNode
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.symbolic import is_symbolic

if TYPE_CHECKING:
    from runnel.compiler.streaming.analysis import Analysis, Value

REPEATING = ("Expand", "Tile")
REMEDY = "bind the input to a value (--bind), or combine it with frames element by element"


@dataclass(eq=False)
class Static(StreamNode):
    """A static input: one value, which is there before the first frame."""


@dataclass(eq=False)
class Spread(StreamNode):
    """Every frame is the value of a static stream, seen with the output's shape."""


def add_static(a: Analysis, port: Port) -> None:
    """An input without time."""
    one = Count.const(1)
    shape = tuple(int(d) for d in port.shape if isinstance(d, int))
    stream = Stream(port.name, shape, port.dtype, StreamFact(STACKED, one, one))
    stream.node = Static(port.name, "Static", [], stream)
    a.nodes.append(stream.node)
    a.values[port.name] = stream


def with_statics(a: Analysis, node: Node, broadcasting: tuple[str, ...]) -> list[Value]:
    """The results of a node that reads static streams.

    Of statics alone they are static. With frames, each frame meets the value: where the op broadcasts, or where frames
    are whole tensors.
    """
    if any(isinstance(v, onnx.GraphProto) for v in node.attrs.values()):
        raise Refusal(
            "chooses between parts of the model by a static input", "bind the input to a value (--bind INPUT:VALUE)"
        )
    values = [a.values[i] for i in node.inputs if i]
    streams = [v for v in values if isinstance(v, Stream)]
    timed = [s for s in streams if not s.fact.static]
    if not timed and any(is_symbolic(v) for v in values):
        if node.op not in REPEATING or not streams or streams[0] is not a.values[node.inputs[0]]:
            raise Refusal("combines a static input with the length of the stream", REMEDY)
        return [_repeated(a, node, streams[0])]
    if not timed:
        return a.whole_frames(node)
    like = timed[0]
    if like.axis != STACKED and node.op not in broadcasting:
        raise Refusal("reads a static input where it needs a constant", REMEDY)
    before = {name: a.values[name] for name in node.inputs if name}
    try:
        rank = max(len(v.shape) for v in values if isinstance(v, (Stream, np.ndarray)))
        time = rank - len(like.shape) + like.axis
        for name, value in before.items():
            if isinstance(value, Stream) and value.fact.static:
                a.values[name] = _like(a, node, value, like, None if like.axis == STACKED else time, rank)
        return a.dispatch(node)
    finally:
        a.values.update(before)


def _like(a: Analysis, node: Node, value: Stream, like: Stream, time: int | None, rank: int) -> Stream:
    """The static value as a stream with a frame for each of ``like``."""
    fact = like.fact
    if time is None:
        return spread(a, node, value, value.frame_shape, fact)
    shape: list[int | None] = [*([1] * (rank - len(value.shape))), *value.frame_shape]
    if shape[time] != 1:
        raise Refusal(
            f"combines every frame with its own row of a static input of {shape[time]} rows",
            "give the rows as frames of an input with time",
        )
    shape[time] = None
    return spread(a, node, value, tuple(shape), replace(fact, axis=time))


def _repeated(a: Analysis, node: Node, value: Stream) -> Stream:
    """Expand or Tile of a static value along time."""
    target = a.values[node.inputs[1]]
    assert isinstance(target, np.ndarray)
    dims = [d if isinstance(d, Count) else int(d) for d in target.reshape(-1)]
    at = [i for i, d in enumerate(dims) if isinstance(d, Count) and not d.is_const]
    rank = max(len(dims), len(value.shape))
    own = [*([1] * (rank - len(value.shape))), *value.frame_shape]
    dims = [*([1] * (rank - len(dims))), *dims]
    if len(at) != 1 or own[time := rank - target.size + at[0]] != 1:
        raise Refusal("repeats a static input along more than time", REMEDY)
    length = dims[time]
    assert isinstance(length, Count)
    final: list[int] = [int(Count.of(d).values[0]) if i != time else 1 for i, d in enumerate(dims)]
    tiles = node.op == "Tile"
    shape = (
        [x * y for x, y in zip(own, final, strict=True)] if tiles else [max(p) for p in zip(own, final, strict=True)]
    )
    if shape != own:
        inputs: list[Operand] = [value, np.array(final, np.int64)]
        name = f"{node.outputs[0]}/static"
        stream = Stream(name, tuple(shape), value.dtype, value.fact)
        stream.node = Pointwise(node.name, node.op, inputs, stream, attrs={})
        a.nodes.append(stream.node)
        value = stream
    fact = StreamFact(time, length, length, next(iter(a.axes), ""))
    return spread(a, node, value, tuple(None if i == time else d for i, d in enumerate(shape)), fact)


def spread(a: Analysis, node: Node, value: Stream, shape: tuple[int | None, ...], fact: StreamFact) -> Stream:
    """A stream whose every frame is the static value, reshaped."""
    key = (value, shape, fact.axis, fact.made.key, fact.length.key)
    if key not in a.spreads:
        made = Stream(f"{node.outputs[0]}/{value.name}/spread{len(a.spreads)}", shape, value.dtype, fact)
        made.node = Spread(node.name, "Spread", [value], made)
        a.nodes.append(made.node)
        a.spreads[key] = made
    return a.spreads[key]
