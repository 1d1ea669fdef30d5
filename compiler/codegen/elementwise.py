"""Kernels of element-wise and data-moving ops, and the loop over lanes that other kernels use for their epilogues."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from math import prod

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import ops
from runnel.compiler.codegen.boxes import boxes, turned
from runnel.compiler.codegen.builder import Builder, Expr, dtype_of, int32, lanes_of, splat
from runnel.compiler.codegen.context import STORED_AS, Context
from runnel.compiler.codegen.evaluate import Evaluator, Index
from runnel.compiler.codegen.memory import LANES, frame_elements
from runnel.compiler.codegen.neighbours import zipped
from runnel.compiler.lowering.frame import FrameValue, Group

POINTWISE = frozenset(ops.UNARY) | frozenset(ops.BINARY) | {"where", "cast"}
_SHORT, _SHORT_PART = 8, 3
"""The last axis, or part of it, up to which the vectors of the axis before it are interleaved; those of parts are
stored one by one."""


def over_lanes(
    b: Builder, count: int, emit: Callable[[Expr], None], lanes: int = LANES, spread: Context | None = None
) -> None:
    """Call ``emit(position)`` so that all of [0, count) is covered by vectors.

    The last vector overlaps the one before where the count is no multiple, so an element may be made twice: ``emit``
    must not read what it writes. spread: the kernel whose workers share the vectors, where they share anything.
    """
    while lanes > count:
        lanes //= 2
    with (spread.spread if spread else b.loop)(count // lanes) as block, b.vector(lanes) as lane:
        emit(block * lanes + lane)
    if count % lanes:
        with spread.alone() if spread else nullcontext(), b.vector(lanes) as lane:
            emit(lane + (count - lanes))


def store_result(context: Context, position: Expr, value: Expr) -> None:
    """Store elements of the output of the present row."""
    b = context.b
    value = splat(value, b.lanes)
    if context.group.output.dtype == "bool":
        value = ops.cast(b, value, "int8")
    # Else loops that only copy or fill become calls of memcpy and memset, which an image cannot import.
    b.store(context.out, context.out_row + position, b.fence(value))


def emit_elementwise(context: Context) -> None:
    """A group without an anchor."""
    group, b = context.group, context.b
    with b.loop(context.rows, "row") as row:
        context.row = row
        if _is_flat(group):
            _emit_flat(context)
        else:
            for box in boxes(group, POINTWISE):
                _emit_box(context, box)


def _is_flat(group: Group) -> bool:
    """Whether element i of the output needs only elements i of the operands, and scalars."""
    size = prod(group.output.shape)
    return all(
        (node.op in POINTWISE or node.op in ("reshape", "expand", "frame_number", "frame_length"))
        and all(o is not None and prod(o.shape) in (1, size) for o in node.inputs)
        and prod(node.output.shape) in (1, size)
        for node in group.nodes
    )


def _emit_flat(context: Context) -> None:
    shape = context.group.output.shape

    def emit(position: Expr) -> None:
        value = Evaluator(context).at(context.group.output, Index(shape, flat=position))
        store_result(context, position, value)

    over_lanes(context.b, frame_elements(shape), emit, spread=context)


def _emit_box(context: Context, box: tuple[tuple[int, int], ...]) -> None:
    """The output's elements from begin to end of each axis."""
    b, output = context.b, context.group.output
    wide = [axis for axis, (begin, end) in enumerate(box) if end - begin > 1]
    coords: list[Expr] = [int32(begin) for begin, _ in box]

    def outer(axes: list[int], inside: Callable[[], None]) -> None:
        if not axes:
            inside()
            return
        begin, end = box[axes[0]]
        with b.loop(end - begin) as i:
            coords[axes[0]] = i + begin
            outer(axes[1:], inside)

    def emit(axes: list[int]) -> None:
        if len(axes) > 1:
            outer(axes[:-1], lambda: emit(axes[-1:]))
            return

        def element(position: Expr) -> None:
            if axes:
                coords[axes[0]] = position + box[axes[0]][0]
            index = Index(output.shape, coords=list(coords))
            store_result(context, index.flat, Evaluator(context).at(output, index))

        over_lanes(b, box[axes[0]][1] - box[axes[0]][0] if axes else 1, element, spread=context)

    def across(axes: list[int]) -> None:
        """Vectors over the last axis but one, for each element of the last, which is short."""
        (begin, end), (low, high) = box[axes[0]], box[axes[1]]

        def elements(position: Expr) -> None:
            parts, places = [], []
            coords[axes[0]] = position + begin
            for i in range(low, high):
                coords[axes[1]] = int32(i)
                index = Index(output.shape, coords=list(coords))
                value = Evaluator(context).at(output, index)
                parts.append(b.let(splat(ops.cast(b, value, "int8") if output.dtype == "bool" else value, b.lanes)))
                places.append(index.flat)
            if high - low < output.shape[axes[1]]:
                for place, part in zip(places, parts, strict=True):
                    store_result(context, place, part)
                return
            order = [i * b.lanes + lane for lane in range(b.lanes) for i in range(high)]
            coords[axes[0]], coords[axes[1]] = position - b.lane + begin, int32(0)
            at = context.out_row + Index(output.shape, coords=list(coords)).flat
            b.store_vector(context.out, b.analyzer.simplify(at), tirx.Shuffle(parts, order))

        over_lanes(b, end - begin, elements, spread=context)

    def turn(axis: int, last: int, side: int) -> None:
        """Squares of neighbours along the axis that is read, turned in registers and stored along the last."""

        def square(position: Expr) -> None:
            def columns(first: Expr) -> None:
                parts = []
                coords[axis] = position + box[axis][0]
                for i in range(side):
                    coords[last] = first + (box[last][0] + i)
                    value = Evaluator(context).at(output, Index(output.shape, coords=list(coords)))
                    parts.append(b.let(splat(ops.cast(b, value, "int8") if output.dtype == "bool" else value, side)))
                for i, row in enumerate(zipped(b.let, parts)):
                    coords[axis], coords[last] = position - b.lane + (box[axis][0] + i), first + box[last][0]
                    flat = Index(output.shape, coords=list(coords)).flat
                    b.store_vector(context.out, b.analyzer.simplify(context.out_row + flat), row)

            count = box[last][1] - box[last][0]
            with b.loop(count // side) as block:
                columns(block * side)
            if count % side:
                columns(int32(count - side))

        over_lanes(b, box[axis][1] - box[axis][0], square, side, context)

    byte = np.dtype(STORED_AS.get(output.dtype, output.dtype)).itemsize == 1
    side = LANES if byte else min(context.target.lanes, LANES)
    if (found := turned(context.group, POINTWISE, box, side)) is not None:
        outer([a for a in wide if a not in found], lambda: turn(*found, side))
        return
    last = wide[-2:]
    if len(last) == 2 and last[1] == last[0] + 1:
        count, short = (box[axis][1] - box[axis][0] for axis in last)
        most = _SHORT if short == output.shape[last[1]] else _SHORT_PART
        if count >= LANES and short <= most and short < count:
            outer(wide[:-2], lambda: across(last))
            return
    emit(wide)


def apply_epilogue(context: Context, anchor: FrameValue, value: Expr, index: Index) -> None:
    """Run the rest of the group on an anchor's result (its lanes at ``index``) and store it."""
    if context.group.output.shape != index.shape:
        index = Index(context.group.output.shape, flat=index.flat)
    result = Evaluator(context, (anchor, index.flat, value)).at(context.group.output, index)
    store_result(context, index.flat, result)


def spill_and_apply(context: Context, anchor: FrameValue, vector: Expr, position: Expr, count: int) -> None:
    """As ``apply_epilogue`` for a vector of which only the first ``count`` lanes are real.

    position: of lane 0 in the anchor's output.
    """
    b = context.b
    memory = b.local(dtype_of(vector), lanes_of(vector))
    b.store_vector(memory, 0, vector)

    def emit(at: Expr) -> None:
        apply_epilogue(context, anchor, b.let(b.load(memory, at)), Index(anchor.shape, flat=position + at))

    over_lanes(b, count, emit)
