"""Reshapes that put frames together or take them apart: pixel shuffles, and stacks of frames."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Stream
from runnel.compiler.streaming.kinds.geometry import Interleave
from runnel.compiler.streaming.kinds.positions import Frames
from runnel.compiler.streaming.lengths import divides
from runnel.compiler.streaming.registry import MixesTime, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


def around(x: Stream) -> tuple[int, int]:
    """The number of elements of the axes before time, and of those after it."""
    return prod(d for d in x.shape[: x.axis] if d), prod(d for d in x.shape[x.axis + 1 :] if d)


def others(target: list[Any], at: int, elements: int) -> list[int] | None:
    """A shape without its dimension ``at``, with -1 resolved; None where another one depends on time."""
    rest = [v for i, v in enumerate(target) if i != at]
    if any(isinstance(v, Count) or v is None for v in rest):
        return None
    known = prod(int(v) for v in rest if v != -1)
    return [elements // known if v == -1 and known else int(v) for v in rest]


def fold_time(a: Analysis, node: Node, x: Stream, target: list[Any]) -> Stream | None:
    """A reshape to ``target`` that makes one frame of several, or several of one; None for any other."""
    before, after = around(x)
    for at, d in enumerate(target):
        if not isinstance(d, Count) and d != -1:
            continue
        rest = others(target, at, before * after)
        if rest is None or prod(rest[:at]) != before or not prod(rest):
            continue
        inner = prod(rest[at:])
        shape = (*rest[:at], None, *rest[at:])
        if after % inner == 0 and (d == -1 or d == x.fact.length * (after // inner)):
            return spread(a, node, x, after // inner, shape)
        if inner % after == 0 and (d == -1 or _is_part(d, x.fact.length, inner // after)):
            return gathered(a, node, x, inner // after, shape)
    return None


def _is_part(d: Any, length: Count, count: int) -> bool:
    """Whether ``d`` is length / count wherever that is whole."""
    return isinstance(d, Count) and d in (length // count, (length + (count - 1)) // count)


def spread(a: Analysis, node: Node, x: Stream, count: int, shape: tuple[int | None, ...], suffix: str = "") -> Stream:
    """Frames of ``count`` parts each, which follow each other in time; ``shape`` is the result's."""
    axis = shape.index(None)
    parts = (*shape[:axis], None, count, *shape[axis + 1 :])
    if parts != x.shape:
        x = a.pointwise(
            node, [x], axis, attrs={"shape": list(parts)}, op="Reshape", suffix=f"{suffix}/parts", shape=parts
        )
    final, length = (c.affine(count, 0) for c in (x.fact.final, x.fact.length))
    return a.emit(node, Interleave, [x], axis, final, length, shape=shape, suffix=suffix, count=count)


def gathered(a: Analysis, node: Node, x: Stream, count: int, shape: tuple[int | None, ...], suffix: str = "") -> Stream:
    """``count`` frames as one; ``shape`` is the result's. Lengths that do not divide are refused at the end."""
    final, length = (c.affine(1, 0, count) for c in (x.fact.final, x.fact.length))
    together = (*x.shape[: x.axis], None, count, *x.shape[x.axis + 1 :])
    divides(a, x.fact.length, count)
    same = together == shape
    y = a.emit(
        node, Frames, [x], x.axis, final, length, shape=together, suffix=suffix if same else f"{suffix}/together",
        kernel=count, stride=count,
    )  # fmt: skip
    if same:
        return y
    return a.pointwise(
        node, [y], shape.index(None), attrs={"shape": list(shape)}, op="Reshape", suffix=suffix, shape=shape
    )


@rule("DepthToSpace", "SpaceToDepth")
def shuffle(a: Analysis, node: Node) -> list[Value]:
    """As the standard writes it: a reshape, a transposition, a reshape."""
    x = a.stream(node)
    size = int(node.attrs["blocksize"])
    if x.axis == 0:
        return [a.pointwise(node, [x], 0)]
    if x.axis == 1:
        raise MixesTime("has time on its channel axis, so it mixes all frames", "move time to a spatial axis")
    (batch, channels), (height, width) = x.shape[:2], x.shape[2:]
    assert channels is not None
    if node.op == "DepthToSpace":
        rows_first = node.attrs.get("mode", "DCR") == "DCR"
        channels //= size**2
        blocks = [size, size, channels] if rows_first else [channels, size, size]
        x = _reshape(a, node, x, [batch, *blocks, height, width], "/blocks")
        x = _transpose(a, node, x, [0, 3, 4, 1, 5, 2] if rows_first else [0, 1, 4, 2, 5, 3])
        shape = (batch, channels, height and height * size, width and width * size)
        return [spread(a, node, x, size, shape)]
    parts = (batch, channels, height and height // size, size, width and width // size, size)
    x = gathered(a, node, x, size, parts, "/blocks")
    x = _transpose(a, node, x, [0, 3, 5, 1, 2, 4])
    return [_reshape(a, node, x, [batch, channels * size**2, parts[2], parts[4]], "")]


def _reshape(a: Analysis, node: Node, x: Stream, shape: list[int | None], suffix: str) -> Stream:
    return a.pointwise(
        node, [x], shape.index(None), attrs={"shape": shape}, op="Reshape", suffix=suffix, shape=tuple(shape)
    )


def _transpose(a: Analysis, node: Node, x: Stream, perm: list[int]) -> Stream:
    shape = tuple(x.shape[p] for p in perm)
    return a.pointwise(
        node, [x], shape.index(None), attrs={"perm": perm}, op="Transpose", suffix="/turned", shape=shape
    )
