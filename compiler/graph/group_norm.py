"""Group norms as PyTorch exports them: (N, groups, everything else), an instance norm, and the shape of before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from runnel.compiler.graph.model import Graph, Node

Shapes = dict[str, tuple[tuple[int, ...], str]]
FAR = np.iinfo(np.int64).max


def keep_axes(graph: Graph, shapes: Callable[[], Shapes]) -> None:
    """Let the reshape before such a norm split the channels and keep all other axes, time among them; in place.

    shapes: gives the shapes of all tensors at one length; asked only where there is such a norm.
    """
    makers = {o: n for n in graph.nodes for o in n.outputs if o}
    readers = Counter(i for n in graph.nodes for i in n.inputs) + Counter(p.name for p in graph.outputs)
    norms = [n for n in graph.nodes if n.op == "InstanceNormalization" and _folds(graph, makers.get(n.inputs[0]))]
    reshapes = [makers[n.inputs[0]] for n in norms if readers[n.inputs[0]] == 1 and _returns(n, graph)]
    known = shapes() if reshapes else {}
    for node in reshapes:
        batch, groups = (int(d) for d in graph.constants[node.inputs[1]][:2])
        shape = known[node.inputs[0]][0]
        if len(shape) < 3 or groups < 1 or shape[1] % groups or batch not in (0, shape[0]):
            continue
        at = graph.nodes.index(node)
        graph.nodes[at:at] = _target(graph, node, [batch, groups, shape[1] // groups])


def _folds(graph: Graph, node: Node | None) -> bool:
    """Whether the node reshapes to (N, groups, -1)."""
    if node is None or node.op != "Reshape" or node.attrs.get("allowzero"):
        return False
    target = graph.constants.get(node.inputs[1])
    return target is not None and target.size == 3 and target[2] == -1


def _returns(norm: Node, graph: Graph) -> bool:
    """Whether all that reads the norm is reshapes."""
    name = norm.outputs[0]
    readers = [n for n in graph.nodes if name in n.inputs]
    return all(n.op == "Reshape" for n in readers) and all(p.name != name for p in graph.outputs)


def _target(graph: Graph, node: Node, first: list[int]) -> list[Node]:
    """Nodes for the shape (first, the axes of the node's input from the second on), which becomes its target."""
    name = node.outputs[0]
    for key, value in (("first", first), ("from", [2]), ("to", [FAR])):
        graph.constants[f"{name}/{key}"] = np.array(value, np.int64)
    node.inputs[1] = f"{name}/target"
    return [
        Node("Shape", f"{node.name}/shape", [node.inputs[0]], [f"{name}/shape"]),
        Node("Slice", f"{node.name}/rest", [f"{name}/{k}" for k in ("shape", "from", "to")], [f"{name}/rest"]),
        Node("Concat", f"{node.name}/target", [f"{name}/first", f"{name}/rest"], [f"{name}/target"], {"axis": 0}),
    ]
