"""Runtimes that are wrong, late, unwilling, missing, or end their process: contenders for tests of the bench."""

from __future__ import annotations

import os
from typing import NoReturn

from runnel.tools.benchmark.case import Answers, Case
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, PythonRun


class Wrong(PythonRun):
    """Right but for one element of one frame, or for the number of the frame that it says it starts with."""

    def __init__(self, case: Case, off: float = 0.0, late: int = 0) -> None:
        self.case, self.off, self.late = case, off, late
        self.step = lambda: None

    def answers(self) -> Answers:
        found = {}
        for name, value in self.case.expected().items():
            copy = value.copy()
            copy.reshape(-1)[copy.size // 2] += self.off * abs(copy).max()
            found[name] = (self.late, copy)
        return found


def unwilling(case: Case) -> NoReturn:
    raise CannotRun("it has no such op")


def faulty(case: Case) -> NoReturn:
    raise KeyError("a fault of its own")


def ending(case: Case) -> NoReturn:
    os._exit(3)


class Ending(Wrong):
    """Right, and ends its process when it is timed for the second time."""

    turns = 0

    def turn(self, seconds: float) -> list[float]:
        self.turns += 1
        return [1e-3] if self.turns < 2 else os._exit(4)


CONTENDERS = [
    Contender("right", "numpy", Wrong),
    Contender("wrong", "numpy", lambda case: Wrong(case, off=0.01)),
    Contender("late", "numpy", lambda case: Wrong(case, late=1)),
    Contender("unwilling", "numpy", unwilling),
    Contender("faulty", "numpy", faulty),
    Contender("missing", "no-package-has-this-name", Wrong),
    Contender("ending", "numpy", ending),
    Contender("ending later", "numpy", Ending),
]
