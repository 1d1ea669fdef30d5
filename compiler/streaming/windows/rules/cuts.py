"""Slices, pads and joins of the window's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.ir import Operand, Stream
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.windows.columns import Columns
from runnel.compiler.streaming.windows.local import frame_local
from runnel.compiler.streaming.windows.padding import pad_amounts
from runnel.compiler.streaming.windows.rules.frames import framed
from runnel.compiler.streaming.windows.walk import Value, Walk, window_rule

MODES = ("constant", "reflect", "edge")
MOST_COPIES = 8


def constants(walk: Walk, node: Node, first: int = 1) -> list[np.ndarray | None] | None:
    """The inputs from ``first`` on; None where one of them is not constant."""
    values = [walk.values[i] if i else None for i in node.inputs[first:]]
    if any(isinstance(v, (Columns, Stream)) for v in values):
        return None
    return [v if isinstance(v, np.ndarray) else None for v in values]


def crop(walk: Walk, node: Node, x: Columns, start: int, stop: int) -> Value:
    """Columns start to stop; a stacked tensor where none of them are shared."""
    begin, end = x.inner
    if min(stop, end) <= max(start, begin):
        return walk.span(node, x, start, stop)
    left = walk.span(node, x, start, begin) if start < begin else None
    right = walk.span(node, x, end, stop) if stop > end else None
    return Columns(x.stream, stop - start, x.offset + start * x.spacing, x.hop, x.spacing, left, right)


def _rest(
    walk: Walk, node: Node, value: Value, inputs: Sequence[np.ndarray | None], **attrs: Any
) -> list[Value] | None:
    """The node once more, for its other axes, on a value of which time is done."""
    names = [f"{node.outputs[0]}/in{i}" for i in range(len(inputs) + 1)]
    walk.values[names[0]] = value
    walk.values.update({n: v for n, v in zip(names[1:], inputs, strict=True) if v is not None})
    given = [names[0], *(n if v is not None else "" for n, v in zip(names[1:], inputs, strict=True))]
    again = Node(node.op, node.name, given, node.outputs, attrs)
    return frame_local(walk, again) if isinstance(value, Columns) else walk.whole(again)


@window_rule("Slice")
def slice_(walk: Walk, node: Node) -> list[Value] | None:
    x = walk.values[node.inputs[0]]
    given = constants(walk, node)
    if not isinstance(x, Columns) or given is None:
        return None
    lists = [None if v is None else [int(n) for n in v.reshape(-1)] for v in (*given, None, None, None)][:4]
    if "starts" in node.attrs:
        lists = [node.attrs["starts"], node.attrs["ends"], node.attrs.get("axes"), None]
    starts, ends = lists[0], lists[1]
    assert starts is not None and ends is not None
    rank = len(x.stream.shape)
    axes = [v % rank for v in lists[2] or range(len(starts))]
    steps = lists[3] or [1] * len(starts)
    if x.axis not in axes:
        return frame_local(walk, node)
    at = axes.index(x.axis)
    if steps[at] < 1:
        return None
    taken = range(x.frames)[slice(starts[at], ends[at], steps[at])]
    value = crop(walk, node, x, taken.start, taken[-1] + 1)
    if steps[at] > 1:
        if not isinstance(value, Columns) or value.left is not None or value.right is not None:
            return None
        spacing = value.spacing * steps[at]
        value = Columns(value.stream, len(taken), value.offset, value.hop, spacing)
    others = [i for i in range(len(axes)) if i != at]
    if not others:
        return [value]
    kept = [np.array([v[i] for i in others], np.int64) for v in (starts, ends, axes, steps)]
    return _rest(walk, node, value, kept)


@window_rule("Pad")
def pad(walk: Walk, node: Node) -> list[Value] | None:
    x = walk.values[node.inputs[0]]
    given = constants(walk, node)
    if not isinstance(x, Columns) or given is None:
        return None
    rank = len(x.stream.shape)
    amounts, fill = pad_amounts(node, [x, *given], rank)
    fill = fill.astype(x.stream.dtype)
    mode = node.attrs.get("mode", "constant")
    before, after = amounts[x.axis], amounts[rank + x.axis]
    if mode not in MODES or (mode != "constant" and min(before, after) < 0):
        return None
    amounts[x.axis] = amounts[rank + x.axis] = 0
    value = crop(walk, node, x, max(0, -before), x.frames - max(0, -after))
    if isinstance(value, Columns):
        padded = pad_columns(walk, node, value, max(0, before), max(0, after), mode, fill)
        if padded is None:
            return None
        value = padded
    elif max(before, after) > 0:
        return None
    if not any(amounts):
        return [value]
    return _rest(walk, node, value, [np.array(amounts, np.int64), fill], mode=mode)


def pad_columns(
    walk: Walk, node: Node, x: Columns, before: int, after: int, mode: str, fill: np.ndarray
) -> Columns | None:
    """x with columns added at the window's edges; None where that reads a whole window."""
    begin, end = x.inner
    if walk.neighbours and (before or after):
        if mode != "constant" or np.any(fill != 0):
            raise Refusal(
                "pads time with something else than zeros, which signal padding does not replace", "use mode=exact"
            )
        walk.pads(node, x)
        return Columns(x.stream, x.frames + before + after, x.offset - before * x.spacing, x.hop, x.spacing)
    least = {"constant": 1, "edge": 1, "reflect": max(before, after) + 1}[mode]
    if least > x.frames:
        return None

    def padded(part: Stream, amounts: tuple[int, int], suffix: str) -> Stream:
        pads = [0] * (2 * len(part.shape))
        pads[x.axis], pads[len(part.shape) + x.axis] = amounts
        if mode == "constant":
            return walk.filled(node, part, pads, fill, suffix)
        operands: list[Operand] = [part, np.array(pads, np.int64)]
        shape = [int(d or 0) + sum(amounts) * (a == x.axis) for a, d in enumerate(part.shape)]
        return walk.apply(node, "Pad", operands, shape, suffix, {"mode": mode})

    left, right = x.left, x.right
    copied = mode != "constant" and max(before, after) <= MOST_COPIES
    if copied:
        last, reflect = x.frames - 1, mode == "reflect"
        outer = [walk.span(node, x, c, c + 1) for c in (range(before, 0, -1) if reflect else [0] * before)]
        mirrored = range(last - 1, last - 1 - after, -1) if reflect else [last] * after
        inner = [walk.span(node, x, c, c + 1) for c in mirrored]
        left = walk.joined(node, [*outer, *([left] if left else [])], x.axis, "/left") if before else left
        right = walk.joined(node, [*([right] if right else []), *inner], x.axis, "/right") if after else right
    elif before:
        whole = padded(walk.span(node, x, 0, max(begin, least)), (before, 0), "/padded left")
        left = walk.sliced(node, whole, x.axis, 0, before + begin, "/left")
    if after and not copied:
        count = max(x.frames - end, least)
        whole = padded(walk.span(node, x, x.frames - count, x.frames), (0, after), "/padded right")
        size = int(whole.shape[x.axis] or 0)
        right = walk.sliced(node, whole, x.axis, count - (x.frames - end), size, "/right")
    return Columns(
        x.stream, x.frames + before + after, x.offset - before * x.spacing, x.hop, x.spacing, left, right
    )  # fmt: skip


@window_rule("Concat")
def concat(walk: Walk, node: Node) -> list[Value] | None:
    """Along time: what stands before the tensor with most shared columns is its left edge, what stands behind its
    right edge."""
    values = [walk.values[i] for i in node.inputs]
    columns = [v for v in values if isinstance(v, Columns)]
    axis = int(node.attrs["axis"]) % len(columns[0].stream.shape)
    if any(v.axis != axis for v in columns):
        return frame_local(walk, node)
    if walk.neighbours and any(isinstance(v, np.ndarray) and not v.any() for v in values):
        raise Refusal(
            "pads time by joining zeros, which signal padding does not replace", "export it with Pad, or use mode=exact"
        )
    main = max(columns, key=lambda v: v.inner[1] - v.inner[0])
    at = next(i for i, v in enumerate(values) if v is main)
    begin, end = main.inner

    def side(parts: Sequence[Value], own: Stream | None, first: bool) -> Stream | None:
        kept: list[Operand] = [walk.span(node, v, 0, v.frames) if isinstance(v, Columns) else v for v in parts]  # type: ignore[misc]
        if own is not None:
            kept = [*kept, own] if first else [own, *kept]
        return walk.joined(node, kept, axis, "/left" if first else "/right") if kept else None

    left, right = main.left, main.right
    before, behind = values[:at], values[at + 1 :]
    if before and begin == 0 and all(isinstance(v, np.ndarray) for v in before):
        left, begin = walk.span(node, main, 0, 1), 1
    if behind and end == main.frames and all(isinstance(v, np.ndarray) for v in behind):
        right, end = walk.span(node, main, end - 1, end), end - 1
    if begin >= end:
        return None
    sizes = [v.frames if isinstance(v, Columns) else v.shape[axis] if isinstance(v, np.ndarray) else 0 for v in values]
    offset = main.offset - sum(sizes[:at]) * main.spacing
    return [
        Columns(
            main.stream, sum(sizes), offset, main.hop, main.spacing, side(before, left, True),
            side(behind, right, False),
        )
    ]  # fmt: skip


@window_rule("Split")
def split(walk: Walk, node: Node) -> list[Value] | None:
    x = walk.values[node.inputs[0]]
    if not isinstance(x, Columns):
        return None
    if int(node.attrs.get("axis", 0)) % len(x.stream.shape) != x.axis:
        return frame_local(walk, node)
    start, results = 0, []
    for name in node.outputs:
        size = walk.shapes[name][0][x.axis]
        results.append(crop(walk, node, x, start, start + size))
        start += size
    return results


@window_rule("Gather")
def gather(walk: Walk, node: Node) -> list[Value] | None:
    """Columns picked by number: only those between the first and the last are put together."""
    x, given = walk.values[node.inputs[0]], constants(walk, node)
    if not isinstance(x, Columns) or given is None or given[0] is None:
        return frame_local(walk, node)
    if int(node.attrs.get("axis", 0)) % len(x.stream.shape) != x.axis:
        return frame_local(walk, node)
    numbers = np.where(given[0] < 0, given[0] + x.frames, given[0])
    if not numbers.size:
        return None
    if (shared := framed(walk, node, x, numbers)) is not None:
        return [shared]
    part = walk.span(node, x, int(numbers.min()), int(numbers.max()) + 1)
    moved = (numbers - numbers.min()).astype(np.int64)
    return [
        walk.apply(node, "Gather", [part, np.asarray(moved)], walk.shapes[node.outputs[0]][0], "", {"axis": x.axis})
    ]
