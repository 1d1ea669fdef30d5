"""Shape arithmetic: small integer tensors whose elements are exact functions of the stream's length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.registry import Refusal

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis

SYMBOLIC_OPS = {
    "Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast", "Reshape", "Identity",
    "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Min", "Max", "Floor", "Ceil",
}  # fmt: skip


def is_symbolic(value: Any) -> bool:
    """Whether a value is an array of lengths."""
    return isinstance(value, np.ndarray) and value.dtype == object


def plain(value: np.ndarray) -> np.ndarray:
    """The array as int64 when no element depends on the length, else as it is."""
    if value.dtype != object:
        return value
    if all(not isinstance(v, Count) or v.is_const for v in value.reshape(-1)):
        return np.array([int(Count.of(v).values[0]) for v in value.reshape(-1)], np.int64).reshape(value.shape)
    return value


def evaluate_symbolic(analysis: Analysis, node: Node) -> np.ndarray:
    """The node's value; plain int64 where the length cancels out."""
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
            total: Any = 1
            for d in dims:
                total = total * d
            return plain(_array(total))
        return plain(
            _array(
                dims[
                    _bound(node.attrs.get("start"), 0, len(dims)) : _bound(node.attrs.get("end"), len(dims), len(dims))
                ]
            )
        )
    values = [np.asarray(v, object) if isinstance(v := analysis.value(i), np.ndarray) else v for i in node.inputs]
    return plain(_compute(node, values))


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
    if any(isinstance(v, Count) for v in flat):
        raise Refusal("indexes a shape by a length", "export the model with fixed shapes")
    return [int(v) for v in flat]


def _compute(node: Node, v: list[Any]) -> np.ndarray:
    op, attrs = node.op, node.attrs
    first = v[0]
    axes = attrs.get("axes")
    if op in ("Squeeze", "Unsqueeze") and axes is None:
        axes = _ints(v[1]) if len(v) > 1 and v[1] is not None else None
    if op in ("Identity", "Floor", "Ceil"):
        return first
    if op == "Cast":
        if attrs.get("to") not in (6, 7):
            raise Refusal("computes with lengths as real numbers", "use integer arithmetic on shapes")
        return first
    if op == "Gather":
        return _array_of(np.take(first, np.asarray(v[1], np.int64), axis=int(attrs.get("axis", 0))))
    if op == "Slice":
        starts, ends = _ints(v[1]), _ints(v[2])
        dims = _ints(v[3]) if len(v) > 3 and v[3] is not None else list(range(len(starts)))
        steps = _ints(v[4]) if len(v) > 4 and v[4] is not None else [1] * len(starts)
        index = [slice(None)] * first.ndim
        for a, s, e, step in zip(dims, starts, ends, steps, strict=True):
            index[a] = slice(s, None if e > 1 << 30 or e < -(1 << 30) else e, step)
        return _array_of(first[tuple(index)])
    if op == "Concat":
        return np.concatenate([np.atleast_1d(x) for x in v], axis=int(attrs.get("axis", 0)))
    if op == "Reshape":
        return first.reshape(_ints(v[1]))
    if op == "Squeeze":
        return _array_of(first.squeeze(tuple(axes)) if axes is not None else first.squeeze())
    if op == "Unsqueeze":
        out = first
        for a in sorted(axes or []):
            out = np.expand_dims(out, a)
        return out
    return _array_of(_arithmetic(op, v))


def _array_of(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else _array(value)


def _arithmetic(op: str, v: list[Any]) -> Any:
    a = v[0]
    if op == "Neg":
        return -a
    b = v[1]
    try:
        if op == "Add":
            return a + b
        if op == "Sub":
            return a - b
        if op == "Mul":
            return a * b
        if op == "Div":
            return np.frompyfunc(_truncated, 2, 1)(a, b)
        if op == "Mod":
            return np.frompyfunc(lambda x, y: x % y, 2, 1)(a, b)
    except TypeError as error:
        raise Refusal(str(error), "export the model with simpler shape arithmetic") from None
    function = np.frompyfunc(
        lambda x, y: Count.of(x).minimum_with(y) if op == "Min" else Count.of(x).maximum_with(y), 2, 1
    )
    out = a
    for other in v[1:]:
        out = function(out, other)
    return out


def _truncated(x: Any, y: Any) -> Any:
    """ONNX integer division rounds towards zero; lengths are not negative, so a negative numerator is folded
    through."""
    if isinstance(x, Count) and x.minimum < 0:
        raise Refusal("divides a length that may be negative", "export the model with simpler shape arithmetic")
    if not isinstance(x, Count) and not isinstance(y, Count):
        quotient = abs(int(x)) // abs(int(y))
        return quotient if (x < 0) == (y < 0) else -quotient
    return x // y
