"""Norms, activations and tables that onnxruntime's tools put into a model, written in the standard's ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"


class _Parts:
    """The nodes in the place of one."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto, opset: int) -> None:
        self.graph, self.node, self.opset = graph, node, opset
        self.attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.nodes: list[onnx.NodeProto] = []
        self.stem = node.name or node.output[0]

    def input(self, i: int) -> str:
        return self.node.input[i] if i < len(self.node.input) else ""

    def output(self, i: int) -> str:
        return self.node.output[i] if i < len(self.node.output) else ""

    def const(self, value: Any, dtype: str = "float32") -> str:
        name = f"{self.stem}/const{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, op: str, *inputs: str, output: str = "", **attrs: Any) -> str:
        name = output or f"{self.stem}/{op}{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [name], name=f"{self.stem}/{op}{len(self.nodes)}", **attrs)
        )
        return name

    def mean(self, x: str, axis: int) -> str:
        """Over the axes from ``axis`` on, which is the last."""
        if self.opset >= 18:
            return self.add("ReduceMean", x, self.const([axis], "int64"), keepdims=1)
        return self.add("ReduceMean", x, axes=[axis], keepdims=1)

    def summed(self, *names: str) -> str:
        """The sum of those that are there, also given out where the op does."""
        there = [n for n in names if n]
        total = there[0]
        for i, name in enumerate(there[1:]):
            last = i == len(there) - 2
            total = self.add("Add", total, name, output=self.output(3) if last else "")
        return total


def _simplified(p: _Parts, x: str, scale: str) -> None:
    axis = int(p.attrs.get("axis", -1))
    square = p.mean(p.add("Mul", x, x), axis)
    root = p.add("Sqrt", p.add("Add", square, p.const(p.attrs.get("epsilon", 1e-5))))
    p.add("Mul", p.add("Div", x, root), scale, output=p.output(0))


def _simplified_norm(p: _Parts) -> bool:
    if p.output(1) or int(p.attrs.get("axis", -1)) != -1:
        return False
    _simplified(p, p.input(0), p.input(1))
    return True


def _skip_simplified(p: _Parts) -> bool:
    if p.output(1) or p.output(2):
        return False
    _simplified(p, p.summed(p.input(0), p.input(1), p.input(3)), p.input(2))
    return True


def _skip_norm(p: _Parts) -> bool:
    if p.output(1) or p.output(2):
        return False
    x = p.summed(p.input(0), p.input(1), p.input(4))
    centred = p.add("Sub", x, p.mean(x, -1))
    square = p.mean(p.add("Mul", centred, centred), -1)
    root = p.add("Sqrt", p.add("Add", square, p.const(p.attrs.get("epsilon", 1e-12))))
    scaled = p.add("Mul", p.add("Div", centred, root), p.input(2), output="" if p.input(3) else p.output(0))
    if p.input(3):
        p.add("Add", scaled, p.input(3), output=p.output(0))
    return True


def _erf_gelu(p: _Parts) -> bool:
    x = p.add("Add", p.input(0), p.input(1)) if p.input(1) else p.input(0)
    erf = p.add("Erf", p.add("Mul", x, p.const(0.5**0.5)))
    p.add("Mul", p.add("Mul", x, p.const(0.5)), p.add("Add", erf, p.const(1.0)), output=p.output(0))
    return True


def _fast_gelu(p: _Parts) -> bool:
    x = p.add("Add", p.input(0), p.input(1)) if p.input(1) else p.input(0)
    cube = p.add("Mul", p.add("Mul", x, x), x)
    inner = p.add("Mul", p.add("Add", x, p.add("Mul", cube, p.const(0.044715))), p.const((2 / np.pi) ** 0.5))
    gate = p.add("Add", p.add("Tanh", inner), p.const(1.0))
    p.add("Mul", p.add("Mul", x, p.const(0.5)), gate, output=p.output(0))
    return True


def _quick_gelu(p: _Parts) -> bool:
    gate = p.add("Sigmoid", p.add("Mul", p.input(0), p.const(p.attrs.get("alpha", 1.702))))
    p.add("Mul", p.input(0), gate, output=p.output(0))
    return True


def _gather_blocks(p: _Parts) -> bool:
    """A table of codes with a scale for each block, as the table of floats that it stands for."""
    known = {t.name: t for t in p.graph.initializer}
    if any(name and name not in known for name in (p.input(0), p.input(2), p.input(3))):
        return False
    bits, block = int(p.attrs.get("bits", 4)), int(p.attrs.get("block_size", 128))
    axis = int(p.attrs.get("gather_axis", 0))
    codes, zeros = _codes(known[p.input(0)], bits), None
    scales = numpy_helper.to_array(known[p.input(2)]).astype(np.float32)
    if codes is None or int(p.attrs.get("quantize_axis", 1)) % codes.ndim != codes.ndim - 1:
        return False
    if p.input(3):
        zeros = _codes(known[p.input(3)], bits)
        zeros = None if zeros is None else zeros[..., : scales.shape[-1]]
    elif known[p.input(0)].data_type == onnx.TensorProto.UINT8:
        zeros = np.array(1 << (bits - 1), np.float32)
    wide = (
        np.repeat(v, block, -1)[..., : codes.shape[-1]] if np.ndim(v) else v for v in (scales, zeros) if v is not None
    )
    scale, *zero = wide
    p.add("Gather", p.const((codes - zero[0] if zero else codes) * scale), p.input(1), output=p.output(0), axis=axis)
    return True


def _codes(tensor: onnx.TensorProto, bits: int) -> np.ndarray | None:
    """Codes as float32, two of each byte where they are packed."""
    kinds = onnx.TensorProto
    if tensor.data_type in (kinds.INT4, kinds.UINT4) or bits == 8:
        return np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
    if tensor.data_type != kinds.UINT8 or bits != 4:
        return None
    packed = np.asarray(numpy_helper.to_array(tensor))
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1).astype(np.float32)


FORMS: dict[tuple[str, str], Callable[[_Parts], bool]] = {
    ("", "SimplifiedLayerNormalization"): _simplified_norm,
    (MICROSOFT, "SimplifiedLayerNormalization"): _simplified_norm,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_simplified,
    (MICROSOFT, "SkipLayerNormalization"): _skip_norm,
    (MICROSOFT, "Gelu"): _erf_gelu,
    (MICROSOFT, "BiasGelu"): _erf_gelu,
    (MICROSOFT, "FastGelu"): _fast_gelu,
    (MICROSOFT, "QuickGelu"): _quick_gelu,
    (MICROSOFT, "GatherBlockQuantized"): _gather_blocks,
}


def in_standard_ops(model: onnx.ModelProto, opset: int) -> None:
    """Write onnxruntime's own norms, activations and tables of codes in the standard's ops, in place; one that gives
    more than its result stays as it is."""
    _rewrite(model.graph, opset)


def _rewrite(graph: onnx.GraphProto, opset: int) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rewrite(attribute.g, opset)
    if not any((n.domain, n.op_type) in FORMS for n in graph.node):
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        make = FORMS.get((node.domain, node.op_type))
        parts = _Parts(graph, node, opset)
        nodes += parts.nodes if make is not None and make(parts) else [node]
    del graph.node[:]
    graph.node.extend(nodes)
