"""Loads of elements that lie near each other, in another order or with some between: whole vectors, and a shuffle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from runnel.compiler.codegen.values import Expr, lanes_of

_NARROWEST = 4


def zipped(let: Callable[[Expr], Expr], vectors: Sequence[Expr]) -> list[Expr]:
    """The elements of vectors, a power of two of them, in turns, in as many vectors."""
    if len(vectors) == 1:
        return list(vectors)
    found, width = [], lanes_of(vectors[0])
    for pair in zip(zipped(let, vectors[::2]), zipped(let, vectors[1::2]), strict=True):
        for first in (0, width // 2):
            order = [k + i * width for k in range(first, first + width // 2) for i in range(2)]
            found.append(let(tirx.Shuffle(list(pair), order)))
    return found


def places_of(index: Expr, analyzer: Any, lanes: int) -> tuple[Expr, list[int]] | None:
    """The first lane's index, and how far the others lie from it, where that is known."""
    if isinstance(index, tirx.Ramp) and isinstance(index.stride, tirx.IntImm):
        return index.base, [int(index.stride) * i for i in range(lanes)]
    if not isinstance(index, tirx.Shuffle):
        return None
    places = []
    for part in index.vectors:
        distance = analyzer.simplify(part - index.vectors[0])
        if not isinstance(distance, tirx.IntImm):
            return None
        places.append(int(distance))
    return index.vectors[0], places


def covered(places: list[int]) -> tuple[int, list[int], list[int]] | None:
    """(width, where vectors begin, which of their elements are wanted); None where elements one by one are as good.

    Nothing before the first or behind the last of them is read.
    """
    lanes, low = len(places), min(places)
    span = max(places) - low + 1
    width = 1 << min(span, lanes).bit_length() - 1
    starts = [*range(0, span - width, width), span - width]
    if places == list(range(lanes)) or width < _NARROWEST or len(starts) > max(lanes // 4, 1):
        return None
    which = [min((at - low) // width, len(starts) - 1) for at in places]
    wanted = [n * width + at - low - starts[n] for n, at in zip(which, places, strict=True)]
    return width, [low + at for at in starts], wanted
