"""How an operand of an attention is made of the tensor before it, found by running it on numbers.

At position 0 rotary positions turn nothing, so numbered features show which of them goes where; one feature at a time
shows which features are turned in pairs, and one run over many positions by which angles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runnel.compiler.streaming.attention.cuts import Function
from runnel.compiler.streaming.attention.frequencies import frequencies
from runnel.compiler.streaming.kinds.cache import Rotary
from runnel.compiler.streaming.registry import Refusal

CHECKED = (17, 40)
TOLERANCE = 2e-5
LONGEST = 4097
Layout = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Turned:
    """Head h's feature d is gain times feature columns[h, d] of a frame, turned by ``rotary``.

    names, axes, widths: the tensors whose features stand side by side, where their time lies, and how many features a
    frame has; these are the other axes in order. limit: the most frames for which the model turns them so.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...]
    widths: tuple[int, ...]
    columns: np.ndarray
    gain: float
    rotary: Rotary | None
    limit: int | None = None

    def source(self, column: int) -> tuple[str, int]:
        """The tensor of a column, and the number of its feature."""
        for name, width in zip(self.names, self.widths, strict=True):
            if column < width:
                return name, int(column)
            column -= width
        raise IndexError(column)


def look(function: Function, layout: Layout, what: str) -> Turned:
    """How the operand, laid out as (heads, frames, features), comes about. what: names it in refusals."""
    try:
        return _look(function, layout, what)
    except Refusal:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise _unlike(what, f"it could not be run alone ({str(error).splitlines()[0][:120]})") from None


def _look(function: Function, layout: Layout, what: str) -> Turned:
    width = sum(function.widths)

    def run(frames: int, features: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """The operand (heads, frames, features) for data (frames, width)."""
        return layout(function(np.broadcast_to(features, (frames, width)), frames, positions)).astype(np.float64)

    gains = run(1, np.ones(width))[:, 0]
    if (gains == 0).any() or not np.isfinite(gains).all():
        raise _unlike(what, "at the first position not every feature is one of those before it")
    numbers = run(1, np.arange(1, width + 1))[:, 0] / gains - 1
    columns = np.rint(numbers).astype(np.int64)
    if np.abs(numbers - columns).max() > 0.25 or columns.min() < 0 or columns.max() >= width:
        raise _unlike(what, "at the first position its features are not those before it")
    pairs = _pairs(run, columns, width, gains, what)
    rotary, gain = None, float(gains.reshape(-1)[0])
    if pairs:
        rotary, gain = _rotary(run, columns, width, gains, pairs, function, what)
    elif np.ptp(gains) > 1e-6 * abs(gain):
        raise _unlike(what, "its features have factors of their own")
    found = Turned(
        function.place.names,
        tuple(function.axes),
        tuple(function.widths),
        columns,
        gain,
        rotary,
        function.changes_at(CHECKED[-1]),
    )
    _check(run, found, width, what)
    return found


Run = Callable[..., np.ndarray]


def _pairs(run: Run, columns: np.ndarray, width: int, gains: np.ndarray, what: str) -> list[tuple[int, int]]:
    """Pairs (a, b), a < b, of features that turn into each other."""
    size = columns.shape[1]
    mixed = np.zeros((size, size), bool)
    for d in range(size):
        x = np.zeros(width)
        x[columns[:, d]] = 1
        mixed[:, d] = (run(3, x)[:, 1:] != 0).any(axis=(0, 1))
    pairs = []
    for a in range(size):
        others = [int(b) for b in np.flatnonzero(mixed[:, a]) if b != a]
        if len(others) > 1 or (others and not mixed[a, others[0]]):
            raise _unlike(what, "positions mix more than two features")
        if others and others[0] > a:
            pairs.append((a, others[0]))
    return pairs


def _rotary(
    run: Run, columns: np.ndarray, width: int, gains: np.ndarray, pairs: list[tuple[int, int]], function: Function,
    what: str,
) -> tuple[Rotary, float]:  # fmt: skip
    """The rotation, and the gain of features that do not turn."""
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    start, count = int(first.min()), len(pairs)
    half = (first == start + np.arange(count)).all() and (second == first + count).all()
    interleaved = (first == start + 2 * np.arange(count)).all() and (second == first + 1).all()
    if not (half or interleaved):
        raise _unlike(what, "positions turn features in pairs that are neither halves nor neighbours")
    turned = gains[:, [*first, *second]]
    still = np.delete(gains, [*first, *second], axis=1)
    factor = float(turned.reshape(-1)[0])
    gain = float(still.reshape(-1)[0]) if still.size else factor
    if np.ptp(turned) > 1e-6 * abs(factor) or (still.size and np.ptp(still) > 1e-6 * abs(gain)):
        raise _unlike(what, "its features have factors of their own")
    x = np.zeros(width)
    x[columns[:, first]] = 1
    rows = _rows(run, x)
    angles = np.arctan2(rows[0][:, second], rows[0][:, first])
    found, source = frequencies(angles, function)
    sections = _sections(run, x, second, function) if function.above.given else None
    return Rotary(found, bool(interleaved and not half), start, factor / gain, sections, source), gain


def _sections(run: Run, x: np.ndarray, second: np.ndarray, function: Function) -> tuple[int, ...]:
    """Which axis of the positions that are told turns each pair."""
    axes = positions_told(function)
    turned = []
    for axis in range(axes):
        positions = np.zeros((axes, 3), np.int64)
        positions[axis] = 1
        turned.append(run(3, x, positions)[0, 1, second] != 0)
    found = np.array(turned)
    if (found.sum(axis=0) != 1).any():
        raise Refusal("turns pairs by several axes of a position", "turn each pair by one axis")
    return tuple(int(axis) for axis in found.argmax(axis=0))


def positions_told(function: Function) -> int:
    """The axes of a position that a stream is told."""
    shape = function.above.shape(function.above.given[0], 3)
    if len(function.above.given) > 1 or shape is None:
        raise Refusal("is told positions by several inputs", "use one input of positions")
    return int(np.prod(shape)) // 3


def _rows(run: Run, x: np.ndarray) -> np.ndarray:
    """The operand at as many positions as the model has, at most LONGEST."""
    good, bad = 3, None
    frames = LONGEST
    found: np.ndarray | None = None
    while bad is None or bad - good > 1:
        try:
            found = run(frames, x)
            good = frames
        except Exception:  # onnxruntime's exceptions share no base class of their own
            bad = frames
        if bad is None:
            break
        frames = (good + bad) // 2
    return run(good, x) if found is None or found.shape[1] != good else found


def _check(run: Run, found: Turned, width: int, what: str) -> None:
    rng = np.random.default_rng(5)
    for frames in CHECKED:
        x = rng.standard_normal((frames, width)).astype(np.float32)
        try:
            got = run(frames, x)
        except Exception:  # onnxruntime's exceptions share no base class of their own
            continue  # the model's table is shorter
        wanted = turn(found, x.astype(np.float64))
        if np.abs(got - wanted).max() > TOLERANCE * max(1.0, float(np.abs(wanted).max())):
            raise _unlike(what, "positions do something else than to turn pairs of features by fixed frequencies")


def turn(found: Turned, x: np.ndarray, first: int = 0) -> np.ndarray:
    """What it makes of frames (frames, width) from position ``first`` on: (heads, frames, features) float64."""
    y = np.moveaxis(found.gain * x[:, found.columns], 0, 1)
    return y if found.rotary is None else rotated(y, found.rotary, first)


def rotated(y: np.ndarray, rotary: Rotary, first: int = 0) -> np.ndarray:
    """(…, frames, features) float64 turned by positions first, first + 1, …"""
    angles = np.arange(first, first + y.shape[-2])[:, None] * rotary.frequencies
    cos, sin = rotary.factor * np.cos(angles), rotary.factor * np.sin(angles)
    pairs = len(rotary.frequencies)
    p = np.arange(pairs)
    a, b = (2 * p, 2 * p + 1) if rotary.interleaved else (p, p + pairs)
    y, a, b = y.copy(), a + rotary.start, b + rotary.start
    y[..., a], y[..., b] = y[..., a] * cos - y[..., b] * sin, y[..., b] * cos + y[..., a] * sin
    return y


def _unlike(what: str, why: str) -> Refusal:
    return Refusal(
        f"its {what} are made in a way that a cache cannot take over: {why}",
        "turn them by rotary positions, or add positions to the tokens",
    )
