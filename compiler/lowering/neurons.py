"""Feed-forward layers whose neurons are mostly zero, found in a stream graph.

``Relu(x·U)·D``, ``Relu(x·U)²·D`` and ``(Relu(x·G) * (x·U))·D``, with or without biases, as products of matrices, also
of codes, or as convolutions over single frames; between the last product and what it multiplies there may be a choice
of neurons, ``Where(score > 0, …, 0)`` (compiler/streaming/sparse.py). A neuron whose activation is zero needs neither
its row of D nor its column of U: the layer becomes one node, whose steps look at the others only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from runnel.compiler.graph.blocks import coded_matrix, unpack
from runnel.compiler.streaming.ir import Operand, Pointwise, Stream, StreamGraph, StreamNode, Tail, Window


@dataclass(eq=False)
class FeedForward(StreamNode):
    """inputs: x, and a score a neuron where neurons are chosen by it. gate, up: (inputs, neurons), gate None where the
    activation alone is multiplied by ``down`` (neurons, outputs). What the model has as codes is Coded. Biases are
    vectors or None."""

    up: np.ndarray
    down: np.ndarray
    gate: np.ndarray | None = None
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None
    squared: bool = False

    @property
    def predicted(self) -> bool:
        return len(self.streams) > 1


@dataclass(frozen=True)
class Product:
    """x·weight + bias; nodes: what makes it, last first."""

    x: Stream
    weight: np.ndarray
    bias: np.ndarray | None
    nodes: tuple[StreamNode, ...]


def with_neurons(graph: StreamGraph) -> tuple[StreamGraph, list[str]]:
    """The graph with each layer that was found as one node, and these nodes' names; the given one stays as it is."""
    finder = _Finder(graph)
    found: dict[int, FeedForward] = {}
    gone: set[int] = set()
    for node in reversed(graph.nodes):  # a bias before the product that it is added to
        layer = None if id(node) in gone else finder.layer(node)
        if layer is not None:
            found[id(node)], inside = layer
            gone |= {id(n) for n in inside} - {id(node)}
    nodes = [found.get(id(n), n) for n in graph.nodes if id(n) not in gone]
    return replace(graph, nodes=nodes), [n.name for n in nodes if isinstance(n, FeedForward)]


class _Finder:
    def __init__(self, graph: StreamGraph) -> None:
        kept = [v.stream if isinstance(v, Tail) else v for v in graph.outputs.values()] + list(graph.carried.values())
        self.readers = Counter(id(s) for n in graph.nodes for s in n.streams) + Counter(id(s) for s in kept)

    def layer(self, node: StreamNode) -> tuple[FeedForward, list[StreamNode]] | None:
        """The layer that ends in this node, and the nodes that it replaces."""
        last = self.product(node)
        if last is None or not isinstance(last.x.node, StreamNode):
            return None
        inside = list(last.nodes)
        inner = self._only(last.x)
        score = None
        if inner is not None and inner.op == "Where":
            score, inner = self._choice(inner, inside)
        if inner is None:
            return None
        parts = self._activated(inner, inside)
        if parts is None:
            return None
        gate, up, squared = parts
        first = up if gate is None else gate
        if gate is not None and (gate.x is not up.x or gate.weight.shape != up.weight.shape):
            return None
        if first.weight.shape[1] != last.weight.shape[0] or np.prod(first.x.frame_shape) != first.weight.shape[0]:
            return None
        inputs: list[Operand] = [first.x] if score is None else [first.x, score]
        made = FeedForward(
            last.nodes[-1].name, "FeedForward", inputs, node.output, up.weight, last.weight,
            None if gate is None else gate.weight, None if gate is None else gate.bias, up.bias, last.bias, squared,
        )  # fmt: skip
        return made, inside

    def _only(self, stream: Stream) -> StreamNode | None:
        """What makes a stream that one node reads, once for the square of it."""
        node = stream.node
        return node if isinstance(node, Pointwise) and self.readers[id(stream)] == 1 else None

    def _choice(self, node: StreamNode, inside: list[StreamNode]) -> tuple[Stream | None, StreamNode | None]:
        """The score and the chosen values of ``Where(score > 0, values, 0)``."""
        condition, values, other = node.inputs
        if not isinstance(condition, Stream) or not isinstance(values, Stream) or not _is(other, 0.0):
            return None, None
        greater = self._only(condition)
        if greater is None or greater.op != "Greater" or not _is(greater.inputs[1], 0.0):
            return None, None
        score = greater.inputs[0]
        inside += [node, greater]
        return (score, self._only(values)) if isinstance(score, Stream) else (None, None)

    def _activated(self, node: StreamNode, inside: list[StreamNode]) -> tuple[Product | None, Product, bool] | None:
        """(gate or None, up, whether the activation is squared)."""
        inside.append(node)
        if node.op == "Mul" and len(node.streams) == 2 and node.streams[0] is not node.streams[1]:
            for gate, up in (node.streams, node.streams[::-1]):
                activation, product = self._relu(gate), self._product_of(up)
                if activation is not None and product is not None:
                    pre, nodes, squared = activation
                    inside += [*nodes, *pre.nodes, *product.nodes]
                    return pre, product, squared
            return None
        activation = self._relu(node.output)
        if activation is None:
            return None
        pre, nodes, squared = activation
        inside += [*nodes, *pre.nodes]
        return None, pre, squared

    def _relu(self, stream: Stream) -> tuple[Product, list[StreamNode], bool] | None:
        """The product under a Relu or its square."""
        node = self._only(stream)
        if node is None:
            return None
        nodes: list[StreamNode] = [node]
        squared = False
        twice = node.op == "Mul" and len(node.streams) == 2 and node.streams[0] is node.streams[1]
        if twice or (node.op == "Pow" and _is(node.inputs[1], 2.0)):
            squared, inner = True, node.streams[0]
            relu = inner.node if isinstance(inner.node, Pointwise) else None
            if relu is None or self.readers[id(inner)] != (2 if twice else 1):
                return None
            nodes.append(relu)
            node = relu
        if node.op != "Relu":
            return None
        product = self._product_of(node.streams[0])
        return None if product is None else (product, nodes, squared)

    def _product_of(self, stream: Stream) -> Product | None:
        node = stream.node
        return self.product(node) if node is not None and self.readers[id(stream)] == 1 else None

    def product(self, node: StreamNode) -> Product | None:
        """x·weight + bias over the whole of a frame."""
        if isinstance(node, Pointwise) and node.op == "Add":
            return self._biased(node)
        if isinstance(node, Pointwise) and node.op in ("MatMul", "Gemm"):
            return _matrix_product(node)
        if isinstance(node, Pointwise) and node.op == "MatMulNBits":
            return _block_product(node)
        return _convolution(node) if isinstance(node, Window) else None

    def _biased(self, node: StreamNode) -> Product | None:
        bias = next((v for v in node.inputs if isinstance(v, np.ndarray)), None)
        if bias is None or len(node.streams) != 1 or self.readers[id(node.streams[0])] != 1:
            return None
        before = node.streams[0].node
        product = self.product(before) if before is not None and before.op != "Add" else None
        if product is None or product.bias is not None or product.weight.shape[1] != bias.size:
            return None
        if bias.shape[-1:] != (bias.size,):
            return None
        return replace(product, bias=bias.reshape(-1), nodes=(node, *product.nodes))


def _matrix_product(node: Pointwise) -> Product | None:
    x, weight = node.inputs[:2]
    if not isinstance(x, Stream) or not isinstance(weight, np.ndarray) or weight.ndim != 2:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op == "Gemm":
        plain = all(float(node.attrs.get(k, 1.0)) == 1.0 for k in ("alpha", "beta"))
        if not plain or node.attrs.get("transA") or isinstance(bias, Stream):
            return None
        weight = weight.T if node.attrs.get("transB") else weight
    if weight.dtype != np.float32 or np.prod(x.frame_shape) != weight.shape[0]:
        return None
    row = bias.reshape(-1) if isinstance(bias, np.ndarray) else None
    if row is not None and row.size != weight.shape[1]:
        return None
    return Product(x, weight, row, (node,))


def _block_product(node: Pointwise) -> Product | None:
    """A product by constant codes."""
    x, codes, scales, zeros, order, bias = [*node.inputs, None, None, None][:6]
    inputs, outputs = int(node.attrs["K"]), int(node.attrs["N"])
    if not isinstance(x, Stream) or x.dtype != "float32" or np.prod(x.frame_shape) != inputs or order is not None:
        return None
    if not isinstance(codes, np.ndarray) or not isinstance(scales, np.ndarray) or isinstance(zeros, Stream):
        return None
    if isinstance(bias, Stream):
        return None
    blocks = unpack(int(node.attrs["bits"]), int(node.attrs["block_size"]), (inputs, outputs), codes, scales, zeros)
    return Product(x, coded_matrix(blocks), None if bias is None else bias.reshape(-1), (node,))


def _convolution(node: Window) -> Product | None:
    """A convolution that looks at one frame."""
    weight = node.inputs[1] if node.op == "Conv" else None
    if not isinstance(weight, np.ndarray) or weight.ndim != 3 or weight.shape[2] != 1 or weight.dtype != np.float32:
        return None
    if node.stride != 1 or node.left or node.right or int(node.attrs.get("group", 1)) != 1:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    x = node.streams[0]
    if np.prod(x.frame_shape) != weight.shape[1]:
        return None
    codes = getattr(weight, "taps", ())
    matrix = coded_matrix(codes[0]) if codes else weight[:, :, 0].T
    return Product(x, matrix, bias if isinstance(bias, np.ndarray) else None, (node,))


def _is(value: Operand, number: float) -> bool:
    return isinstance(value, np.ndarray) and value.size == 1 and float(value.reshape(-1)[0]) == number
