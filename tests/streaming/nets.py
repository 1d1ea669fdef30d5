"""Small ONNX models for tests, built in a line or two a node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

TIME = "T"


class Net:
    """Collects nodes; every method that makes a tensor returns its name. Weights come from a seeded generator."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def input(self, shape: list[int | str], name: str = "x", dtype: str = "float32") -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, value: Any, dtype: str | None = None) -> str:
        array = np.asarray(value)
        if dtype is None:
            dtype = {"f": "float32", "i": "int64"}.get(array.dtype.kind, array.dtype.name)
        name = self.name("const")
        self.initializers.append(
            numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype)).reshape(array.shape), name)
        )
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        return self.const(self.rng.standard_normal(shape) * (scale if scale is not None else max(fan, 1) ** -0.5))

    def op(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """One node; a name, or a list of names for several outputs."""
        names = [self.name(op) for _ in range(outputs)]
        attrs = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(helper.make_node(op, list(inputs), names, name=self.name(f"node_{op}"), **attrs))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, cin: int, cout: int, kernel: int | list[int], bias: bool = True, **attrs: Any) -> str:
        size = [kernel] if isinstance(kernel, int) else kernel
        weight = self.weight(cout, cin // attrs.get("group", 1), *size)
        extra = [self.weight(cout)] if bias else []
        return self.op("Conv", x, weight, *extra, **attrs)

    def conv_transpose(self, x: str, cin: int, cout: int, kernel: int | list[int], **attrs: Any) -> str:
        size = [kernel] if isinstance(kernel, int) else kernel
        weight = self.weight(cin, cout // attrs.get("group", 1), *size, scale=(cin * int(np.prod(size))) ** -0.5)
        return self.op("ConvTranspose", x, weight, self.weight(cout), **attrs)

    def recurrent(self, op: str, x: str, size: int, hidden: int, initial: bool = False, outputs: int = 1,
                  bias: bool = True, **attrs: Any) -> Any:  # fmt: skip
        gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
        inputs = [x, self.weight(1, gates * hidden, size), self.weight(1, gates * hidden, hidden)]
        inputs.append(self.weight(1, 2 * gates * hidden, scale=0.3) if bias else "")
        if initial:
            inputs += ["", *(self.weight(1, 1, hidden) for _ in range(2 if op == "LSTM" else 1))]
        return self.op(op, *inputs, outputs=outputs, hidden_size=hidden, **attrs)

    def length(self, x: str, axis: int) -> str:
        """int64 (1,): the size of an axis, as exporters write it."""
        return self.op("Unsqueeze", self.op("Gather", self.op("Shape", x), self.const(axis), axis=0), self.const([0]))

    def _domains(self) -> dict[str, int]:
        return {"": self.opset} | {n.domain: 1 for n in self.nodes if n.domain}

    def model(self, *outputs: str, dtypes: dict[str, str] | None = None) -> bytes:
        ports = []
        for name in outputs:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype((dtypes or {}).get(name, "float32")))
            ports.append(helper.make_tensor_value_info(name, kind, None))
        graph = helper.make_graph(self.nodes, "net", self.inputs, ports, self.initializers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(d, v) for d, v in self._domains().items()],
            ir_version=8 if self.opset < 21 else 10,
        )
        model = onnx.shape_inference.infer_shapes(model)
        del model.graph.value_info[:]
        for port in model.graph.output:
            if not port.type.tensor_type.HasField("shape"):
                _give_rank(model, port)
        return bytes(model.SerializeToString())


class Turn:
    """The body of a loop, in a line a node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.count = 0

    def input(self, name: str, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def op(self, op: str, *inputs: str, **attrs: Any) -> str:
        self.count += 1
        name = f"turn_{op}_{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))
        return name

    def graph(self, *outputs: str, kinds: dict[str, int] | None = None) -> onnx.GraphProto:
        ports = [helper.make_tensor_value_info(o, (kinds or {}).get(o, TensorProto.FLOAT), None) for o in outputs]
        return helper.make_graph(self.nodes, "turn", self.inputs, ports)


def _give_rank(model: onnx.ModelProto, port: onnx.ValueInfoProto) -> None:
    """Shape inference gave up: the rank comes from running the model."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {}
    for i in model.graph.input:
        dims = [d.dim_value if d.HasField("dim_value") else 64 for d in i.type.tensor_type.shape.dim]
        feeds[i.name] = np.zeros(dims, helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type))
    rank = session.run([port.name], feeds)[0].ndim
    for i in range(rank):
        port.type.tensor_type.shape.dim.add().dim_param = f"{port.name}.{i}"


def stack(channels: int = 3, **options: Any) -> tuple[Net, str]:
    """A net with an input [1, channels, T]."""
    net = Net(**options)
    return net, net.input([1, channels, TIME])


__all__ = ["TIME", "Net", "TensorProto", "Turn", "stack"]
