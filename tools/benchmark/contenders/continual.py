"""continual-inference, for the nets of its modules: residual stacks of convolutions over time, and recurrent layers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Answers, Array, Case
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, PythonRun

FOREIGN = "it takes modules of PyTorch, and none are written for this model"
ORDERS = {"GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}  # where PyTorch's gates are among ONNX's


class Step(PythonRun):
    """forward_step, without gradients, frame by frame."""

    def __init__(self, case: Case) -> None:
        if case.kind != "stream" or case.lanes > 1:
            raise CannotRun(FOREIGN)
        import onnx
        from onnx import numpy_helper

        self.torch: Any = import_module("torch")
        self.torch.set_num_threads(1)
        self.torch.set_grad_enabled(False)
        self.co: Any = import_module("continual")
        self.case = case
        graph = onnx.load(case.place / "model.onnx").graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        kinds = {node.op_type for node in graph.node}
        if kinds <= {"GRU", "LSTM", "Squeeze"}:
            self.make = lambda: self.recurrent(graph.node[0])
        elif kinds <= {"Conv", "Relu", "Add"}:
            self.make = lambda: self.stack([node for node in graph.node if node.op_type == "Conv"])
        else:
            raise CannotRun(FOREIGN)
        x = np.moveaxis(case.recording(), case.axis, 0)
        frames = x.reshape(len(x), 1, -1)  # (frames, batch, features)
        self.frames = [self.torch.from_numpy(np.ascontiguousarray(frame)) for frame in frames]
        self.shape = case.expected()[case.outputs[0].name].shape[1:]
        self.model = self.make()
        newest, forward = self.frames[-case.hop :], self.model.forward_step
        self.step = (lambda: forward(newest[0])) if case.hop == 1 else (lambda: [forward(frame) for frame in newest])

    def stack(self, convolutions: list[Any]) -> Any:
        """x + relu(conv(x)), as often as there are convolutions."""
        layers = []
        for node in convolutions:
            weight, bias = (self._tensor(self.constants[name]) for name in node.input[1:3])
            attrs = {a.name: list(a.ints) for a in node.attribute}
            outside, inside, kernel = weight.shape
            try:
                layer = self.co.Conv1d(inside, outside, kernel, padding=kernel - 1, dilation=attrs["dilations"][0])
            except AssertionError as refused:
                raise CannotRun(str(refused)) from None
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
            layers.append(self.co.Residual(self.co.Sequential(layer, self.torch.nn.ReLU())))
        return self.co.Sequential(*layers).eval()

    def recurrent(self, node: Any) -> Any:
        """A layer with ONNX's weights, whose gates are in another order."""
        w, r, b = (self.constants[name][0] for name in node.input[1:4])
        hidden = r.shape[1]
        layer = getattr(self.co, node.op_type)(w.shape[1], hidden)
        rows = np.concatenate([np.arange(hidden) + k * hidden for k in ORDERS[node.op_type]])
        layer.weight_ih_l0.copy_(self._tensor(w[rows]))
        layer.weight_hh_l0.copy_(self._tensor(r[rows]))
        layer.bias_ih_l0.copy_(self._tensor(b[: len(rows)][rows]))
        layer.bias_hh_l0.copy_(self._tensor(b[len(rows) :][rows]))
        return layer.eval()

    def _tensor(self, value: Array) -> Any:
        return self.torch.from_numpy(np.array(value, order="C"))

    def answers(self) -> Answers:
        model = self.make()
        made = [(n, model.forward_step(frame)) for n, frame in enumerate(self.frames)]
        made = [(n, y) for n, y in made if isinstance(y, self.torch.Tensor)]  # before that it only fills its states
        if not made:
            raise CannotRun("gives no frame at all")
        values = np.stack([np.array(y).reshape(self.shape) for _, y in made])
        return {self.case.outputs[0].name: (made[0][0], values)}


CONTENDERS = [Contender("continual-inference", "continual-inference", Step)]
