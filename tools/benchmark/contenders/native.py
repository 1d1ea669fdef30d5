"""runnel itself: the step from C, as an application calls it, and from Python."""

from __future__ import annotations

import ctypes
from itertools import cycle
from typing import Any

import numpy as np

import runnel
from runnel.runtime import native
from runnel.tools.benchmark import driver
from runnel.tools.benchmark.case import Answers, Array, Case, time_first
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, PythonRun, Run

TURNS = 16  # different inputs that take turns
ALIGN = 64


def _open(case: Case) -> Any:
    program = runnel.load(case.place / "model.rnl", backend="onnxruntime")
    if "native" not in program.manifest["backends"]:
        raise CannotRun(f"no kernels: {program.manifest['native_refusal']}")
    return runnel.load(case.place / "model.rnl", backend="native")


def _pieces(case: Case, program: Any) -> list[Array]:
    """The recording in steps, as a stream takes them."""
    x, port = case.recording(), program.timed[0]
    axis = port.axis
    if case.kind != "stream":
        x = x.reshape(port.sized(x.shape[axis if case.kind == "window" else 0]))
    count = x.shape[axis] // case.hop
    return [np.ascontiguousarray(p) for p in np.split(np.take(x, range(count * case.hop), axis), count, axis)]


def _answers(case: Case, program: Any) -> Answers:
    stream = program.stream()
    parts = [stream.push(piece) for piece in _pieces(case, program)]
    axes = {port.name: port.axis for port in program.outputs}
    if len(axes) == 1:
        name = next(iter(axes))
        parts = [{name: part} for part in parts]
    return {
        name: (0, np.concatenate([time_first(part[name], 0 if axis is None else axis) for part in parts]))
        for name, axis in axes.items()
    }


class FromPython(PythonRun):
    """stream.push."""

    def __init__(self, case: Case) -> None:
        self.case, self.program = case, _open(case)
        self.pieces = _pieces(case, self.program)[-TURNS:]
        pieces = self.pieces
        if case.lanes > 1:
            batch = self.program.batch(case.lanes)
            lanes = [batch.join() for _ in range(case.lanes)]
            places = range(len(pieces))
            sets = cycle([{lane: pieces[(lane + k) % len(pieces)] for lane in lanes} for k in places]).__next__
            self.step = lambda: batch.push(sets())
        else:
            push, following = self.program.stream().push, cycle(pieces).__next__
            self.step = lambda: push(following())
        for _ in _pieces(case, self.program):
            self.step()

    def answers(self) -> Answers:
        return _answers(self.case, self.program)


def aligned(size: int) -> Array:
    """Bytes whose address is a multiple of 64."""
    block = np.zeros(size + ALIGN, np.uint8)
    start = -block.ctypes.data % ALIGN
    return block[start : start + size]


class FromC(Run):
    """rn_push in a loop of C, or rn_push_many for several streams."""

    def __init__(self, case: Case) -> None:
        self.case, self.program = case, _open(case)
        program, core, handle = self.program, self.program._core, self.program._handle
        self.driver = driver.library()
        lanes = case.lanes
        pieces = _pieces(case, program)[-TURNS:]
        self.kept: list[Any] = [pieces]
        room = [self._room(port, case) for _ in range(lanes) for port in program.outputs]
        self.outputs = (ctypes.c_void_p * len(room))(*(a.ctypes.data for a, _ in room))
        self.capacity = (ctypes.c_int64 * len(room))(*(n for _, n in room))
        self.written = (ctypes.c_int64 * len(room))()
        states = [aligned(program.block_bytes) for _ in range(lanes)]
        self.states = (ctypes.c_void_p * lanes)(*(s.ctypes.data for s in states))
        bytes_of = core.rn_scratch_bytes(handle) if lanes == 1 else core.rn_batch_scratch_bytes(handle, lanes)
        scratch = aligned(int(bytes_of))
        self.scratch = ctypes.c_void_p(scratch.ctypes.data)
        self.kept += [room, states, scratch]
        order = pieces if lanes == 1 else [pieces[i % len(pieces)] for i in range(lanes)]
        self.inputs = (ctypes.c_void_p * len(order))(*(p.ctypes.data for p in order))
        self.frames = (ctypes.c_int64 * lanes)(*[case.hop] * lanes)
        self.policies = (ctypes.c_int * lanes)()
        for state in self.states:
            _check(core.rn_init(handle, ctypes.c_void_p(state), 0))
        self.time(1, max(1, case.recording().shape[program.timed[0].axis] // case.hop))

    @staticmethod
    def _room(port: Any, case: Case) -> tuple[Array, int]:
        """Memory for what a step gives, and its frames."""
        frames = 2 + next(o.frames for o in case.outputs if o.name == port.name)
        return np.zeros(port.sized(frames) if port.axis is not None else (1, *port.sized(0)), port.dtype), frames

    def answers(self) -> Answers:
        return _answers(self.case, self.program)

    def time(self, blocks: int, steps: int) -> list[float]:
        core, handle = self.program._core, self.program._handle
        seconds = (ctypes.c_double * blocks)()
        if self.case.lanes == 1:
            code = self.driver.time_steps(
                core.rn_push, handle, ctypes.c_void_p(self.states[0]), self.scratch, self.inputs,
                ctypes.c_int64(len(self.inputs)), ctypes.c_int64(1), ctypes.c_int64(self.case.hop), self.outputs,
                self.capacity, self.written, ctypes.c_int64(blocks), ctypes.c_int64(steps), seconds,
            )  # fmt: skip
        else:
            code = self.driver.time_lanes(
                core.rn_push_many, handle, ctypes.c_int32(self.case.lanes), self.states, self.scratch, self.inputs,
                self.frames, self.outputs, self.capacity, self.written, self.policies,
                ctypes.c_int64(blocks), ctypes.c_int64(steps), seconds,
            )  # fmt: skip
        _check(code)
        return list(seconds)

    def phases(self, period: int, rounds: int) -> list[float]:
        """The median time of each of ``period`` pushes of one frame."""
        core, case = self.program._core, self.case
        frame = np.ascontiguousarray(np.take(_pieces(case, self.program)[0], [0], self.program.timed[0].axis))
        seconds = (ctypes.c_double * (period * rounds))()
        code = self.driver.time_phases(
            core.rn_push, self.program._handle, ctypes.c_void_p(self.states[0]), self.scratch,
            (ctypes.c_void_p * 1)(frame.ctypes.data), self.outputs, self.capacity, self.written,
            ctypes.c_int64(period), ctypes.c_int64(rounds), seconds,
        )  # fmt: skip
        _check(code)
        return [float(v) for v in np.median(np.array(seconds).reshape(rounds, period), 0)]


def _check(code: int) -> None:
    if code != native.OK:
        raise CannotRun(native.message(code))


CONTENDERS = [Contender("runnel", "", FromC), Contender("runnel, Python", "", FromPython)]
