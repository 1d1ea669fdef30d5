"""The definition of running modes: frame n is what the offline model gives on the frames 0 … n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import oracle
import runners

LENGTHS = (1, 2, 3, 5, 8, 13, 21)


def on_prefixes(offline: oracle.Offline, source: oracle.Source, x: oracle.Frames, length: int, axis: Any) -> Any:
    """{output: frames}: the last frame of the answer on every prefix, or the answer itself where it has no time."""
    results: dict[str, list[np.ndarray]] = {}
    for n in range(1, length + 1):
        given = offline(source.cut(x, 0, n))
        assert given is not None
        for name, value in given.items():
            at = axis.get(name)
            results.setdefault(name, []).append(value[None] if at is None else value.take([-1], at))
    return {name: np.concatenate(v, axis.get(name) or 0) for name, v in results.items()}


def check(
    model: bytes, runner: str, modes: dict[str, str], axis: dict[str, int] | None = None,
    lengths: Sequence[int] = LENGTHS, steps: Sequence[int | None] = (None, 4), tolerance: float = 1e-5,
    time_axis: dict[str, int] | None = None, lead: int = 1,
) -> float:  # fmt: skip
    """The worst deviation from the running definition. axis: the time axis of each output that has one.

    lead: input frames for each output frame.
    """
    offline, source = oracle.Offline(model), oracle.Source(model, 3, time_axis, None, 1.0)
    rng, worst = np.random.default_rng(1), 0.0
    for step in steps:
        options = {"modes": modes} | ({"time_axis": time_axis} if time_axis else {}) | ({"step": step} if step else {})
        make = runners.RUNNERS[runner](model, options)
        for turn, length in enumerate(lengths):
            x = source(length)
            wanted = on_prefixes(offline, source, x, length, axis or {})
            joins = {name: (axis or {}).get(name) or 0 for name in wanted}
            got = oracle.streamed(make(), x, oracle.chunking(rng, length, turn % 4), source, joins)
            usual = dict.fromkeys(wanted, 0.1)
            worst = max(worst, oracle.compare(got, wanted, f"length {length}, step {step}", tolerance, usual))
    return worst
