"""Counts as small integer programs: the words of a plan's clocks (docs/plan.md), shared by every backend."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from runnel.compiler.streaming.count import Count

INPUT, AFFINE, MIN, MAX, CONST = range(5)


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
        if count.is_const:
            return self._emit(CONST, 0, 0, 1, 1, int(count.values[0]))
        if form := count.closed_form:
            mul, add, div = form
            return self._emit(AFFINE, 0, 0, mul, div, add)
        if (index := self._stepped(count)) is not None:
            return index
        return self._expression(count.expr)

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
                blocks = np.where(positive, whole // candidate, max(0, -(base // candidate)) if base < 0 else 0)
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
        raise NoClock(f"a frame count made by '{kind}' has no clock")


def evaluate(words: list[list[int]], t: int) -> list[int]:
    """All clocks at t. The reference for every implementation of the clock program."""
    values: list[int] = []
    for op, a, b, mul, div, add in words:
        if op == INPUT:
            values.append(t)
        elif op == AFFINE:
            values.append(max(0, (values[a] * mul + add) // div))
        elif op == MIN:
            values.append(min(values[a], values[b]))
        elif op == MAX:
            values.append(max(values[a], values[b]))
        else:
            values.append(add)
    return values
