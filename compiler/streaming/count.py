"""Exact integer functions of time: how many frames exist at a tick, how long a tensor is for an input of T frames.

Every such function that streaming needs is *eventually periodic-affine*: beyond some start, f(t + period) = f(t) +
gain.
The class holds the whole function as a finite table, so that composition is exact and equality is decidable.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from typing import Any, TypeAlias

import numpy as np

Operand: TypeAlias = "Count | int"
MAX_TABLE = 1 << 22
MAX_TERM = 1 << 40


class CountTooLong(ValueError):
    """The period of a function of time is beyond what the compiler tabulates."""


class Count:
    """An integer function f(t), t >= 0, with f(t + period) = f(t) + gain for t >= start.

    values: f(0) … f(start + period - 1), int64. expr: how it was made, for the runtime's clock program (docs/plan.md).
    """

    __slots__ = ("values", "period", "gain", "expr", "__dict__")

    def __init__(self, values: np.ndarray, period: int, gain: int, expr: tuple[Any, ...]) -> None:
        if len(values) > MAX_TABLE:
            frames = len(values)
            raise CountTooLong(f"a rate in this model repeats only after {frames} frames; the limit is {MAX_TABLE}")
        self.values, self.period, self.gain = _canonical(np.asarray(values, np.int64), period, gain)
        self.expr = expr

    @staticmethod
    def time() -> Count:
        """f(t) = t."""
        return Count(np.array([0]), 1, 1, ("input",))

    @staticmethod
    def const(value: int) -> Count:
        return Count(np.array([value]), 1, 0, ("const", int(value)))

    @staticmethod
    def of(value: Operand) -> Count:
        return value if isinstance(value, Count) else Count.const(int(value))

    @property
    def start(self) -> int:
        return len(self.values) - self.period

    @property
    def rate(self) -> Fraction:
        """Frames per tick in the long run."""
        return Fraction(self.gain, self.period)

    @property
    def is_const(self) -> bool:
        return self.gain == 0 and len(self.values) == 1

    def __call__(self, t: int) -> int:
        if t < len(self.values):
            return int(self.values[max(t, 0)])
        turns, phase = divmod(t - self.start, self.period)
        return int(self.values[self.start + phase]) + self.gain * turns

    def table(self, n: int) -> np.ndarray:
        """f(0) … f(n - 1)."""
        if n <= len(self.values):
            return self.values[:n]
        if n > 4 * MAX_TABLE:
            raise CountTooLong(f"a layer repeats only after {n} frames; the limit is {4 * MAX_TABLE}")
        t = np.arange(len(self.values), n)
        turns, phase = np.divmod(t - self.start, self.period)
        return np.concatenate([self.values, self.values[self.start + phase] + self.gain * turns])

    def first(self, n: int) -> int:
        """The smallest t with f(t) > n, for a monotone f. Raises ValueError where there is none."""
        if self.gain <= 0:
            hits = np.nonzero(self.values > n)[0]
            if not len(hits):
                raise ValueError(f"never more than {n}")
            return int(hits[0])
        if int(self.values[-1]) > n:
            return int(np.searchsorted(self.values, n, side="right"))
        last = int(self.values[-1])
        turns = -(-(n + 1 - last) // self.gain)
        cycle = self.values[self.start :] + self.gain * turns
        earlier = int(np.searchsorted(cycle, n, side="right"))
        cycle_before = self.values[self.start :] + self.gain * (turns - 1)
        before = int(np.searchsorted(cycle_before, n, side="right"))
        if before < self.period:
            return self.start + self.period * (turns - 1) + before
        return self.start + self.period * turns + earlier

    def affine(self, mul: int, add: int, div: int = 1, low: int | None = 0) -> Count:
        """floor((f·mul + add) / div), not below ``low``."""
        if mul == 1 and add == 0 and div == 1 and (low is None or self.minimum >= low):
            return self
        turns = div // gcd(self.gain * mul, div)
        period, gain = self.period * turns, self.gain * mul * turns // div
        if max(self.start + period, abs(gain), abs(mul), abs(add)) > MAX_TERM:
            raise CountTooLong(f"a stride or a size of {max(abs(mul), abs(add), div)} frames is beyond all use")
        if self.start + period > MAX_TABLE:
            raise CountTooLong(f"a rate in this model repeats only after {period} frames; the limit is {MAX_TABLE}")
        values = (self.table(self.start + period) * mul + add) // div
        if low is not None:
            if gain > 0 and (short := low - int(values[self.start :].min())) > 0:
                values = (self.table(self.start + period * (2 + short // gain)) * mul + add) // div
            if gain < 0 and (over := int(values.max()) - low) > 0:
                values = (self.table(self.start + period * (2 + over // -gain)) * mul + add) // div
            values, gain = np.maximum(values, low), max(gain, 0)
        return Count(values, period, gain, ("affine", self.expr, mul, add, div))

    def later(self, ticks: int) -> Count:
        """f(t + ticks)."""
        table = self.table(len(self.values) + ticks)[ticks:]
        start = max(0, self.start - ticks)
        return Count(table[: start + self.period], self.period, self.gain, ("later", self.expr, ticks))

    def largest(self) -> int | None:
        """The greatest value, or None when there is none."""
        if self.gain > 0:
            return None
        return int(self.values.max())

    @cached_property
    def minimum(self) -> int:
        """The least value; for a count that falls for ever, a number below any."""
        return int(self.values.min()) if self.gain >= 0 else -(1 << 62)

    def _join(self, other: Operand, function: Any, name: str) -> Count:
        other = Count.of(other)
        period = lcm(self.period, other.period)
        start = max(self.start, other.start)
        ga, gb = self.gain * (period // self.period), other.gain * (period // other.period)
        if name in ("add", "sub"):
            gain = function(ga, gb)
        elif ga == gb:
            gain = ga
        else:
            width = self.table(start + period)[start:] - other.table(start + period)[start:]
            start += period * (2 + int(np.abs(width).max()) // abs(ga - gb))
            gain = function(ga, gb)
        n = start + period
        if n > MAX_TABLE:
            raise CountTooLong(f"two rates in this model meet only after {n} frames; the limit is {MAX_TABLE}")
        return Count(function(self.table(n), other.table(n)), period, int(gain), (name, self.expr, other.expr))

    def minimum_with(self, other: Operand) -> Count:
        other = Count.of(other)
        if isinstance(other, Ended):
            return other.minimum_with(self)
        result = self._join(other, np.minimum, "min")
        return self if result == self else other if result == other else result

    def maximum_with(self, other: Operand) -> Count:
        other = Count.of(other)
        result = self._join(other, np.maximum, "max")
        return self if result == self else other if result == other else result

    # Arithmetic of shape values: exact, may be negative.
    def __add__(self, other: Operand) -> Count:
        if isinstance(other, Count) and not other.is_const:
            return self._join(other, np.add, "add")
        return self.affine(1, int(Count.of(other).values[0]), 1, None)

    def __radd__(self, other: Operand) -> Count:
        return self + other

    def __neg__(self) -> Count:
        return self.affine(-1, 0, 1, None)

    def __sub__(self, other: Operand) -> Count:
        if isinstance(other, Count) and not other.is_const:
            return self._join(other, np.subtract, "sub")
        return self.affine(1, -int(Count.of(other).values[0]), 1, None)

    def __rsub__(self, other: Operand) -> Count:
        return Count.of(other) - self

    def __mul__(self, other: Operand) -> Count:
        other = Count.of(other)
        if not other.is_const:
            if self.is_const:
                return other * self
            raise TypeError("a product of two lengths is not a length")
        return self.affine(int(other.values[0]), 0, 1, None)

    def __rmul__(self, other: Operand) -> Count:
        return self * other

    def __floordiv__(self, other: Operand) -> Count:
        other = Count.of(other)
        if not other.is_const:
            raise TypeError("a length divided by a length is not a length")
        div = int(other.values[0])
        return self.affine(1, 0, div, None) if div > 0 else (-self).affine(1, 0, -div, None)

    def __mod__(self, other: Operand) -> Count:
        return self - (self // other) * other

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            other = Count.const(other)
        return isinstance(other, Count) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def is_monotone(self) -> bool:
        """Whether f(t) never falls."""
        return bool((np.diff(self.table(len(self.values) + 1)) >= 0).all())

    @cached_property
    def key(self) -> tuple[Any, ...]:
        return self.period, self.gain, self.values.tobytes()

    @cached_property
    def closed_form(self) -> tuple[int, int, int] | None:
        """(mul, add, div) with f(t) = max(0, floor((mul·t + add) / div)) for all t, or None."""
        if self.gain < 0 or self.minimum < 0:
            return None
        mul, div = self.rate.numerator, self.rate.denominator
        if mul == 0:
            return (0, int(self.values[0]), 1) if self.is_const else None
        n = len(self.values) + self.period
        f, t = self.table(n), np.arange(n)
        low = np.where(f > 0, f * div - mul * t, np.iinfo(np.int64).min).max()
        high = (f * div + div - 1 - mul * t).min()
        return (mul, int(high), div) if low <= high else None

    def __repr__(self) -> str:
        if self.is_const:
            return str(int(self.values[0]))
        if form := self.closed_form:
            mul, add, div = form
            if div > 1:  # high is the largest add with the same floor; show the smallest remainder form
                whole = f"{'' if mul == 1 else mul}T{add:+d}" if add else f"{'' if mul == 1 else mul}T"
                return f"floor(({whole})/{div})"
            return f"{'' if mul == 1 else mul}T{add:+d}" if add else f"{'' if mul == 1 else mul}T"
        return f"<{self.rate} per frame, period {self.period}, first {self.values[:4].tolist()}>"


class Ended(Count):
    """0 while the stream goes on; 1 when it has ended and each (made, length) of ``ends`` has all its frames."""

    __slots__ = ("ends",)

    def __init__(self, ends: frozenset[tuple[Count, Count]]) -> None:
        super().__init__(np.array([0]), 1, 0, ("ended",))
        self.ends = ends

    def minimum_with(self, other: Operand) -> Count:
        """Both: a count that says when a single frame is made is one more thing to wait for."""
        other = Count.of(other)
        if isinstance(other, Ended):
            return self if other.ends <= self.ends else Ended(self.ends | other.ends)
        return self if other == 1 else Ended(self.ends | {(other, Count.const(1))})

    @cached_property
    def key(self) -> tuple[Any, ...]:
        return ("ended", frozenset((made.key, length.key) for made, length in self.ends))


def _canonical(values: np.ndarray, period: int, gain: int) -> tuple[np.ndarray, int, int]:
    start = len(values) - period
    cycle = values[start:]
    for divisor in _divisors(period):
        if divisor == period or (gain * divisor) % period:
            continue
        step = gain * divisor // period
        turns = np.array_equal(cycle[:divisor] + gain, cycle[-divisor:] + step)
        if turns and np.array_equal(cycle[divisor:], cycle[:-divisor] + step):
            values, period, gain = values[: start + divisor], divisor, step
            break
    start = len(values) - period
    if start:
        repeats = values[:start] + gain == values[period : period + start]
        keep = 0 if repeats.all() else int(np.nonzero(~repeats)[0][-1]) + 1
        values = values[: keep + period]
    return values, period, gain


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
