"""onnxruntime: the window again at each step, a step with its states given, and the same with its buffers bound."""

from __future__ import annotations

from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Answers, Array, Case, joined, time_first
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, PythonRun


def session(path: str) -> Any:
    """With all rewrites of the graph, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own, without a common base
        raise CannotRun(str(error)) from None


class Window(PythonRun):
    """The offline model on all frames that the newest ones depend on."""

    def __init__(self, case: Case) -> None:
        if case.kind != "stream":
            raise CannotRun("the model has no time axis")
        if case.lanes > 1:
            raise CannotRun("timed with one stream")
        if not case.reach:
            raise CannotRun("no window is long enough: it is recurrent")
        self.case, self.session = case, session(str(case.place / "model.onnx"))
        self.steps = -(-(case.reach - 1) // case.hop) + 1
        x = case.recording()
        last = x.shape[case.axis] // case.hop * case.hop
        self.x = np.ascontiguousarray(np.take(x, range(last - self.steps * case.hop, last), case.axis))
        self.whole = x.shape[case.axis] // case.hop
        feeds, names = {case.input: self.x}, [o.name for o in case.outputs]
        run = self.session.run
        self.step = lambda: run(names, feeds)

    def answers(self) -> Answers:
        case = self.case
        values = self.session.run([o.name for o in case.outputs], {case.input: self.x})
        return {
            o.name: ((self.whole - 1) * o.frames, time_first(value, o.axis)[-o.frames :])
            for o, value in zip(case.outputs, values)
        }


class Step(PythonRun):
    """session.run with the states of the run before."""

    def __init__(self, case: Case, opened: Any = None) -> None:
        self.case, self.session = case, opened or session(str(case.place / "step.onnx"))
        self.pieces = case.steps()[case.skip :]
        self.names = [o.name for o in case.step_outputs] + [s.made for s in case.states]
        self.fed = {value.name for value in self.session.get_inputs()}
        self.reset()
        self.step = self.advance
        if case.lanes > 1 and case.batch_axis < 0 and opened is None:
            lanes = [self, *(type(self)(case, self.session) for _ in range(case.lanes - 1))]
            self.step = lambda: [lane.advance() for lane in lanes]

    def reset(self) -> None:
        case = self.case
        self.position = np.array(case.skip * case.hop, np.int64)
        self.feeds: dict[str, Array] = {s.given: case.start(s) for s in case.states}
        if case.scalars:
            self.feeds |= dict(zip(case.scalars, (self.position, np.array(case.unknown_length, np.int64))))
        self.feeds = {name: value for name, value in self.feeds.items() if name in self.fed}
        self.feeds[case.input] = self.pieces[0]

    def advance(self) -> list[Array]:
        values: list[Array] = self.session.run(self.names, self.feeds)
        for state, value in zip(self.case.states, values[len(self.case.step_outputs) :]):
            self.feeds[state.given] = value
        self.position += self.case.hop
        return values

    def answers(self) -> Answers:
        self.reset()
        parts = []
        for piece in self.pieces:
            self.feeds[self.case.input] = piece
            values = self.advance()
            parts.append({o.name: value for o, value in zip(self.case.step_outputs, values)})
        return joined(self.case, parts, self.case.step_outputs, self.case.skip)


class Bound(Step):
    """Two bindings take turns: a call reads the states where the one before wrote them. Nothing is copied."""

    def reset(self) -> None:
        super().reset()
        case = self.case
        self.x = np.array(self.pieces[0], order="C")
        here = {s.given: np.array(case.start(s), order="C") for s in case.states}
        there = {name: np.zeros_like(value) for name, value in here.items()}
        first = dict(zip(self.names, self.session.run(self.names, self.feeds)))
        self.results = {o.name: np.zeros_like(first[o.name]) for o in case.step_outputs}
        self.kept = [here, there]
        self.bindings = []
        for read, write in ((here, there), (there, here)):
            given = self.feeds | {n: v for n, v in read.items() if n in self.fed} | {case.input: self.x}
            made = self.results | {s.made: write[s.given] for s in case.states}
            self.bindings.append(self._bind(given, made))
        self.turn_of = 0

    def _bind(self, given: dict[str, Array], made: dict[str, Array]) -> Any:
        binding = self.session.io_binding()
        for name, array in given.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name in self.names:
            array = made[name]
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding

    def advance(self) -> list[Array]:
        self.session.run_with_iobinding(self.bindings[self.turn_of])
        self.turn_of ^= 1
        if self.case.scalars:
            self.position += self.case.hop
        return []

    def answers(self) -> Answers:
        self.reset()
        parts = []
        for piece in self.pieces:
            np.copyto(self.x, piece)
            self.advance()
            parts.append({name: value.copy() for name, value in self.results.items()})
        return joined(self.case, parts, self.case.step_outputs, self.case.skip)


CONTENDERS = [
    Contender("onnxruntime, window", "onnxruntime", Window),
    Contender("onnxruntime, states", "onnxruntime", Step),
    Contender("onnxruntime, bound", "onnxruntime", Bound),
]
