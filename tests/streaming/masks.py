"""Attention layers for tests: one function a way to write a mask, and the forms that the product itself may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from nets import TIME, Net

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Heads:
    """Heads of queries and of keys, features of one head."""

    queries: int
    keys: int
    size: int

    @property
    def width(self) -> int:
        return self.queries * self.size

    def net(self, opset: int = 17) -> tuple[Net, str]:
        """A net with an input [1, T, width]."""
        net = Net(opset=opset)
        return net, net.input([1, TIME, self.width])


def positions(net: Net, x: str) -> str:
    """0 … T - 1, int64."""
    length = net.op("Squeeze", net.length(x, 1), net.const([0]))
    return net.op("Range", net.const(0), length, net.const(1))


def distance(net: Net, x: str) -> str:
    """i - j, int64 [T, T]."""
    i = positions(net, x)
    return net.op("Sub", net.op("Unsqueeze", i, net.const([1])), net.op("Unsqueeze", i, net.const([0])))


def square(net: Net, x: str, value: float = 1.0) -> str:
    """A constant, float32 [T, T]."""
    length = net.length(x, 1)
    shape = net.op("Concat", length, length, axis=0)
    from onnx import numpy_helper

    return net.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([value], np.float32)))


def within(net: Net, x: str, left: int, right: int) -> str:
    """-right <= i - j <= left, bool [T, T]."""
    d = distance(net, x)
    return net.op("And", net.op("LessOrEqual", d, net.const(left)), net.op("GreaterOrEqual", d, net.const(-right)))


def additive(net: Net, seen: str, low: float = LOWEST) -> str:
    return net.op("Where", seen, net.const(np.float32(0)), net.const(np.float32(low)))


def chunked(net: Net, x: str, chunk: int, left: int | None) -> str:
    """Bool [T, T]: key chunks from ``left`` before the query's to its own."""
    block = net.op("Div", positions(net, x), net.const(chunk))
    d = net.op("Sub", net.op("Unsqueeze", block, net.const([1])), net.op("Unsqueeze", block, net.const([0])))
    seen = net.op("GreaterOrEqual", d, net.const(0))
    return seen if left is None else net.op("And", seen, net.op("LessOrEqual", d, net.const(left)))


def _alibi(net: Net, x: str, left: int | None) -> str:
    d = net.op("Cast", distance(net, x), to=1)
    bias = net.op("Mul", d, net.const(-np.array([[[[0.5]], [[0.125]]]], np.float32)))
    return net.op("Add", bias, additive(net, within(net, x, left if left is not None else 1 << 40, 0)))


def _bloom(net: Net, x: str) -> str:
    """ALiBi as a function of the key alone."""
    j = net.op("Cast", net.op("Unsqueeze", positions(net, x), net.const([0])), to=1)
    bias = net.op("Mul", j, net.const(np.array([[[[0.5]], [[0.125]]]], np.float32)))
    return net.op("Add", bias, additive(net, within(net, x, 9, 0)))


def _buckets(net: Net, x: str, left: int, right: int) -> str:
    """A table of biases by clipped distance, [1, heads, T, T]."""
    d = net.op("Clip", distance(net, x), net.const(-right), net.const(left - 2))
    rows = net.op("Gather", net.weight(left + right + 1, 2), net.op("Add", d, net.const(right)), axis=0)
    bias = net.op("Unsqueeze", net.op("Transpose", rows, perm=[2, 0, 1]), net.const([0]))
    return net.op("Add", bias, additive(net, within(net, x, left, right), -np.inf))


def _table(net: Net, x: str, seen: np.ndarray) -> str:
    """A constant mask, sliced to [T, T]."""
    table = net.const(seen)
    length = net.length(x, 1)
    ends = net.op("Concat", length, length, axis=0)
    return net.op("Slice", table, net.const([0, 0]), ends, net.const([0, 1]))


def _triangle(net: Net, x: str) -> str:
    return net.op("Trilu", square(net, x, -np.inf), net.const(1), upper=1)


def _prefix(net: Net, x: str) -> str:
    """Causal, with a prefix of 4 frames that see each other."""
    j = net.op("Unsqueeze", positions(net, x), net.const([0]))
    return net.op("Or", within(net, x, 1 << 40, 0), net.op("Less", j, net.const(4)))


def _sinks(net: Net, x: str) -> str:
    """The first two frames and a window."""
    j = net.op("Unsqueeze", positions(net, x), net.const([0]))
    first = net.op("And", net.op("Less", j, net.const(2)), within(net, x, 1 << 40, 0))
    return net.op("Or", within(net, x, 6, 0), first)


def _halves(net: Net, x: str) -> str:
    """Two halves of the recording that do not see each other."""
    half = net.op("Div", net.op("Squeeze", net.length(x, 1), net.const([0])), net.const(2))
    late = net.op("Less", positions(net, x), half)
    i, j = net.op("Unsqueeze", late, net.const([1])), net.op("Unsqueeze", late, net.const([0]))
    return net.op("And", net.op("Equal", i, j), within(net, x, 1 << 40, 0))


def _of_data(net: Net, x: str) -> str:
    """A key is seen where its first feature is positive."""
    first = net.op("Slice", x, net.const([0]), net.const([1]), net.const([2]))
    return net.op("Transpose", net.op("Greater", first, net.const(np.float32(0))), perm=[0, 2, 1])


Mask = Callable[[Net, str], tuple[str, str]]
UNSTREAMED: dict[str, tuple[Mask, str]] = {
    "full": (lambda n, x: ("add", n.const(np.float32(0))), "whole future"),
    "anti_causal": (lambda n, x: ("where", within(n, x, 0, 1 << 40)), "whole future"),
    "prefix": (lambda n, x: ("where", _prefix(n, x)), "neither causal nor sliding nor chunked"),
    "sinks": (lambda n, x: ("where", _sinks(n, x)), "neither causal nor sliding nor chunked"),
    "halves": (lambda n, x: ("where", _halves(n, x)), "neither causal nor sliding nor chunked"),
    "without_itself": (lambda n, x: ("where", within(n, x, 9, -1)), "nothing to look at"),
    "of_data": (lambda n, x: ("where", _of_data(n, x)), "every frame with every frame"),
    "finite": (lambda n, x: ("add", additive(n, within(n, x, 6, 0), -1e4)), "large finite number"),
    "bias_by_query_and_key": (lambda n, x: ("add", n.op("Sqrt", n.op("Cast", n.op("Abs", n.op("Mul", distance(n, x),
                              n.op("Unsqueeze", positions(n, x), n.const([0])))), to=1))), "whole future"),
    "windowed_bias_by_both": (lambda n, x: ("add", n.op("Add", additive(n, within(n, x, 6, 0)), n.op("Sqrt", n.op(
                              "Cast", n.op("Mul", n.op("Unsqueeze", positions(n, x), n.const([1])), n.op("Unsqueeze",
                              positions(n, x), n.const([0]))), to=1)))), "no function of the distance"),
}  # fmt: skip
MASKS: dict[str, Mask] = {
    "causal_trilu": lambda n, x: ("add", _triangle(n, x)),
    "causal_less": lambda n, x: ("where", within(n, x, 1 << 40, 0)),
    "causal_minus_1e9": lambda n, x: ("add", additive(n, within(n, x, 1 << 40, 0), -1e9)),
    "causal_not_where": lambda n, x: ("where_not", n.op("Less", distance(n, x), n.const(0))),
    "causal_table": lambda n, x: ("where", _table(n, x, np.tril(np.ones((80, 80), np.bool_)))),
    "causal_alibi": lambda n, x: ("add", _alibi(n, x, None)),
    "window": lambda n, x: ("add", additive(n, within(n, x, 6, 0))),
    "window_where": lambda n, x: ("where", within(n, x, 13, 0)),
    "window_trilu": lambda n, x: ("where", n.op("Cast", n.op("Trilu", n.op("Trilu", square(n, x), n.const(-5), upper=1),
                                  n.const(0), upper=0), to=9)),
    "sliding": lambda n, x: ("where", within(n, x, 5, 3)),
    "sliding_table": lambda n, x: ("add", _table(n, x, _banded(128, 7, 2))),
    "only_ahead": lambda n, x: ("where", within(n, x, 0, 4)),
    "itself": lambda n, x: ("where", within(n, x, 0, 0)),
    "chunked": lambda n, x: ("where", chunked(n, x, 4, 0)),
    "chunked_left": lambda n, x: ("where", chunked(n, x, 3, 2)),
    "causal_chunked": lambda n, x: ("where", chunked(n, x, 5, None)),
    "alibi": lambda n, x: ("add", _alibi(n, x, 7)),
    "alibi_by_key": lambda n, x: ("add", _bloom(n, x)),
    "relative_table": lambda n, x: ("add", _buckets(n, x, 6, 2)),
    "dilated": lambda n, x: ("where", n.op("And", within(n, x, 8, 0), n.op("Equal", n.op("Mod", distance(n, x),
                             n.const(2)), n.const(0)))),
}  # fmt: skip


def _banded(size: int, left: int, right: int) -> np.ndarray:
    i = np.arange(size)
    d = i[:, None] - i[None, :]
    return np.where((d <= left) & (d >= -right), 0, -np.inf).astype(np.float32)


FORMS = ("matmul", "einsum", "einsum_time_first", "folded_heads", "scaled_operands", "nan_to_zero", "weights_zeroed")


def attention(net: Net, x: str, heads: Heads, kind: str, form: str = "matmul", wide: bool = True) -> str:
    """[1, T, width] → [1, T, width]: projections, heads, the masked product, the output projection."""
    h = heads
    flat = [net.op("MatMul", x, net.weight(h.width, n * h.size)) for n in (h.queries, h.keys, h.keys)]
    how, mask = (MASKS[kind] if kind in MASKS else UNSTREAMED[kind][0])(net, x)
    if form == "folded_heads":
        y = _folded(net, flat, h, how, mask)
    elif form == "einsum_time_first":
        q, k, v = (net.op("Reshape", f, net.const([0, 0, h.queries, h.size])) for f in flat)
        scores = net.op("Einsum", q, k, equation="bqhd,bkhd->bhqk")
        weights = net.op("Softmax", masked(net, _scaled(net, scores, h), how, mask), axis=-1)
        y = net.op("Reshape", net.op("Einsum", weights, v, equation="bhqk,bkhd->bqhd"), net.const([0, 0, h.width]))
    elif h.queries != h.keys:
        y = _grouped(net, flat, h, how, mask)
    else:
        q, k, v = (split(net, f, n, h.size) for f, n in zip(flat, (h.queries, h.keys, h.keys)))
        y = _product(net, q, k, v, h, how, mask, form)
    return net.op("MatMul", y, net.weight(h.width, h.width)) if wide else y


def _product(net: Net, q: str, k: str, v: str, heads: Heads, how: str, mask: str, form: str) -> str:
    if form == "einsum":
        scores = _scaled(net, net.op("Einsum", q, k, equation="bhid,bhjd->bhij"), heads)
    elif form == "scaled_operands":
        root = net.const(np.float32(heads.size**-0.25))
        turned = net.op("Mul", net.op("Transpose", k, perm=[0, 1, 3, 2]), root)
        scores = net.op("MatMul", net.op("Mul", q, root), turned)
    else:
        scores = _scaled(net, net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), heads)
    weights = net.op("Softmax", masked(net, scores, how, mask), axis=-1)
    if form == "nan_to_zero":
        weights = net.op("Where", net.op("IsNaN", weights), net.const(np.float32(0)), weights)
    if form == "weights_zeroed":
        seen = mask if how == "where" else net.op("Equal", mask, net.const(np.float32(0)))
        weights = net.op("Where", seen, net.op("Dropout", weights), net.const(np.float32(0)))
    if form == "einsum":
        y = net.op("Einsum", weights, v, equation="bhij,bhjd->bhid")
    else:
        y = net.op("MatMul", weights, v)
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.const([0, 0, heads.width]))


def _folded(net: Net, flat: list[str], heads: Heads, how: str, mask: str) -> str:
    """Heads folded into the batch, time first, as torch.nn.MultiheadAttention does."""
    parts = []
    for f in flat:
        first = net.op("Reshape", net.op("Transpose", f, perm=[1, 0, 2]), net.const([-1, heads.queries, heads.size]))
        parts.append(net.op("Transpose", first, perm=[1, 0, 2]))
    q, k, v = parts
    scores = _scaled(net, net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), heads)
    y = net.op("MatMul", net.op("Softmax", masked(net, scores, how, mask), axis=2), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[1, 0, 2]), net.const([-1, 1, heads.width]))
    return net.op("Transpose", y, perm=[1, 0, 2])


def _grouped(net: Net, flat: list[str], heads: Heads, how: str, mask: str) -> str:
    """Several heads of queries for one head of keys."""
    group = heads.queries // heads.keys
    q = net.op("Reshape", flat[0], net.const([0, 0, heads.keys, group, heads.size]))
    q = net.op("Transpose", q, perm=[0, 2, 3, 1, 4])
    k, v = (net.op("Unsqueeze", split(net, f, heads.keys, heads.size), net.const([2])) for f in flat[1:])
    scores = _scaled(net, net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 2, 4, 3])), heads)
    y = net.op("MatMul", net.op("Softmax", masked(net, scores, how, mask), axis=-1), v)
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 3, 1, 2, 4]), net.const([0, 0, heads.width]))


def _scaled(net: Net, scores: str, heads: Heads) -> str:
    return net.op("Div", scores, net.const(np.float32(heads.size**0.5)))


def masked(net: Net, scores: str, how: str, mask: str) -> str:
    """Scores with a mask: added, or in the place of what is not seen."""
    if how == "add":
        return net.op("Add", scores, mask)
    low = net.const(np.float32(LOWEST))
    return net.op("Where", mask, scores, low) if how == "where" else net.op("Where", mask, low, scores)


def split(net: Net, x: str, heads: int, size: int) -> str:
    """[1, T, heads·size] → [1, heads, T, size]."""
    return net.op("Transpose", net.op("Reshape", x, net.const([0, 0, heads, size])), perm=[0, 2, 1, 3])


def attend_channels(net: Net, x: str, channels: int, kind: str) -> str:
    """One head over [1, channels, T]."""
    rows = net.op("Transpose", x, perm=[0, 2, 1])
    q, k, v = (net.op("MatMul", rows, net.weight(channels, channels)) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    weights = net.op("Softmax", masked(net, scores, *MASKS[kind](net, rows)), axis=-1)
    return net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1])
