"""Shape arithmetic: small tensors whose elements are exact functions of the stream's length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.registry import Refusal

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis

COMPARISONS: dict[str, Callable[[Any], Any]] = {
    "Equal": lambda apart: apart == 0,
    "Less": lambda apart: apart < 0,
    "LessOrEqual": lambda apart: apart <= 0,
    "Greater": lambda apart: apart > 0,
    "GreaterOrEqual": lambda apart: apart >= 0,
}
SYMBOLIC_OPS = {
    "Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast", "Reshape", "Identity",
    "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Min", "Max", "Floor", "Ceil", "Where", "ReduceProd", "ReduceSum",
    "ReduceMax", "ReduceMin", "Expand", "Split", *COMPARISONS,
}  # fmt: skip
SIMPLER = "export the model with simpler shape arithmetic"
MOST_FACTOR = 1 << 12


@dataclass(frozen=True)
class Ratio:
    """A length divided by a whole number, as real-number shape arithmetic has it: count / div."""

    count: Count
    div: int

    @staticmethod
    def of(value: Any) -> Ratio:
        if isinstance(value, Ratio):
            return value
        if isinstance(value, Count):
            return Ratio(value, 1)
        exact = Fraction(value)
        if max(abs(exact.numerator), exact.denominator) > MOST_FACTOR:
            raise Refusal(f"computes with lengths and the real number {float(exact)}, and rounds", SIMPLER)
        return Ratio(Count.const(exact.numerator), exact.denominator)

    def __add__(self, other: Any) -> Ratio:
        other = Ratio.of(other)
        return Ratio(self.count * other.div + other.count * self.div, self.div * other.div)

    def __mul__(self, other: Any) -> Ratio:
        other = Ratio.of(other)
        return Ratio(self.count * other.count, self.div * other.div)

    def __truediv__(self, other: Any) -> Ratio:
        other = Ratio.of(other)
        if not other.count.is_const or not int(other.count.values[0]):
            raise Refusal("divides a length by a length", SIMPLER)
        number = int(other.count.values[0])
        sign = 1 if number > 0 else -1
        return Ratio(self.count * (other.div * sign), self.div * abs(number))

    def floor(self) -> Count:
        return self.count // self.div

    def ceil(self) -> Count:
        return -((-self.count) // self.div)


def is_symbolic(value: Any) -> bool:
    """Whether a value is an array of lengths."""
    return isinstance(value, np.ndarray) and value.dtype == object


def plain(value: np.ndarray, dtype: str = "int64") -> np.ndarray:
    """The array as ``dtype`` when no element depends on the length, else as it is."""
    if value.dtype != object:
        return value
    flat = [v.count if isinstance(v, Ratio) else v for v in value.reshape(-1)]
    if all(not isinstance(v, Count) or v.is_const for v in flat):
        return np.array([_number(v) for v in value.reshape(-1)]).astype(dtype).reshape(value.shape)
    return value


def _number(value: Any) -> int | float:
    if isinstance(value, Ratio):
        return float(Fraction(int(value.count.values[0]), value.div))
    return int(value.values[0]) if isinstance(value, Count) else value


def evaluate_symbolic(analysis: Analysis, node: Node) -> list[np.ndarray]:
    """The node's values; plain numbers where the length cancels out."""
    from runnel.compiler.streaming.ir import Stream

    if node.op in ("Shape", "Size"):
        value = analysis.value(node.inputs[0])
        if isinstance(value, Stream):
            dims: list[Any] = [value.fact.length if d is None else d for d in value.shape]
        elif isinstance(value, np.ndarray):
            dims = list(value.shape)
        else:
            raise Refusal("asks for the shape of a value known only at the end", "export the model with fixed shapes")
        if node.op == "Size":
            return [plain(_array(_product(dims)))]
        bounds = [_bound(node.attrs.get(k), d, len(dims)) for k, d in (("start", 0), ("end", len(dims)))]
        return [plain(_array(dims[bounds[0] : bounds[1]]))]
    values = [np.asarray(v, object) if isinstance(v := analysis.value(i), np.ndarray) else v for i in node.inputs]
    dtype = analysis.shapes[next(o for o in node.outputs if o)][1]
    try:
        if node.op == "Split":
            return [plain(v, dtype) for v in _split(node, values)]
        return [plain(_compute(node, values, dtype), dtype)]
    except TypeError as error:
        raise Refusal(str(error), SIMPLER) from None


def _array(value: Any) -> np.ndarray:
    if isinstance(value, list):
        out = np.empty(len(value), object)
        for i, v in enumerate(value):
            out[i] = v
        return out
    out = np.empty((), object)
    out[()] = value
    return out


def _bound(value: int | None, default: int, rank: int) -> int:
    return default if value is None else max(0, value + rank) if value < 0 else min(value, rank)


def _ints(value: Any) -> list[int]:
    if value is None:
        return []
    flat = np.asarray(value, object).reshape(-1)
    if any(isinstance(v, Count | Ratio) for v in flat):
        raise Refusal("indexes a shape by a length", "export the model with fixed shapes")
    return [int(v) for v in flat]


def _axes(node: Node, v: list[Any], i: int = 1) -> list[int] | None:
    axes = node.attrs.get("axes")
    return list(axes) if axes is not None else _ints(v[i]) if len(v) > i and v[i] is not None else None


def _compute(node: Node, v: list[Any], dtype: str) -> np.ndarray:
    op, attrs = node.op, node.attrs
    first = v[0]
    if op in ("Identity", "Floor", "Ceil"):
        return first if op == "Identity" else _each(lambda x: _rounded(x, op), first)
    if op == "Cast":
        return _cast(first, dtype)
    if op == "Gather":
        places = np.asarray(_ints(v[1]), np.int64).reshape(v[1].shape)
        return _array_of(np.take(first, places, axis=int(attrs.get("axis", 0))))
    if op == "Slice":
        return _slice(node, v)
    if op == "Concat":
        return np.concatenate([np.atleast_1d(x) for x in v], axis=int(attrs.get("axis", 0)))
    if op == "Reshape":
        return first.reshape(_ints(v[1]))
    if op == "Expand":
        return np.broadcast_to(first, np.broadcast_shapes(first.shape, tuple(_ints(v[1]))))
    if op == "Squeeze":
        axes = _axes(node, v)
        return _array_of(first.squeeze(tuple(axes)) if axes is not None else first.squeeze())
    if op == "Unsqueeze":
        out = first
        axes = _axes(node, v) or []
        for a in sorted(a % (first.ndim + len(axes)) for a in axes):
            out = np.expand_dims(out, a)
        return out
    if op == "Where":
        if any(isinstance(c, Count | Ratio) for c in v[0].reshape(-1)):
            raise Refusal("chooses by a length", SIMPLER)
        return _array_of(np.where(v[0].astype(bool), v[1], v[2]))
    if op.startswith("Reduce"):
        return _reduced(node, v)
    return _array_of(_arithmetic(op, v, np.dtype(dtype).kind == "f"))


def _each(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    return _array_of(np.frompyfunc(function, len(arrays), 1)(*arrays))


def _slice(node: Node, v: list[Any]) -> np.ndarray:
    starts, ends = (list(node.attrs[k]) if k in node.attrs else _ints(v[i]) for i, k in ((1, "starts"), (2, "ends")))
    dims = _axes(node, v, 3) or list(range(len(starts)))
    steps = _ints(v[4]) if len(v) > 4 and v[4] is not None else [1] * len(starts)
    index = [slice(None)] * v[0].ndim
    for a, s, e, step in zip(dims, starts, ends, steps, strict=True):
        index[a] = slice(s, None if e > 1 << 30 or e < -(1 << 30) else e, step)
    return _array_of(v[0][tuple(index)])


def _split(node: Node, v: list[Any]) -> list[np.ndarray]:
    count, axis = len(node.outputs), int(node.attrs.get("axis", 0))
    given = node.attrs.get("split", _ints(v[1]) if len(v) > 1 else None)
    size = -(-v[0].shape[axis] // count)
    bounds = np.cumsum(given)[:-1] if given else [size * (i + 1) for i in range(count - 1)]
    return [np.asarray(p, object) for p in np.split(v[0], bounds, axis)]


def _cast(x: np.ndarray, dtype: str) -> np.ndarray:
    kind = np.dtype(dtype).kind
    if kind == "b":
        return _each(lambda e: not _decide("Equal", e, 0), x)
    if kind == "f":
        return _each(lambda e: Ratio.of(e) if isinstance(e, Count | Ratio) else e, x)
    return _each(lambda e: _rounded(e, "Truncate"), x)


def _rounded(x: Any, how: str) -> Any:
    if not isinstance(x, Ratio):
        return x if isinstance(x, Count) else int(np.ceil(x) if how == "Ceil" else np.floor(x) if how == "Floor" else x)
    if how == "Truncate" and x.count.minimum < 0:
        raise Refusal("rounds a length that may be negative towards zero", SIMPLER)
    whole = x.ceil() if how == "Ceil" else x.floor()
    return whole if how == "Truncate" else Ratio(whole, 1)


def _product(dims: Any) -> Any:
    return reduce(lambda x, y: x * y, dims, 1)


def _reduced(node: Node, v: list[Any]) -> np.ndarray:
    functions: dict[str, Callable[[Any], Any]] = {
        "ReduceProd": _product,
        "ReduceSum": lambda xs: reduce(lambda x, y: x + y, xs, 0),
        "ReduceMax": lambda xs: reduce(lambda x, y: _most(x, y, "Max"), xs),
        "ReduceMin": lambda xs: reduce(lambda x, y: _most(x, y, "Min"), xs),
    }
    axes = _axes(node, v)
    if v[0].ndim != 1 or (axes is not None and [a % v[0].ndim for a in axes] != [0]):
        raise Refusal("reduces an unusual array of lengths", SIMPLER)
    result = _array(functions[node.op](list(v[0])))
    return result.reshape(1) if node.attrs.get("keepdims", 1) else result


def _array_of(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else _array(value)


def relation(op: str, a: Any, b: Any, among: Count | None = None) -> bool | None:
    """Whether a relation of two lengths holds at every length of the stream; None where it depends on it.

    among: look only at lengths where this is above zero.
    """
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        x, y = Ratio.of(a), Ratio.of(b)
        a, b = x.count * y.div, y.count * x.div
    apart, holds = Count.of(a) - b, COMPARISONS[op]
    turns = 2 + int(np.abs(apart.values).max()) // abs(apart.gain) if apart.gain else 2
    n = max(len(apart.values) + turns * apart.period, 0 if among is None else len(among.values))
    results = holds(apart.table(n))
    kept = results[1:] if among is None else results[among.table(n) > 0]  # a stream has at least a frame
    return bool(kept[0]) if len(kept) and (kept == kept[0]).all() else None


def _decide(op: str, a: Any, b: Any) -> bool:
    if not isinstance(a, Count | Ratio) and not isinstance(b, Count | Ratio):
        return bool(COMPARISONS[op](a - b))
    result = relation(op, a, b)
    if result is None:
        raise Refusal("does one thing for short inputs and another for long ones", SIMPLER)
    return result


def _most(x: Any, y: Any, op: str) -> Any:
    if isinstance(x, Ratio) or isinstance(y, Ratio):
        x, y = Ratio.of(x), Ratio.of(y)
        div = x.div * y.div
        return Ratio(_most(x.count * y.div, y.count * x.div, op), div)
    return Count.of(x).minimum_with(y) if op == "Min" else Count.of(x).maximum_with(y)


def _arithmetic(op: str, v: list[Any], real: bool) -> Any:
    a = v[0]
    if op == "Neg":
        return _each(lambda x: x * -1, a)
    b = v[1]
    if op in COMPARISONS:
        return _each(lambda x, y: _decide(op, x, y), a, b)
    if op in ("Min", "Max"):
        return reduce(lambda x, y: _each(lambda p, q: _most(p, q, op), x, y), v[1:], a)
    if real and op != "Mod":
        a, b = (_each(lambda x: Ratio.of(x), x) for x in (a, b))
    if op == "Add":
        return a + b
    if op == "Sub":
        return a + b * -1 if real else a - b
    if op == "Mul":
        return a * b
    if op == "Div":
        return a / b if real else _each(_truncated, a, b)
    return _each(lambda x, y: x % y, a, b)


def _truncated(x: Any, y: Any) -> Any:
    """ONNX integer division rounds towards zero."""
    if not isinstance(x, Count) and not isinstance(y, Count):
        quotient = abs(int(x)) // abs(int(y))
        return quotient if (x < 0) == (y < 0) else -quotient
    x = Count.of(x)
    if x.minimum >= 0:
        return x // y
    if not isinstance(y, Count) and y < 0:
        x, y = -x, -y
    return x.maximum_with(0) // y - (-x).affine(1, 0) // y
