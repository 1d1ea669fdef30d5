"""What a runtime has to do to take part."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from runnel.tools.benchmark.case import Answers, Case

BLOCK = 2e-4  # seconds of the steps that are timed as one


class CannotRun(Exception):
    """The runtime does not take this model; the text says why, in a few words."""


class Run(ABC):
    """A model on a runtime."""

    @abstractmethod
    def answers(self) -> Answers:
        """The outputs for the case's recording, or the last part of them."""

    @abstractmethod
    def time(self, blocks: int, steps: int) -> list[float]:
        """Processor seconds of a step, for each of some blocks of steps."""

    def turn(self, seconds: float) -> list[float]:
        """As many blocks as fill a turn; after a few steps that bring everything back into the caches."""
        each = min(self.time(3, 1)[1:])
        steps = max(1, round(BLOCK / max(each, 1e-8)))
        self.time(1, steps)
        return self.time(max(3, round(seconds / max(each * steps, 1e-8))), steps)


class PythonRun(Run):
    """A runtime whose steps are calls from Python."""

    step: Callable[[], object]

    def time(self, blocks: int, steps: int) -> list[float]:
        step, clock = self.step, time.process_time
        taken = []
        for _ in range(blocks):
            start = clock()
            for _ in range(steps):
                step()
            taken.append((clock() - start) / steps)
        return taken


@dataclass(frozen=True)
class Contender:
    """One column. open: makes it ready for a case; raises CannotRun. codes: takes part where the model is integer."""

    name: str
    package: str
    open: Callable[[Case], Run]
