"""The portable form of what the frames so far amount to.

A call joins its own frames by doubling: after k rounds each frame holds the 2^k frames up to it. What was carried from
earlier calls is joined to all of them. Frames outside the stream hold what changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.ir import Stream
from runnel.compiler.streaming.kinds.once import Accumulate, Total
from runnel.compiler.streaming.portable.registry import Chunks, read, writes

DOUBLE, INT64 = 11, 7
Parts = list[str]


@dataclass
class Running:
    """One accumulation. lift: a chunk's frames as parts. join: two neighbouring runs of frames. finish: the value of a
    run, given as parts and its number of frames, in float64. neutral: the parts of no frames."""

    lift: Callable[[], Parts]
    join: Callable[[Parts, Parts], Parts]
    finish: Callable[[Parts, str], str]
    neutral: list[float]
    dtype: str


@writes(Accumulate)
def _accumulate(b: Builder, node: Accumulate, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    if node.how == "sequential":
        return Chunk(_sequential(b, node, x, chunk), chunk.delay, chunk.frames)
    ways = WAYS[node.how](b, x, chunk)
    scan = _scan(b, node, x, chunk, ways)
    numbers = b.node("Add", [b.numbers(x.fact.rate, chunk.delay, chunk.frames), b.constant(1)])
    return Chunk(ways.finish(scan, _count(b, numbers, x, chunk.frames)), chunk.delay, chunk.frames)


def _sequential(b: Builder, node: Accumulate, x: Stream, chunk: Chunk) -> str:
    """Onnxruntime's own order: one frame after the other."""
    shape = tuple(1 if d is None else d for d in x.shape)
    state, out = b.state(f"sum.{node.output.name}", shape, x.dtype, 0.0)
    whole = b.node("Concat", [state, b.masked(x, chunk, 0.0)], axis=x.axis)
    sums = b.node("CumSum", [whole, b.constant(x.axis)])
    b.slice(sums, chunk.frames, chunk.frames + 1, x.axis, out)
    first = 0 if node.exclusive else 1
    return b.slice(sums, first, first + chunk.frames, x.axis)


@writes(Total)
def _total(b: Builder, node: Total, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    chunk = b.known(x, chunk)
    if node.how == "weighted":
        scores = b.known(node.streams[1], chunks[node.streams[1]])
        delay = max(chunk.delay, scores.delay)
        chunk, scores = b.delayed(x, chunk, delay), b.delayed(node.streams[1], scores, delay)
        ways = _weighted(b, x, chunk, scores)
    else:
        ways = WAYS[node.how](b, x, chunk)
    scan = _scan(b, node, x, chunk, ways)
    last = [b.slice(part, chunk.frames - 1, chunk.frames, x.axis) for part in scan]
    known = b.node("Add", [b.start(x.fact.rate, chunk.delay), b.constant(chunk.frames)])
    count = b.node("Min", [known, b.length(x.fact.length)])
    value = ways.finish(last, _count(b, count, x, 1))
    return Chunk(b.node("Reshape", [value, b.constant(list(node.output.frame_shape))]), 0, 0)


def _count(b: Builder, numbers: str, x: Stream, frames: int) -> str:
    """Numbers of frames in float64, at least 1, along the axis of time."""
    shape = [frames if d is None else 1 for d in x.shape]
    count = b.node("Reshape", [b.node("Max", [numbers, b.constant(1)]), b.constant(shape)])
    return b.node("Cast", [count], to=DOUBLE)


def _scan(b: Builder, node: Accumulate, x: Stream, chunk: Chunk, ways: Running) -> Parts:
    """For each frame of the chunk, the parts of all frames up to it."""
    parts = ways.lift()
    reach = 1
    while reach < chunk.frames:
        earlier = [
            b.node("Concat", [_frames(b, x, reach, v, ways.dtype), b.slice(p, 0, chunk.frames - reach, x.axis)],
                   axis=x.axis)
            for p, v in zip(parts, ways.neutral, strict=True)
        ]  # fmt: skip
        parts = ways.join(earlier, parts)
        reach *= 2
    return _carried(b, node, x, chunk, ways, parts)


def _carried(b: Builder, node: Accumulate, x: Stream, chunk: Chunk, ways: Running, parts: Parts) -> Parts:
    shape = tuple(1 if d is None else d for d in x.shape)
    firsts = [v if isinstance(v, float) else np.full(shape, v, ways.dtype) for v in ways.neutral]
    ports = [b.state(f"{node.how}.{node.output.name}", shape, ways.dtype, v) for v in firsts]
    parts = ways.join([state for state, _ in ports], parts)
    for (_, out), part in zip(ports, parts, strict=True):
        b.slice(part, chunk.frames - 1, chunk.frames, x.axis, out)
    return parts


def _frames(b: Builder, x: Stream, frames: int, value: float, dtype: str) -> str:
    return b.constant(np.full([frames if d is None else d for d in x.shape], value, dtype))


def _doubles(b: Builder, name: str) -> str:
    return b.node("Cast", [name], to=DOUBLE)


def _like(b: Builder, name: str, x: Stream) -> str:
    from onnx import helper

    return b.node("Cast", [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype)))


def _binary(op: str, neutral: float, wide: bool) -> Callable[[Builder, Stream, Chunk], Running]:
    def ways(b: Builder, x: Stream, chunk: Chunk) -> Running:
        limits = np.iinfo(x.dtype) if np.dtype(x.dtype).kind in "iu" else None
        fill = neutral if limits is None or np.isfinite(neutral) else int(limits.min if neutral < 0 else limits.max)
        double = wide and limits is None

        def lift() -> Parts:
            name = b.masked(x, chunk, fill)
            return [_doubles(b, name) if double else name]

        def finish(parts: Parts, count: str) -> str:
            return _like(b, parts[0], x) if double else parts[0]

        return Running(lift, lambda p, q: [b.node(op, [p[0], q[0]])], finish, [fill], "float64" if double else x.dtype)

    return ways


def _mean(b: Builder, x: Stream, chunk: Chunk) -> Running:
    ways = _binary("Add", 0.0, True)(b, x, chunk)
    ways.finish = lambda parts, count: _like(b, b.node("Div", [parts[0], count]), x)
    return ways


def _real(b: Builder, x: Stream, chunk: Chunk) -> str:
    """1 for the stream's own frames, 0 for others, in float64, in the shape of the chunk."""
    shape = tuple(chunk.frames if d is None else d for d in x.shape)
    return _doubles(b, b.masked(x, Chunk(b.constant(np.ones(shape, x.dtype)), chunk.delay, chunk.frames), 0.0))


def _logsumexp(b: Builder, x: Stream, chunk: Chunk) -> Running:
    """Parts: the maximum m, and the sum of e^(x - m)."""
    lowest = float(np.finfo(np.float32).min)

    def lift() -> Parts:
        top = b.node("Max", [_doubles(b, b.masked(x, chunk, lowest)), b.constant(np.array(lowest))])
        above = b.node("Greater", [top, b.constant(np.array(lowest))])
        return [top, b.node("Cast", [above], to=DOUBLE)]

    def join(p: Parts, q: Parts) -> Parts:
        top = b.node("Max", [p[0], q[0]])
        scaled = [b.node("Mul", [s, b.node("Exp", [b.node("Sub", [m, top])])]) for m, s in (p, q)]
        return [top, b.node("Add", scaled)]

    def finish(parts: Parts, count: str) -> str:
        return _like(b, b.node("Add", [parts[0], b.node("Log", [parts[1]])]), x)

    return Running(lift, join, finish, [lowest, 0.0], "float64")


def _weighted(b: Builder, x: Stream, chunk: Chunk, scores: Chunk) -> Running:
    """Parts: the maximum m of the scores, the sum of e^(score - m), and that of e^(score - m)·x."""
    lowest = float(np.finfo(np.float32).min)
    shape = b.constant([chunk.frames if d is None else d for d in x.shape])
    full = Chunk(b.node("Expand", [scores.name, shape]), chunk.delay, chunk.frames)

    def lift() -> Parts:
        top = b.node("Max", [_doubles(b, b.masked(x, full, lowest)), b.constant(np.array(lowest))])
        return [top, _real(b, x, chunk), _doubles(b, b.masked(x, chunk, 0.0))]

    def join(p: Parts, q: Parts) -> Parts:
        top = b.node("Max", [p[0], q[0]])
        scales = [b.node("Exp", [b.node("Sub", [m[0], top])]) for m in (p, q)]
        sums = [b.node("Add", [b.node("Mul", [p[i], scales[0]]), b.node("Mul", [q[i], scales[1]])]) for i in (1, 2)]
        return [top, *sums]

    def finish(parts: Parts, count: str) -> str:
        return _like(b, b.node("Div", [parts[2], parts[1]]), x)

    return Running(lift, join, finish, [lowest, 0.0, 0.0], "float64")


def _variance(b: Builder, x: Stream, chunk: Chunk) -> Running:
    """Parts: the number of frames, their mean, and the sum of squared deviations from it (Chan, Golub, LeVeque)."""

    def lift() -> Parts:
        value = _doubles(b, b.masked(x, chunk, 0.0))
        return [_real(b, x, chunk), value, b.node("Sub", [value, value])]

    def join(p: Parts, q: Parts) -> Parts:
        count = b.node("Add", [p[0], q[0]])
        share = b.node("Div", [q[0], b.node("Max", [count, b.constant(np.array(1.0))])])
        apart = b.node("Sub", [q[1], p[1]])
        mean = b.node("Add", [p[1], b.node("Mul", [apart, share])])
        between = b.node("Mul", [b.node("Mul", [apart, apart]), b.node("Mul", [p[0], share])])
        return [count, mean, b.node("Add", [b.node("Add", [p[2], q[2]]), between])]

    def finish(parts: Parts, count: str) -> str:
        return _like(b, b.node("Div", [parts[2], count]), x)

    return Running(lift, join, finish, [0.0, 0.0, 0.0], "float64")


def _extreme(least: bool, last: bool) -> Callable[[Builder, Stream, Chunk], Running]:
    """Parts: the largest or least value, and the number of its first or last frame."""
    better = ("Less" if least else "Greater") + ("OrEqual" if last else "")

    def ways(b: Builder, x: Stream, chunk: Chunk) -> Running:
        whole = np.dtype(x.dtype).kind in "iu"
        limits = np.iinfo(x.dtype) if whole else None
        lowest, highest = (-np.inf, np.inf) if limits is None else (limits.min, limits.max)
        worst, kind = highest if least else lowest, INT64 if whole else DOUBLE

        def lift() -> Parts:
            value = b.node("Cast", [b.masked(x, chunk, worst)], to=kind)
            final = b.node("Sub", [b.length(x.fact.length), b.constant(1)])
            number = b.node("Min", [b.numbers(x.fact.rate, chunk.delay, chunk.frames), final])
            number = b.node("Max", [number, b.constant(0)])
            number = b.node("Reshape", [number, b.constant([chunk.frames if d is None else 1 for d in x.shape])])
            shape = b.constant([chunk.frames if d is None else d for d in x.shape])
            return [value, b.node("Expand", [b.node("Cast", [number], to=kind), shape])]

        def join(p: Parts, q: Parts) -> Parts:
            later = b.node(better, [q[0], p[0]])
            return [b.node("Where", [later, v, w]) for v, w in zip(q, p, strict=True)]

        def finish(parts: Parts, count: str) -> str:
            return b.node("Cast", [parts[1]], to=INT64)

        return Running(lift, join, finish, [worst, 0.0], "int64" if whole else "float64")

    return ways


WAYS: dict[str, Callable[[Builder, Stream, Chunk], Running]] = {
    "sum": _binary("Add", 0.0, True),
    "mean": _mean,
    "max": _binary("Max", -np.inf, False),
    "min": _binary("Min", np.inf, False),
    "prod": _binary("Mul", 1.0, True),
    "logsumexp": _logsumexp,
    "variance": _variance,
    "argmax": _extreme(False, False),
    "argmin": _extreme(True, False),
    "argmax_last": _extreme(False, True),
    "argmin_last": _extreme(True, True),
}
