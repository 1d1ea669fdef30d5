"""Whether storage lets a stream keep up with its input, said before it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runnel.runtime.paging import size
from runnel.tools import storage


@dataclass(frozen=True)
class Forecast:
    """period: seconds that a chunk of input lasts. read: bytes of weights that it needs from storage. mb_s: 10⁶ bytes a
    second that storage gives. lacking: bytes of memory with which it would be fast enough, 0 where it is."""

    period: float
    read: int
    mb_s: float
    lacking: int

    @property
    def reading(self) -> float:
        """Seconds that a chunk's weights take."""
        return self.read / (self.mb_s * 1e6)

    @property
    def in_time(self) -> bool:
        return self.reading <= self.period

    def __str__(self) -> str:
        ends = (
            "fast enough for real time" if self.in_time else f"too slow for real time by {size(self.lacking)} of --ram"
        )
        return (
            f"a chunk of {1000 * self.period:.3f} ms reads {size(self.read)} of weights, which takes "
            f"{1000 * self.reading:.3f} ms at {self.mb_s:.0f} MB/s: {ends}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "period": self.period, "reading": self.reading, "read_bytes": self.read, "storage_mb_s": self.mb_s,
            "in_time": self.in_time, "lacking_bytes": self.lacking,
        }  # fmt: skip


def forecast(
    programs: Sequence[Any], path: str, seconds: float, way: str = "auto", threads: int = 0
) -> Forecast | None:
    """For chunks of ``seconds`` through programs whose bundles lie beside ``path``; None where nothing is read.

    Storage is as ``flash-bench`` measured it, or is measured now, for a moment, on the bundle. A program without a
    rate takes as many steps a second as the first one.
    """
    read = 0
    passes = 1
    for program in programs:
        facts = getattr(program, "paging", None)
        if facts is None:
            continue
        if program.rate is not None:
            passes = math.ceil(round(seconds * program.rate, 6) / program.hop)
        read += passes * facts.streamed
    if not read:
        return None
    speed = storage.kept_mb_s(path) or storage.quick_mb_s(path, way, threads)
    if speed is None:
        return None
    most = speed * 1e6 * seconds
    return Forecast(seconds, read, speed, 0 if read <= most else math.ceil((read - most) / passes))
