"""Slices, pads and joins along time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Operand, Shift, Stream, Tail
from runnel.compiler.streaming.kinds.geometry import Resample
from runnel.compiler.streaming.kinds.once import first_frames
from runnel.compiler.streaming.lengths import not_negative
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

FAR = 1 << 30


@rule("Slice")
def slice_(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    starts, ends, axes, steps = _slice_arguments(a, node, len(x.shape))
    time = [i for i, v in enumerate(axes) if v == x.axis]
    others = [i for i in range(len(axes)) if i not in time]
    if time:
        i = time[0]
        step = steps[i]
        if step < 0:
            raise MixesTime("reverses time, which needs the whole future", "slice forwards")
        tail = _tail(a, x, starts[i], ends[i])
        if tail is not None and step > 1:
            raise Refusal(
                f"takes every {step}. frame, counted from the end", "count from the start, or take all frames there"
            )
        if tail is not None:
            if others:
                raise Refusal("slices the end of time and another axis at once", "slice them one after the other")
            return [tail]
        name = "" if not others else "/time"
        x = _slice_time(a, node, x, starts[i], ends[i], name if step == 1 else f"{name}/kept")
        if step > 1 and x.fact.once:
            raise Refusal("takes steps among a fixed number of frames", "take them all, and then steps of them")
        if step > 1:
            x = every_nth(a, node, x, step, name)
        if not others:
            return [x]
    for i in others:
        if isinstance(starts[i], Count) or isinstance(ends[i], Count):
            raise Refusal("slices channels by the length of the stream", "export the model with fixed shapes")
    bounds = [np.array([v[i] for i in others], np.int64) for v in (starts, ends, axes, steps)]
    return [a.pointwise(node, [x, *bounds], x.axis, attrs={})]


def _slice_arguments(a: Analysis, node: Node, rank: int) -> tuple[list[Any], list[Any], list[int], list[int]]:
    if "starts" in node.attrs:
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        axes = list(node.attrs.get("axes", range(len(starts))))
        return starts, ends, [int(v) % rank for v in axes], [1] * len(starts)
    values: list[list[Any] | None] = []
    for i in range(1, 5):
        value = a.value(node.inputs[i]) if i < len(node.inputs) else None
        if value is not None and not isinstance(value, np.ndarray):
            raise Refusal("takes its bounds from data", "export the model with fixed bounds")
        values.append(None if value is None else list(value.reshape(-1)))
    first, last, given_axes, given_steps = values
    assert first is not None and last is not None
    axes = [int(v) % rank for v in (given_axes if given_axes is not None else range(len(first)))]
    return first, last, axes, [int(v) for v in (given_steps or [1] * len(first))]


def _tail(a: Analysis, x: Stream, start: Any, end: Any) -> Tail | None:
    length = x.fact.length
    if isinstance(start, Count):
        back = length - start
        if not back.is_const:
            raise Refusal(
                "starts at a frame whose number depends on the length", "slice from the start or from the end"
            )
        start = -int(back.values[0])
    if start >= 0:
        return None
    stop = 0
    if isinstance(end, Count):
        back = length - end
        if not back.is_const:
            raise Refusal("stops at a frame whose number depends on the length", "slice from the start or from the end")
        stop = int(back.values[0])
    elif end < 0:
        stop = -int(end)
    elif end < FAR:
        raise Refusal("starts counting from the end and stops counting from the start", "slice from one side")
    return Tail(x, -int(start), stop)


def split_time(a: Analysis, node: Node, x: Stream) -> list[Value]:
    """Parts of time whose sizes follow the stream's length: each is a slice. A part that nothing reads is left out."""
    from runnel.compiler.streaming.analysis import Poisoned

    sizes = a.value(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    if sizes is None:
        raise MixesTime("splits time into equal parts, and where the second begins is known only at the end",
                        "slice time by fixed numbers of frames from the start or the end")  # fmt: skip
    if not isinstance(sizes, np.ndarray):
        raise MixesTime("takes the sizes of its parts from data", "compute the sizes from the length of time")
    if sizes.dtype != object:
        raise MixesTime(f"splits time into parts of fixed sizes and so takes {int(sizes.sum())} frames alone",
                        "compute one of the sizes from the length of time")  # fmt: skip
    for size in sizes.reshape(-1):
        if isinstance(size, Count):
            not_negative(a, size)
    read = {i for n in a.graph.nodes for i in n.inputs} | {p.name for p in a.graph.outputs}
    results: list[Value] = []
    start: Any = 0
    for i, size in enumerate(sizes.reshape(-1)):
        end = start + size
        if node.outputs[i] not in read:
            results.append(Poisoned())
        elif (tail := _tail(a, x, start, FAR if end == x.fact.length else end)) is not None:
            results.append(tail)
        else:
            results.append(_slice_time(a, node, x, int(start), end, "", i))
        start = end
    return results


def _slice_time(a: Analysis, node: Node, x: Stream, start: int, end: Any, suffix: str, output: int = 0) -> Stream:
    length = x.fact.length
    if isinstance(end, Count):
        kept = end.minimum_with(length)
    elif end < 0:
        kept = length.affine(1, int(end))
    elif end >= FAR:
        kept = length
    else:
        kept = length.minimum_with(int(end))
    new_length = kept.affine(1, -start)
    if new_length.gain == 0 and length.gain > 0:
        last = int(new_length.largest() or 0)
        if not last:
            raise Refusal("keeps no frame of any input", "leave it out of the model")
        return first_frames(a, node, x, int(start), int(start) + last, suffix, output)
    right = None if new_length == length.affine(1, -start) else -1
    if start == 0 and right is None:
        return a.emit(node, Shift, [x], x.axis, x.fact.final, length, output, x.shape, "Shift", suffix)
    final = x.fact.final.affine(1, -start)
    return a.emit(
        node, Shift, [x], x.axis, final, new_length, output, x.shape, "Shift", suffix, offset=int(start),
        right=0 if right is None else -1,
    )  # fmt: skip


def every_nth(a: Analysis, node: Node, x: Stream, step: int, suffix: str = "") -> Stream:
    """Frames 0, step, 2·step … of x."""
    final, length = (count.affine(1, step - 1, step) for count in (x.fact.final, x.fact.length))
    return a.emit(
        node, Resample, [x], x.axis, final, length, shape=x.shape, op="Slice", suffix=suffix, down=step
    )  # fmt: skip


@rule("Pad")
def pad(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    rank = len(x.shape)
    mode = node.attrs.get("mode", "constant")
    amounts = list(node.attrs["pads"]) if "pads" in node.attrs else None
    if amounts is None:
        value = a.value(node.inputs[1])
        if not isinstance(value, np.ndarray):
            raise Refusal("takes its amounts from data", "export the model with fixed padding")
        amounts = list(value.reshape(-1))
    axes = a.constant(node, 3, "list of axes")
    if axes is not None:
        listed = [int(v) % rank for v in axes.reshape(-1)]
        full: list[Any] = [0] * (2 * rank)
        for i, axis in enumerate(listed):
            full[axis], full[rank + axis] = amounts[i], amounts[len(listed) + i]
        amounts = full
    fill_value = a.constant(node, 2, "fill value")
    fill = float(node.attrs.get("value", 0.0) if fill_value is None else fill_value.reshape(-1)[0])
    left, right = amounts[x.axis], amounts[rank + x.axis]
    amounts[x.axis] = amounts[rank + x.axis] = 0
    off_time = any(isinstance(v, Count) or v != 0 for v in amounts)
    on_time = isinstance(left, Count) or isinstance(right, Count) or left != 0 or right != 0
    if on_time or not off_time:
        x = pad_time(a, node, x, left, right, fill, mode, "/time" if off_time else "")
    if off_time:
        if any(isinstance(v, Count) for v in amounts):
            raise Refusal("pads channels by the length of the stream", "export the model with fixed shapes")
        value_of = np.array(fill, x.dtype) if mode == "constant" else None
        operands: list[Operand] = [x, np.array(amounts, np.int64), value_of]
        x = a.pointwise(node, operands, x.axis, attrs={"mode": mode})
    return [x]


def pad_time(
    a: Analysis, node: Node, x: Stream, left: Any, right: Any, fill: float, mode: str, suffix: str, beside: bool = False
) -> Stream:
    """x with frames added before and after (or taken away, for negative amounts)."""
    if isinstance(left, Count):
        raise Refusal("pads the start by the length of the stream", "pad the start by a fixed amount")
    if mode not in ("constant", "reflect", "edge"):
        raise Refusal(f"pads time in mode '{mode}'", "pad with zeros, reflection or the edge")
    left = int(left)
    length = (x.fact.length + right).affine(1, left)
    made = x.fact.made if isinstance(right, Count) or right > 0 else x.fact.final
    if mode == "constant":
        final = made.affine(1, left)
        if left < 0 and not isinstance(right, Count) and right <= 0:
            final = x.fact.final.affine(1, left)
    else:
        if isinstance(right, Count):
            raise Refusal("reflects the end by an amount that depends on the length", "pad with zeros there")
        if left < 0 or (not isinstance(right, Count) and right < 0):
            raise Refusal("crops time in a reflecting pad", "slice first")
        needed = left if mode == "reflect" else 0
        gate = x.fact.made.affine(2 * left + 1, -needed * (2 * left + 1))
        final = x.fact.made.affine(1, left).minimum_with(gate)
    amount = None if isinstance(right, Count) else int(right)
    return a.emit(
        node, Shift, [x], x.axis, final, length, suffix=suffix, shape=x.shape, op="Shift", offset=-left,
        left=max(left, 0), right=amount, fill=fill, mode=mode, beside=beside,
    )  # fmt: skip
