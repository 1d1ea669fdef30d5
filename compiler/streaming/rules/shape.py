"""Ops that move axes: transpose, reshape, squeeze, and slices, pads and joins off the time axis."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import STACKED, Stream
from runnel.compiler.streaming.kinds.once import first_frames, last_frames
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule
from runnel.compiler.streaming.rules.elementwise import broadcast_axis
from runnel.compiler.streaming.rules.fold import around, fold_time, others
from runnel.compiler.streaming.rules.frames import frames_by_number
from runnel.compiler.streaming.rules.positions import rows_by_number

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


@rule("Transpose")
def transpose(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    perm = node.attrs.get("perm") or list(range(len(x.shape)))[::-1]
    return [a.pointwise(node, [x], list(perm).index(x.axis), attrs={"perm": list(perm)})]


@rule("Unsqueeze", "Squeeze")
def squeeze(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    listed = node.attrs.get("axes", a.constant(node, 1, "list of axes"))
    rank = len(x.shape)
    if listed is None:
        axes = [i for i, d in enumerate(x.shape) if d == 1]
    else:
        axes = [int(v) for v in np.asarray(listed).reshape(-1)]
    if node.op == "Squeeze":
        axes = [v % rank for v in axes]
        if x.axis in axes:
            raise MixesTime("removes the time axis", "use window mode (--window W)")
        axis = x.axis - sum(v < x.axis for v in axes)
    else:
        axes = sorted(v % (rank + len(axes)) for v in axes)
        axis = x.axis
        for v in axes:
            axis += v <= axis
    return [a.pointwise(node, [x, np.array(axes, np.int64)], axis, attrs={})]


@rule("Reshape", "Flatten")
def reshape(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if node.op == "Flatten":
        at = int(node.attrs.get("axis", 1))
        at = at + len(x.shape) if at < 0 else at
        before = list(x.shape[:at])
        target: list[Any] = (
            [-1, prod(d for d in x.shape[at:] if d)] if None in before else [prod(d for d in before if d), -1]
        )
        if None not in before and None not in x.shape[at:]:
            target = [prod(d for d in before if d), prod(d for d in x.shape[at:] if d)]
    else:
        value = a.value(node.inputs[1])
        if not isinstance(value, np.ndarray):
            raise Refusal("takes its shape from data", "export the model with fixed shapes")
        target = list(value.reshape(-1))
        if not node.attrs.get("allowzero"):
            target = [x.shape[i] if not isinstance(d, Count) and d == 0 else d for i, d in enumerate(target)]
    shape = place_time(x, target, None if a.window is None else x.fact.length(a.window[0]))
    if shape is not None:
        return [a.pointwise(node, [x], shape.index(None), attrs={"shape": shape}, op="Reshape")]
    folded = fold_time(a, node, x, target)
    if folded is None:
        raise MixesTime(
            f"folds time together with other axes (from {_show(x)} to {[str(d) for d in target]})",
            "keep time as an axis of its own",
        )
    return [folded]


def place_time(x: Stream, target: list[Any], frames: int | None = None) -> list[int | None] | None:
    """The target with None where the time axis comes to stand; None for reshapes that fold time with other axes.

    frames: the length of x where it is always the same (in a window).
    """
    before, after = around(x)
    for at, d in enumerate(target):
        if not (d is None or d == x.fact.length or (not isinstance(d, Count) and d in (-1, frames))):
            continue
        rest = others(target, at, before * after)
        if rest is not None and prod(rest[:at]) == before and prod(rest[at:]) == after:
            return [*rest[:at], None, *rest[at:]]
    return None


def _show(x: Stream) -> str:
    return str(["T" if d is None else d for d in x.shape])


@rule("Expand")
def expand(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    value = a.value(node.inputs[1])
    if not isinstance(value, np.ndarray):
        raise Refusal("takes its shape from data", "export the model with fixed shapes")
    target = list(value.reshape(-1))
    rank = max(len(target), len(x.shape))
    target = [1] * (rank - len(target)) + target
    axis = rank - len(x.shape) + x.axis
    if not (target[axis] == 1 or target[axis] == x.fact.length):
        raise MixesTime("repeats along time", "export the model with broadcasting instead")
    if any(isinstance(d, Count) for i, d in enumerate(target) if i != axis):
        raise MixesTime("repeats a frame along time", "export the model with broadcasting instead")
    shape = [None if i == axis else int(d) for i, d in enumerate(target)]
    return [a.pointwise(node, [x], axis, attrs={"shape": shape})]


@rule("Tile")
def tile(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    repeats = a.value(node.inputs[1])
    if not isinstance(repeats, np.ndarray):
        raise Refusal("takes its repeats from data", "export the model with fixed repeats")
    counts = list(repeats.reshape(-1))
    if counts[x.axis] != 1:
        raise MixesTime("repeats the whole recording", "repeat each frame, on another axis")
    if any(isinstance(v, Count) for v in counts):
        raise MixesTime("repeats a frame along time", "export the model with broadcasting instead")
    return [a.pointwise(node, [x, np.array(counts, np.int64)], x.axis)]


@rule("Gather")
def gather(a: Analysis, node: Node) -> list[Value]:
    table = a.value(node.inputs[0])
    if (made := rows_by_number(a, node)) is not None:
        return made
    if isinstance(table, np.ndarray) and table.dtype != object:
        numbers = a.stream(node, 1)
        return [a.pointwise(node, [table, numbers], int(node.attrs.get("axis", 0)) % table.ndim + numbers.axis)]
    x = a.stream(node)
    axis = int(node.attrs.get("axis", 0)) % len(x.shape)
    by = a.value(node.inputs[1])
    if axis == x.axis and isinstance(by, Stream):
        return frames_by_number(a, node, x, by)
    indices = a.constant(node, 1, "list of indices")
    assert indices is not None
    if axis == x.axis:
        return [fixed_frames(a, node, x, indices)]
    return [a.pointwise(node, [x, indices], x.axis + (indices.ndim - 1 if axis < x.axis else 0))]


def fixed_frames(a: Analysis, node: Node, x: Stream, indices: np.ndarray) -> Stream:
    """Frames of given numbers, counted from one side, as one value."""
    low, high = int(indices.min()), int(indices.max())
    if low < 0 <= high:
        raise MixesTime("picks frames from both ends of time", "slice each end of it")
    if low < 0:
        frames = last_frames(a, node, x, -low, -high - 1)
    else:
        frames = first_frames(a, node, x, low, high + 1, "/first")
    return a.pointwise(node, [frames, np.asarray(indices - low)], STACKED)


@rule("Split")
def split(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    axis = int(node.attrs.get("axis", 0)) % len(x.shape)
    if axis == x.axis:
        from runnel.compiler.streaming.rules.time import split_time

        return split_time(a, node, x)
    size = x.shape[axis]
    assert size is not None
    given = node.attrs.get("split", a.constant(node, 1, "list of sizes"))
    if given is None:
        parts = len(node.outputs)
        each = -(-size // parts)
        sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    else:
        sizes = [int(v) for v in np.asarray(given).reshape(-1)]
    results: list[Value] = []
    start = 0
    for i, width in enumerate(sizes):
        bounds = [np.array([v], np.int64) for v in (start, start + width, axis)]
        results.append(a.pointwise(node, [x, *bounds], x.axis, attrs={}, op="Slice", output=i))
        start += width
    return results


@rule("Concat")
def concat(a: Analysis, node: Node) -> list[Value]:
    from runnel.compiler.streaming.rules.join import concat_time

    operands = [v if isinstance(v := a.value(n), np.ndarray) else a.stream(node, i) for i, n in enumerate(node.inputs)]
    rank = len(operands[0].shape)
    axis = int(node.attrs.get("axis", 0)) % rank
    streams = [x for x in operands if isinstance(x, Stream)]
    if axis in {x.axis for x in streams}:
        return concat_time(a, node, operands, axis)
    time = broadcast_axis([x for x in operands if isinstance(x, Stream)], rank)
    for x in operands:
        if isinstance(x, np.ndarray) and x.shape[time] != 1:
            raise MixesTime("joins frames with a constant table", "export the model without absolute positions")
        if isinstance(x, np.ndarray):
            raise Refusal("joins a constant of one frame to a stream", "add the constant in the layer after it")
    return [a.pointwise(node, list(operands), time)]
