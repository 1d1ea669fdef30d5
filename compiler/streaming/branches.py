"""Branches: where the condition follows from shapes the walk finds which one a stream of any length takes, and starts
again with that branch in place of the If. Where every frame has its own condition it starts again with both branches
and a choice between their results; what only one side of a choice needs is skipped where it is not taken
(lowering/choices.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import ParamSpec, TypeAlias, TypeVar

import numpy as np

from runnel.compiler.graph.fold import write_out
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.ir import Operand, Stream
from runnel.compiler.streaming.registry import Refusal

BRANCH, CHOICE = "runnel.branch", "runnel.choice"
Shapes: TypeAlias = "Mapping[str, tuple[tuple[int, ...], str]]"
P = ParamSpec("P")
R = TypeVar("R")


class Settled(Exception):
    """An If that the walk knows what to do with."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.name)
        self.node = node

    def settle(self, graph: Graph) -> None:
        """Change the graph."""
        raise NotImplementedError


class Decided(Settled):
    """The condition of an If is known."""

    def __init__(self, node: Node, value: np.ndarray) -> None:
        super().__init__(node)
        self.value = value

    def settle(self, graph: Graph) -> None:
        """Give the If its condition as a constant, so that folding takes its branch."""
        node = next(n for n in graph.nodes if n.outputs == self.node.outputs)
        node.inputs[0] = f"{node.outputs[0]}/decided"
        graph.constants[node.inputs[0]] = self.value


class EachFrame(Settled):
    """Every frame has its own condition: a model with states is called once a frame."""

    def settle(self, graph: Graph) -> None:
        """Put both branches and a Where for each result in the place of the If."""
        at = next(i for i, n in enumerate(graph.nodes) if n.outputs == self.node.outputs)
        node = graph.nodes[at]
        nodes: list[Node] = []
        sides: list[list[str]] = []
        for side in ("then", "else"):
            prefix = f"{node.name}/{side}/"
            sides.append([prefix + o if o else f"{prefix}{i}" for i, o in enumerate(node.outputs)])
            nodes += write_out(graph, node, f"{side}_branch", prefix, sides[-1])
        for inner in nodes:
            inner.attrs[BRANCH] = 1
        for output, *values in zip(node.outputs, *sides, strict=True):
            if output:
                inputs = [node.inputs[0], *values]
                nodes.append(Node("Where", f"{node.name}/{output}", inputs, [output], {CHOICE: 1}))
        graph.nodes[at : at + 1] = nodes


def check_branch(node: Node, operands: Sequence[Operand], shapes: Shapes) -> Node:
    """A node without the marks of an If that was written out. Raises Refusal for what may not be computed where its
    branch is not taken, and for results whose shapes differ."""
    if node.attrs.get(CHOICE) and len({shapes[i][0] for i in (*node.inputs[1:], node.outputs[0])}) > 1:
        raise Refusal("its branches give results of unlike shapes", "give both the same shape")
    if node.attrs.get(BRANCH):
        computed = isinstance(operands[1], Stream) if len(operands) > 1 else False
        whole = np.dtype(shapes[node.outputs[0]][1]).kind in "iu"
        if computed and (node.op.startswith(("Gather", "Scatter")) or (node.op in ("Div", "Mod") and whole)):
            raise Refusal(
                "looks up or divides by a number that may be out of range where its branch is not taken",
                "compute it outside of the branch",
            )
    attrs = {k: v for k, v in node.attrs.items() if k not in (BRANCH, CHOICE)}
    return Node(node.op, node.name, node.inputs, node.outputs, attrs, node.domain)


def with_branches(analyse: Callable[P, R]) -> Callable[P, R]:
    """Call again, with one branch taken, for as long as the condition of an If is found. The graph comes first."""

    @wraps(analyse)
    def again(*args: P.args, **options: P.kwargs) -> R:
        while True:
            try:
                return analyse(*args, **options)
            except Settled as settled:
                graph = args[0]
                assert isinstance(graph, Graph)
                settled.settle(graph)

    return again
