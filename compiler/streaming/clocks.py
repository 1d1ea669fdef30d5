"""Counts as small integer programs: the words of a plan's clocks (docs/plan.md), shared by every backend."""

from __future__ import annotations

from functools import reduce
from math import gcd
from typing import Any

import numpy as np

from runnel.compiler.streaming.count import Count, Ended

MOST_STEPS = 64
INPUT, AFFINE, MIN, MAX, CONST, ENDED = range(6)


class NoClock(ValueError):
    """A count that the clock program cannot express."""


class ClockProgram:
    """Clocks in order of evaluation, each ``[op, a, b, mul, div, add]``; equal counts share one clock."""

    def __init__(self) -> None:
        self.words: list[list[int]] = [[INPUT, 0, 0, 1, 1, 0]]
        self._known: dict[Any, int] = {Count.time().key: 0}

    def add(self, count: Count) -> int:
        """The index of the clock that computes ``count`` (never below zero)."""
        if count.minimum < 0:
            count = count.affine(1, 0)
        if count.key in self._known:
            return self._known[count.key]
        index = self._build(count)
        self._known[count.key] = index
        return index

    def _emit(self, op: int, a: int, b: int, mul: int, div: int, add: int) -> int:
        word = [op, a, b, mul, div, add]
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def _build(self, count: Count) -> int:
        if isinstance(count, Ended):
            pairs = sorted((self.add(made), self.add(length)) for made, length in count.ends)
            ended = [self._emit(ENDED, made, length, 1, 1, 0) for made, length in pairs]
            return reduce(lambda a, b: self._emit(MIN, a, b, 1, 1, 0), ended)
        if count.is_const:
            return self._emit(CONST, 0, 0, 1, 1, int(count.values[0]))
        if form := count.closed_form:
            mul, add, div = form
            return self._emit(AFFINE, 0, 0, mul, div, add)
        if (index := self._stepped(count)) is not None:
            return index
        words = len(self.words)
        try:
            index = self._expression(count.expr)
            if self._agrees(index, count):
                return index
        except NoClock:
            pass
        del self.words[words:]
        return self._envelope(count)

    def _agrees(self, index: int, count: Count) -> bool:
        """Whether a clock is the count: an expression may pass below zero, which clocks do not."""
        table = count.table(len(count.values) + 2 * count.period)
        return bool((_evaluate(self.words[: index + 1], np.arange(len(table)))[index] == table).all())

    def _stepped(self, count: Count) -> int | None:
        """max(0, u·floor((mul·t + add)/div) + b): blocks of u frames."""
        table = count.table(len(count.values) + count.period)
        steps = np.diff(table)
        unit = gcd(*(int(s) for s in np.unique(steps))) if len(steps) else 0
        for candidate in (unit, *(int(s) for s in np.unique(steps)[::-1] if s > 1)):
            if candidate < 2:
                continue
            offset = int(table[-1]) % candidate
            for base in (offset, offset - candidate):
                whole = table - base
                positive = table > 0
                if (whole[positive] % candidate).any():
                    continue
                blocks = np.where(positive, whole // candidate, 0)
                inner = Count(blocks, count.period, count.gain // candidate, ("table",))
                if count.gain % candidate == 0 and (form := inner.closed_form):
                    if inner.affine(candidate, base) != count:
                        continue
                    mul, add, div = form
                    index = self._emit(AFFINE, 0, 0, mul, div, add)
                    return self._emit(AFFINE, index, 0, candidate, 1, base)
        return None

    def _expression(self, expr: tuple[Any, ...]) -> int:
        kind = expr[0]
        if kind == "input":
            return 0
        if kind == "const":
            return self._emit(CONST, 0, 0, 1, 1, int(expr[1]))
        if kind == "affine":
            return self._emit(AFFINE, self._expression(expr[1]), 0, int(expr[2]), int(expr[4]), int(expr[3]))
        if kind in ("min", "max"):
            op = MIN if kind == "min" else MAX
            return self._emit(op, self._expression(expr[1]), self._expression(expr[2]), 1, 1, 0)
        raise NoClock(f"a frame count made by '{kind}' has no clock of its own")

    def _envelope(self, count: Count) -> int:
        """Any count that never falls: over its steps j, the greatest v_j + gain·floor((t - t_j)/period) from t_j on."""
        table = count.table(len(count.values))
        steps = sorted({0, count.start, *(int(t) + 1 for t in np.nonzero(np.diff(table))[0])})
        if not count.is_monotone or len(steps) > MOST_STEPS:
            raise NoClock(f"the frame count {count} has more than {MOST_STEPS} steps in a period")
        result = self._emit(CONST, 0, 0, 1, 1, int(table[0]))
        for t in steps:
            value = int(table[t])
            if t < count.start or not count.gain:
                term = self._emit(CONST, 0, 0, 1, 1, value)
            else:
                turns = self._emit(AFFINE, 0, 0, 1, count.period, -t)
                term = self._emit(AFFINE, turns, 0, count.gain, 1, value)
            slope = max(value, -(-count.gain // count.period), 1)
            gate = self._emit(AFFINE, 0, 0, slope, 1, -slope * (t - 1))
            result = self._emit(MAX, result, self._emit(MIN, term, gate, 1, 1, 0), 1, 1, 0)
        return result


def evaluate(words: list[list[int]], t: int) -> list[int]:
    """All clocks at t while the stream goes on. The reference for every implementation of the clock program."""
    return _evaluate(words, t)


def _evaluate(words: list[list[int]], t: Any) -> list[Any]:
    """All clocks at t, a number or an array of them."""
    values: list[Any] = []
    for op, a, b, mul, div, add in words:
        if op == INPUT:
            values.append(t)
        elif op == AFFINE:
            value = (values[a] * mul + add) // div
            values.append(value * (value > 0))
        elif op in (MIN, MAX):
            first, second = values[a], values[b]
            smaller = first < second if op == MIN else first > second
            values.append(first * smaller + second * (1 - smaller))
        else:
            values.append((0 if op == ENDED else add) + 0 * t)
    return values
