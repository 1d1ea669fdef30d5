"""LiteRT (TensorFlow Lite) with XNNPACK."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array, Case
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, PythonRun, StepRun, signature


def interpreter(path: str) -> Any:
    """Ready to be invoked, on one thread."""
    made = import_module("ai_edge_litert.interpreter").Interpreter(path, num_threads=1)
    made.allocate_tensors()
    return made


class Given(PythonRun):
    """The model that its authors published for it. Its integers are not those of the ONNX model, only the network."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.interpreter = interpreter(str(case.place / case.tflite))
        self.x, self.y = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
        self.give(case.steps()[0])
        self.step = self.interpreter.invoke

    def give(self, x: Array) -> None:
        if x.dtype.kind == "f":
            scale, zero = self.x["quantization"]
            x = np.clip(np.rint(x / scale) + zero, -128, 127)
        self.interpreter.set_tensor(self.x["index"], x.astype(self.x["dtype"]).reshape(self.x["shape"]))

    def answers(self) -> Any:
        output = self.case.outputs[0]
        parts = []
        for piece in self.case.steps():
            self.give(piece)
            self.interpreter.invoke()
            value = self.interpreter.get_tensor(self.y["index"])
            if self.case.expected()[output.name].dtype.kind == "f":
                scale, zero = self.y["quantization"]
                value = (value.astype(np.float32) - zero) * scale
            parts.append(value.copy())
        return {output.name: (0, np.stack(parts))}


class Written(StepRun):
    """The step as our writer makes it; states are copied from outputs to inputs."""

    def convert(self) -> None:
        from runnel.tools.benchmark import tflite, tflite_moves, tflite_ops  # noqa: F401  # registers the ops

        place = self.case.place
        plain = (place / "plain.onnx").exists()
        path = place / ("plain.onnx" if plain else "step.onnx")
        try:
            data, self.orders = tflite.Writer(path).convert({s.made: s.given for s in self.case.states})
        except tflite.Unsupported as lacking:
            raise CannotRun(f"our writer of its files lacks it: {lacking}") from None
        (place / "step.tflite").write_bytes(data)
        self.interpreter = interpreter(str(place / "step.tflite"))
        self.given, self.made = signature(path)
        self.inputs = dict(zip(self.given, (d["index"] for d in self.interpreter.get_input_details())))
        self.outputs = dict(zip(self.made, (d["index"] for d in self.interpreter.get_output_details())))
        self.places = [(self.inputs[s.given], self.outputs[s.made]) for s in self.case.states]

    def _stored(self, name: str, value: Array) -> Array:
        """In the order that the file wants; it knows int8 alone."""
        order = self.orders[name]
        axes = [a for a in order if a >= 0]
        if value.dtype == np.uint8:
            value = (value ^ 128).view(np.int8)
        return np.ascontiguousarray(value.transpose(axes).reshape([1 if a < 0 else value.shape[a] for a in order]))

    def _natural(self, name: str, value: Array) -> Array:
        """Back from it."""
        order = [a for a in self.orders[name] if a >= 0]
        sizes = [n for n, a in zip(value.shape, self.orders[name]) if a >= 0]
        return value.reshape(sizes).transpose(np.argsort(order))

    def reset(self) -> None:
        self.kept = [self._stored(s.given, self.case.start(s)) for s in self.case.states]

    def held(self) -> list[Array]:
        return self.kept

    def take(self, held: Any) -> None:
        self.kept = held

    def give(self, x: Array) -> None:
        self.interpreter.set_tensor(self.inputs[self.case.input], self._stored(self.case.input, x))

    def advance(self) -> None:
        get, put = self.interpreter.get_tensor, self.interpreter.set_tensor
        for (given, _), value in zip(self.places, self.kept):
            put(given, value)
        self.interpreter.invoke()
        self.kept = [get(made) for _, made in self.places]

    def results(self) -> dict[str, Array]:
        found = {o.name: self.interpreter.get_tensor(self.outputs[o.name]) for o in self.case.step_outputs}
        return {name: np.ascontiguousarray(self._natural(name, value)) for name, value in found.items()}


def _open(case: Case) -> PythonRun:
    return Given(case) if case.tflite else Written(case)


CONTENDERS = [Contender("LiteRT", "ai-edge-litert", _open)]
