"""A workload made ready in a folder, in the forms that contenders take: the files and the facts about them.

model.onnx   the offline model. kind "stream": time is an axis of its input; "window": it takes a whole window;
             "frame": one frame without a past; "states": one frame, and its states are inputs and outputs
step.onnx    one call a step, all shapes fixed, states as inputs and outputs
plain.onnx   that without recurrent cells, where it has any
model.rnl    our bundle
x.npy        the recording: (1, …, T, …) for "stream", else frames stacked along a first axis
y.npz        what the offline model gives, time first, by output
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Output:
    """axis: where time is (-1: a call gives one frame without an axis of time). frames: of it in a step."""

    name: str
    axis: int
    frames: int
    delay: int = 0


@dataclass(frozen=True)
class State:
    """A state of step.onnx: the names of its input and output, and what it starts as (a file, or one number)."""

    given: str
    made: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    fill: float = 0.0
    initial: str = ""


@dataclass(frozen=True)
class Case:
    """What a contender is told.

    hop: frames of a step; window: frames that a step needs of kind "window"; axis: of time in the input of model.onnx.
    reach: frames that an output depends on, 0 where that has no end. step_outputs: as step.onnx gives them. scalars:
    (position, length), where step.onnx asks for them. skip: steps of the recording after which the states that
    step.onnx starts with are those of a stream. codes: computes in integers. tolerance: of the range of a float output.
    macs: of a step. period: frames after which the work of pushes of one frame is the same again.
    lanes: streams at once, of which step.onnx takes all along batch_axis, or one after the other where that is -1.
    """

    folder: str
    name: str
    kind: str
    hop: int
    input: str
    axis: int
    outputs: list[Output]
    step_outputs: list[Output]
    states: list[State] = field(default_factory=list)
    scalars: list[str] = field(default_factory=list)
    unknown_length: int = 0
    window: int = 0
    reach: int = 0
    skip: int = 0
    codes: bool = False
    tolerance: float = 1e-3
    tflite: str = ""
    macs: float = 0.0
    period: int = 1
    lanes: int = 1
    batch_axis: int = -1

    @property
    def place(self) -> Path:
        return Path(self.folder)

    def recording(self) -> Array:
        return np.asarray(np.load(self.place / "x.npy"))

    def expected(self) -> dict[str, Array]:
        with np.load(self.place / "y.npz") as file:
            return {name: file[name] for name in file.files}

    def start(self, state: State) -> Array:
        """The value that a state starts with."""
        if state.initial:
            return np.asarray(np.load(self.place / state.initial))
        return np.full(state.shape, state.fill, state.dtype)

    def steps(self) -> list[Array]:
        """The recording in the pieces that step.onnx takes, all of them."""
        x = self.recording()
        if self.kind == "stream":
            count = x.shape[self.axis] // self.hop
            if self.lanes > 1 and self.batch_axis >= 0:
                x = np.repeat(x, self.lanes, self.batch_axis)
            return [np.ascontiguousarray(p) for p in np.split(_first(x, self.axis, count * self.hop), count, self.axis)]
        if self.kind == "window":
            starts = range(0, x.shape[self.axis] - self.window + 1, self.hop)
            pieces = [np.take(x, range(s, s + self.window), self.axis) for s in starts]
            return [np.ascontiguousarray(p) for p in pieces]
        return [np.ascontiguousarray(frame) for frame in x]

    def save(self) -> None:
        text = json.dumps(asdict(self), indent=1)
        (self.place / "case.json").write_text(text + "\n", "utf-8")


def load_case(folder: str | Path) -> Case:
    facts = json.loads((Path(folder) / "case.json").read_text("utf-8"))
    facts["outputs"] = [Output(**o) for o in facts["outputs"]]
    facts["step_outputs"] = [Output(**o) for o in facts["step_outputs"]]
    facts["states"] = [State(**{**s, "shape": tuple(s["shape"])}) for s in facts["states"]]
    return Case(**facts)


def _first(x: Array, axis: int, count: int) -> Array:
    return np.take(x, range(count), axis)


def time_first(value: Array, axis: int) -> Array:
    """An output with its axis of time in front; one frame where it has none (axis -1)."""
    return value[None] if axis < 0 else np.moveaxis(value, axis, 0)


Answers = dict[str, tuple[int, Array]]  # by output: the number of the first frame, and frames


def joined(case: Case, pieces: list[dict[str, Array]], outputs: list[Output], skip: int = 0) -> Answers:
    """The outputs of all steps along time, of the first lane. skip: steps before the first one."""
    found: Answers = {}
    for o in outputs:
        parts = [piece[o.name] for piece in pieces]
        if case.lanes > 1 and case.batch_axis >= 0:
            parts = [np.take(part, [0], case.batch_axis) for part in parts]
        found[o.name] = skip * o.frames - o.delay, np.concatenate([time_first(part, o.axis) for part in parts])
    return found
