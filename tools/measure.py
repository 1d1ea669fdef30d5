"""Drives a stream as its source would, and measures each step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runnel.runtime.io.uri import Port

Array = NDArray[Any]
THREADS = "threads that share a step, for large networks; outputs do not depend on it (default: 1, native backend only)"
Outputs = Array | Mapping[str, Array]


class StreamLike(Protocol):
    """What is used here of a stream."""

    def push(self, x: Array) -> Outputs: ...
    def flush(self) -> Outputs: ...


@dataclass(frozen=True)
class Timing:
    """What steps took, in seconds. frames: of the input; rtf: time used for a second of input, None without a rate."""

    steps: int
    frames: int
    total: float
    p50: float
    p99: float
    p999: float
    worst: float
    steps_per_second: float
    rtf: float | None
    deadline_misses: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summary(
    seconds: list[float], frames: int, rate: float | None, flush: float = 0.0, misses: int | None = None
) -> Timing:
    """The figures of a run from the time of each step; ``flush`` counts into the total only."""
    taken = np.asarray(seconds or [0.0])
    total = float(taken.sum()) + flush
    p50, p99, p999 = (float(v) for v in np.percentile(taken, [50, 99, 99.9]))
    rtf = total * rate / frames if rate is not None and frames else None
    per_second = len(seconds) / max(float(taken.sum()), 1e-12)
    return Timing(len(seconds), frames, total, p50, p99, p999, float(taken.max()), per_second, rtf, misses)


def by_name(values: Outputs, outputs: Iterable[Port]) -> dict[str, Array]:
    """What push and flush give, always as a mapping."""
    if isinstance(values, Mapping):
        return dict(values)
    return {next(iter(outputs)).name: values}


def drive(
    stream: StreamLike,
    chunks: Iterable[Array],
    axis: int,
    rate: float | None,
    emit: Callable[[Outputs], None],
    realtime: bool = False,
) -> Timing:
    """Push every chunk and flush; ``emit`` takes the outputs outside of the measured time.

    realtime: each chunk is held back until its last frame would have been recorded; a step that ends after the next
    chunk is due is a deadline miss.
    """
    if realtime and rate is None:
        raise ValueError("real time needs a rate")
    seconds: list[float] = []
    frames = misses = 0
    begin = time.perf_counter()
    for chunk in chunks:
        length = chunk.shape[axis]
        frames += length
        if realtime and rate is not None:
            time.sleep(max(0.0, begin + frames / rate - time.perf_counter()))
        start = time.perf_counter()
        result = stream.push(chunk)
        end = time.perf_counter()
        seconds.append(end - start)
        if realtime and rate is not None:
            misses += end > begin + (frames + length) / rate
        emit(result)
    start = time.perf_counter()
    result = stream.flush()
    flush = time.perf_counter() - start
    emit(result)
    return summary(seconds, frames, rate, flush, misses if realtime else None)


@contextmanager
def one_cpu(threads: int = 1) -> Iterator[int | None]:
    """Pins this thread to one CPU, and lets go afterwards; None where several threads work or no system lets it."""
    if threads > 1:
        yield None
        return
    try:
        before = os.sched_getaffinity(0)
        chosen = max(before)
        os.sched_setaffinity(0, {chosen})
    except (AttributeError, OSError):
        yield None
        return
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def resident_bytes() -> int:
    """The memory of this process that is in RAM."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
