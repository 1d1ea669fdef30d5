"""Masks over all places of a cache of fixed size, cut to those that a whole sequence fills."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from runnel.compiler.graph.fold import session, to_proto
from runnel.compiler.graph.model import Graph, Node

JOINS = ("Add", "Sub", "Mul", "Where", "And", "Or")
TRIED = (5, 6)


def only_filled(graph: Graph, tokens: str, axis: int, sizes: Iterable[int]) -> None:
    """Where data meets a value of lengths alone whose last axis is as long as a cache (one of ``sizes``), only its
    first places, in place. tokens, axis: the input whose frames they are, and where its time lies."""
    tainted = _tainted(graph)
    joined = {
        name for n in graph.nodes if n.op in JOINS and tainted.intersection(n.inputs)
        for name in n.inputs if name and name not in tainted
    }  # fmt: skip
    widths = _widths(graph, joined)
    cut = {name for name, width in widths.items() if width in set(sizes)}
    if not cut:
        return
    renamed = {name: f"{name}/filled" for name in sorted(cut)}
    zero, last, length = (f"runnel.filled/{name}" for name in ("zero", "last", "length"))
    graph.constants |= {zero: np.array([0]), last: np.array([-1])}
    slices = {name: Node("Slice", new, [name, zero, length, last], [new]) for name, new in renamed.items()}
    nodes = [Node("Shape", length, [tokens], [length], {"start": axis, "end": axis + 1})]
    placed: set[str] = set()
    for node in graph.nodes:
        if node.op in JOINS and tainted.intersection(node.inputs) and cut.intersection(node.inputs):
            for name in sorted(cut.intersection(node.inputs) - placed):
                nodes.append(slices[name])
                placed.add(name)
            node = replace(node, inputs=[renamed.get(i, i) for i in node.inputs])
        nodes.append(node)
    graph.nodes = nodes


def _tainted(graph: Graph) -> set[str]:
    tainted = {p.name for p in graph.inputs}
    for node in graph.nodes:
        if node.op not in ("Shape", "Size") and tainted.intersection(node.inputs):
            tainted.update(node.outputs)
    return tainted


def _widths(graph: Graph, names: set[str]) -> dict[str, int]:
    """The size of the last axis, of those for which it does not depend on the number of tokens."""
    found: list[dict[str, int]] = []
    wanted = sorted(n for n in names if n not in graph.constants)
    needed, nodes = set(wanted), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            nodes.append(node)
            needed.update(i for i in node.inputs if i)
    ports = [p for p in graph.inputs if p.name in needed]
    part = replace(graph, nodes=nodes[::-1], outputs=[], inputs=ports)
    part.constants = {k: v for k, v in graph.constants.items() if k in needed}
    for frames in TRIED:
        shapes = {p.name: [frames if d == "T" else int(d or 1) for d in p.shape] for p in ports}
        values = []
        if wanted:
            fixed = [replace(p, shape=tuple(shapes[p.name])) for p in ports]
            feeds = {p.name: np.zeros(shapes[p.name], p.dtype) for p in ports}
            values = session(to_proto(part, fixed, wanted)).run(wanted, feeds)
        sizes = {n: np.shape(v)[-1] for n, v in zip(wanted, values, strict=True) if np.ndim(v)}
        sizes |= {n: graph.constants[n].shape[-1] for n in names if n in graph.constants and graph.constants[n].ndim}
        found.append(sizes)
    return {n: width for n, width in found[0].items() if found[1].get(n) == width}
