"""Tables of indices that are a rule: sums of steps along their axes, or a quotient, as resampling reads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

_MOST_DIVISOR = 8


def steps_of(table: np.ndarray) -> list[int] | None:
    """What a table of indices grows by along each of its axes, where that is the same everywhere; else None."""
    first = np.int64(table.reshape(-1)[0])
    steps = [int(table.take(min(1, n - 1), a).reshape(-1)[0] - first) for a, n in enumerate(table.shape)]
    places = np.indices(table.shape).reshape(table.ndim, table.size)
    regular = first + np.array(steps, np.int64) @ places
    return steps if np.array_equal(regular, table.reshape(-1)) else None


@dataclass(frozen=True)
class Quotient:
    """Entry i is (i · step + first) // divisor, at least ``low`` and at most ``high``."""

    step: int
    first: int
    divisor: int
    low: int
    high: int

    @staticmethod
    def of(table: np.ndarray) -> Quotient | None:
        """None where a table, not negative, follows no such rule."""
        if table.ndim != 1 or len(table) < 4:
            return None
        i, middle = np.arange(len(table), dtype=np.int64), len(table) // 2
        low, high = int(table.min()), int(table.max())
        for divisor, step in product(range(2, _MOST_DIVISOR + 1), range(1, _MOST_DIVISOR + 1)):
            least = int(table[middle]) * divisor - middle * step
            for first in range(least, least + divisor):
                if np.array_equal(np.clip((i * step + first) // divisor, low, high), table):
                    return Quotient(step, first, divisor, low, high)
        return None

    @property
    def bounds(self) -> tuple[int, int]:
        """The first entry that the lower limit leaves alone, and the first that the upper one changes."""
        begin = -(-(self.low * self.divisor - self.first) // self.step)
        return begin, -(-((self.high + 1) * self.divisor - self.first) // self.step)
