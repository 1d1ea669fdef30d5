"""A step without recurrent cells: they become products and functions of elements, for runtimes that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array

OPSET = 13  # below it axes are attributes, which some runtimes no longer read
CELLS = {"GRU": 3, "LSTM": 4}  # and how many gates they have


def without_cells(path: Path) -> bytes | None:
    """The model with its constant parts computed and GRU and LSTM written out frame by frame; None where it has none.

    Raises ValueError for a cell with functions of its own, peepholes, clipping or lengths.
    """
    import onnx
    from onnx import numpy_helper

    if not any(node.op_type in CELLS for node in onnx.load(path, load_external_data=False).graph.node):
        return None
    model = folded(path)
    graph = model.graph
    cells = Cells({t.name: numpy_helper.to_array(t) for t in graph.initializer}, shapes_of(model))
    for node in graph.node:
        if node.op_type in CELLS:
            cells.write(node)
        else:
            cells.nodes.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(cells.nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in cells.made.items())
    return bytes(model.SerializeToString())


def folded(path: Path) -> Any:
    """What onnxruntime makes of a model before it looks at the machine, of opset 13 or later."""
    import onnx
    import onnxruntime as ort
    from onnx import version_converter

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_name("folded.onnx"))
    model = onnx.load(path)
    if model.opset_import[0].version < OPSET:
        model = version_converter.convert_version(model, OPSET)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path.with_name("folded.onnx"))


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


class Cells:
    """Collects the nodes of a graph and the constants that cells bring."""

    def __init__(self, constants: dict[str, Array], shapes: dict[str, tuple[int, ...]]) -> None:
        self.constants, self.shapes = constants, shapes
        self.nodes: list[Any] = []
        self.made: dict[str, Array] = {}
        self.prefix = ""

    def op(self, op: str, *inputs: str, output: str = "", **attrs: Any) -> str:
        from onnx import helper

        name = output or f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], f"node {name}", **attrs))
        return name

    def constant(self, value: Array) -> str:
        name = f"{self.prefix}/constant {len(self.made)}"
        self.made[name] = np.ascontiguousarray(value)
        return name

    def part(self, x: str, start: int, stop: int, axis: int) -> str:
        return self.op("Slice", x, *(self.constant(np.array([n], np.int64)) for n in (start, stop, axis)))

    def write(self, node: Any) -> None:
        """One cell, over frames [T, batch, inside]."""
        from onnx import helper

        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        names = [*node.input, *[""] * (8 - len(node.input))]
        x, w, r, b, lengths, h, c, peep = names[:8]
        odd = {"activations", "clip", "activation_alpha", "activation_beta"} & attrs.keys()
        if odd or lengths or peep or attrs.get("layout") or attrs.get("input_forget"):
            raise ValueError(f"{node.op_type} with {', '.join(sorted(odd)) or 'lengths, peepholes or another layout'}")
        self.prefix = f"{node.name or node.output[0]} in parts"
        direction = attrs.get("direction", b"forward").decode()
        turns = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
        weights, past = self.constants[w], self.constants[r]
        biases = self.constants[b] if b else np.zeros((len(turns), 2 * weights.shape[1]), np.float32)
        frames, batch, _ = self.shapes[x]
        rows, ends = [], []
        for d, backwards in enumerate(turns):
            states = [self.start(name, d, len(turns), batch, past.shape[2]) for name in (h, c)]
            cell = Gates(self, node.op_type, weights[d], past[d], biases[d], int(attrs.get("linear_before_reset", 0)))
            given = cell.given(x)
            made: list[str] = [""] * frames
            for t in reversed(range(frames)) if backwards else range(frames):
                states = cell.step(self.part(given, t, t + 1, 0) if frames > 1 else given, states)
                made[t] = states[0]
            rows.append(self.op("Concat", *made, axis=0) if frames > 1 else made[0])
            ends.append(states)
        one = self.constant(np.array([1], np.int64))
        outputs = [*node.output, *[""] * (3 - len(node.output))]
        if outputs[0]:
            rows = [self.op("Unsqueeze", row, one) for row in rows]
            self.joined(rows, 1, outputs[0])
        for k, name in enumerate(outputs[1 : 1 + len(states)]):
            if name:
                self.joined([end[k] for end in ends], 0, name)

    def joined(self, parts: list[str], axis: int, output: str) -> None:
        if len(parts) > 1:
            self.op("Concat", *parts, axis=axis, output=output)
        else:
            self.op("Identity", parts[0], output=output)

    def start(self, name: str, direction: int, directions: int, batch: int, hidden: int) -> str:
        """A state that the cell begins with, [1, batch, hidden]."""
        if not name:
            return self.constant(np.zeros((1, batch, hidden), np.float32))
        if name in self.constants:
            return self.constant(self.constants[name][direction : direction + 1])
        return self.part(name, direction, direction + 1, 0) if directions > 1 else name


class Gates:
    """A cell in one direction. w: [gates · hidden, inside], r: [gates · hidden, hidden], b: [2 · gates · hidden]."""

    def __init__(self, cells: Cells, op: str, w: Array, r: Array, b: Array, linear_before_reset: int) -> None:
        self.cells, self.lstm, self.hidden = cells, op == "LSTM", r.shape[1]
        self.apart = not self.lstm and not linear_before_reset
        shared = 2 * self.hidden if self.apart else len(r)
        given, past = np.split(b, 2)
        self.w, self.r, self.last = (cells.constant(m.T) for m in (w, r[:shared], r[shared:]))
        self.biases = [cells.constant(v) for v in (given, past[:shared], past[shared:])]

    def given(self, x: str) -> str:
        return self.cells.op("Add", self.cells.op("MatMul", x, self.w), self.biases[0])

    def gate(self, x: str, number: int) -> str:
        return self.cells.part(x, number * self.hidden, (number + 1) * self.hidden, 2)

    def step(self, given: str, states: list[str]) -> list[str]:
        op, gate = self.cells.op, self.gate
        h, c = states
        past = op("Add", op("MatMul", h, self.r), self.biases[1])
        if self.lstm:
            both = op("Add", given, past)
            into, out, forget = (op("Sigmoid", gate(both, k)) for k in range(3))
            c = op("Add", op("Mul", forget, c), op("Mul", into, op("Tanh", gate(both, 3))))
            return [op("Mul", out, op("Tanh", c)), c]
        keep, reset = (op("Sigmoid", op("Add", gate(given, k), gate(past, k))) for k in range(2))
        if self.apart:
            last = op("Add", op("MatMul", op("Mul", reset, h), self.last), self.biases[2])
        else:
            last = op("Mul", reset, gate(past, 2))
        new = op("Tanh", op("Add", gate(given, 2), last))
        return [op("Add", new, op("Mul", keep, op("Sub", h, new))), c]
