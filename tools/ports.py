"""The ports of a bundle as its manifest describes them."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from runnel.compiler.streaming.ir import STACKED, Stream


def input_port(stream: Stream, rates: Mapping[str, float]) -> dict[str, Any]:
    """An input. rates: frames a second, by name."""
    if stream.fact.static:
        return {"name": stream.name, "dtype": stream.dtype, "shape": list(stream.shape), "axis": None, "per_tick": 0}
    rate = rates.get(stream.name)
    return _port(stream, stream.name) | {"per_tick": int(stream.fact.rate)} | ({} if rate is None else {"rate": rate})


def output_port(stream: Stream, name: str, latency: int, rate: float | None) -> dict[str, Any]:
    """Frame n of an output belongs to the input frame (or tick) n / ratio, and is given out latency frames later."""
    described = _port(stream, name) | {"latency_frames": latency}
    if stream.fact.once:
        return described
    ratio = stream.fact.rate
    described["ratio"] = [ratio.numerator, ratio.denominator]
    if rate is not None:
        described |= {"rate": float(ratio * Fraction(rate)), "latency_seconds": latency / rate}
    return described


def _port(stream: Stream, name: str) -> dict[str, Any]:
    """A port as the user sees it: stacked frames lie along a new first axis; what exists once has no axis of time."""
    shape: list[int | None] = list(stream.shape)
    axis: int | None = stream.axis
    if stream.fact.once:
        axis = None
    elif axis == STACKED:
        shape, axis = [None, *shape], 0
    return {"name": name, "dtype": stream.dtype, "shape": shape, "axis": axis}
