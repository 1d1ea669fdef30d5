"""Finds Q·Kᵀ → … → Softmax → ·V and puts one node in its place, whose rule decides what it is in time.

Nothing between the product of Q and K and the softmax may depend on data, apart from the scores themselves and a second
product whose rows are shifted (relative positions). What depends on lengths alone is kept as a small graph of its own,
to be evaluated on numbers (mask.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.unruled import reads

ATTEND = "Attention"
DOMAIN = "runnel"
SHAPES = ("Shape", "Size")
SAME = ("Identity", "Dropout")


@dataclass(eq=False)
class Einsum:
    """The labels of a product of two operands: "bhid,bhjd->bhij" is (bhid, bhjd, bhij)."""

    left: str
    right: str
    out: str


@dataclass(eq=False)
class Product:
    """A product of two values that depend on data."""

    node: Node
    labels: Einsum | None


@dataclass(eq=False)
class Pattern:
    """One attention.

    scores: Q·Kᵀ; weighted: the product with V, whose output is the node's. relative: a product with a table that is
    added to the scores after its rows were shifted. logits: the name of the softmax's input. weights: the name of what
    is multiplied with V. nodes: what lies between the scores and V, and what it needs that depends on lengths alone.
    inner: the nodes that are not needed without the pattern, for the case that time is no axis that it mixes. shapes:
    names of data whose shape is read.
    """

    scores: Product
    weighted: Product
    relative: Product | None
    softmax: Node
    logits: str
    weights: str
    nodes: list[Node]
    constants: dict[str, np.ndarray]
    shapes: list[str]
    inner: list[Node] = field(default_factory=list)


def tainted_names(graph: Graph) -> set[str]:
    """What depends on data, not only on its shape."""
    tainted = {p.name for p in graph.inputs}
    for node in graph.nodes:
        if node.op not in SHAPES and tainted.intersection(reads(node)):
            tainted.update(o for o in node.outputs if o)
    return tainted


class _Index:
    """Who makes and who reads what, and what depends on data."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maker = {o: n for n in graph.nodes for o in n.outputs if o}
        self.place = {id(n): i for i, n in enumerate(graph.nodes)}
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in dict.fromkeys(reads(node)):
                self.readers.setdefault(name, []).append(node)
        self.tainted = tainted_names(graph)

    def product(self, node: Node | None) -> Product | None:
        """The node as a product of two values that depend on data."""
        if node is None or len(node.inputs) != 2 or not all(i in self.tainted for i in node.inputs):
            return None
        if node.op == "MatMul":
            return Product(node, None)
        if node.op == "Einsum":
            labels = _labels(node)
            return Product(node, labels) if labels else None
        return None


def _labels(node: Node) -> Einsum | None:
    equation = str(node.attrs.get("equation", "")).replace(" ", "")
    if "." in equation or "->" not in equation or equation.count(",") != 1:
        return None
    operands, out = equation.split("->")
    left, right = operands.split(",")
    whole = all(len(set(t)) == len(t) for t in (left, right, out))
    return Einsum(left, right, out) if whole else None


def find(graph: Graph) -> Graph:
    """The graph with every attention as one node; the graph itself stays as it is."""
    index = _Index(graph)
    patterns: dict[int, Pattern] = {}
    for node in graph.nodes:
        if node.op == "Softmax" and node.inputs[0] in index.tainted:
            pattern = _pattern(index, node)
            if pattern is not None:
                patterns[id(pattern.weighted.node)] = pattern
    if not patterns:
        return graph
    nodes = [_attend(patterns[id(n)]) if id(n) in patterns else n for n in graph.nodes]
    kept_nodes = alive(nodes, {p.name for p in graph.outputs})
    kept = {id(n) for n in kept_nodes}
    for pattern in patterns.values():
        wanted = _ancestors(index, [pattern.weighted.node.outputs[0]])
        pattern.inner = [n for n in graph.nodes if n in wanted and id(n) not in kept]
    return Graph(graph.name, kept_nodes, graph.constants, graph.inputs, graph.outputs, graph.opset, graph.proto)


def _attend(pattern: Pattern) -> Node:
    scores, weighted = pattern.scores.node, pattern.weighted.node
    inputs = [*scores.inputs, weighted.inputs[1]]
    if pattern.relative is not None:
        inputs.append(pattern.relative.node.inputs[0])
    inputs += [s for s in pattern.shapes if s not in inputs]
    return Node(ATTEND, weighted.name, inputs, list(weighted.outputs), {"pattern": pattern}, DOMAIN)


def alive(nodes: list[Node], needed: set[str]) -> list[Node]:
    """The nodes that the names need."""
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(reads(node))
    return kept[::-1]


def _ancestors(index: _Index, names: Iterable[str]) -> set[Node]:
    found: set[Node] = set()
    pending = list(names)
    while pending:
        node = index.maker.get(pending.pop())
        if node is not None and node not in found:
            found.add(node)
            pending += reads(node)
    return found


def _pattern(index: _Index, softmax: Node) -> Pattern | None:
    rank_free = softmax.attrs.get("axis", -1)
    after = _to_product(index, softmax.outputs[0])
    if after is None:
        return None
    weighted, weights, behind = after
    before = _to_scores(index, softmax.inputs[0])
    if before is None:
        return None
    products, between = before
    shifted = [p for p in products if p.node.inputs[1] not in index.tainted]
    if len(products) != 1 + len(shifted) or len(shifted) > 1 or (rank_free != -1 and rank_free < 1):
        return None
    scores = next(p for p in products if p not in shifted)
    relative = shifted[0] if shifted else None
    path = [*between, softmax, *behind, *(p.node for p in shifted)]
    nodes, shapes = _lengths_only(index, path, {p.node.outputs[0] for p in products})
    constants = {i: index.graph.constants[i] for n in nodes for i in n.inputs if i in index.graph.constants}
    inside = {o for n in [*nodes, *(p.node for p in products)] for o in n.outputs}
    outer = [s for s in shapes if s not in inside]
    return Pattern(scores, weighted, relative, softmax, softmax.inputs[0], weights, nodes, constants, outer)


def _to_product(index: _Index, name: str) -> tuple[Product, str, list[Node]] | None:
    """The product with V and the nodes before it, from the softmax's output on."""
    passed: list[Node] = []
    first = name
    while True:
        readers = [n for n in index.readers.get(name, []) if n.op not in SHAPES]
        product = next((p for n in readers if (p := index.product(n)) is not None and n.inputs[0] == name), None)
        if product is not None:
            return product, name, passed
        following = None
        for node in readers:
            others = [i for i in reads(node) if i not in (first, name)]
            clean = not any(i in index.tainted and index.maker.get(i) not in passed for i in others)
            if node.op in (*SAME, "Cast", "Where", "Mul", "IsNaN") and clean:
                passed.append(node)
                if node.op != "IsNaN" and not (node.op == "Where" and node.inputs[0] == name):
                    following = node
        if following is None or len(passed) > 12:
            return None
        name = following.outputs[0]


_BETWEEN = {
    *SAME, "Add", "Sub", "Mul", "Div", "Where", "Cast", "Tanh", "Max", "Min", "Clip", "Reshape", "Transpose", "Slice",
    "Pad", "Squeeze", "Unsqueeze", "Concat", "Gather", "GatherElements", "Expand", "Neg", "Flatten",
}  # fmt: skip


def _to_scores(index: _Index, name: str) -> tuple[list[Product], list[Node]] | None:
    """The products that the softmax's input is made of, and the nodes that depend on data on the way."""
    products: list[Product] = []
    between: list[Node] = []
    pending, seen = [name], {name}
    while pending:
        node = index.maker.get(pending.pop())
        if node is None:
            return None
        product = index.product(node)
        if product is None and node.op == "MatMul" and node.inputs[0] in index.tainted:
            product = Product(node, None)
        if product is not None:
            products.append(product)
            continue
        if node.op not in _BETWEEN or len(between) > 60:
            return None
        between.append(node)
        for i in reads(node):
            if i in index.tainted and i not in seen:
                seen.add(i)
                pending.append(i)
    return products, between


def _lengths_only(index: _Index, path: list[Node], leaves: set[str]) -> tuple[list[Node], list[str]]:
    """The path with everything it needs that depends on lengths alone, in order, and whose shapes are read."""
    found: set[Node] = set(path)
    shapes: list[str] = []
    pending = [i for n in path for i in reads(n)]
    while pending:
        name = pending.pop()
        node = index.maker.get(name)
        if node is None or node in found or name in leaves:
            continue
        if node.op in SHAPES:
            found.add(node)
            shapes.append(node.inputs[0])
            continue
        if name in index.tainted:
            continue
        found.add(node)
        pending += reads(node)
    return sorted(found, key=lambda n: index.place[id(n)]), list(dict.fromkeys(shapes))
