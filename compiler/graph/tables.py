"""Functions of one code as tables: DequantizeLinear → element-wise ops → QuantizeLinear, looked up instead of computed.

onnxruntime fills the table, so that every backend gives its codes.
"""

from __future__ import annotations

import numpy as np

from runnel.compiler.graph.fold import fold
from runnel.compiler.graph.model import Graph, Node, Port
from runnel.compiler.graph.quantised import INT32, Rewriter

EXACT = frozenset({"Abs", "Add", "Clip", "Div", "Identity", "LeakyRelu", "Max", "Min", "Mul", "Neg", "Relu", "Sub"})
ELEMENTWISE = EXACT | {
    *("Celu", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "Mish", "Pow", "Reciprocal"),
    *("Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
}
MOST_NODES = 16


def tables(graph: Graph) -> int:
    """Replace every such function that backends may round differently, in place; how many."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op != "QuantizeLinear" or not _tabulate(rewriter, node):
            rewriter.nodes.append(node)
    graph.nodes = rewriter.nodes
    return rewriter.sums


def _tabulate(r: Rewriter, last: Node) -> bool:
    if any(r.constant(last, i) is None or r.constant(last, i).size != 1 for i in range(1, len(last.inputs))):  # type: ignore[union-attr]
        return False
    nodes: list[Node] = []
    sources: set[str] = set()
    pending = [last.inputs[0]]
    while pending:
        name = pending.pop()
        node = r.producers.get(name)
        if node is None or node in nodes:
            if node is None and (name not in r.graph.constants or r.graph.constants[name].size != 1):
                return False
            continue
        if (codes := r.codes(name)) is not None:
            sources.add(codes.name)
        elif node.op in ELEMENTWISE and node.domain in ("", "ai.onnx"):
            pending += [i for i in node.inputs if i]
        else:
            return False
        nodes.append(node)
    if len(sources) != 1 or len(nodes) > MOST_NODES or all(n.op in (*EXACT, "DequantizeLinear") for n in nodes):
        return False
    source = sources.pop()
    kind = np.dtype(str(r.type_of(source)))
    r.sums += 1
    _write(r, last, source, kind, _values(r.graph, [*reversed(nodes), last], source, kind))
    return True


def _values(graph: Graph, nodes: list[Node], source: str, kind: np.dtype) -> np.ndarray:
    """What the nodes make of each code, lowest first."""
    limits = np.iinfo(kind)
    constants = {i: graph.constants[i] for n in nodes for i in n.inputs if i in graph.constants}
    constants[source] = np.arange(limits.min, limits.max + 1).astype(kind)
    name = nodes[-1].outputs[0]
    ordered = [n for n in graph.nodes if n in nodes]
    part = Graph(graph.name, ordered, constants, [], [Port(name, "uint8", ())], graph.opset, graph.proto)
    fold(part)
    return part.constants[name].reshape(-1)


def _write(r: Rewriter, last: Node, source: str, kind: np.dtype, values: np.ndarray) -> None:
    index = r.node(last, "Cast", [source], to=INT32)
    if kind == np.int8:
        index = r.node(last, "Add", [index, r.const(128, np.int32)])
    r.node(last, "Gather", [r.const(values), index], last.outputs[0], axis=0)
