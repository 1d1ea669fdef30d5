"""Reductions and softmax, each element in one fixed order.

Along the innermost axis, 16 lanes of partial results go over the axis, its tail goes to narrower ones, and a fixed tree
joins them; along another axis the order is the axis's own, with vectors over the innermost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import prod

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import math as m
from runnel.compiler.codegen import ops
from runnel.compiler.codegen.builder import Builder, Expr, constant, dtype_of, int32, lanes_of, shuffle, splat
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.elementwise import POINTWISE, apply_epilogue, over_lanes
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Evaluator, Index
from runnel.compiler.codegen.memory import LANES
from runnel.compiler.lowering.frame import FrameNode, FrameValue

Combine = Callable[[Expr, Expr], Expr]


def tree(b: Builder, value: Expr, combine: Combine) -> Expr:
    """All lanes joined: halves with halves."""
    lanes = lanes_of(value)
    while lanes > 1:
        value = b.let(value)
        lanes //= 2
        value = combine(shuffle(value, range(lanes)), shuffle(value, range(lanes, 2 * lanes)))
    return b.let(value)


def tree_sum(b: Builder, value: Expr) -> Expr:
    """The sum of all lanes."""
    return tree(b, value, lambda x, y: x + y)


def reduce_lanes(
    b: Builder,
    outer: Sequence[int],
    count: int,
    element: Callable[[list[Expr], Expr], Expr],
    combine: Combine,
    start: Expr,
) -> Expr:
    """One scalar from ``count`` elements along an axis, for all indices of the ``outer`` axes.

    element: data at the outer indices and a position along the axis, in the builder's lanes. start: a scalar that
    changes nothing.
    """
    tails = [piece for piece in (8, 4, 2, 1) if count % LANES & piece]
    widths = ([LANES] if count >= LANES else []) + tails
    partial = [b.local(dtype_of(start), lanes) for lanes in widths]
    for memory, lanes in zip(partial, widths):
        b.store_vector(memory, 0, splat(start, lanes))
    with ExitStack() as stack:
        indices = [stack.enter_context(b.loop(n, "r")) for n in outer]
        at = 0
        for memory, lanes in zip(partial, widths):
            blocks = count // LANES if lanes == LANES else 1
            with b.loop(blocks, "r") as block, b.vector(lanes) as lane:
                x = splat(element(indices, block * lanes + lane + at), lanes)
                b.store_vector(memory, 0, combine(b.load_vector(memory, 0, lanes), x))
            at += blocks * lanes
    results = [tree(b, b.load_vector(p, 0, lanes), combine) for p, lanes in zip(partial, widths)]
    total = results[0]
    for result in results[1:]:
        total = b.let(combine(total, result))
    return total


def _start(op: str, dtype: str) -> float | int:
    if op == "reduce_prod":
        return 1
    if op not in ("reduce_max", "reduce_min"):
        return 0
    if dtype.startswith("float"):
        return -math.inf if op == "reduce_max" else math.inf
    if dtype == "bool":
        return op == "reduce_min"
    limits = np.iinfo(dtype)
    return int(limits.min if op == "reduce_max" else limits.max)


def _combine(b: Builder, op: str) -> Combine:
    if op == "reduce_max":
        return lambda x, y: ops.maximum(b, x, y)
    if op == "reduce_min":
        return lambda x, y: ops.minimum(b, x, y)
    if op == "reduce_prod":
        return lambda x, y: x * y
    return lambda x, y: x + y


def _finish(b: Builder, op: str, value: Expr, count: int) -> Expr:
    if op == "reduce_mean":
        return b.let(value / m.like(value, float(count)))
    return b.let(b.intrinsic("llvm.sqrt", value)) if op == "reduce_l2" else value


def _input(node: FrameNode) -> FrameValue:
    x = node.inputs[0]
    if not isinstance(x, FrameValue):
        raise Unsupported(node.op, "its input is a constant; fold it first")
    return x


def _plain(context: Context, node: FrameNode, x: FrameValue) -> bool:
    """Whether the reduced tensor may be seen flat: what comes before is element-wise on one shape."""
    before = context.group.nodes[: context.group.nodes.index(node)]
    return all(
        n.op in POINTWISE and all(o is not None and (o.shape == x.shape or prod(o.shape) == 1) for o in n.inputs)
        for n in before
    )


def emit_reduction(context: Context, node: FrameNode) -> None:
    """reduce_*: over any axes."""
    x, b, op = _input(node), context.b, node.op
    if x.dtype == "bool" or (op in ("reduce_mean", "reduce_l2") and x.dtype != "float32"):
        raise Unsupported(op, f"of {x.dtype}")
    rank = len(x.shape)
    axes = sorted({int(a) % rank for a in node.attrs.get("axes") or range(rank)})
    kept = [a for a in range(rank) if a not in axes and x.shape[a] > 1]
    reduced = [a for a in axes if x.shape[a] > 1]
    count = prod(x.shape[a] for a in reduced)
    combine, start = _combine(b, op), constant(_start(op, x.dtype), x.dtype)

    def read(coords: dict[int, Expr]) -> Expr:
        index = Index(x.shape, coords=[coords.get(a, int32(0)) for a in range(rank)])
        return prepared(Evaluator(context).at(x, index))

    def prepared(value: Expr) -> Expr:
        value = splat(value, b.lanes)
        return b.let(value * value) if op == "reduce_l2" else value

    def write(coords: dict[int, Expr], value: Expr) -> None:
        flat: Expr = int32(0)
        for a in kept:
            flat = flat * x.shape[a] + coords[a]
        apply_epilogue(context, node.output, _finish(b, op, value, count), Index(node.output.shape, flat=flat))

    last = max(kept + reduced, default=-1)
    along = last in reduced or not kept
    flat_tail = along and bool(reduced) and all(a < min(reduced) for a in kept) and _plain(context, node, x)
    with ExitStack() as stack:
        context.row = stack.enter_context(b.loop(context.rows, "row"))
        looped = kept if along else kept[:-1]
        coords = {a: stack.enter_context(b.loop(x.shape[a], "i")) for a in looped}
        if not along:

            def column(position: Expr) -> None:
                here = {**coords, last: position}
                memory = b.local(x.dtype, b.lanes)
                b.store_vector(memory, 0, splat(start, b.lanes))
                with ExitStack() as inner:
                    for a in reduced:
                        here[a] = inner.enter_context(b.loop(x.shape[a], "r"))
                    b.store_vector(memory, 0, combine(b.load_vector(memory, 0, b.lanes), read(here)))
                write(here, b.let(b.load_vector(memory, 0, b.lanes)))

            over_lanes(b, x.shape[last], column)
        elif flat_tail:
            first: Expr = int32(0)
            for a in kept:
                first = first * x.shape[a] + coords[a]

            def flat_element(_: list[Expr], position: Expr) -> Expr:
                return prepared(Evaluator(context).at(x, Index(x.shape, flat=first * count + position)))

            write(coords, reduce_lanes(b, (), count, flat_element, combine, start))
        else:
            outer = [a for a in reduced if a != last]

            def element(indices: list[Expr], position: Expr) -> Expr:
                return read({**coords, **dict(zip(outer, indices)), last: position})

            size = x.shape[last] if reduced else 1
            write(coords, reduce_lanes(b, [x.shape[a] for a in outer], size, element, combine, start))


def emit_softmax(context: Context, node: FrameNode) -> None:
    """softmax and log_softmax: three passes, the last of which makes the exponentials again instead of storing them; or
    one, where a vector holds the axis."""
    x, b = _input(node), context.b
    if x.dtype != "float32":
        raise Unsupported(node.op, f"of {x.dtype}; only float32")
    rank, logarithm = len(x.shape), node.op == "log_softmax"
    axis = int(node.attrs.get("axis", -1)) % rank
    others = [a for a in range(rank) if a != axis and x.shape[a] > 1]
    along = not others or axis > max(others)
    lowest, zero = constant(-math.inf, "float32"), constant(0.0, "float32")

    def place(coords: dict[int, Expr]) -> Index:
        return Index(x.shape, coords=[coords.get(a, int32(0)) for a in range(rank)])

    def read(coords: dict[int, Expr]) -> tuple[Expr, Index]:
        index = place(coords)
        return splat(Evaluator(context).at(x, index), b.lanes), index

    def largest(p: Expr, q: Expr) -> Expr:
        return ops.maximum(b, p, q)

    def write(coords: dict[int, Expr], top: Expr, total: Expr) -> None:
        value, index = read(coords)
        shifted = b.let(value - splat(top, b.lanes))
        total = splat(total, b.lanes)
        result = b.let(shifted - total) if logarithm else b.let(m.exp(b, shifted) / total)
        apply_epilogue(context, node.output, result, index)

    with ExitStack() as stack:
        context.row = stack.enter_context(b.loop(context.rows, "row"))
        looped = others if along else others[:-1]
        coords = {a: stack.enter_context(b.loop(x.shape[a], "i")) for a in looped}
        if along and x.shape[axis] <= LANES:
            _softmax_of_vector(context, node, lambda position: place({**coords, axis: position}), x)
            return
        if along:

            def value_at(_: list[Expr], position: Expr) -> Expr:
                return read({**coords, axis: position})[0]

            top = reduce_lanes(b, (), x.shape[axis], value_at, largest, lowest)

            def exp_at(_: list[Expr], position: Expr) -> Expr:
                return m.exp(b, b.let(value_at(_, position) - splat(top, b.lanes)))

            total = reduce_lanes(b, (), x.shape[axis], exp_at, lambda p, q: p + q, zero)
            total = m.log(b, total) if logarithm else total
            over_lanes(b, x.shape[axis], lambda position: write({**coords, axis: position}, top, total))
            return

        def column(position: Expr) -> None:
            here = {**coords, others[-1]: position}
            lanes = b.lanes
            tops, totals = b.local("float32", lanes), b.local("float32", lanes)
            b.store_vector(tops, 0, splat(lowest, lanes))
            b.store_vector(totals, 0, splat(zero, lanes))
            with b.loop(x.shape[axis], "r") as r:
                value = read({**here, axis: r})[0]
                b.store_vector(tops, 0, largest(b.load_vector(tops, 0, lanes), value))
            top = b.let(b.load_vector(tops, 0, lanes))
            with b.loop(x.shape[axis], "r") as r:
                e = m.exp(b, b.let(read({**here, axis: r})[0] - top))
                b.store_vector(totals, 0, b.load_vector(totals, 0, lanes) + e)
            total = b.let(b.load_vector(totals, 0, lanes))
            total = m.log(b, total) if logarithm else total
            with b.loop(x.shape[axis], "r") as r:
                write({**here, axis: r}, top, total)

        over_lanes(b, x.shape[others[-1]], column)


def _softmax_of_vector(context: Context, node: FrameNode, place: Callable[[Expr], Index], x: FrameValue) -> None:
    """Along an axis that fits a vector, whose lanes beyond it hold the lowest number. place: of positions along it."""
    b, count = context.b, x.shape[int(node.attrs.get("axis", -1))]
    widths = [1 << i for i in reversed(range(count.bit_length())) if count >> i & 1]
    pieces = [(sum(widths[:i]), width) for i, width in enumerate(widths)]
    parts = []
    for first, width in pieces:
        with b.vector(width) as lane:
            parts.append(b.let(splat(Evaluator(context).at(x, place(lane + first)), width)))
    lanes = 1 << (count - 1).bit_length()
    lowest = [constant(-math.inf, "float32", lanes)] if lanes > count else []
    values = b.let(tirx.Shuffle([*parts, *lowest], [*range(lanes)])) if len(parts) + len(lowest) > 1 else parts[0]
    top = tree(b, values, lambda p, q: ops.maximum(b, p, q))
    shifted = b.let(values - splat(top, lanes))
    powers = m.exp(b, shifted)
    total = splat(m.log(b, tree_sum(b, powers)) if node.op == "log_softmax" else tree_sum(b, powers), lanes)
    result = b.let(shifted - total if node.op == "log_softmax" else powers / total)
    for first, width in pieces:
        part = b.let(shuffle(result, range(first, first + width)) if width < lanes else result)
        with b.vector(width) as lane:
            apply_epilogue(context, node.output, part, place(lane + first))
