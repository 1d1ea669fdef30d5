"""Outputs that come out together: each waits for the latest of them."""

from __future__ import annotations

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Stream, StreamGraph, Tail
from runnel.errors import InputError


def align(graph: StreamGraph) -> None:
    """Let a frame of an output come out when all outputs have come as far in time, in place.

    Outputs that exist once are left out. Raises InputError in window mode, where all outputs come together already.
    """
    if graph.window is not None:
        raise InputError("the outputs of windows come out together as they are; leave align away.")
    going = {k: v for k, v in graph.outputs.items() if not isinstance(v, Tail) and not v.fact.once}
    for name, stream in going.items():
        made = stream.fact.made
        for other in going.values():
            made = made.minimum_with(_as_far(other, stream))
        graph.aligned[name] = made


def _as_far(other: Stream, stream: Stream) -> Count:
    """How many frames of ``stream`` lie before the time up to which ``other`` is made."""
    ratio = stream.fact.rate / other.fact.rate
    return other.fact.made.affine(ratio.numerator, ratio.denominator - 1, ratio.denominator)
