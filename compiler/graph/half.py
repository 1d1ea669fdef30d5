"""Models in half precision, written in float32: float16 weights and ports, float32 arithmetic.

That is how onnxruntime runs them on a CPU: results of ops are not rounded to float16 in between, only where the model
gives them out. An integer that becomes a float16 is rounded as the model says. ``docs/quantised.md`` says more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import product

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runnel.compiler.graph.rotary_tables import sharpened

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
KEPT = 1 << 16
"""Elements of a constant from which on it stays float16 in the file, with a Cast behind it."""
PRODUCTS = ("MatMul", "Gemm", "Gather", "Conv", "Transpose")
TYPES = ("to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "stash_type", "precision")
WHOLE = (TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.UINT8, TensorProto.INT8)
COUNTS = ("Shape", "Size", "NonZero", "ArgMax", "ArgMin")
FLAGS = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf")


def in_half(model: onnx.ModelProto) -> bool:
    """Whether the model has float16 tensors."""
    return any(t.data_type == HALF for g in _graphs(model.graph) for t in _tensors(g)) or any(
        v.type.tensor_type.elem_type == HALF for g in _graphs(model.graph) for v in (*g.input, *g.output)
    )


def widen(model: onnx.ModelProto, plain: Collection[str] = ()) -> None:
    """Write the model's float16 tensors as float32, in place.

    Its inputs and outputs keep their type, with a Cast behind or before them, but for ``plain``, which no caller sees.
    """
    graph = model.graph
    first, last = [], []
    for port in (*graph.input, *graph.output):
        if port.name in plain:
            _widen_type(port.type)
    for port in graph.input:
        if port.type.tensor_type.elem_type == HALF:
            wide = f"{port.name}/single"
            _rename(graph, port.name, wide)
            first.append(helper.make_node("Cast", [port.name], [wide], name=wide, to=SINGLE))
    for port in graph.output:
        if port.type.tensor_type.elem_type == HALF:
            wide = f"{port.name}/single"
            _rename(graph, port.name, wide)
            last.append(helper.make_node("Cast", [wide], [port.name], name=f"{port.name}/half", to=HALF))
    read_by: dict[str, set[str]] = {}
    for node in (n for g in _graphs(graph) for n in g.node):
        for name in node.input:
            read_by.setdefault(name, set()).add(node.domain + node.op_type)
    _sharpen(graph)
    for tensor in graph.initializer:
        if tensor.data_type == HALF and np.prod(tensor.dims) >= KEPT and read_by.get(tensor.name, set()) <= {*PRODUCTS}:
            kept = f"{tensor.name}/half"
            first.append(helper.make_node("Cast", [kept], [tensor.name], name=kept, to=SINGLE))
            tensor.name = kept
        else:
            _widen_tensor(tensor)
    _widen_nodes(graph, {})
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)


def _sharpen(graph: onnx.GraphProto) -> None:
    """Write tables of rotary positions in float32, as they were before they were rounded."""
    begun: list[tuple[onnx.TensorProto, np.ndarray]] = []
    for tensor in graph.initializer:
        if tensor.data_type == HALF and len(tensor.dims) > 1 and np.prod(tensor.dims):
            values = numpy_helper.to_array(tensor)
            if np.ptp(values.reshape(-1, values.shape[-1])[0]) == 0:
                begun.append((tensor, values))
    for (cos, cosines), (sin, sines) in product(begun, begun):
        if cos.data_type == sin.data_type == HALF and (made := sharpened(cosines, sines)) is not None:
            cos.CopyFrom(numpy_helper.from_array(made[0], cos.name))
            sin.CopyFrom(numpy_helper.from_array(made[1], sin.name))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from (a.t for n in graph.node for a in n.attribute if a.HasField("t"))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for inner in _graphs(graph):
        for node in inner.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
    for tensor in graph.initializer:
        if tensor.name == old:
            tensor.name = new


def _widen_nodes(graph: onnx.GraphProto, outside: dict[str, int]) -> None:
    """Everything that a graph holds but its ports. outside: the types of what it may read from around it."""
    types = dict(outside)
    types |= {v.name: v.type.tensor_type.elem_type for v in graph.input}
    types |= {t.name: t.data_type for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        types |= dict.fromkeys(node.output, _type(node, types))
        whole = node.op_type == "Cast" and types.get(node.input[0]) in WHOLE and types[node.output[0]] == HALF
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("tp"):
                _widen_type(attribute.tp)
            if attribute.HasField("g"):
                _widen_body(attribute.g, types)
            if attribute.name in TYPES and attribute.i == HALF and not whole:
                attribute.i = SINGLE
        nodes.append(node)
        if whole:
            name = node.output[0]
            node.output[0] = f"{name}/half"
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/single", to=SINGLE))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.value_info:
        _widen_type(value.type)


def _widen_body(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    _widen_nodes(graph, types)
    for port in (*graph.input, *graph.output):
        _widen_type(port.type)


def _type(node: onnx.NodeProto, types: dict[str, int]) -> int:
    """The element type of a node's outputs as far as integers can be told from others."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype"):
            return int(attribute.i)
        if attribute.name == "value" and attribute.HasField("t"):
            return int(attribute.t.data_type)
    if node.op_type in COUNTS:
        return int(TensorProto.INT64)
    if node.op_type in FLAGS:
        return int(TensorProto.BOOL)
    place = {"Where": 1, "CastLike": 1, "DequantizeLinear": 1}.get(node.op_type, 0)
    return types.get(node.input[place], 0) if len(node.input) > place else 0


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == HALF:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32).reshape(values.shape), tensor.name))


def _widen_type(kind: onnx.TypeProto) -> None:
    """Of a tensor, or of a list of tensors."""
    if kind.HasField("sequence_type"):
        _widen_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _widen_type(kind.optional_type.elem_type)
    elif kind.tensor_type.elem_type == HALF:
        kind.tensor_type.elem_type = SINGLE
