"""Joins along time: constant frames before and after a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.ir import Pointwise, Shift, Stream
from runnel.compiler.streaming.kinds.geometry import Fill
from runnel.compiler.streaming.kinds.positions import HOLD, Positions, Table
from runnel.compiler.streaming.registry import MixesTime, Refusal
from runnel.compiler.streaming.rules.positions import generate
from runnel.compiler.streaming.rules.time import pad_time

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

MOST_BEHIND = 16


def concat_time(a: Analysis, node: Node, operands: list[Any], axis: int) -> list[Value]:
    """Constants of one value are padding. Other rows before the stream are told by their number, those behind it by
    how many frames ago the stream ended."""
    at = [i for i, x in enumerate(operands) if isinstance(x, Stream)]
    if len(at) != 1:
        raise MixesTime("puts one stream behind another in time", "the first would have to end; join them on channels")
    x = operands[at[0]]
    before, after = operands[: at[0]], operands[at[0] + 1 :]
    left, right = (sum(v.shape[axis] for v in part) for part in (before, after))
    fills = {float(v) for part in (*before, *after) for v in np.unique(part)}
    if len(fills) <= 1:
        return [pad_time(a, node, x, left, right, fills.pop() if fills else 0.0, "constant", "")]
    y = pad_time(a, node, x, left, right, 0.0, "constant", "/padded")
    if right:
        rows = np.concatenate(after, axis).astype(x.dtype)
        if (rows == rows.take([0], axis)).all():
            rows = rows.take([0], axis)
        if rows.shape[axis] > MOST_BEHIND:
            raise Refusal(
                f"puts {right} different frames behind the stream, of which at most {MOST_BEHIND} are told apart",
                "add them to the output afterwards",
            )
        y = _behind(a, node, x, y, rows, left, "/ended" if left else "")
    if left:
        y = _before(a, node, y, np.concatenate(before, axis).astype(x.dtype))
    return [y]


def _before(a: Analysis, node: Node, x: Stream, rows: np.ndarray) -> Stream:
    """x with its first frames replaced by the rows."""
    count = rows.shape[x.axis]
    number = generate(a, node, Positions, (None,), "int64", x.fact.length, "/number")
    low = _step(a, node, "Less", [number, np.array(count)], (None,), "/before")
    rank = len(x.shape)
    flags: tuple[int | None, ...] = tuple(None if i == x.axis else 1 for i in range(rank))
    low = _step(a, node, "Reshape", [low], flags, "/before/shaped", {"shape": list(flags)})
    row = generate(a, node, Table, x.shape, x.dtype, x.fact.length, "/rows", rows=rows, beyond=HOLD)
    return a.pointwise(node, [low, row, x], x.axis, attrs={}, op="Where")


def _behind(a: Analysis, node: Node, x: Stream, y: Stream, rows: np.ndarray, left: int, suffix: str) -> Stream:
    """y, which is x behind ``left`` frames and before others, with the frames after x replaced by the rows."""
    axis, count = x.axis, rows.shape[x.axis]
    flags: tuple[int | None, ...] = tuple(None if i == axis else 1 for i in range(len(x.shape)))
    fact = x.fact
    ones = a.emit(
        node, Fill, [x], axis, fact.final, fact.length, shape=flags, op="Fill", suffix="/here", value=1.0,
    )  # fmt: skip
    value: Any = rows.take([count - 1], axis)
    for k in reversed(range(count)):  # 1 until k frames after the end of x
        started = a.emit(
            node, Shift, [ones], axis, fact.final.affine(1, left + k), fact.length.affine(1, left + k), shape=flags,
            op="Shift", suffix=f"/here{k}", offset=-left - k, left=left + k, fill=1.0,
        )  # fmt: skip
        here = a.emit(
            node, Shift, [started], axis, started.fact.made, y.fact.length, shape=flags, op="Shift",
            suffix=f"/until{k}", right=None, fill=0.0,
        )  # fmt: skip
        flag = _step(a, node, "Greater", [here, np.array(0, x.dtype)], flags, f"/flag{k}")
        other = y if k == 0 else rows.take([k - 1], axis)
        value = a.pointwise(
            node, [flag, other, value], axis, attrs={}, op="Where", suffix=f"/row{k}" if k or suffix else "",
            shape=x.shape,
        )  # fmt: skip
        value.dtype = x.dtype
    assert isinstance(value, Stream)
    return value


def _step(
    a: Analysis, node: Node, op: str, inputs: list[Any], shape: tuple[int | None, ...], suffix: str,
    attrs: dict[str, Any] | None = None,
) -> Stream:  # fmt: skip
    """A step on flags."""
    first = inputs[0]
    made = a.emit(
        node, Pointwise, inputs, shape.index(None), first.fact.final, first.fact.length, shape=shape, op=op,
        suffix=suffix, attrs=attrs or {},
    )  # fmt: skip
    made.dtype = "bool"
    return made
