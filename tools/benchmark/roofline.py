"""What one core of this machine can do at most: multiply-adds a second, bytes a second by the size that is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runnel.tools.benchmark import driver

SIZES = tuple(1 << n for n in range(14, 27))  # 16 KiB … 64 MiB
TRIES = 5  # the machine may be busy with others: the best of a few


@dataclass(frozen=True)
class Roofline:
    """float32, int8: multiply-adds a second. bandwidth: {bytes: bytes a second when that many are read again and
    again}."""

    float32: float
    int8: float
    bandwidth: dict[int, float]

    def seconds(self, macs: float, weights: float, codes: bool) -> float:
        """The least that a step can take: its arithmetic, or reading its weights from the cache that they fit in."""
        peak = self.int8 if codes and self.int8 else self.float32
        fitting = [rate for size, rate in sorted(self.bandwidth.items()) if size >= weights]
        rate = fitting[0] if fitting else self.bandwidth[max(self.bandwidth)]
        return max(macs / peak, weights / rate)

    def better(self, other: Roofline) -> Roofline:
        """The higher of two measurements: a busy machine shows less than it can."""
        rates = {size: max(rate, other.bandwidth.get(size, 0.0)) for size, rate in self.bandwidth.items()}
        return Roofline(max(self.float32, other.float32), max(self.int8, other.int8), rates)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(least: float = 0.02) -> Roofline:
    """On the CPU that this process is pinned to. least: seconds of one try."""
    library = driver.library()
    block = np.ones(SIZES[-1] // 4 + 16, np.float32)
    start = block.ctypes.data + -block.ctypes.data % 64
    return Roofline(
        max(library.peak_float32(least) for _ in range(TRIES)),
        max(library.peak_int8(least) for _ in range(TRIES)),
        {size: max(library.read_bandwidth(start, size, least) for _ in range(TRIES)) for size in SIZES},
    )
