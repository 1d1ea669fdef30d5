"""What is built from the length of the stream: positions, tables by position, constants that follow the length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count, Ended
from runnel.compiler.streaming.ir import STACKED, Operand, Source, Stream, StreamFact, StreamNode
from runnel.compiler.streaming.kinds.positions import END, HOLD, WRAP, Extent, Positions, Table
from runnel.compiler.streaming.numbers import numbers_of
from runnel.compiler.streaming.registry import MixesTime, Refusal, from_length, rule
from runnel.compiler.streaming.symbolic import Ratio, is_symbolic, relation
from runnel.errors import InternalError

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

FAR = 1 << 30
ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Log", "Exp", "Neg", "Abs", "Floor", "Ceil", "Round"),
    *("Cast", "Max", "Min", "Identity"),
}
"""Ops that compute with a length as a number."""


def generate(
    a: Analysis, node: Node, kind: type[StreamNode], shape: tuple[int | None, ...], dtype: str, length: Count,
    suffix: str = "", **fields: Any,
) -> Stream:  # fmt: skip
    """A stream that no data goes into: every frame is final as soon as it is certain to exist."""
    if length.gain <= 0 or not length.is_monotone:
        raise Refusal(
            f"makes {length} frames for T input frames, which do not follow the input",
            "make their number a fixed amount more or less than the input's",
        )
    length = length.affine(1, 0)
    axis = shape.index(None)
    name = node.outputs[0]
    if not suffix and (probed := a.shapes[name][0])[axis] != length(a.probe_length):
        raise InternalError(
            f"{node.op} '{node.name}': the rule says {length(a.probe_length)} frames for {a.probe_length} input "
            f"frames, the model makes {probed[axis]}; please report this model"
        )
    clock = next((n.output.fact.clock for n in a.nodes if isinstance(n, Source)), "")
    stream = Stream(name + suffix, shape, dtype, StreamFact(axis, length, length, clock))
    stream.node = kind(node.name, kind.__name__, [], stream, **fields)
    a.nodes.append(stream.node)
    return stream


def table(a: Analysis, node: Node, rows: np.ndarray, axis: int, length: Count, beyond: str = END) -> Value:
    """Frames that are the rows of a constant, which has its rows along ``axis``."""
    count = rows.shape[axis]
    if beyond == END and a.modes.get("position") == "wrap":
        a.used_modes["position"] = "wrap"
        beyond = WRAP
    shape = tuple(None if i == axis else d for i, d in enumerate(rows.shape))
    made = generate(a, node, Table, shape, rows.dtype.name, length, rows=rows, beyond=beyond)
    if beyond == END:
        why = f"the model's table of positions has {count} rows (compiled with --mode position=wrap it starts again)"
        a.limits.append((made.fact.length.first(count) - 1, why))
    return made


def _elements(a: Analysis, node: Node, i: int) -> list[Any]:
    """A vector input whose elements are numbers or lengths."""
    value = a.value(node.inputs[i])
    assert isinstance(value, np.ndarray)
    return [v if isinstance(v, Count) else int(v) for v in value.reshape(-1)]


def _time_of(dims: list[Any], what: str) -> int:
    """Which dimension follows the length of the stream."""
    places = [i for i, d in enumerate(dims) if isinstance(d, Count)]
    if len(places) > 1:
        raise MixesTime(f"{what} with time on two axes", "use a mask that attention recognises, or window mode")
    return places[0]


@from_length("Range")
def range_(a: Analysis, node: Node) -> list[Value]:
    first, last, delta = (np.asarray(a.value(i)).reshape(-1)[0] for i in node.inputs)
    if isinstance(first, Count | Ratio) or isinstance(delta, Count | Ratio):
        raise Refusal(
            "counts from a number that depends on the length of the stream, so every position moves when it goes on",
            "count from the start of the stream",
        )
    if int(first) != first or int(delta) != delta or delta <= 0:
        raise Refusal(f"counts from {first} in steps of {delta}", "count in whole steps upwards")
    end = last.ceil() if isinstance(last, Ratio) else Count.of(last)
    length = (end - int(first) + int(delta) - 1) // int(delta)
    dtype = a.shapes[node.outputs[0]][1]
    kept = dtype == "int64"
    made = generate(a, node, Positions, (None,), "int64", length, "" if kept else "/int64", start=int(first),
                    step=int(delta))  # fmt: skip
    return [made if kept else cast(a, node, made, dtype)]


def cast(a: Analysis, node: Node, x: Stream, dtype: str, suffix: str = "") -> Stream:
    from onnx import helper

    to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = x.shape if suffix else None
    made = a.pointwise(node, [x], x.axis, attrs={"to": to}, op="Cast", suffix=suffix, shape=shape)
    made.dtype = dtype
    return made


@from_length("ConstantOfShape")
def constant_of_shape(a: Analysis, node: Node) -> list[Value]:
    dims = _elements(a, node, 0)
    fill = np.asarray(node.attrs.get("value", np.zeros(1, np.float32))).reshape(-1)[0]
    return [_constant(a, node, np.asarray(fill), dims)]


@from_length("Expand")
def expand(a: Analysis, node: Node) -> list[Value] | None:
    value = a.value(node.inputs[0])
    if not isinstance(value, np.ndarray) or value.dtype == object:
        return None
    return [_constant(a, node, value, _elements(a, node, 1))]


def _constant(a: Analysis, node: Node, value: np.ndarray, dims: list[Any]) -> Value:
    """A constant repeated along time: ``dims`` is the shape that it is broadcast to."""
    rank = max(len(dims), value.ndim)
    dims = [1] * (rank - len(dims)) + dims
    axis = _time_of(dims, "makes a constant")
    value = value.reshape((1,) * (rank - value.ndim) + value.shape)
    if value.shape[axis] != 1:
        raise Refusal(
            f"repeats {value.shape[axis]} rows over a time axis, which fits one length only", "export with one row"
        )
    one = [1 if i == axis else d for i, d in enumerate(dims)]
    rows = np.broadcast_to(value, np.broadcast_shapes(value.shape, tuple(one)))
    return table(a, node, np.ascontiguousarray(rows), axis, dims[axis], HOLD)


@from_length("Tile")
def tile(a: Analysis, node: Node) -> list[Value] | None:
    value = a.value(node.inputs[0])
    if not isinstance(value, np.ndarray) or value.dtype == object:
        return None
    repeats = _elements(a, node, 1)
    axis = _time_of(repeats, "repeats a constant")
    count = value.shape[axis]
    rows = np.tile(value, [1 if i == axis else r for i, r in enumerate(repeats)])
    return [table(a, node, rows, axis, repeats[axis] * count, HOLD if count == 1 else WRAP)]


@from_length("Slice")
def slice_(a: Analysis, node: Node) -> list[Value] | None:
    value = a.value(node.inputs[0])
    if not isinstance(value, np.ndarray) or value.dtype == object:
        return None
    starts, ends = _elements(a, node, 1), _elements(a, node, 2)
    given = [_elements(a, node, i) if i < len(node.inputs) and node.inputs[i] else None for i in (3, 4)]
    axes = [v % value.ndim for v in (given[0] if given[0] is not None else range(len(starts)))]
    steps = given[1] or [1] * len(starts)
    rows, time, length = value, -1, Count.time()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(start, Count) and not isinstance(end, Count):
            index: list[Any] = [slice(None)] * value.ndim
            index[axis] = slice(start, None if end > FAR or end < -FAR else end, step)
            rows = rows[tuple(index)]
            continue
        if time >= 0 or step != 1 or isinstance(start, Count) or not isinstance(end, Count) or start < 0:
            raise Refusal(
                "takes rows of a constant table that move when the stream goes on",
                "take the rows from the first one on, one a frame",
            )
        time, length = axis, end - start
        rows = rows.take(range(start, value.shape[axis]), axis)
    if rows.shape[time] == 1 and (length.values > 0)[1:].all():
        return [rows]  # one row however long the stream is: numpy slices what there is
    return [table(a, node, rows, time, length)]


def compared_with_length(a: Analysis, node: Node) -> list[Value] | None:
    """Positions compared with a length: the same for every frame of every length, or None."""
    values = [a.value(i) for i in node.inputs]
    if node.op not in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"):
        return None
    at = next((i for i, v in enumerate(values) if isinstance(v, Stream)), 0)
    x, limit = values[at], values[1 - at]
    numbers = numbers_of(x) if isinstance(x, Stream) else None
    if numbers is None or numbers.pace is None or not is_symbolic(limit) or not isinstance(x, Stream):
        return None
    assert isinstance(limit, np.ndarray)
    results = set()
    for number in numbers.start.reshape(-1):
        for place in (Count.const(0), x.fact.length - 1):  # in between lies nothing else
            for bound in limit.reshape(-1):
                value = place * numbers.pace + int(number)
                left, right = (value, bound) if at == 0 else (bound, value)
                results.add(relation(node.op, left, right, x.fact.length))
    if len(results) != 1 or None in results:
        return None
    rows = np.full([1 if d is None else d for d in x.shape], results.pop())
    return [table(a, node, rows, x.axis, x.fact.length, HOLD)]


def rows_by_number(a: Analysis, node: Node) -> list[Value] | None:
    """Gather from a constant by positions: a table. None where the numbers are not positions."""
    data, numbers = a.value(node.inputs[0]), a.value(node.inputs[1])
    if not isinstance(data, np.ndarray) or not isinstance(numbers, Stream) or numbers.axis < 0:
        return None
    axis = int(node.attrs.get("axis", 0)) % data.ndim
    if isinstance(numbers.node, Table):
        rows = np.take(data, numbers.node.rows, axis)
        beyond = numbers.node.beyond if numbers.node.beyond != END else HOLD  # the end is a limit already
        return [table(a, node, rows, axis + numbers.axis, numbers.fact.length, beyond)]
    affine = numbers_of(numbers)
    if affine is None or affine.pace is None or affine.start.size != 1:
        return None
    first, step = int(affine.start.reshape(-1)[0]), affine.pace
    if first < 0 or step < 1:
        return None
    rows = np.take(data, range(first, data.shape[axis], step), axis)
    ones = [1] * (len(numbers.shape) - 1)
    before = ones[: numbers.axis]
    shape = (*rows.shape[:axis], *before, rows.shape[axis], *ones[numbers.axis :], *rows.shape[axis + 1 :])
    return [table(a, node, rows.reshape(shape), axis + numbers.axis, numbers.fact.length)]


def counted(a: Analysis, node: Node, x: Stream, exclusive: bool) -> list[Value] | None:
    """The sum of one whole number a frame, along time: positions. None for other streams."""
    if not isinstance(x.node, Table) or not x.node.is_constant or len(set(x.node.rows.reshape(-1).tolist())) != 1:
        return None
    each = x.node.rows.reshape(-1)[0]
    if each != int(each) or each < 1:
        return None
    start = 0 if exclusive else int(each)
    n = generate(a, node, Positions, (None,), "int64", x.fact.length, "/positions", start=start, step=int(each))
    if x.dtype != "int64":
        n = cast(a, node, n, x.dtype, "/cast")
    shape = tuple(None if i == x.axis else 1 for i in range(len(x.shape)))
    same = shape == x.shape
    n = a.pointwise(node, [n], x.axis, {"shape": list(shape)}, op="Reshape", suffix="" if same else "/n", shape=shape)
    return [n if same else a.pointwise(node, [n], x.axis, {"shape": list(x.shape)}, op="Expand")]


def without_time(operands: list[Operand]) -> list[Operand]:
    """Streams whose frames are all the same as constants, beside streams of their length that are not."""
    others = [x for x in operands if isinstance(x, Stream) and not _constant_rows(x)]
    return [
        _constant_rows(x)[0]
        if isinstance(x, Stream) and _constant_rows(x) and any(y.fact.length == x.fact.length for y in others) else x
        for x in operands
    ]  # fmt: skip


def _constant_rows(x: Stream) -> list[np.ndarray]:
    return [x.node.rows] if isinstance(x.node, Table) and x.node.is_constant else []


def extent(a: Analysis, node: Node, name: str) -> Stream:
    """A length as a value that is known at the end of the stream."""
    if name not in a.extents:
        value = a.value(name)
        assert isinstance(value, np.ndarray)
        ratio = Ratio.of(value.reshape(-1)[0]) if value.size == 1 else None
        if ratio is None or ratio.count.later(a.shortest).minimum < 0:
            raise Refusal("computes with several lengths at once, or with one below zero", "use one length")
        source = next(n.output.fact for n in a.nodes if isinstance(n, Source))
        fact = StreamFact(STACKED, Ended(frozenset([(source.made, source.length)])), Count.const(1), source.clock)
        made = Stream(f"{name}/extent", tuple(1 for _ in value.shape), a.shapes[name][1], fact)
        made.node = Extent(node.name, "Extent", [], made, count=ratio.count.affine(1, 0), div=ratio.div)
        a.nodes.append(made.node)
        a.extents[name] = made
    return a.extents[name]


def with_extents(a: Analysis, node: Node) -> list[Value]:
    """Element-wise ops on lengths, and on values that are known at the end with them."""
    if node.op not in ELEMENTWISE:
        raise Refusal(
            "builds data from the length of the stream", "export the model without absolute positions or lengths"
        )
    operands: list[Operand] = []
    for name in node.inputs:
        value = a.value(name)
        assert value is None or isinstance(value, (Stream, np.ndarray))
        operands.append(extent(a, node, name) if is_symbolic(value) else value)
    return [a.pointwise(node, operands, STACKED)]


@rule("NonZero")
def non_zero(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if len(x.shape) != 1 or not isinstance(x.node, Table) or not x.node.is_constant or not x.node.rows.all():
        raise Refusal("has an output whose length depends on the data", "remove it from the exported graph")
    made = generate(a, node, Positions, (None,), "int64", x.fact.length, "/positions")
    return [a.pointwise(node, [made, np.array([0])], 1, attrs={}, op="Unsqueeze")]
