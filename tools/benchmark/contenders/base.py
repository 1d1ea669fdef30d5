"""What a runtime has to do to take part."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel.tools.benchmark.case import Answers, Array, Case, Output, joined

BLOCK = 2e-4  # seconds of the steps that are timed as one
SLOW = 5  # turns that a step may take before one step a turn has to do


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
        first = self.time(1, 1)
        if first[0] > SLOW * seconds:
            return first
        warm = self.time(2, 1)
        each = min(warm)
        if each > seconds:
            return warm
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


def signature(path: Path) -> tuple[list[str], list[str]]:
    """The names of a model's inputs and outputs, in order."""
    import onnx

    graph = onnx.load(path).graph
    fixed = {value.name for value in graph.initializer}
    return [v.name for v in graph.input if v.name not in fixed], [v.name for v in graph.output]


def of_a_step(case: Case, output: Output) -> list[int]:
    """The shape of an output of step.onnx."""
    frame = list(case.expected()[output.name].shape[1:])
    return frame if output.axis < 0 else [*frame[: output.axis], output.frames, *frame[output.axis :]]


class StepRun(PythonRun):
    """step.onnx in the form that a runtime takes it. advance does a step and returns its outputs as they are."""

    def __init__(self, case: Case) -> None:
        if case.scalars:
            raise CannotRun("there is no step without positions")
        self.case = case
        self.pieces = case.steps()[case.skip :]
        self.given, self.made = signature(case.place / "step.onnx")
        self.convert()
        self.reset()
        self.give(self.pieces[0])
        self.step = self.advance
        if case.lanes > 1 and case.batch_axis < 0:
            self.step = self.each
            self.lanes = []
            for _ in range(case.lanes):
                self.reset()
                self.lanes.append(self.held())

    @abstractmethod
    def convert(self) -> None:
        """Make the model ready. Raises CannotRun."""

    @abstractmethod
    def reset(self) -> None:
        """Put the states at their start."""

    @abstractmethod
    def give(self, x: Array) -> None:
        """What the next steps read."""

    @abstractmethod
    def advance(self) -> object:
        """One step; its states are those of the next."""

    def held(self) -> object:
        """The states of the stream that was advanced last, for a step that takes one stream only."""
        raise CannotRun("the step takes one stream")

    def take(self, held: object) -> None:
        """Go on with the stream of these states."""
        raise CannotRun("the step takes one stream")

    def each(self) -> None:
        """A step of every stream."""
        for lane, held in enumerate(self.lanes):
            self.take(held)
            self.advance()
            self.lanes[lane] = self.held()

    @abstractmethod
    def results(self) -> dict[str, Array]:
        """Copies of the outputs of the last step, of any shape with their elements in order."""

    def answers(self) -> Answers:
        case = self.case
        self.reset()
        parts = []
        for piece in self.pieces:
            self.give(piece)
            self.advance()
            found = self.results()
            parts.append({o.name: self._shaped(o, found[o.name]) for o in case.step_outputs})
        return joined(case, parts, case.step_outputs, case.skip)

    def _shaped(self, output: Output, value: Array) -> Array:
        shape = of_a_step(self.case, output)
        if self.case.lanes > 1 and self.case.batch_axis >= 0:
            shape[self.case.batch_axis] = self.case.lanes
        if value.size != np.prod(shape):
            raise CannotRun(f"gives {list(value.shape)}, not {shape}")
        return value.reshape(shape)


@dataclass(frozen=True)
class Contender:
    """One column. open: makes it ready for a case; raises CannotRun. codes: takes part where the model is integer."""

    name: str
    package: str
    open: Callable[[Case], Run]
