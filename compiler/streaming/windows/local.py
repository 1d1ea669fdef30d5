"""Frame-local ops in window mode: the op's rule of sequence mode says whether it is one; its edges are made alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.count import Count, CountTooLong
from runnel.compiler.streaming.ir import Operand, Pointwise, Stream, StreamFact
from runnel.compiler.streaming.registry import RULES, Refusal, has_rule
from runnel.compiler.streaming.windows.columns import Columns
from runnel.compiler.streaming.windows.walk import Value, Walk
from runnel.errors import InternalError


def frame_local(walk: Walk, node: Node) -> list[Value] | None:
    """The node on shared columns and on edges, where column n of its output needs column n of its inputs only."""
    given = {i: v for i in node.inputs if isinstance(v := walk.values.get(i), Columns)}
    found = trial(walk, node, {n: (v.axis, v.frames, v.stream) for n, v in given.items()})
    if found is None:
        return None
    nodes, results = found
    aligned = align(walk, node, [v for v in map(walk.values.get, node.inputs) if isinstance(v, Columns)])
    if aligned is None:
        return None
    known: dict[str, Columns] = dict(zip([i for i in node.inputs if isinstance(walk.values.get(i), Columns)], aligned))
    for made in nodes:
        known[made.output.name] = _again(walk, node, made, known)
    return [known[r.name] for r in results]


def trial(
    walk: Walk, node: Node, columns: Mapping[str, tuple[int, int, Stream]]
) -> tuple[list[Pointwise], list[Stream]] | None:
    """What the op's rule of sequence mode makes of streams that stand in for columns; None where it is not frame-local.

    columns: {input: (time axis, columns a window, a stream with the other sizes)}.
    """
    if not has_rule(node) or node.op == "Attention":  # whose rule is for what the pass over the graph found
        return None
    width = walk.window[0]
    again = walk.trial
    again.nodes.clear()
    for name in node.inputs:
        value = walk.values.get(name)
        if name in columns:
            axis, frames, like = columns[name]
            time = Count.time()
            fact = StreamFact(axis, time, time.affine(1, frames - width), "")
            shape = tuple(None if a == axis else d for a, d in enumerate(like.shape))
            again.values[name] = Stream(name, shape, like.dtype, fact)
        elif isinstance(value, np.ndarray):
            again.values[name] = value
    try:
        results = RULES[node.op](again, node)
    except (Refusal, CountTooLong, InternalError, StopIteration):  # a stand-in has no source to count frames by
        return None
    made = [n for n in again.nodes if isinstance(n, Pointwise)]
    if len(made) != len(again.nodes) or not all(isinstance(r, Stream) for r in results):
        return None
    return made, [r for r in results if isinstance(r, Stream)]


def align(walk: Walk, node: Node, parts: list[Columns]) -> list[Columns] | None:
    """The tensors with shared columns in the same places: the same edges, and streams that run in step."""
    first = parts[0]
    if any((p.hop, p.spacing, p.frames) != (first.hop, first.spacing, first.frames) for p in parts):
        return None
    begin, end = max(p.inner[0] for p in parts), min(p.inner[1] for p in parts)
    if begin >= end:
        return None
    least = min(p.offset for p in parts)
    done: dict[Columns, Columns] = {}
    for p in parts:
        if p in done:
            continue
        left = walk.span(node, p, 0, begin) if begin else None
        right = walk.span(node, p, end, p.frames) if end < p.frames else None
        stream = walk.shifted(p.stream, p.offset - least)
        done[p] = Columns(stream, p.frames, least, p.hop, p.spacing, left, right)
    return [done[p] for p in parts]


def _again(walk: Walk, node: Node, made: Pointwise, known: dict[str, Columns]) -> Columns:
    """A node of the trial, on the shared columns and on both edges."""
    columns = {x: known[x.name] for x in made.streams}
    like = next(iter(columns.values()))
    name = made.output.name
    suffix = name[len(node.outputs[0]) :] if name.startswith(node.outputs[0]) else f"/{name}"

    def part(which: str, count: int | None) -> Stream:
        inputs: list[Operand] = [getattr(columns[x], which) if isinstance(x, Stream) else x for x in made.inputs]
        attrs = dict(made.attrs)
        shape = [count if d is None else d for d in made.output.shape]
        if count is not None and made.op in ("Reshape", "Expand") and "shape" in attrs:
            attrs.pop("shape")
            inputs = [inputs[0], np.array(shape, np.int64)]
        where = "" if which == "stream" else f"/{which}"
        return walk.apply(node, made.op, inputs, shape, suffix + where, attrs, made.domain, made.output.dtype)

    left, right = like.left_columns, like.right_columns
    stream = part("stream", None)
    return Columns(
        stream, like.frames, like.offset, like.hop, like.spacing, part("left", left) if left else None,
        part("right", right) if right else None,
    )  # fmt: skip
