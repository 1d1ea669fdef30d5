"""What the frames so far amount to, as states that every frame updates, and a step that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.nodes.once import read_last
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import Read, Signal, View
from runnel.compiler.streaming.ir import StreamFact
from runnel.compiler.streaming.kinds.once import Accumulate, Total

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


class Scribe:
    """Adds steps with one fact. Operands are views, constants, or frames counted from the end."""

    def __init__(self, low: Lowering, name: str, fact: StreamFact) -> None:
        self.low, self.name, self.fact = low, name, fact
        self.loop = 0

    def __call__(
        self, op: str, *operands: View | np.ndarray | Read, to: Signal | None = None, dtype: str = "",
        attrs: dict[str, Any] | None = None,
    ) -> View:  # fmt: skip
        reads: list[Read] = []
        inputs: list[Any] = []
        for x in operands:
            if isinstance(x, np.ndarray):
                inputs.append(x)
                continue
            reads.append(self.low.read(x) if isinstance(x, View) else x)
            inputs.append(reads[-1].value)
        shape = np.broadcast_shapes(*(x.shape for x in inputs))
        dtype = dtype or reads[0].signal.dtype
        signal = to or self.low.signal(f"{self.name}/{op}", shape, dtype, self.fact.made, self.fact.length)
        return self.low.add(
            FrameNode(op, tuple(inputs), FrameValue(op, shape, dtype), attrs or {}), reads, signal, self.loop
        )

    def cast(self, x: Any, dtype: str) -> View:
        return self("cast", x, dtype=dtype, attrs={"to": dtype})

    def frames_so_far(self) -> View:
        """The number of frames up to the present one, float64."""
        number = self("frame_number", dtype="int64", attrs={"length": self.fact.length, "start": 1})
        return self.cast(number, "float64")

    def frames(self, of: StreamFact) -> View:
        """The number of frames of a stream that has ended, float64."""
        return self.cast(self("frame_length", dtype="int64", attrs={"length": of.length}), "float64")


@dataclass
class States:
    """Frame n of each signal is a part of what frames 0 … n amount to. finish: their value, from the parts and a
    function that gives the number of frames."""

    signals: list[Signal]
    finish: Callable[[Scribe, list[Any], Callable[[], View]], View] | None = None


class Updates(Scribe):
    """The steps that every frame of x makes."""

    def __init__(self, low: Lowering, node: Accumulate) -> None:
        x, fact = node.streams[0], node.streams[0].fact
        for other in node.streams[1:]:
            fact = StreamFact(fact.axis, fact.final.minimum_with(other.fact.final), fact.length)
        super().__init__(low, node.output.name, fact)
        self.others = [low.view(other) for other in node.streams[1:]]
        view = low.view(x)
        self.whole = view.shape
        self.x = view.reshaped(tuple(d for d in view.shape if d != 1))
        self.dtype = view.signal.dtype
        self.floats = np.dtype(self.dtype).kind == "f"

    def state(
        self, name: str, first: float, dtype: str, shape: tuple[int, ...] | None = None
    ) -> tuple[Signal, View]:  # fmt: skip
        """A new state and its value at the frame before."""
        shape = self.x.shape if shape is None else shape
        initial = np.full((1, *shape), first, dtype)
        signal = self.low.signal(
            f"{self.name}/{name}", shape, dtype, self.fact.made, self.fact.length, initial=initial
        )  # fmt: skip
        return signal, View(signal, -1, 1, shape, self.fact.length)

    @contextmanager
    def frame_by_frame(self) -> Iterator[None]:
        """Steps that need what another of them made for the frame before."""
        self.loop = self.low.new_loop()
        yield
        self.loop = 0

    def now(self, signal: Signal) -> View:
        return View(signal, 0, 1, signal.shape, self.fact.length)


def _simple(op: str, first: float, wide: bool) -> Callable[[Updates], States]:
    def states(u: Updates) -> States:
        value, start = first, u.x
        if not u.floats and not np.isfinite(first):
            limits = np.iinfo(u.dtype)
            value = limits.min if first < 0 else limits.max
        dtype = "float64" if wide and u.floats else u.dtype
        signal, before = u.state(op, value, dtype)
        u(op, before, u.cast(start, dtype) if dtype != u.dtype else start, to=signal)
        if dtype == u.dtype:
            return States([signal])
        return States([signal], lambda s, parts, count: s.cast(parts[0], u.dtype))

    return states


def _mean(u: Updates) -> States:
    states = _simple("add", 0.0, True)(u)
    states.finish = lambda s, parts, count: s.cast(s("div", parts[0], count()), u.dtype)
    return states


def _logsumexp(u: Updates) -> States:
    top, top_before = u.state("top", float(np.finfo(np.float32).min), "float32")
    total, before = u.state("sum", 0.0, "float64")
    u("max", top_before, u.x, to=top)
    with u.frame_by_frame():
        kept = u("mul", before, u.cast(u("exp", u("sub", top_before, u.now(top))), "float64"))
        u("add", kept, u.cast(u("exp", u("sub", u.x, u.now(top))), "float64"), to=total)

    def finish(s: Scribe, parts: list[Any], count: Callable[[], View]) -> View:
        return s("add", s("log", s.cast(parts[1], "float32")), parts[0])

    return States([top, total], finish)


def _weighted(u: Updates) -> States:
    pairs = zip(u.whole, u.others[0].shape, strict=True)
    scores = u.others[0].reshaped(tuple(of for d, of in pairs if d != 1))
    shape, dtype = scores.shape, "float64"
    top, top_before = u.state("top", float(np.finfo(np.float32).min), "float32", shape)
    total, total_before = u.state("sum", 0.0, dtype, shape)
    product, product_before = u.state("weighted", 0.0, dtype)
    u("max", top_before, scores, to=top)
    kept = u.cast(u("exp", u("sub", top_before, u.now(top))), dtype)
    new = u.cast(u("exp", u("sub", scores, u.now(top))), dtype)
    with u.frame_by_frame():
        u("add", u("mul", total_before, kept), new, to=total)
    with u.frame_by_frame():
        u("add", u("mul", product_before, kept), u("mul", u.cast(u.x, dtype), new), to=product)
    return States([total, product], lambda s, p, count: s.cast(s("div", p[1], p[0]), u.dtype))


def _variance(u: Updates) -> States:
    """Welford's update."""
    mean, mean_before = u.state("mean", 0.0, "float64")
    squares, before = u.state("squares", 0.0, "float64")
    x = u.cast(u.x, "float64")
    with u.frame_by_frame():
        u("add", mean_before, u("div", u("sub", x, mean_before), u.frames_so_far()), to=mean)
    u("add", before, u("mul", u("sub", x, mean_before), u("sub", x, u.now(mean))), to=squares)
    return States([squares], lambda s, parts, count: s.cast(s("div", parts[0], count()), u.dtype))


def _extreme(least: bool, last: bool) -> Callable[[Updates], States]:
    better = ("less" if least else "greater") + ("_equal" if last else "")

    def states(u: Updates) -> States:
        limits = None if u.floats else np.iinfo(u.dtype)
        lowest, highest = (-np.inf, np.inf) if limits is None else (limits.min, limits.max)
        value, value_before = u.state("value", highest if least else lowest, u.dtype)
        number, number_before = u.state("number", 0, "int64")
        u("min" if least else "max", value_before, u.x, to=value)
        found = u(better, u.x, value_before, dtype="bool")
        now = u("frame_number", dtype="int64", attrs={"length": u.fact.length, "start": 0})
        u("where", found, now, number_before, to=number, dtype="int64")
        return States([number])

    return states


WAYS: dict[str, Callable[[Updates], States]] = {
    "sum": _simple("add", 0.0, True),
    "mean": _mean,
    "max": _simple("max", -np.inf, False),
    "min": _simple("min", np.inf, False),
    "prod": _simple("mul", 1.0, True),
    "logsumexp": _logsumexp,
    "variance": _variance,
    "argmax": _extreme(False, False),
    "argmin": _extreme(True, False),
    "argmax_last": _extreme(False, True),
    "argmin_last": _extreme(True, True),
    "weighted": _weighted,
    "sequential": _simple("add", 0.0, False),
}


@lowers(Accumulate)
def accumulate(low: Lowering, node: Accumulate) -> View:
    updates = Updates(low, node)
    states = WAYS[node.how](updates)
    if node.exclusive:
        signal = states.signals[0]
        return View(signal, -1, 1, node.output.frame_shape, node.output.fact.length)
    parts = [updates.now(signal) for signal in states.signals]
    scribe = Scribe(low, node.output.name, node.output.fact)
    view = states.finish(scribe, parts, scribe.frames_so_far) if states.finish else parts[0]
    return view.reshaped(node.output.frame_shape)


@lowers(Total)
def total(low: Lowering, node: Total) -> View:
    updates = Updates(low, node)
    states = WAYS[node.how](updates)
    fact = updates.fact
    parts = [read_last(low, updates.now(signal), fact, 1, signal.shape) for signal in states.signals]
    scribe = Scribe(low, node.output.name, node.output.fact)
    view = states.finish(scribe, parts, lambda: scribe.frames(fact)) if states.finish else scribe("identity", parts[0])
    return view.reshaped(node.output.frame_shape)
