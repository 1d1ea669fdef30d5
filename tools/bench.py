"""Measures steps on one thread; several backends take turns, so that a busy machine troubles all of them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.tools.measure import Timing, one_cpu, resident_bytes, summary

Array = NDArray[Any]
SECONDS = 2.0  # of steps for each backend, where their number is not given
LEAST_STEPS, MOST_STEPS = 50, 100_000


@dataclass(frozen=True)
class Row:
    """The figures of one backend. rounds: the median step of each turn, in seconds."""

    backend: str
    chunk_frames: int
    timing: Timing
    state_bytes: int
    resident_bytes: int
    rounds: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        names = ("backend", "chunk_frames", "state_bytes", "resident_bytes", "rounds")
        return {**{name: getattr(self, name) for name in names}, "timing": self.timing.to_dict()}


def ratios(row: Row, other: Row) -> tuple[float, float, float]:
    """Median, least and greatest ratio of the median steps of the same round: how many times ``other`` a step takes."""
    pairs = np.asarray(row.rounds) / np.asarray(other.rounds)
    return float(np.median(pairs)), float(pairs.min()), float(pairs.max())


def noise(program: Any, frames: int) -> Any:
    """Frames of quiet noise for every input, by name where there are several."""
    random = np.random.default_rng(0)
    values: dict[str, Array] = {}
    for port in program.timed:
        shape = [frames * port.per_tick if size is None else size for size in port.shape]
        dtype = np.dtype(port.dtype)
        quiet = random.standard_normal(shape) * 0.1
        values[port.name] = quiet.astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
    return values if len(values) > 1 else next(iter(values.values()))


def quiet_statics(program: Any) -> dict[str, Array]:
    """A value for each static input."""
    random = np.random.default_rng(1)
    return {p.name: (random.standard_normal(p.sized(0)) * 0.1).astype(p.dtype) for p in program.statics}


def measure(
    programs: Mapping[str, Any], chunk: int, steps: int | None = None, rounds: int = 5, threads: int = 1
) -> list[Row]:
    """Steps of ``chunk`` frames on each of ``programs``, by backend, after a warm-up; pinned to one CPU for one thread.

    steps: how many for each backend in all (None: as many as SECONDS take).
    """
    streams = {backend: program.stream(inputs=quiet_statics(program)) for backend, program in programs.items()}
    inputs = {backend: noise(program, chunk) for backend, program in programs.items()}
    taken: dict[str, list[list[float]]] = {backend: [] for backend in programs}
    with one_cpu(threads):
        each = {b: _steps_each(streams[b], inputs[b], chunk, steps, rounds) for b in programs}
        for _ in range(rounds):
            for backend, stream in streams.items():
                taken[backend].append(_time(stream, inputs[backend], chunk, each[backend]))
    rows = []
    for backend, program in programs.items():
        steps_taken = [seconds for turn in taken[backend] for seconds in turn]
        timing = summary(steps_taken, len(steps_taken) * chunk, program.rate)
        medians = tuple(float(np.median(turn)) for turn in taken[backend])
        rows.append(Row(backend, chunk, timing, program.state_bytes, resident_bytes(), medians))
    return rows


def _steps_each(stream: Any, chunk: Any, frames: int, steps: int | None, rounds: int) -> int:
    """Warm a stream up; how many steps each round shall take."""
    warm = _time(stream, chunk, frames, LEAST_STEPS)
    if steps is None:
        steps = int(np.clip(SECONDS / max(float(np.median(warm)), 1e-9), LEAST_STEPS, MOST_STEPS))
    return max(1, steps // rounds)


def _time(stream: Any, chunk: Any, frames: int, steps: int) -> list[float]:
    """Seconds of each step of ``frames`` frames. A stream with a stated end starts again there."""
    taken: list[float] = []
    most = stream.program.max_frames
    for _ in range(steps):
        if most is not None and stream.position + frames > most:
            stream.reset()
        start = time.perf_counter()
        stream.push(chunk)
        taken.append(time.perf_counter() - start)
    return taken
