"""Values of a group's nodes at one position: element-wise and data-moving ops as index arithmetic, nothing stored.

A position is a scalar index expression; inside ``Builder.vector`` it may contain the lane and then stands for
``Builder.lanes`` positions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import math as m
from runnel.compiler.codegen import ops, wide
from runnel.compiler.codegen.builder import Expr, constant, dtype_of, int32, lanes_of, splat
from runnel.compiler.codegen.context import Context, View
from runnel.compiler.codegen.errors import CodegenError, Unsupported
from runnel.compiler.codegen.tables import Quotient, steps_of
from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.streaming.count import Count

Operand = FrameValue | np.ndarray


class Index:
    """A position in a tensor of ``shape``, as coordinates, as a row-major offset, or both; made when asked for."""

    def __init__(self, shape: Sequence[int], flat: Expr = None, coords: Sequence[Expr] | None = None) -> None:
        self.shape = tuple(shape)
        self._flat = flat
        self._coords = None if coords is None else tuple(coords)

    @property
    def flat(self) -> Expr:
        """The row-major offset."""
        if self._flat is None:
            assert self._coords is not None
            flat: Expr = int32(0)
            for size, c in zip(self.shape, self._coords, strict=True):
                flat = flat * size + c
            self._flat = flat
        return self._flat

    @property
    def coords(self) -> tuple[Expr, ...]:
        """One index an axis."""
        if self._coords is None:
            coords: list[Expr] = [int32(0)] * len(self.shape)
            axes = [a for a, size in enumerate(self.shape) if size != 1]
            for axis in axes:
                stride = prod(self.shape[axis + 1 :])
                c = tirx.floordiv(self._flat, int32(stride)) if stride > 1 else self._flat
                coords[axis] = c if axis == axes[0] else tirx.floormod(c, int32(self.shape[axis]))
            self._coords = tuple(coords)
        return self._coords

    def broadcast(self, shape: Sequence[int]) -> Index:
        """The position in an operand of ``shape`` that numpy's broadcasting reads here."""
        shape = tuple(shape)
        if shape == self.shape:
            return self
        size = prod(shape)
        if size == prod(self.shape):
            return Index(shape, flat=self.flat)
        if size == 1:
            return Index(shape, flat=int32(0), coords=[int32(0)] * len(shape))
        tail = self.coords[len(self.shape) - len(shape) :]
        return Index(shape, coords=[int32(0) if n == 1 else c for n, c in zip(shape, tail, strict=True)])


class Evaluator:
    """Evaluates a group's values at positions of one vector width. Results are kept, so make one for each position.

    known: a value that is in registers already, an anchor's result at one position: (value, position, data).
    """

    def __init__(self, context: Context, known: tuple[FrameValue, Expr, Expr] | None = None) -> None:
        self.context = context
        self.b = context.b
        self.known = known
        self._producers = {node.output: node for node in context.group.nodes}
        self._done: dict[tuple[Any, int], tuple[Index, Expr]] = {}

    def at(self, operand: Operand | None, index: Index) -> Expr:
        """An operand's element (or one a lane) at ``index``, which is in the operand's own shape."""
        if operand is None:
            raise CodegenError("an operand is missing")
        if isinstance(operand, np.ndarray):
            return self._constant(operand, index)
        if self.known is not None and operand is self.known[0]:
            return self._known(index)
        key = (operand, id(index))
        if key not in self._done:
            producer = self._producers.get(operand)
            value = self._load(operand, index) if producer is None else self._node(producer, index)
            self._done[key] = (index, value)
        return self._done[key][1]

    def _known(self, index: Index) -> Expr:
        assert self.known is not None
        value, position, data = self.known
        if index.flat is position or self.b.analyzer.can_prove_equal(index.flat, position):
            return data
        raise Unsupported("an op after an anchor", f"it reads {value.name} elsewhere than where it is made")

    def _constant(self, data: np.ndarray, index: Index) -> Expr:
        if data.size == 1:
            return constant(data.reshape(-1)[0].item(), str(data.dtype), self.b.lanes)
        value = self.b.let(self.b.load(self.context.constant(id(data), data), index.flat))
        return self.b.let(tirx.NE(value, m.like(value, 0))) if data.dtype == np.bool_ else value

    def _load(self, value: FrameValue, index: Index) -> Expr:
        view = self.context.views.get(value)
        if view is None:
            raise CodegenError(f"the group reads {value.name}, which is not among its inputs")
        if view.access.taps > 1:
            raise Unsupported("element-wise op", f"it reads {value.name} through {view.access.taps} taps")
        return self._element(view, index.flat)

    def _element(self, view: View, position: Expr) -> Expr:
        """An element of an input, counted from where the present row begins."""
        loaded = self.b.let(self.b.load(view.memory, self.context.at_row(view.access) + position))
        return self.b.let(tirx.NE(loaded, m.like(loaded, 0))) if view.value.dtype == "bool" else loaded

    def _operands(self, node: FrameNode, index: Index) -> list[Expr]:
        """All operands of a broadcasting op, in one type unless a bool is meant."""
        operands = [o for o in node.inputs if o is not None]
        if len(operands) != len(node.inputs):
            raise CodegenError(f"{node.op}: an operand is missing")
        values = [splat(self.at(o, index.broadcast(o.shape)), self.b.lanes) for o in operands]
        start = 1 if node.op == "where" else 0
        kinds = [str(o.dtype) for o in operands[start:]]
        if len(set(kinds)) > 1:
            named = [str(o.dtype) for o in operands[start:] if isinstance(o, FrameValue)] or kinds
            kind = str(np.result_type(*named))
            values[start:] = [ops.cast(self.b, v, kind) for v in values[start:]]
        return values

    def _node(self, node: FrameNode, index: Index) -> Expr:
        op = node.op
        moved = getattr(self, f"_{op}", None) if op in MOVING else None
        if moved is not None:
            return moved(node, index)
        if op in ops.UNARY or op == "cast":
            x = splat(self.at(node.inputs[0], index.broadcast(node.inputs[0].shape)), self.b.lanes)  # type: ignore[union-attr]
            if op == "cast":
                return ops.cast(self.b, x, str(node.attrs["to"]))
            if op in ops.FLOAT_ONLY and dtype_of(x) != "float32":
                raise Unsupported(op, f"of {dtype_of(x)}; only float32")
            return ops.UNARY[op](self.b, x, node.attrs)
        if op == "where":
            condition, x, y = self._operands(node, index)
            return self.b.let(tirx.Select(ops.cast(self.b, condition, "bool"), x, y))
        if op in ops.BINARY:
            return self._binary(node, index)
        raise Unsupported(op, "not an element-wise op, and an anchor must be the first node of its group")

    def _binary(self, node: FrameNode, index: Index) -> Expr:
        exponent = node.inputs[1]
        if node.op == "pow" and isinstance(exponent, np.ndarray) and exponent.size == 1:
            x = node.inputs[0]
            assert x is not None
            base = splat(self.at(x, index.broadcast(x.shape)), self.b.lanes)
            special = ops.power_by_constant(self.b, base, float(exponent.reshape(-1)[0]))
            if special is not None:
                return special
        x, y = self._operands(node, index)
        if node.op == "pow" and dtype_of(x) != "float32":
            raise Unsupported("pow", f"of {dtype_of(x)}; only float32")
        return ops.BINARY[node.op](self.b, x, y)

    def _number(self, length: Count) -> Expr:
        """The number of the present row's frame, int64."""
        words = self.context.number(length)
        return self.b.load_vector(words, 0, 1) + tirx.Cast("int64", self.context.row)

    def _frame_number(self, node: FrameNode, index: Index) -> Expr:
        start, step = (constant(int(node.attrs.get(k, d)), "int64") for k, d in (("start", 0), ("step", 1)))
        return self.b.let(self._number(node.attrs["length"]) * step + start)

    def _frame_length(self, node: FrameNode, index: Index) -> Expr:
        return self.b.let(self.b.load_vector(self.context.number(node.attrs["length"]), 1, 1))

    def _table_row(self, node: FrameNode, index: Index) -> Expr:
        table = node.inputs[0]
        if not isinstance(table, np.ndarray):
            raise Unsupported("table_row", "the table is not constant")
        number, rows = self._number(node.attrs["length"]), constant(len(table), "int64")
        if node.attrs.get("wrap"):
            row = wide.remainder(self.b, number, rows)
        else:
            row = tirx.min(number, rows - constant(1, "int64"))
        at = self.b.let(tirx.Cast("int32", row))
        memory = self.context.constant((id(table), "rows"), table)
        value = self.b.let(self.b.load(memory, at * prod(index.shape) + index.flat))
        return self.b.let(tirx.NE(value, m.like(value, 0))) if table.dtype == np.bool_ else value

    def _unfold(self, node: FrameNode, index: Index) -> Expr:
        x, axis = _only(node), int(node.attrs["axis"])
        view = self.context.views[x]
        coords = index.coords
        inner = Index(x.shape, coords=[*coords[:axis], *coords[axis + 1 :]])
        return self._element(view, view.tap(coords[axis]) + inner.flat)

    def _pick(self, node: FrameNode, index: Index) -> Expr:
        """Part p is the tap ``places[p]`` of the input, or from there on a sum of taps by ``weights[p]``."""
        x, places, weights = node.inputs
        if not isinstance(x, FrameValue) or not isinstance(places, np.ndarray):
            raise Unsupported("pick", "its input is a constant or its places are not")
        view, part = self.context.views[x], index.coords[0]
        steps = steps_of(places)
        if steps is not None:
            first: Expr = part * steps[0] + int(places[0])
        else:
            memory = self.context.constant((id(places), "places"), places)
            first = self.b.shared(tirx.BufferLoad(memory, [part]), part)
        inner = Index(x.shape, coords=index.coords[1:]).flat
        if weights is None:
            return self._element(view, self.b.shared(view.tap(first), part) + inner)
        assert isinstance(weights, np.ndarray)
        table = self.context.constant((id(weights), "weights"), weights)
        total: Expr = None
        for k in range(weights.shape[1]):
            weight = splat(self.b.load(table, part * weights.shape[1] + k), self.b.lanes)
            value = splat(self._element(view, self.b.shared(view.tap(first + k), part) + inner), self.b.lanes)
            total = self.b.let(value * weight) if total is None else self.b.let(self.b.fma(value, weight, total))
        return total

    def _transpose(self, node: FrameNode, index: Index) -> Expr:
        x = _only(node)
        perm = [int(p) for p in node.attrs["perm"]]
        coords = index.coords
        return self.at(x, Index(x.shape, coords=[coords[perm.index(a)] for a in range(len(perm))]))

    def _reshape(self, node: FrameNode, index: Index) -> Expr:
        x = _only(node)
        return self.at(x, Index(x.shape, flat=index.flat) if x.shape != index.shape else index)

    def _expand(self, node: FrameNode, index: Index) -> Expr:
        x = _only(node)
        return self.at(x, index.broadcast(x.shape))

    def _slice(self, node: FrameNode, index: Index) -> Expr:
        x = _only(node)
        starts = [int(s) for s in node.attrs["starts"]]
        steps = [int(s) for s in node.attrs.get("steps", [1] * len(starts))]
        coords = []
        for c, size, start, step in zip(index.coords, x.shape, starts, steps, strict=True):
            first = min(max(start + size if start < 0 else start, 0), size - 1)
            coords.append(c * step + first)
        return self.at(x, Index(x.shape, coords=coords))

    def _gather(self, node: FrameNode, index: Index) -> Expr:
        x = _only(node)
        indices = node.inputs[1]
        if not isinstance(indices, np.ndarray):
            raise Unsupported("gather", "the indices are not constant")
        axis = int(node.attrs.get("axis", 0)) % len(x.shape)
        table = np.where(indices < 0, indices + x.shape[axis], indices).astype(np.int32)
        coords = index.coords
        inner = Index(table.shape, coords=coords[axis : axis + table.ndim])
        steps = steps_of(table)
        if steps is not None:
            at: Expr = int32(int(table.reshape(-1)[0]))
            for c, step in zip(inner.coords, steps, strict=True):
                at = at + c * step
        elif (rule := Quotient.of(table)) is not None:
            at = self._quotient(rule, inner.coords[0])
        else:
            memory = self.context.constant((id(indices), "gather"), table.reshape(-1))
            at = tirx.BufferLoad(memory, [inner.flat])
        return self.at(x, Index(x.shape, coords=[*coords[:axis], at, *coords[axis + table.ndim :]]))

    def _quotient(self, rule: Quotient, place: Expr) -> Expr:
        b = self.b
        above = b.analyzer.simplify(int32(place) * rule.step + rule.first)
        if not b.analyzer.can_prove(above >= rule.low * rule.divisor):
            above = tirx.max(above, int32(rule.low * rule.divisor))
        at = b.analyzer.simplify(tirx.floordiv(above, int32(rule.divisor)))
        return at if b.analyzer.can_prove(at <= rule.high) else tirx.min(at, int32(rule.high))

    def _gather_at(self, node: FrameNode, index: Index) -> Expr:
        """Rows by data; numbers outside the rows, which only frames that do not exist have, are brought inside."""
        data, numbers = node.inputs
        assert data is not None and numbers is not None
        axis, coords, rank = int(node.attrs["axis"]), index.coords, len(numbers.shape)
        size, after = data.shape[axis], prod(data.shape[axis + 1 :])
        at = splat(self.at(numbers, Index(numbers.shape, coords=coords[axis : axis + rank])), self.b.lanes)
        at = self.b.let(tirx.Select(at < m.like(at, 0), at + m.like(at, size), at))
        at = ops.minimum(self.b, ops.maximum(self.b, at, m.like(at, 0)), m.like(at, size - 1))
        outer = Index(data.shape, coords=[*coords[:axis], int32(0), *coords[axis + rank :]])
        base = outer.flat
        if isinstance(data, np.ndarray):
            memory = self.context.constant(id(data), data)
        else:
            view = self.context.views[data]
            memory, base = view.memory, base + self.context.at_row(view.access)
        step = constant(after, "int32", self.b.lanes)
        where = splat(self.b.index_vector(base), self.b.lanes) + ops.cast(self.b, at, "int32") * step
        value = self.b.let(self.b.load_at(memory, where))
        return self.b.let(tirx.NE(value, m.like(value, 0))) if data.dtype in ("bool", np.bool_) else value

    def _pad(self, node: FrameNode, index: Index) -> Expr:
        x = _only(node)
        pads = [int(p) for p in node.attrs["pads"]]
        coords, inside = [], []
        for c, size, begin in zip(index.coords, x.shape, pads, strict=False):
            coord, conditions = self._clamped(c - begin, size)
            coords.append(coord)
            inside += conditions
        fill = node.attrs.get("value", 0.0)
        outside = constant(fill if fill is not None else 0, node.output.dtype, self.b.lanes)
        if any(condition is False for condition in inside):
            return outside
        result = splat(self.at(x, Index(x.shape, coords=coords)), self.b.lanes)
        for condition in inside:
            result = self.b.let(tirx.Select(condition, result, outside))
        return result

    def _concat(self, node: FrameNode, index: Index) -> Expr:
        axis = int(node.attrs["axis"]) % len(index.shape)
        coords, begin, result = list(index.coords), 0, None
        for operand in node.inputs:
            assert operand is not None
            if not prod(operand.shape):
                continue
            coord, conditions = self._clamped(coords[axis] - begin, operand.shape[axis])
            begin += operand.shape[axis]
            if any(condition is False for condition in conditions):
                continue
            at = Index(operand.shape, coords=[*coords[:axis], coord, *coords[axis + 1 :]])
            value = splat(ops.cast(self.b, self.at(operand, at), node.output.dtype), self.b.lanes)
            if result is not None:
                for condition in conditions:
                    value = self.b.let(tirx.Select(condition, value, result))
            result = value
            if not conditions:
                break
        return result

    def _clamped(self, c: Expr, size: int) -> tuple[Expr, list[Expr | bool]]:
        """A coordinate brought into [0, size), and what must hold for it to have been inside.

        No condition where it is inside for sure; ``False`` where it cannot be.
        """
        b, conditions = self.b, []
        c = b.analyzer.simplify(int32(c))
        if b.analyzer.can_prove(c < 0) or b.analyzer.can_prove(c >= size):
            return int32(0), [False]
        original = c
        if not b.analyzer.can_prove(original >= 0):
            wide = b.index_vector(original)
            conditions.append(wide >= constant(0, "int32", lanes_of(wide)))
            c = tirx.max(c, int32(0))
        if not b.analyzer.can_prove(original < size):
            wide = b.index_vector(original)
            conditions.append(wide < constant(size, "int32", lanes_of(wide)))
            c = tirx.min(c, int32(size - 1))
        return c, conditions

    def _gates(self, operand: Operand | None, hidden: int, count: int, index: Index) -> list[Expr]:
        """The ``count`` gates of one unit from a tensor (..., count * hidden)."""
        assert operand is not None
        *lead, unit = index.coords
        shape = operand.shape
        lead = [int32(0)] * (len(shape) - 1 - len(lead)) + lead[len(lead) - (len(shape) - 1) :]
        return [self.at(operand, Index(shape, coords=[*lead, unit + g * hidden])) for g in range(count)]

    def _gru_cell(self, node: FrameNode, index: Index) -> Expr:
        gx, gh, h = node.inputs
        hidden = index.shape[-1]
        state = self.at(h, index.broadcast(h.shape))  # type: ignore[union-attr]
        return ops.gru_cell(self.b, self._gates(gx, hidden, 3, index), self._gates(gh, hidden, 3, index), state)

    def _lstm_c(self, node: FrameNode, index: Index) -> Expr:
        gates, c = node.inputs
        i, _, f, g = self._gates(gates, index.shape[-1], 4, index)
        return ops.lstm_c(self.b, i, f, g, self.at(c, index.broadcast(c.shape)))  # type: ignore[union-attr]

    def _lstm_h(self, node: FrameNode, index: Index) -> Expr:
        gates, c = node.inputs
        o = self._gates(gates, index.shape[-1], 2, index)[1]
        return ops.lstm_h(self.b, o, self.at(c, index.broadcast(c.shape)))  # type: ignore[union-attr]


MOVING = frozenset({"transpose", "reshape", "expand", "slice", "gather", "pad", "concat"}) | {
    *("gru_cell", "lstm_c", "lstm_h", "frame_number", "frame_length", "table_row", "unfold", "pick", "gather_at"),
}


def _only(node: FrameNode) -> FrameValue:
    x = node.inputs[0]
    if not isinstance(x, FrameValue):
        raise Unsupported(node.op, "its input is a constant; fold it first")
    return x
