"""ncnn, with the step converted by its pnnx."""

from __future__ import annotations

import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, StepRun

PATIENCE = 120


class Step(StepRun):
    """An extractor a step; states go from outputs to inputs as ncnn's own matrices."""

    def convert(self) -> None:
        if self.case.codes:
            raise CannotRun("its int8 comes from its own calibration, not from a model's codes")
        if self.case.lanes > 1:
            raise CannotRun("its tensors have no batch")
        ncnn = import_module("ncnn")
        found = find_spec("pnnx")
        if found is None or found.origin is None:
            raise CannotRun("its converter is missing: pip install --no-deps pnnx")
        line = [str(Path(found.origin).with_name("pnnx")), "step.onnx", "fp16=0"]  # its Python part needs torch
        try:
            done = subprocess.run(line, cwd=self.case.folder, capture_output=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            raise CannotRun(f"pnnx takes more than {PATIENCE} s") from None
        if done.returncode != 0:
            raise CannotRun(f"pnnx fails (code {done.returncode})")
        self.ncnn, self.net = ncnn, ncnn.Net()
        self.net.opt.num_threads = 1
        self.net.opt.use_vulkan_compute = False
        for name in dir(self.net.opt):
            if "fp16" in name or "bf16" in name:
                setattr(self.net.opt, name, False)
        place = self.case.place
        if self.net.load_param(str(place / "step.ncnn.param")) or self.net.load_model(str(place / "step.ncnn.bin")):
            raise CannotRun("it does not load what pnnx makes of the model")
        self.states = [(self.given.index(s.given), self.made.index(s.made)) for s in self.case.states]
        self.values: dict[int, Any] = {}

    def _matrix(self, value: Array) -> Any:
        """Without the axis of the batch."""
        value = value[0] if value.ndim > 1 and value.shape[0] == 1 else value
        if value.ndim > 4:
            raise CannotRun("its tensors have four dimensions at most")
        return self.ncnn.Mat(np.ascontiguousarray(value, np.float32)).clone()

    def reset(self) -> None:
        self.inputs = {self.given.index(s.given): self._matrix(self.case.start(s)) for s in self.case.states}

    def give(self, x: Array) -> None:
        self.inputs[self.given.index(self.case.input)] = self._matrix(x)

    def advance(self) -> None:
        extractor = self.net.create_extractor()
        for i, value in self.inputs.items():
            extractor.input(f"in{i}", value)
        self.values = {}
        for o in range(len(self.made)):
            code, self.values[o] = extractor.extract(f"out{o}")
            if code:
                raise CannotRun(f"gives no '{self.made[o]}' (code {code})")
        for i, o in self.states:
            self.inputs[i] = self.values[o]

    def results(self) -> dict[str, Array]:
        return {name: np.array(self.values[o]) for o, name in enumerate(self.made)}


CONTENDERS = [Contender("ncnn", "ncnn", Step)]
