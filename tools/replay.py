"""Plays whole inputs through a stream in several chunkings and compares. Needs the runtime alone: a board can do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.tools.measure import by_name

Arrays = dict[str, NDArray[Any]]
FEW_FRAMES = 200_000  # up to here a recording is also played frame by frame
SMALLEST_RANGE = 1e-6
LARGEST_CODE = 255


def chunkings(frames: int, hop: int, rng: np.random.Generator) -> dict[str, list[int]]:
    """Ways to cut a recording, as sizes to be repeated: frame by frame (short ones), a prime, at random, whole."""
    prime = next(p for p in (7, 13, 101, 499, 1009, 4999) if p > hop or p == 4999)
    plans = {
        "prime": [prime],
        "random": [int(n) for n in rng.integers(1, max(3 * hop, 3), 64)],
        "whole": [max(frames, 1)],
    }
    if frames <= FEW_FRAMES:
        plans["frame by frame"] = [1]
    return plans


def opened(program: Any, inputs: Arrays) -> Any:
    """A stream of the program with the static inputs among ``inputs``."""
    return program.stream(inputs={port.name: inputs[port.name] for port in program.statics})


def play(stream: Any, inputs: Arrays, axes: Mapping[str, int], chunks: Sequence[int]) -> Arrays:
    """Push the inputs in chunks of frames (or ticks) and flush; the outputs by name, concatenated.

    axes: of time in each input.
    """
    ports = stream.program.outputs
    each = {port.name: port.per_tick for port in stream.program.timed}
    frames = min(inputs[name].shape[axes[name]] // n for name, n in each.items())
    pieces: list[Arrays] = []
    start = turn = 0
    while start < frames:
        size = min(chunks[turn % len(chunks)], frames - start)
        part = {name: cut(inputs[name], axes[name], start * n, (start + size) * n) for name, n in each.items()}
        pieces.append(by_name(stream.push(part), ports))
        start, turn = start + size, turn + 1
    pieces.append(by_name(stream.flush(), ports))
    kept = {port.name: pieces if port.axis is not None else pieces[-1:] for port in ports}
    return {port.name: np.concatenate([p[port.name] for p in kept[port.name]], leading(port.axis)) for port in ports}


def leading(axis: int | None) -> int:
    """Where results follow each other: the time axis, or the first one where a port has none."""
    return 0 if axis is None or axis < 0 else axis


def cut(value: NDArray[Any], axis: int, start: int, stop: int) -> NDArray[Any]:
    """Frames ``start`` to ``stop`` of an array, contiguous."""
    index = [slice(None)] * value.ndim
    index[axis] = slice(start, stop)
    return np.ascontiguousarray(value[tuple(index)])


def extent(values: NDArray[Any]) -> float:
    """The largest finite magnitude, 0 where there is none."""
    finite = values[np.isfinite(values)]
    return float(np.abs(finite.astype(np.float64)).max()) if finite.size else 0.0


def deviation(
    got: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    usual: Mapping[str, float] | None = None,
) -> float:
    """The largest difference, of the expected output's largest value; infinite for a wrong shape or a NaN.

    usual: the largest value of each output in other recordings, where that is larger: silence has no range. float16
    deviate by what is beyond their last place. Codes of 8 bits deviate by 255ths, other integers by 0 or 1.
    """
    worst = 0.0
    for name, right in expected.items():
        have = got[name]
        if have.shape != right.shape or have.dtype != right.dtype:
            return float("inf")
        if not right.size:
            continue
        if right.dtype in (np.int8, np.uint8):
            worst = max(worst, float(np.abs(have.astype(np.int32) - right).max()) / LARGEST_CODE)
            continue
        if right.dtype.kind != "f":
            worst = max(worst, float((have != right).any()))
            continue
        same = (have == right) | (np.isnan(have) & np.isnan(right))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(have.astype(np.float64) - right))
            if right.dtype == np.float16:
                last_place = np.spacing(np.maximum(np.abs(have), np.abs(right))).astype(np.float64)
                difference = np.where(same, 0.0, np.maximum(difference - last_place, 0.0))
        scale = max(extent(right), (usual or {}).get(name, 0.0), SMALLEST_RANGE)
        worst = max(worst, float(difference.max()) / scale if np.isfinite(difference).all() else float("inf"))
    return worst
