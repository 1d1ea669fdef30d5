"""Ops without a rule, found before the walk: it stops behind a refused op, and a person wants to know all of them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from runnel.compiler.graph.fold import captured_names
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.registry import has_rule, missing_rule
from runnel.errors import Reason


def reads(node: Node) -> list[str]:
    """The node's inputs and whatever its subgraphs read from outside."""
    names = [i for i in node.inputs if i]
    for value in node.attrs.values():
        if isinstance(value, onnx.GraphProto):
            names += sorted(captured_names(value))
    return names


def ops_without_rule(graph: Graph, inputs: Iterable[str]) -> list[Reason]:
    """The reasons of every op that depends on the streamed inputs and has no rule."""
    tainted = set(inputs)
    reasons = []
    for node in graph.nodes:
        if not tainted.intersection(reads(node)) or node.op in ("Shape", "Size"):
            continue
        tainted.update(o for o in node.outputs if o)
        if not has_rule(node):
            refusal = missing_rule(node.op)
            reasons.append(Reason(node.name, node.op, refusal.reason, refusal.remedy, refusal.modes))
    return reasons


def all_reasons(graph: Graph, found: list[Reason], unruled: list[Reason]) -> list[Reason]:
    """The reasons of the walk and those of ops without a rule behind them, in the order of the model."""
    known = {(r.node, r.op) for r in found}
    places = {node.name: i for i, node in enumerate(graph.nodes)}
    every = found + [r for r in unruled if (r.node, r.op) not in known]
    return sorted(every, key=lambda r: places.get(r.node, len(places)))
