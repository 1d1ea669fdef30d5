"""Nodes in an order in which each comes behind what it reads; tools that insert casts append them at the end."""

from __future__ import annotations

import onnx


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Bring the nodes of a graph, and of those inside, into such an order, in place; one that is in order, or has
    none, stays as it is."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                sort_nodes(attribute.g)
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    before = [sorted({maker[n] for n in _reads(node) if n in maker}) for node in graph.node]
    if all(not needs or needs[-1] < i for i, needs in enumerate(before)):
        return
    order: list[int] = []
    done: set[int] = set()
    open_: set[int] = set()
    for first in range(len(before)):
        waiting = [first]
        while waiting:
            at = waiting[-1]
            missing = [i for i in before[at] if i not in done] if at not in done else []
            if missing and not open_.isdisjoint(missing):
                return  # a cycle
            if missing:
                open_.add(at)
                waiting += missing[::-1]
                continue
            waiting.pop()
            open_.discard(at)
            if at not in done:
                done.add(at)
                order.append(at)
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, those inside of its graphs too."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.HasField("g"):
            own = {name for inner in attribute.g.node for name in inner.output}
            names |= {name for inner in attribute.g.node for name in _reads(inner)} - own
            names |= {out.name for out in attribute.g.output} - own
    return names
