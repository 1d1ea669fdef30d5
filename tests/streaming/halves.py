"""Float32 models as exporters write them in half precision."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

TOLERANCE = 4 * 2.0**-11
"""Of the range, beside onnxruntime's float16 run, which rounds here and there in between: four times a rounding."""
ALWAYS_SINGLE = {"Resize": 2}
"""Inputs that are float32 whatever the data: the scales of a Resize."""


def in_half(model: bytes) -> bytes:
    """The model with float16 in place of float32 everywhere."""
    proto = onnx.load_from_string(model)
    _graph(proto.graph)
    return bytes(proto.SerializeToString())


def _graph(graph: onnx.GraphProto) -> None:
    single = {n.input[i] for n in graph.node if (i := ALWAYS_SINGLE.get(n.op_type, 99)) < len(n.input)}
    for tensor in graph.initializer:
        if tensor.name not in single:
            _tensor(tensor)
    for port in (*graph.input, *graph.output, *graph.value_info):
        if port.type.tensor_type.elem_type == TensorProto.FLOAT:
            port.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _tensor(attribute.t)
            if attribute.HasField("g"):
                _graph(attribute.g)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16


def _tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
