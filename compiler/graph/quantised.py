"""Quantised graphs in one form: sums of codes in int32, one float32 multiplier, rounding half to even.

DequantizeLinear → Conv, MatMul, Gemm or an average → QuantizeLinear is written as that sum of codes; QLinear ops
(qlinear.py) are written out as what onnxruntime computes for them; a function of one code becomes a table (tables.py).
What is left is exact element by element, so every backend gives the same codes. ``docs/quantised.md`` says what differs
from onnxruntime's own run of the exported graph, and how often.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx

from runnel.compiler.graph.fold import captured_names, fold, to_proto
from runnel.compiler.graph.model import Graph, Node

CODES = ("int8", "uint8")
KEEPS_TYPE = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Concat", "MaxPool", "Identity",
              "Pad", "Gather", "Split", "Expand")  # fmt: skip
AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum")
LARGEST_PRODUCT = 255 * 255
FLOAT, INT32 = 1, 6


@dataclass(frozen=True)
class Codes:
    """A tensor of codes: value = (code - zero) · scale. scale: float32; zero: of the codes' type."""

    name: str
    scale: np.ndarray
    zero: np.ndarray


@dataclass(frozen=True)
class Weights:
    """Constant codes. scale: one, or one an output."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray


@dataclass(frozen=True)
class Ending:
    """What follows a sum: Relu and Clip nodes, then QuantizeLinear with one scale."""

    between: list[Node]
    last: Node
    scale: np.ndarray
    zero: np.ndarray


class Rewriter:
    """Walks the nodes in order and writes new ones; handlers say whether they replaced the node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = {o: n for n in graph.nodes for o in n.outputs if o}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.inputs:
                self.readers[name].append(node)
        self.kept = {p.name for p in graph.outputs}
        for value in (v for n in graph.nodes for v in n.attrs.values() if isinstance(v, onnx.GraphProto)):
            self.kept |= captured_names(value)
        self.nodes: list[Node] = []
        self.done: set[int] = set()
        self.sums = 0
        self._names = 0

    # Reading ----------------------------------------------------------------------------------------------------------

    def constant(self, node: Node, i: int) -> np.ndarray | None:
        """Input i where it is a constant."""
        return self.graph.constants.get(node.inputs[i]) if i < len(node.inputs) else None

    def type_of(self, name: str) -> str | None:
        """The element type of a tensor of codes; None where it is not clear."""
        if name in self.graph.constants:
            return str(self.graph.constants[name].dtype)
        for port in self.graph.inputs:
            if port.name == name:
                return port.dtype
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op == "QuantizeLinear":
            zero = self.constant(node, 2)
            return "uint8" if zero is None else str(zero.dtype)
        return self.type_of(node.inputs[0]) if node.op in KEEPS_TYPE else None

    def codes(self, name: str) -> Codes | None:
        """The 8-bit codes behind a DequantizeLinear with one scale."""
        node = self.producers.get(name)
        if node is None or node.op != "DequantizeLinear" or node.inputs[0] in self.graph.constants:
            return None
        scale, kind = self.constant(node, 1), self.type_of(node.inputs[0])
        zero = self.constant(node, 2) if len(node.inputs) > 2 and node.inputs[2] else np.zeros((), kind or "uint8")
        if scale is None or zero is None or scale.size != 1 or kind not in CODES or scale.dtype != np.float32:
            return None
        return Codes(node.inputs[0], scale.reshape(()), zero.reshape(()))

    def weights(self, name: str, axis: int) -> Weights | None:
        """Constant 8-bit (or smaller) codes with one scale or one along ``axis``."""
        node = self.producers.get(name)
        if node is not None and node.op == "Transpose" and list(node.attrs.get("perm", (1, 0))) == [1, 0]:
            turned = self.weights(node.inputs[0], 1 - axis)
            return turned and Weights(np.ascontiguousarray(turned.codes.T), turned.scale, turned.zero)
        if node is None or node.op != "DequantizeLinear" or node.attrs.get("block_size"):
            return None
        codes, scale = self.constant(node, 0), self.constant(node, 1)
        if codes is None or scale is None or scale.dtype != np.float32:
            return None
        zero = self.constant(node, 2) if len(node.inputs) > 2 and node.inputs[2] else np.zeros((), codes.dtype)
        along = int(node.attrs.get("axis", 1)) % max(codes.ndim, 1)
        if zero is None or (max(scale.size, zero.size) > 1 and along != axis):
            return None
        return plain_weights(codes, scale.reshape(-1), zero, axis)

    def sole_reader(self, name: str) -> Node | None:
        """The only node that reads a tensor, if nothing else needs it."""
        return self.readers[name][0] if len(self.readers[name]) == 1 and name not in self.kept else None

    def ending(self, name: str) -> Ending | None:
        """Relu and Clip, then QuantizeLinear to 8 bits, behind a tensor that nothing else reads."""
        between: list[Node] = []
        while (node := self.sole_reader(name)) is not None:
            if node.op == "QuantizeLinear":
                scale, zero = self.constant(node, 1), self.constant(node, 2)
                if zero is None and len(node.inputs) < 3:
                    zero = np.zeros((), np.uint8)
                if scale is None or zero is None or scale.size != 1 or str(zero.dtype) not in CODES:
                    return None
                return Ending(between, node, scale.reshape(()), zero.reshape(()))
            bounds = all(self.constant(node, i) is not None for i in range(1, len(node.inputs)) if node.inputs[i])
            if node.op != "Relu" and not (node.op == "Clip" and bounds and node.inputs[0] == name):
                return None
            between.append(node)
            name = node.outputs[0]
        return None

    # Writing ----------------------------------------------------------------------------------------------------------

    def const(self, value: Any, dtype: Any = None) -> str:
        name = self._fresh("runnel.quantised")
        self.graph.constants[name] = np.array(value, dtype)
        return name

    def _fresh(self, prefix: str) -> str:
        while True:
            self._names += 1
            name = f"{prefix}.{self._names}"
            if name not in self.graph.constants and name not in self.producers:
                return name

    def node(self, like: Node, op: str, inputs: list[str], output: str | None = None, **attrs: Any) -> str:
        """A new node; its name says which node it comes from."""
        name = self._fresh(f"{like.name}/{op}")
        output = output or name
        self.nodes.append(Node(op, name, inputs, [output], attrs))
        return output

    def quantised(self, node: Node, value: str, multiplier: np.ndarray, end: Ending) -> None:
        """value · multiplier, what follows, and the rounding: everything up to the end's output."""
        value = self.node(node, "Mul", [value, self.const(multiplier, np.float32)])
        for between in end.between:
            bounds = [self.constant(between, i) for i in range(1, len(between.inputs))]
            scaled = ["" if b is None else self.const(np.float32(b) / end.scale) for b in bounds]
            value = self.node(between, between.op, [value, *scaled])
        one = self.const(1.0, np.float32)
        self.node(end.last, "QuantizeLinear", [value, one, self.const(end.zero)], end.last.outputs[0])
        self.done.update(id(n) for n in (*end.between, end.last))

    def total(self, node: Node, total: str, scale: np.ndarray, bias: np.ndarray | None, output: str) -> None:
        """An int32 sum in the scale of its codes, and what ends it. scale, bias: in the shape of the output.

        bias: int32, or float32 where it is no whole number of steps.
        """
        self.sums += 1
        end = None if bias is not None and bias.dtype != np.int32 else self.ending(output)
        if bias is not None and bias.dtype == np.int32:
            total = self.node(node, "Add", [total, self.const(bias)])
        value = self.node(node, "Cast", [total], to=FLOAT)
        if end is not None:
            self.quantised(node, value, scale / end.scale, end)
        elif bias is None or bias.dtype == np.int32:
            self.node(node, "Mul", [value, self.const(scale, np.float32)], output)
        else:
            value = self.node(node, "Mul", [value, self.const(scale, np.float32)])
            self.node(node, "Add", [value, self.const(bias)], output)

    def bias(self, name: str, scale: np.ndarray) -> np.ndarray | None:
        """A constant bias (outputs,): int32 in steps of the sum where it is stored so, else float32; None if not
        constant."""
        value = self.graph.constants.get(name)
        node = self.producers.get(name)
        if value is not None:
            return value.reshape(-1) if value.dtype == np.float32 else None
        if node is None or node.op != "DequantizeLinear":
            return None
        codes, steps = self.constant(node, 0), self.constant(node, 1)
        zero = self.constant(node, 2)
        if codes is None or steps is None or (zero is not None and zero.any()):
            return None
        codes, steps = codes.reshape(-1), np.broadcast_to(steps.reshape(-1), codes.reshape(-1).shape)
        if codes.dtype == np.int32 and np.allclose(steps, scale, rtol=1e-3, atol=0):
            return codes
        return codes.astype(np.float32) * steps

    def run(self) -> None:
        from runnel.compiler.graph.qlinear import EXPANSIONS

        handlers = {"Conv": _conv, "MatMul": _matmul, "Gemm": _gemm, **dict.fromkeys(AVERAGES, _average)}
        for node in self.graph.nodes:
            if id(node) in self.done:
                continue
            standard = node.domain in ("", "ai.onnx")
            handler = (handlers.get(node.op) if standard else None) or EXPANSIONS.get((node.domain, node.op))
            written = len(self.nodes)
            try:
                replaced = handler is not None and handler(self, node)
            except (IndexError, KeyError, TypeError, ValueError):  # inputs or attributes that the op cannot have
                replaced = False
            if not replaced:
                self.nodes[written:] = [node]
        self.graph.nodes = self.nodes


def plain_weights(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> Weights | None:
    """8-bit codes with their zero taken off where the result has 8 bits; one zero otherwise, else None."""
    if codes.dtype.kind in "fc" or codes.dtype.itemsize > 1:
        return None
    along = [-1 if i == axis else 1 for i in range(codes.ndim)]
    centred = codes.astype(np.int32) - (
        zero.astype(np.int32).reshape(along) if zero.size > 1 else int(zero.reshape(()))
    )
    if centred.size and centred.min() >= -128 and centred.max() <= 127:
        return Weights(centred.astype(np.int8), scale, np.zeros((), np.int8))
    if zero.size > 1 and len(np.unique(zero)) > 1:
        return None
    return Weights(np.ascontiguousarray(codes), scale, zero.reshape(-1)[:1].reshape(()))


def fits(weights: Weights, axis: int) -> bool:
    """Whether no sum over the other axes can pass int32."""
    return prod(d for i, d in enumerate(weights.codes.shape) if i != axis) * LARGEST_PRODUCT < 1 << 31


def _conv(r: Rewriter, node: Node) -> bool:
    x, w = r.codes(node.inputs[0]), r.weights(node.inputs[1], 0)
    if x is None or w is None or not fits(w, 0):
        return False
    scale = np.broadcast_to(x.scale * w.scale, (w.codes.shape[0],))
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] and (bias := r.bias(node.inputs[2], scale)) is None:
        return False
    shape = (-1, *(1,) * (w.codes.ndim - 2))
    names = [x.name, r.const(w.codes), r.const(x.zero), r.const(w.zero)]
    total = r.node(node, "ConvInteger", names, **node.attrs)
    r.total(node, total, scale.reshape(shape), None if bias is None else bias.reshape(shape), node.outputs[0])
    return True


def _product(r: Rewriter, node: Node, x: Codes, w: Weights, bias_name: str, output: str) -> bool:
    """x · w with codes of w as (K, N)."""
    outputs = w.codes.shape[1]
    scale = np.broadcast_to(x.scale * w.scale, (outputs,))
    bias = None
    if bias_name:
        bias = r.bias(bias_name, scale)
        if bias is None or bias.size not in (1, outputs):
            return False
        bias = np.broadcast_to(bias, (outputs,))
    names = [x.name, r.const(np.ascontiguousarray(w.codes)), r.const(x.zero), r.const(w.zero)]
    total = r.node(node, "MatMulInteger", names)
    r.total(node, total, scale, bias, output)
    return True


def _matmul(r: Rewriter, node: Node) -> bool:
    x, w = r.codes(node.inputs[0]), r.weights(node.inputs[1], 1)
    if x is None or w is None or w.codes.ndim != 2 or not fits(w, 1):
        return False
    add = r.sole_reader(node.outputs[0])
    if add is not None and add.op == "Add":
        other = add.inputs[1] if add.inputs[0] == node.outputs[0] else add.inputs[0]
        if _product(r, node, x, w, other, add.outputs[0]):
            r.done.add(id(add))
            return True
    return _product(r, node, x, w, "", node.outputs[0])


def _gemm(r: Rewriter, node: Node) -> bool:
    turned = bool(node.attrs.get("transB"))
    plain = not node.attrs.get("transA") and node.attrs.get("alpha", 1.0) == 1.0 == node.attrs.get("beta", 1.0)
    x, w = r.codes(node.inputs[0]), r.weights(node.inputs[1], 0 if turned else 1)
    if x is None or w is None or not plain:
        return False
    w = Weights(w.codes.T if turned else w.codes, w.scale, w.zero)
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    return fits(w, 1) and _product(r, node, x, w, bias, node.outputs[0])


def _average(r: Rewriter, node: Node) -> bool:
    """The average (or sum) of codes is exact in float32, in any order; one division and one multiplier follow."""
    x = r.codes(node.inputs[0])
    end = r.ending(node.outputs[0])
    if x is None or end is None:
        return False
    r.sums += 1
    value = centred(r, node, x)
    value = r.node(node, node.op, [value, *node.inputs[1:]], **node.attrs)
    r.quantised(node, value, x.scale / end.scale, end)
    return True


def centred(r: Rewriter, node: Node, x: Codes) -> str:
    """code - zero as float32."""
    value = r.node(node, "Cast", [x.name], to=FLOAT)
    return r.node(node, "Sub", [value, r.const(x.zero.astype(np.float32))]) if x.zero != 0 else value


def integer_form(graph: Graph) -> None:
    """Write every quantised part of the graph in integers, in place. Where sums changed from float32 to int32, the
    offline model of the proof (``graph.proto``) becomes this form."""
    quantised = {"DequantizeLinear", "QuantizeLinear", "QLinearConv", "QLinearMatMul"}
    written = ("QLinear", "QGemm", "MatMulNBits", "MoE", "QMoE")
    if not any(n.op in quantised or n.op.startswith(written) for n in graph.nodes):
        return
    from runnel.compiler.graph.blocks import weights_in_blocks
    from runnel.compiler.graph.experts import experts_in_one_form
    from runnel.compiler.graph.tables import tables

    fold(graph, keep=("DequantizeLinear",))
    rewriter = Rewriter(graph)
    rewriter.run()
    changed = rewriter.sums + tables(graph)
    changed += weights_in_blocks(graph) + experts_in_one_form(graph)
    fold(graph)
    if changed:
        graph.exported, graph.proto = graph.proto, to_proto(graph)
