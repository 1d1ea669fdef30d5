"""Sinks of attention: a learned logit beside the scores, whose weight is dropped behind the softmax."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.attention.pattern import tainted_names


def without_sinks(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph with softmaxes over the scores alone, and {softmax's output: what stood beside its scores}.

    softmax(concat(scores, sink))[..., :-1], also where the greatest value is taken away before.
    """
    maker = {o: n for n in graph.nodes for o in n.outputs if o}
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    tainted = tainted_names(graph)
    sinks: dict[str, str] = {}
    changed: dict[int, Node | None] = {}
    for node in graph.nodes:
        if node.op != "Softmax":
            continue
        both = _joined(maker, node.inputs[0])
        after = readers.get(node.outputs[0], [])
        if both is None or len(after) != 1 or not _drops_last(graph, after[0]) or both.inputs[1] in tainted:
            continue
        sinks[after[0].outputs[0]] = both.inputs[1]
        changed[id(node)] = replace(node, inputs=[both.inputs[0]], outputs=list(after[0].outputs))
        changed[id(after[0])] = None
    if not sinks:
        return graph, {}
    nodes = [changed.get(id(n), n) for n in graph.nodes]
    return replace(graph, nodes=[n for n in nodes if n is not None]), sinks


def _joined(maker: dict[str, Node], name: str) -> Node | None:
    """The Concat of scores and one more column that a softmax reads."""
    node = maker.get(name)
    if node is not None and node.op == "Sub":
        top = maker.get(node.inputs[1])
        if top is None or top.op != "ReduceMax" or top.inputs[0] != node.inputs[0]:
            return None
        node = maker.get(node.inputs[0])
    return node if node is not None and node.op == "Concat" and len(node.inputs) == 2 else None


def _drops_last(graph: Graph, node: Node) -> bool:
    if node.op != "Slice" or not all(i in graph.constants for i in node.inputs[1:]):
        return False
    start, stop = (np.asarray(graph.constants[node.inputs[i]]).reshape(-1) for i in (1, 2))
    return len(start) == 1 and int(start[0]) == 0 and int(stop[0]) == -1
