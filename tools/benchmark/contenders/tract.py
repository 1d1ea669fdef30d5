"""tract: its pulses where time is an axis, and plain calls elsewhere."""

from __future__ import annotations

from importlib import import_module
from itertools import cycle
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Answers, Case, Output, joined
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, PythonRun, signature

KINDS = {"float32": "f32", "int8": "i8", "uint8": "u8", "int64": "i64", "int32": "i32", "bool": "bool"}


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).split("Stack backtrace")[0].splitlines() if line.strip()]
    return lines[-1][:200]


def _fact(shape: Any, kind: str = "f32") -> str:
    return ",".join([*map(str, shape), kind])


class Pulse(PythonRun):
    """A state of the model that tract made stream by itself, in pulses of a hop."""

    def __init__(self, case: Case) -> None:
        tract = import_module("tract")
        self.case = case
        steps = case.steps()
        shape = ["T" if i == case.axis else n for i, n in enumerate(steps[0].shape)]
        try:
            model = tract.onnx().load(str(case.place / "model.onnx"))
            model.set_input_fact(0, _fact(shape))
            model = model.into_model()
            model.transform(tract.Pulse(case.hop, symbol="T"))
            delays = np.atleast_1d(model.property("pulse.delay").to_numpy())
            self.runnable = model.into_runnable()
        except tract.TractError as error:
            raise CannotRun(_said(error)) from None
        self.outputs = [Output(o.name, o.axis, o.frames, int(d)) for o, d in zip(case.outputs, delays)]
        self.pieces = [tract.Tensor.from_numpy(piece) for piece in steps]
        following = cycle([[piece] for piece in self.pieces[-16:]]).__next__
        lanes = [self.runnable.spawn_state().run for _ in range(case.lanes if case.batch_axis < 0 else 1)]
        run = lanes[0]
        self.step = (lambda: run(following())) if len(lanes) == 1 else (lambda: [run(following()) for run in lanes])

    def answers(self) -> Answers:
        state = self.runnable.spawn_state()
        parts = []
        for piece in self.pieces:
            values = state.run([piece])
            parts.append({o.name: v.to_numpy().copy() for o, v in zip(self.outputs, values)})
        return joined(self.case, parts, self.outputs)


class Plain(PythonRun):
    """One call a step; states go from outputs to inputs as tract's own tensors."""

    def __init__(self, case: Case) -> None:
        tract = import_module("tract")
        self.case, self.tensor = case, tract.Tensor.from_numpy
        if case.scalars:
            raise CannotRun("there is no step without positions")
        self.pieces = [self.tensor(piece) for piece in case.steps()[case.skip :]]
        try:
            model = tract.onnx().load(str(case.place / "step.onnx"))
            names, made = signature(case.place / "step.onnx")
            types = {case.input: case.recording().dtype} | {s.given: s.dtype for s in case.states}
            shapes = {case.input: case.steps()[0].shape} | {s.given: s.shape for s in case.states}
            for i, name in enumerate(names):
                model.set_input_fact(i, _fact(shapes[name], KINDS[str(types.get(name, "float32"))]))
            self.runnable = model.into_model().into_runnable()
        except tract.TractError as error:
            raise CannotRun(_said(error)) from None
        self.order = [None if name == case.input else [s.given for s in case.states].index(name) for name in names]
        self.places = {name: i for i, name in enumerate(made)}
        self.states = [self.tensor(case.start(s)) for s in case.states]
        self.turn_of = 0
        self.step = self.advance

    def advance(self) -> list[Any]:
        x = self.pieces[self.turn_of % len(self.pieces)]
        self.turn_of += 1
        values: list[Any] = self.runnable.run([x if i is None else self.states[i] for i in self.order])
        self.states = [values[self.places[s.made]] for s in self.case.states]
        return values

    def answers(self) -> Answers:
        self.turn_of, self.states = 0, [self.tensor(self.case.start(s)) for s in self.case.states]
        parts = []
        for _ in self.pieces:
            values = self.advance()
            parts.append({o.name: values[self.places[o.name]].to_numpy().copy() for o in self.case.step_outputs})
        return joined(self.case, parts, self.case.step_outputs, self.case.skip)


def _open(case: Case) -> PythonRun:
    if case.lanes > 1 and case.batch_axis < 0 and case.kind != "stream":
        raise CannotRun("the model takes one stream")
    return Pulse(case) if case.kind == "stream" else Plain(case)


CONTENDERS = [Contender("tract", "tract", _open)]
