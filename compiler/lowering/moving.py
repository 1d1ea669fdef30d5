"""Frame-local ONNX ops that only move data: views where memory stays as it is, else one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.lowering.pointwise import frame_axis, handler, operands
from runnel.compiler.lowering.signals import NoKernel, View
from runnel.compiler.lowering.split import SEGMENT_BYTES
from runnel.compiler.streaming.ir import STACKED, Pointwise, Stream
from runnel.compiler.streaming.rules.spectrum import dft_of

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


FETCHED = 1 << 16  # bytes of a table beyond which its rows are fetched
MOST_RUNS = 10
"""Parts that one kernel joins."""


@handler("Reshape", "Squeeze", "Unsqueeze")
def reshape(low: Lowering, node: Pointwise) -> View:
    return low.view(node.streams[0]).reshaped(node.output.frame_shape)


@handler("Flatten")
def flatten(low: Lowering, node: Pointwise) -> View:
    return low.view(node.streams[0]).reshaped(node.output.frame_shape)


@handler("Transpose")
def transpose(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    perm = list(node.attrs.get("perm") or range(len(x.shape))[::-1])
    perm = [frame_axis(x, p) for p in perm if x.axis == STACKED or p != x.axis]
    shape = x.frame_shape
    moving = [p for p in perm if shape[p] != 1]
    if moving == sorted(moving):
        return low.view(x).reshaped(node.output.frame_shape)
    return low.step(node, "transpose", [low.view(x)], node.output.frame_shape, {"perm": tuple(perm)})


@handler("Slice")
def slice_(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    rank = len(x.frame_shape)
    if "starts" in node.attrs:
        lists: list[Any] = [node.attrs["starts"], node.attrs["ends"], node.attrs.get("axes"), None]
    else:
        lists = [None if v is None else np.asarray(v).reshape(-1).tolist() for v in (*node.inputs[1:5], None, None)][:4]
    axes = lists[2] if lists[2] is not None else list(range(len(lists[0])))
    steps = lists[3] if lists[3] is not None else [1] * len(axes)
    starts, ends, strides = [0] * rank, list(x.frame_shape), [1] * rank
    for start, end, axis, step in zip(lists[0], lists[1], axes, steps, strict=True):
        at = frame_axis(x, int(axis))
        bounds = range(x.frame_shape[at])[slice(int(start), None if abs(end) >= 1 << 31 else int(end), int(step))]
        starts[at], ends[at], strides[at] = bounds.start, bounds.stop, bounds.step
    if any(s < 0 for s in strides):
        raise NoKernel("slices backwards")
    return low.step(
        node, "slice", [low.view(x)], node.output.frame_shape, {"starts": starts, "ends": ends, "steps": strides}
    )


@handler("Concat")
def concat(low: Lowering, node: Pointwise) -> View:
    axis = frame_axis(node.output, int(node.attrs.get("axis", 0)))
    return low.step(node, "concat", operands(low, node), node.output.frame_shape, {"axis": axis})


@handler("Expand")
def expand(low: Lowering, node: Pointwise) -> View:
    return low.step(
        node, "expand", [low.view(node.streams[0])], node.output.frame_shape, {"shape": node.output.frame_shape}
    )


@handler("Tile")
def tile(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    view, repeats = low.view(x), np.asarray(node.inputs[1]).reshape(-1)
    for axis, times in enumerate(repeats.tolist()):
        if times != 1:
            at = frame_axis(x, axis)
            shape = (*view.shape[:at], view.shape[at] * times, *view.shape[at + 1 :])
            places = np.tile(np.arange(view.shape[at]), times)
            view = low.step(node, "gather", [view, places], shape, {"axis": at})
    return view


def fetchable(table: np.ndarray, rows: View) -> bool:
    """Whether a table is so large that its rows are better taken one by one than kept in memory for a kernel."""
    row_bytes = table.nbytes // max(len(table), 1)
    one = rows.signal.elements == 1 and rows.signal.dtype in ("int32", "int64")
    return one and table.nbytes > FETCHED and 0 < row_bytes <= SEGMENT_BYTES and row_bytes % 4 == 0


@handler("Gather")
def gather(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    axis = frame_axis(x, int(node.attrs.get("axis", 0)))
    indices = node.inputs[1]
    if isinstance(indices, Stream):
        data = node.inputs[0]
        axis = int(node.attrs.get("axis", 0)) % len(data.shape) if data is not None else 0
        if isinstance(data, Stream):
            raise NoKernel("gathers by data from a frame")
        dtype = None if data is None else data.dtype.name
        shape = node.output.frame_shape
        view = low.view(indices)
        if data is not None and axis == 0 and not low.loop and fetchable(data, view):
            return low.fetch(node, data, view, shape)
        return low.step(node, "gather_at", [data, view], shape, {"axis": axis}, dtype)
    assert isinstance(indices, np.ndarray)
    indices = np.where(indices < 0, indices + x.frame_shape[axis], indices).astype(np.int64)
    return low.step(node, "gather", [low.view(x), indices], node.output.frame_shape, {"axis": axis})


@handler("Pad")
def pad(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    rank = len(x.shape)
    amounts = [int(v) for v in np.asarray(node.inputs[1] if len(node.inputs) > 1 else node.attrs["pads"]).reshape(-1)]
    keep = [i for i in range(rank) if i != x.axis]
    mode = node.attrs.get("mode", "constant")
    if mode != "constant":
        view = low.view(x)
        for axis, i in enumerate(keep):
            left, right = amounts[i], amounts[rank + i]
            if left or right:
                indices = np.pad(np.arange(view.shape[axis]), (left, right), mode)
                shape = (*view.shape[:axis], len(indices), *view.shape[axis + 1 :])
                view = _picked(low, node, view, indices, shape, axis)
        return view
    value = (
        float(np.asarray(node.inputs[2]).reshape(-1)[0]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
    )
    attrs = {"pads": [amounts[i] for i in keep] + [amounts[rank + i] for i in keep], "value": value}
    return low.step(node, "pad", [low.view(x)], node.output.frame_shape, attrs)


@handler("DFT")
def dft(low: Lowering, node: Pointwise) -> View:
    """A transform of a whole window, or of the windows' frames."""
    x, opset = node.streams[0], low.graph.opset
    length, given = (node.inputs[i] if len(node.inputs) > i else None for i in (1, 2))
    default = 1 if opset < 20 else -2
    axis = int(np.asarray(given).reshape(-1)[0]) if given is not None else int(node.attrs.get("axis", default))
    axis, rank, shape = axis % len(x.shape), len(x.frame_shape), x.frame_shape
    matrix = dft_of(shape[axis], shape[-1], length if isinstance(length, np.ndarray) else None, node.attrs)
    weight = matrix.reshape(shape[axis] * shape[-1], -1)
    perm = [i for i in range(rank) if i not in (axis, rank - 1)] + [axis, rank - 1]
    last = tuple(shape[i] for i in perm)
    view = low.view(x)
    if perm != list(range(rank)):
        view = low.step(node, "transpose", [view], last, {"perm": tuple(perm)})
    flat = (*last[:-2], weight.shape[0])
    made = (*last[:-2], *matrix.shape[2:])
    view = low.linear(node, view.reshaped(flat), weight, None, made)
    if perm == list(range(rank)):
        return view
    back = tuple(perm.index(i) for i in range(rank))
    return low.step(node, "transpose", [view], node.output.frame_shape, {"perm": back})


def _picked(low: Lowering, node: Pointwise, view: View, indices: np.ndarray, shape: tuple[int, ...], axis: int) -> View:
    """Places of one axis in any order: runs of neighbours joined where there are few, else by a table."""
    cuts = np.flatnonzero(np.diff(indices) != 1) + 1
    runs = np.split(indices, cuts)
    if len(runs) > MOST_RUNS:
        return low.step(node, "gather", [view, indices.astype(np.int64)], shape, {"axis": axis})
    parts: list[Any] = []
    for run in runs:
        bounds = [(int(run[0]), int(run[-1]) + 1) if a == axis else (0, n) for a, n in enumerate(view.shape)]
        parts.append(_region(low, node, view, bounds))
    return low.step(node, "concat", parts, shape, {"axis": axis})


@handler("ScatterND")
def scatter_nd(low: Lowering, node: Pointwise) -> View:
    """With constant indices: every element of the result comes from a known place in the data or the updates."""
    data, indices, updates = node.inputs
    if (
        not isinstance(indices, np.ndarray)
        or node.attrs.get("reduction", "none") != "none"
        or node.output.axis != STACKED
    ):
        raise NoKernel("scatters by data")
    shape = node.output.frame_shape
    assert updates is not None and data is not None
    parts = [low.view(v) if isinstance(v, Stream) else v for v in (data, updates)]
    places = np.moveaxis(indices.astype(np.int64), -1, 0)
    box = _box(shape, places)
    if box is not None:
        return _replaced(low, node, parts[0].reshaped(shape) if isinstance(parts[0], View) else parts[0], parts[1], box)
    source = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
    count = int(np.prod([d or 1 for d in updates.shape], dtype=np.int64))
    source[tuple(places)] = source.size + np.arange(count).reshape(source[tuple(places)].shape)
    sizes = (source.size, count)
    flat = [v.reshaped((n,)) if isinstance(v, View) else v.reshape(n) for v, n in zip(parts, sizes, strict=True)]
    joined = low.step(node, "concat", flat, (source.size + count,), {"axis": 0})
    return low.step(node, "gather", [joined, source.reshape(-1)], (source.size,), {"axis": 0}).reshaped(shape)


def _box(shape: tuple[int, ...], places: np.ndarray) -> list[tuple[int, int]] | None:
    """Begin and end on every axis if the places, in order, are a part of the tensor that is a box; else None.

    places: (indexed axes, ...). A box of everything is None too.
    """
    rank = len(places)
    places = np.where(places < 0, places + np.array(shape[:rank]).reshape(rank, *[1] * (places.ndim - 1)), places)
    flat = places.reshape(rank, -1)
    bounds = [(int(p.min()), int(p.max()) + 1) for p in flat] if flat.size else []
    grid = np.meshgrid(*(np.arange(*b) for b in bounds), indexing="ij") if bounds else []
    if not bounds or not np.array_equal(np.stack(grid).reshape(rank, -1), flat):
        return None
    box = [*bounds, *((0, n) for n in shape[rank:])]
    return box if any(b != (0, n) for b, n in zip(box, shape, strict=True)) else None


def _replaced(
    low: Lowering, node: Pointwise, data: View | np.ndarray, updates: View | np.ndarray, box: list[tuple[int, int]]
) -> View:
    """The data with a box of it replaced: parts joined axis by axis, from the innermost."""
    shape = node.output.frame_shape
    sizes = tuple(end - begin for begin, end in box)
    piece: View | np.ndarray = updates.reshaped(sizes) if isinstance(updates, View) else updates.reshape(sizes)
    for axis in reversed(range(len(shape))):
        begin, end = box[axis]
        inner = [(0, n) for n in shape[axis + 1 :]]
        parts = [piece]
        if begin > 0:
            parts = [_region(low, node, data, [*box[:axis], (0, begin), *inner]), *parts]
        if end < shape[axis]:
            parts = [*parts, _region(low, node, data, [*box[:axis], (end, shape[axis]), *inner])]
        if len(parts) > 1:
            joined = (*sizes[:axis], *shape[axis:])
            piece = low.step(node, "concat", parts, joined, {"axis": axis})
    assert isinstance(piece, View)
    return piece


def _region(
    low: Lowering, node: Pointwise, data: View | np.ndarray, bounds: list[tuple[int, int]]
) -> View | np.ndarray:
    if isinstance(data, np.ndarray):
        return data[tuple(slice(*b) for b in bounds)]
    starts, ends = ([b[i] for b in bounds] for i in range(2))
    shape = tuple(end - begin for begin, end in bounds)
    return low.step(node, "slice", [data], shape, {"starts": starts, "ends": ends, "steps": [1] * len(bounds)})


@handler("CumSum")
def cumulative_sum(low: Lowering, node: Pointwise) -> View:
    """A product with a triangle of ones, which adds in the same order."""
    x = node.streams[0]
    if x.dtype != "float32":
        raise NoKernel(f"accumulates {x.dtype}")
    axis = frame_axis(x, int(np.asarray(node.inputs[1]).reshape(-1)[0]))
    view, shape = low.view(x), x.frame_shape
    ones = np.triu(np.ones((shape[axis],) * 2, np.float32), int(bool(node.attrs.get("exclusive"))))
    ones = ones.T if node.attrs.get("reverse") else ones
    swap = list(range(len(shape)))
    swap[axis], swap[-1] = swap[-1], swap[axis]
    moved = tuple(shape[i] for i in swap)
    turned = {"perm": tuple(swap)}
    if axis == len(shape) - 1:
        return low.linear(node, view, ones, None, shape)
    sums = low.linear(node, low.step(node, "transpose", [view], moved, turned), ones, None, moved)
    return low.step(node, "transpose", [sums], shape, turned)
