"""Framing inside a window by a constant matrix of column numbers: windows share the frames that occur in several."""

from __future__ import annotations

from math import gcd

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.ir import Stream
from runnel.compiler.streaming.kinds.positions import Frames
from runnel.compiler.streaming.windows.columns import Columns
from runnel.compiler.streaming.windows.rules.layers import Taps
from runnel.compiler.streaming.windows.walk import Walk


def framed(walk: Walk, node: Node, x: Columns, numbers: np.ndarray) -> Columns | None:
    """Gather of columns stride·n + offset + dilation·k as [n, k] or [k, n]; None for other numbers."""
    plan = _affine(numbers)
    if plan is None:
        return None
    before, count, kernel, stride, dilation, first = plan
    taps = Taps.of(x, count, kernel, stride, dilation, -first)
    inner = taps.end - taps.begin
    if inner < 2 or first < 0:
        return None
    every = gcd(x.hop, stride * x.spacing)
    if not walk.worth_sharing(x.hop // every, count - inner, count):
        return None
    base = x.offset + first * x.spacing
    shift, source = base // every, walk.shifted(x.stream, base % every)
    step = dilation * x.spacing
    span, fact = (kernel - 1) * step + 1, source.fact
    lead, rest = list(x.stream.shape[: x.axis]), list(x.stream.shape[x.axis + 1 :])

    def shape(columns: int | None) -> list[int | None]:
        return [*lead, *([kernel, columns] if before else [columns, kernel]), *rest]

    made = [f.affine(1, every - span, every) for f in (fact.final, fact.length)]
    stream = walk.add(
        Frames, node.outputs[0], "Frames", [source], shape(None), source.dtype, *made, node=node.name,
        kernel=kernel, stride=every, dilation=step, before=before,
    )  # fmt: skip

    def edge(start: int, stop: int, suffix: str) -> Stream:
        places = stride * np.arange(start, stop)[:, None] + first + dilation * np.arange(kernel)
        low = int(places.min())
        part = walk.span(node, x, low, int(places.max()) + 1)
        places = (places.T if before else places) - low
        return walk.apply(node, "Gather", [part, places], shape(stop - start), suffix, {"axis": x.axis})

    return Columns(
        stream, count, shift, x.hop // every, stride * x.spacing // every,
        edge(0, taps.begin, "/left") if taps.begin else None,
        edge(taps.end, count, "/right") if taps.end < count else None,
    )  # fmt: skip


def _affine(numbers: np.ndarray) -> tuple[bool, int, int, int, int, int] | None:
    """(taps before frames, frames, taps, stride, dilation, first); the longer axis of the two is that of frames."""
    if numbers.ndim != 2 or min(numbers.shape) < 2:
        return None
    rows, columns = (int(np.diff(numbers, axis=i).reshape(-1)[0]) for i in (0, 1))
    grid = numbers[0, 0] + rows * np.arange(numbers.shape[0])[:, None] + columns * np.arange(numbers.shape[1])
    if not np.array_equal(grid, numbers) or min(rows, columns) < 1:
        return None
    before = columns > rows  # frames lie at least as far apart as the taps of one
    n, k = numbers.shape[::-1] if before else numbers.shape
    return before, n, k, max(rows, columns), min(rows, columns), int(numbers[0, 0])
