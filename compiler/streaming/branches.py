"""Branches whose condition follows from shapes: the walk finds which one a stream of any length takes, and starts again
with that branch in place of the If."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

from runnel.compiler.graph.model import Graph, Node

P = ParamSpec("P")
R = TypeVar("R")


class Decided(Exception):
    """The condition of an If is known."""

    def __init__(self, node: Node, value: np.ndarray) -> None:
        super().__init__(node.name)
        self.node, self.value = node, value

    def settle(self, graph: Graph) -> None:
        """Give the If its condition as a constant, so that folding takes its branch."""
        node = next(n for n in graph.nodes if n.outputs == self.node.outputs)
        node.inputs[0] = f"{node.outputs[0]}/decided"
        graph.constants[node.inputs[0]] = self.value


def with_branches(analyse: Callable[P, R]) -> Callable[P, R]:
    """Call again, with one branch taken, for as long as the condition of an If is found. The graph comes first."""

    @wraps(analyse)
    def again(*args: P.args, **options: P.kwargs) -> R:
        while True:
            try:
                return analyse(*args, **options)
            except Decided as decided:
                graph = args[0]
                assert isinstance(graph, Graph)
                decided.settle(graph)

    return again
