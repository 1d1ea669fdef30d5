"""matmul of two values of a frame, such as attention's scores."""

from __future__ import annotations

from contextlib import ExitStack

from runnel.compiler.codegen.builder import Expr, constant, int32, splat
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.elementwise import apply_epilogue, over_lanes
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Evaluator, Index
from runnel.compiler.codegen.reduce import reduce_lanes
from runnel.compiler.lowering.frame import FrameNode

_TILE = 4


def emit_matmul(context: Context, node: FrameNode) -> None:
    """numpy's matmul: vectors over columns and sums in the order of k; for one column, vectors over k."""
    left, right = node.inputs[:2]
    b = context.b
    if left is None or right is None or str(left.dtype) != "float32" or str(right.dtype) != "float32":
        raise Unsupported("matmul", "of two values that are not both float32")
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        raise Unsupported("matmul", "of two values with a bias")
    if not left.shape or not right.shape:
        raise Unsupported("matmul", "of a scalar")
    rows = left.shape[-2] if len(left.shape) > 1 else 1
    columns = right.shape[-1] if len(right.shape) > 1 else 1
    depth = left.shape[-1]
    drop = (len(left.shape) == 1) + (len(right.shape) == 1)
    batch = node.output.shape[: len(node.output.shape) - 2 + drop]

    def at_left(coords: list[Expr], row: Expr, k: Expr) -> Expr:
        tail = [k] if len(left.shape) == 1 else [row, k]
        lead = Index(batch, coords=coords).broadcast(left.shape[:-2]) if len(left.shape) > 2 else None
        index = Index(left.shape, coords=[*(lead.coords if lead else ()), *tail])
        return splat(Evaluator(context).at(left, index), b.lanes)

    def at_right(coords: list[Expr], k: Expr, column: Expr) -> Expr:
        tail = [k] if len(right.shape) == 1 else [k, column]
        lead = Index(batch, coords=coords).broadcast(right.shape[:-2]) if len(right.shape) > 2 else None
        index = Index(right.shape, coords=[*(lead.coords if lead else ()), *tail])
        return splat(Evaluator(context).at(right, index), b.lanes)

    def store(coords: list[Expr], row: Expr, column: Expr, value: Expr) -> None:
        flat = Index((*batch, rows, columns), coords=[*coords, row, column]).flat
        apply_epilogue(context, node.output, value, Index(node.output.shape, flat=flat))

    def tile(coords: list[Expr], tile_rows: list[Expr]) -> None:
        def column_vector(column: Expr) -> None:
            sums = [b.local("float32", b.lanes) for _ in tile_rows]
            for total in sums:
                b.store_vector(total, 0, constant(0.0, "float32", b.lanes))
            with b.loop(depth, "k") as k:
                y = at_right(coords, k, column)
                for row, total in zip(tile_rows, sums, strict=True):
                    x = at_left(coords, row, k)
                    b.store_vector(total, 0, b.fma(x, y, b.load_vector(total, 0, b.lanes)))
            for row, total in zip(tile_rows, sums, strict=True):
                store(coords, row, column, b.let(b.load_vector(total, 0, b.lanes)))

        over_lanes(b, columns, column_vector)

    def dot(coords: list[Expr], row: Expr) -> None:
        def element(_: list[Expr], k: Expr) -> Expr:
            return b.let(at_left(coords, row, k) * at_right(coords, k, int32(0)))

        total = reduce_lanes(b, (), depth, element, lambda x, y: x + y, constant(0.0, "float32"))
        store(coords, row, int32(0), total)

    with ExitStack() as stack:
        context.row = stack.enter_context(b.loop(context.rows, "row"))
        coords = [stack.enter_context(b.loop(n, "b")) for n in batch]
        if columns == 1:
            with b.loop(rows, "m") as row:
                dot(coords, row)
            return
        with b.loop(rows // _TILE, "m") as block:
            if rows >= _TILE:
                tile(coords, [block * _TILE + i for i in range(_TILE)])
        if rows % _TILE:
            tile(coords, [int32(row) for row in range(rows - rows % _TILE, rows)])
