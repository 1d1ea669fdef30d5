"""LiteRT (TensorFlow Lite) with XNNPACK."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array, Case
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, PythonRun


def interpreter(path: str) -> Any:
    """Ready to be invoked, on one thread."""
    made = import_module("ai_edge_litert.interpreter").Interpreter(path, num_threads=1)
    made.allocate_tensors()
    return made


class Given(PythonRun):
    """The model that its authors published for it. Its integers are not those of the ONNX model, only the network."""

    def __init__(self, case: Case) -> None:
        if not case.tflite:
            raise CannotRun("there is no model of it in this form")
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


CONTENDERS = [Contender("LiteRT", "ai-edge-litert", Given)]
