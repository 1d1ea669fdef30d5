"""A step of a quantised stack of causal convolutions whose states are codes, for runtimes with integer convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array, State


def coded_step(path: Path, hop: int) -> tuple[bytes, list[State]] | None:
    """The model as a step of ``hop`` frames, and its states; None where it is anything but such a stack.

    Before each convolution the codes of its past come in (s<i>), and those of the next step's go out (n<i>).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    states: list[State] = []
    ports, made = [], []
    for node in graph.node:
        if node.op_type not in ("Conv", "Relu", "Add", "QuantizeLinear", "DequantizeLinear"):
            return None
        if node.op_type != "Conv":
            made.append(node)
            continue
        decoded = makers.get(node.input[0])
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        pads, dilations = list(attrs.get("pads", [0, 0])), list(attrs.get("dilations", [1]))
        kernel, inside = (
            list(attrs["kernel_shape"]),
            attrs.get("group", 1) * _shape(node.input[1], makers, constants)[1],
        )
        span = (kernel[0] - 1) * dilations[0]
        causal = len(kernel) == 1 and pads == [span, 0] and list(attrs.get("strides", [1])) == [1]
        if decoded is None or decoded.op_type != "DequantizeLinear" or not causal:
            return None
        codes, scale, zero = decoded.input
        value = constants[zero].reshape(-1)[0]
        if span:
            i = len(states)
            states.append(State(f"s{i}", f"n{i}", (1, inside, span), str(value.dtype), float(value)))
            kind = TensorProto.UINT8 if value.dtype == np.uint8 else TensorProto.INT8
            ports.append([helper.make_tensor_value_info(n, kind, [1, inside, span]) for n in (f"s{i}", f"n{i}")])
            bounds = [(f"b{i}_{k}", n) for k, n in enumerate((hop, hop + span, 2))]
            graph.initializer.extend(numpy_helper.from_array(np.array([n], np.int64), name) for name, n in bounds)
            made += [
                helper.make_node("Concat", [f"s{i}", codes], [f"j{i}"], f"join {i}", axis=2),
                helper.make_node("Slice", [f"j{i}", *(name for name, _ in bounds)], [f"n{i}"], f"keep {i}"),
                helper.make_node("DequantizeLinear", [f"j{i}", scale, zero], [f"d{i}"], f"decode {i}"),
            ]
            node.input[0] = f"d{i}"
        for a in list(node.attribute):
            if a.name == "pads":
                node.attribute.remove(a)
        made.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(made)
    for port in (*graph.input, *graph.output):
        port.type.tensor_type.shape.dim[2].dim_value = hop
    graph.input.extend(given for given, _ in ports)
    graph.output.extend(kept for _, kept in ports)
    return bytes(model.SerializeToString()), states


def _shape(name: str, makers: dict[str, Any], constants: dict[str, Array]) -> tuple[int, ...]:
    """Of a weight, maybe behind a DequantizeLinear."""
    return constants[name].shape if name in constants else constants[makers[name].input[0]].shape
