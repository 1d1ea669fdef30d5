"""MNN, with the step converted by its own converter."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, StepRun


class Step(StepRun):
    """A session; states are copied from its outputs to its inputs."""

    def convert(self) -> None:
        place = self.case.place
        # the extension module behind its command, which would install packages and send statistics
        import_module("_tools").mnnconvert(
            ["mnnconvert", "-f", "ONNX", "--modelFile", str(place / "step.onnx"), "--MNNModel", str(place / "step.mnn"),
             "--bizCode", "bench"]
        )  # fmt: skip
        if not (place / "step.mnn").exists():
            raise CannotRun("its converter makes nothing of the model")
        self.mnn = mnn = import_module("MNN")
        self.kinds = {"f": (mnn.Halide_Type_Float, np.float32), "i": (mnn.Halide_Type_Int, np.int32)}
        self.interpreter = mnn.Interpreter(str(place / "step.mnn"))
        self.session = self.interpreter.createSession({"numThread": 1, "backend": "CPU", "precision": "high"})
        self.inputs = self.interpreter.getSessionInputAll(self.session)
        self.outputs = self.interpreter.getSessionOutputAll(self.session)
        if missing := set(self.made) - set(self.outputs):
            raise CannotRun(f"its form of the model lacks the output '{missing.pop()}'")
        self.carried: list[tuple[Any, Any, Any]] = []
        for s in self.case.states:
            self.carried.append((self.outputs[s.made], self._host(self.case.start(s)), self.inputs[s.given]))

    def _host(self, value: Array) -> Any:
        if value.dtype != np.float32:
            raise CannotRun(f"its tensors are not filled from {value.dtype}")
        array = np.ascontiguousarray(value)
        return self.mnn.Tensor(array.shape, self.mnn.Halide_Type_Float, array, self.mnn.Tensor_DimensionType_Caffe)

    def reset(self) -> None:
        self.ran = False
        for s in self.case.states:
            self.inputs[s.given].copyFrom(self._host(self.case.start(s)))

    def carry(self) -> None:
        """States of the run before, once its outputs were read: inputs may lie in the memory of outputs."""
        if self.ran:
            for made, host, _ in self.carried:
                made.copyToHostTensor(host)
            for _, host, given in self.carried:
                given.copyFrom(host)
        self.ran = False

    def give(self, x: Array) -> None:
        self.carry()
        self.inputs[self.case.input].copyFrom(self._host(x))

    def advance(self) -> None:
        self.carry()
        self.interpreter.runSession(self.session)
        self.ran = True

    def results(self) -> dict[str, Array]:
        found = {}
        for o in self.case.step_outputs:
            tensor = self.outputs[o.name]
            shape = tensor.getShape()
            if 0 in shape:
                raise CannotRun("it finds no shapes for the model")
            host = self._host(np.zeros(shape, np.float32))
            tensor.copyToHostTensor(host)
            found[o.name] = np.array(host.getNumpyData())
        return found


CONTENDERS = [Contender("MNN", "MNN", Step)]
