"""Joins along time: constant frames before and after a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.ir import Pointwise, Shift, Stream
from runnel.compiler.streaming.kinds.geometry import Fill
from runnel.compiler.streaming.kinds.once import First, Last
from runnel.compiler.streaming.kinds.positions import HOLD, Positions, Table
from runnel.compiler.streaming.registry import MixesTime, Refusal
from runnel.compiler.streaming.rules.elementwise import BINARY, UNARY
from runnel.compiler.streaming.rules.positions import generate
from runnel.compiler.streaming.rules.time import pad_time

if TYPE_CHECKING:
    from runnel.compiler.streaming.analysis import Analysis, Value

MOST_BEHIND = 16
SAME_ORDER = ("Reshape", "Unsqueeze", "Squeeze", "Identity")
ELEMENTWISE = frozenset({*UNARY, *BINARY, "Cast", "Clip"})


@dataclass(frozen=True, eq=False)
class Head:
    """The first frames of a stream."""

    stream: Stream
    frames: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.frames if d is None else d for d in self.stream.shape)


@dataclass(frozen=True, eq=False)
class Again:
    """The last frame of a stream, as many times as given."""

    stream: Stream
    frames: int


def joined_heads(a: Analysis, node: Node) -> list[Value] | None:
    """A join along time of first frames, or what is made of them element by element, a stream, and its last frame
    again; None for others.

    First frames are taken from the whole stream by number, and the last frame again is padding, so that nothing waits
    for a value known once.
    """
    if node.op != "Concat":
        return None
    values = [a.value(n) for n in node.inputs]
    going = [v for v in values if isinstance(v, Stream) and not v.fact.once]
    axis = int(node.attrs.get("axis", 0)) % max(len(v.shape) for v in values if isinstance(v, (Stream, np.ndarray)))
    if len(going) != 1 or going[0].axis != axis:
        return None
    operands: list[Any] = []
    for value in values:
        if not isinstance(value, Stream) or not value.fact.once:
            operands.append(value)
            continue
        if (again := _again(value, axis)) is not None and again.stream in (going[0], _cut(going[0])[0]):
            operands.append(again)
            continue
        stream = _whole(a, value)
        if stream is None or stream.axis != axis or None in value.shape:
            return None
        operands.append(Head(stream, int(value.shape[axis] or 0)))
    return concat_time(a, node, _repeated(a, node, operands, going[0]), axis)


def _again(x: Stream, axis: int) -> Again | None:
    """The last frame of a stream along an axis, if x is that, perhaps repeated."""
    one = tuple(1 if i == axis else d for i, d in enumerate(x.shape))
    made = x.node
    if isinstance(made, Pointwise) and made.op in ("Expand", "Tile"):
        if made.streams[0].shape != one:
            return None
        made = made.streams[0].node
    elif x.shape != one:
        return None
    while isinstance(made, Pointwise) and _keeps_order(made):
        made = made.streams[0].node
    if not isinstance(made, Last) or (made.start, made.stop) != (1, 0):
        return None
    stream = made.streams[0]
    same = stream.axis == axis and tuple(1 if d is None else d for d in stream.shape) == one
    return Again(stream, int(x.shape[axis] or 0)) if same else None


def _keeps_order(made: Pointwise) -> bool:
    """Whether its values are those of its first input, one after the other."""
    if made.op == "Gather" and isinstance(made.inputs[0], Stream):
        x = made.inputs[0]
        return x.shape[int(made.attrs.get("axis", 0)) % len(x.shape)] == 1
    return made.op in SAME_ORDER


def _cut(x: Stream) -> tuple[Stream, int]:
    """What x is all the frames of but for some at the start, and how many."""
    made = x.node
    if isinstance(made, Shift) and not made.pads and made.right == 0 and made.offset > 0:
        return made.streams[0], made.offset
    return x, 0


def _repeated(a: Analysis, node: Node, operands: list[Any], x: Stream) -> list[Any]:
    """The operands with the frames that repeat the last one of x as padding of x, or of what x is cut from."""
    at, count = next(i for i, v in enumerate(operands) if v is x), 0
    whole, cut = (x, 0) if at + 1 == len(operands) or not isinstance(operands[at + 1], Again) else _cut(x)
    while at + 1 < len(operands) and isinstance(operands[at + 1], Again):
        count += operands.pop(at + 1).frames
    if any(isinstance(v, Again) for v in operands):
        raise MixesTime("puts its last frame behind other frames than its own", "repeat it right behind the stream")
    alone = len(operands) == 1
    if count:
        y = pad_time(a, node, whole, 0, count, 0.0, "edge", "" if alone and not cut else "/again")
        if cut:
            final, length = (c.affine(1, -cut) for c in (y.fact.final, y.fact.length))
            y = a.emit(node, Shift, [y], y.axis, final, length, shape=y.shape, op="Shift",
                       suffix="" if alone else "/cut", offset=cut)  # fmt: skip
        operands[at] = y
    return operands


def _whole(a: Analysis, x: Stream) -> Stream | None:
    """The stream whose first frames are ``x``; None where ``x`` is something else."""
    made = x.node
    again = Node("Shift", made.name, [], [f"{x.name}/whole"]) if made is not None else None
    if again is None or made is None:
        return None
    if isinstance(made, First):
        source = made.streams[0]
        final, length = (c.affine(1, -made.start) for c in (source.fact.final, source.fact.length))
        return a.emit(again, Shift, [source], source.axis, final, length, shape=source.shape, offset=made.start)
    if not isinstance(made, Pointwise) or made.op not in ELEMENTWISE:
        return None
    streams = [_whole(a, v) for v in made.streams]
    inputs: list[Any] = [streams.pop(0) if isinstance(v, Stream) else v for v in made.inputs]
    if any(v is None and w is not None for v, w in zip(inputs, made.inputs, strict=True)):
        return None
    ranks = {len(v.shape) for v in inputs if isinstance(v, Stream)}
    first = next(v for v in inputs if isinstance(v, Stream))
    if ranks != {len(x.shape)}:
        return None
    shape = tuple(None if i == first.axis else d for i, d in enumerate(x.shape))
    y = a.pointwise(again, inputs, first.axis, attrs=made.attrs, op=made.op, shape=shape)
    y.dtype = x.dtype
    return y


def concat_time(a: Analysis, node: Node, operands: list[Any], axis: int) -> list[Value]:
    """Constants of one value are padding. Other rows before the stream are told by their number, those behind it by
    how many frames ago the stream ended."""
    at = [i for i, x in enumerate(operands) if isinstance(x, Stream)]
    if len(at) != 1:
        raise MixesTime("puts one stream behind another in time", "the first would have to end; join them on channels")
    x = operands[at[0]]
    before, after = operands[: at[0]], operands[at[0] + 1 :]
    if not (before or after):
        return [x]
    left, right = (sum(v.shape[axis] for v in part) for part in (before, after))
    heads = [v for v in before if isinstance(v, Head)]
    if any(isinstance(v, Head) for v in after):
        raise MixesTime("puts its first frames behind a stream", "join them before it")
    fills = {float(v) for part in (*before, *after) if isinstance(part, np.ndarray) for v in np.unique(part)}
    if len(fills) <= 1 and not heads:
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
    for i in reversed(range(len(before))):
        place = sum(v.shape[axis] for v in before[:i])
        y = _before(a, node, y, before[i], place, f"/{i}" if i else "")
    return [y]


def _before(a: Analysis, node: Node, x: Stream, part: Any, place: int, suffix: str) -> Stream:
    """x with its frames from ``place`` on replaced by rows, or by the first frames of a stream; those before it too."""
    axis, count = x.axis, place + part.shape[x.axis]
    number = generate(a, node, Positions, (None,), "int64", x.fact.length, f"/number{suffix}")
    low = _step(a, node, "Less", [number, np.array(count)], (None,), f"/before{suffix}")
    flags: tuple[int | None, ...] = tuple(None if i == axis else 1 for i in range(len(x.shape)))
    low = _step(a, node, "Reshape", [low], flags, f"/shaped{suffix}", {"shape": list(flags)})
    if isinstance(part, Head):
        made = part.stream.fact.made.affine(1, place)
        row = a.emit(
            node, Shift, [part.stream], axis, made, x.fact.length, shape=x.shape, op="Shift", suffix=f"/first{suffix}",
            offset=-place, left=place, right=None,
        )  # fmt: skip
    else:
        empty = np.zeros([place if i == axis else d for i, d in enumerate(part.shape)])
        rows = np.concatenate([empty, part], axis).astype(x.dtype)
        row = generate(a, node, Table, x.shape, x.dtype, x.fact.length, f"/rows{suffix}", rows=rows, beyond=HOLD)
    if not suffix:
        return a.pointwise(node, [low, row, x], axis, attrs={}, op="Where")
    made_so_far = a.pointwise(node, [low, row, x], axis, attrs={}, op="Where", suffix=f"/joined{suffix}", shape=x.shape)
    made_so_far.dtype = x.dtype
    return made_so_far


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
