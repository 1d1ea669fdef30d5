"""Which experts a frame chooses, and what share each of them has."""

from __future__ import annotations

from math import prod

import numpy as np
from tvm import tirx

from runnel.compiler.codegen.builder import constant, int32
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.lowering.frame import FrameNode, FrameValue

MOST_EXPERTS = 2048  # whose marks fit a kernel's stack


def emit_choice(context: Context, node: FrameNode) -> None:
    """choose: scores (N) → k, then the numbers of the k highest scores, the highest first; of equal ones, and of those
    that are no numbers, the lowest number first."""
    x, b, k = view_of(context, node), context.b, int(node.attrs["k"])
    count = prod(x.value.shape)
    if not 0 < k <= count <= MOST_EXPERTS or str(x.value.dtype) != "float32":
        raise Unsupported(node.op, f"{k} of {count} {x.value.dtype} scores")
    taken = b.local("int32", count)
    best, highest = b.local("int32", 1), b.local("float32", 1)
    with b.loop(context.rows, "row") as row:
        context.row = row
        base, out = b.let(context.at_row(x.access)), b.let(context.out_row)
        with b.loop(count, "e") as e:
            b.store_vector(taken, e, int32(0))
        b.store_vector(context.out, out, int32(k))
        with b.loop(k, "place") as place:
            b.store_vector(best, 0, int32(-1))
            b.store_vector(highest, 0, constant(0.0, "float32"))
            with b.loop(count, "e") as e, b.when(tirx.EQ(b.load_vector(taken, e, 1), int32(0))):
                score = b.let(b.load_vector(x.memory, base + e, 1))
                first = b.load_vector(best, 0, 1) < int32(0)
                with b.when(tirx.Or(first, score > b.load_vector(highest, 0, 1))):
                    b.store_vector(best, 0, e)
                    b.store_vector(highest, 0, score)
            found = b.let(b.load_vector(best, 0, 1))
            b.store_vector(taken, found, int32(1))
            b.store_vector(context.out, out + 1 + place, found)


def emit_among(context: Context, node: FrameNode) -> None:
    """among: what ``choose`` made, and a number or -1 for each unit → how many, and these numbers of the chosen."""
    x, b = view_of(context, node), context.b
    given, count = node.inputs[1], prod(node.output.shape) - 1
    assert isinstance(given, np.ndarray)
    numbers = context.constant((id(node), "numbers"), np.ascontiguousarray(given, np.int32))
    with b.loop(context.rows, "row") as row:
        context.row = row
        base, out = b.let(context.at_row(x.access)), b.let(context.out_row)
        b.store_vector(context.out, out, int32(count))
        with b.loop(count, "place") as place:
            unit = b.let(b.load_vector(x.memory, base + 1 + place, 1))
            b.store_vector(context.out, out + 1 + place, b.load_vector(numbers, unit, 1))


def emit_shares(context: Context, node: FrameNode) -> None:
    """shares: values (N) and what ``choose`` made of them → the values of the chosen; ``normalised``: as shares of
    their sum."""
    x, b = view_of(context, node), context.b
    chosen = node.inputs[1]
    if not isinstance(chosen, FrameValue) or chosen not in context.views:
        raise Unsupported(node.op, "its second operand must be an input of the group")
    units, k = context.views[chosen], prod(node.output.shape)
    total = b.local("float32", 1)
    with b.loop(context.rows, "row") as row:
        context.row = row
        base, names = b.let(context.at_row(x.access)), b.let(context.at_row(units.access))
        out = b.let(context.out_row)
        b.store_vector(total, 0, constant(0.0, "float32"))
        with b.loop(k, "place") as place:
            value = b.let(b.load_vector(x.memory, base + b.let(b.load_vector(units.memory, names + 1 + place, 1)), 1))
            b.store_vector(total, 0, b.load_vector(total, 0, 1) + value)
            b.store_vector(context.out, out + place, value)
        if node.attrs["normalised"]:
            with b.loop(k, "place") as place:
                share = b.load_vector(context.out, out + place, 1) / b.load_vector(total, 0, 1)
                b.store_vector(context.out, out + place, share)
