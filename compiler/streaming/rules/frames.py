"""Frames of a stream picked by number: framing by a matrix of indices, and overlap-add back to samples."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Stream, Upsample
from runnel.compiler.streaming.kinds.positions import Frames
from runnel.compiler.streaming.numbers import numbers_of
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

BY_NUMBER = "picks frames by number"


def frames_by_number(a: Analysis, node: Node, x: Stream, numbers: Stream) -> list[Value]:
    """Gather along time by numbers that are affine in the number of the frame: y[n, k] = x[stride·n + offset[k]]."""
    affine = numbers_of(numbers)
    if affine is None or affine.pace is None:
        raise MixesTime(BY_NUMBER, "pick them by numbers computed from positions alone, or slice time")
    stride, offsets, count = affine.pace, affine.start.reshape(-1).astype(np.int64), numbers.fact.length
    if stride < 1:
        raise Refusal(f"goes back {-stride} frames for every frame", "pick frames in the order of time")
    _check_inside(a, x, stride, offsets, count)
    first, last = int(offsets.min()), int(offsets.max())
    step = int(np.gcd.reduce(np.unique(offsets) - first)) or 1
    kernel = (last - first) // step + 1
    made = x.fact.final.affine(1, stride - 1 - last, stride).minimum_with(count)
    static = [d for i, d in enumerate(numbers.shape) if i < numbers.axis and d != 1]
    after = [d for i, d in enumerate(numbers.shape) if i > numbers.axis and d != 1]
    if static and after:
        raise Refusal("picks frames into axes on both sides of time", "put these axes on one side")
    before, rank = bool(static), x.axis
    shape = (*x.shape[:rank], *([kernel, None] if before else [None, kernel]), *x.shape[rank + 1 :])
    axis = rank + before
    y = a.emit(
        node, Frames, [x], axis, made, count, shape=shape, op="Frames", suffix="/frames",
        kernel=kernel, stride=stride, offset=first, dilation=step, before=before,
    )  # fmt: skip
    places = (offsets - first) // step
    if not np.array_equal(places, np.arange(kernel)):
        attrs = {"axis": rank if before else rank + 1}
        y = a.pointwise(node, [y, places], axis, attrs, op="Gather", suffix="/picked",
                        shape=tuple(len(places) if i == attrs["axis"] else d for i, d in enumerate(shape)))  # fmt: skip
    full = [*x.shape[:rank], *numbers.shape, *x.shape[rank + 1 :]]
    return [a.pointwise(node, [y], rank + numbers.axis, attrs={"shape": full}, op="Reshape")]


def _check_inside(a: Analysis, x: Stream, stride: int, offsets: np.ndarray, count: Count) -> None:
    """Refuse where a frame that is named does not exist, for lengths without end; a few short ones are not taken."""
    if offsets.min() < 0:
        raise Refusal("picks frames before the first one", "pad the start and count from there")
    spare = x.fact.length - (count * stride + (int(offsets.max()) + 1 - stride))
    settled = max(spare.start, count.start, count.first(0))
    n = settled + lcm(spare.period, count.period)
    outside = (spare.table(n) < 0) & (count.table(n) > 0)
    if spare.gain < 0 or outside[settled:].any():
        raise Refusal("picks frames behind the last one for some lengths", "make as many frames as fit the input")
    if outside.any():
        a.shortest = max(a.shortest, int(np.nonzero(outside)[0][-1]) + 1)


@rule("Col2Im")
def col2im(a: Analysis, node: Node) -> list[Value]:
    """Overlap-add: columns [N, C·K, T] of blocks back to [N, C, 1, frames], time being the last axis of the image."""
    x = a.stream(node)
    image, block = a.value(node.inputs[1]), a.constant(node, 2, "block shape")
    assert isinstance(image, np.ndarray) and block is not None
    sizes = [int(v) for v in block.reshape(-1)]
    rank = len(sizes)
    strides, dilations = (list(node.attrs.get(k, [1] * rank)) for k in ("strides", "dilations"))
    pads = list(node.attrs.get("pads", [0] * (2 * rank)))
    dims = list(image.reshape(-1))
    time = rank - 1
    flat = all(s == 1 and d == 1 for s, d in zip(sizes[:time], dims[:time], strict=True))
    if x.axis != 2 or x.shape[0] != 1 or not flat or any(pads[:time] + pads[rank : rank + time]):
        raise MixesTime("puts blocks of several axes together", "use a transposed convolution")
    kernel, stride, dilation, crop = sizes[time], strides[time], dilations[time], pads[time]
    channels = (x.shape[1] or 1) // kernel
    whole = (x.fact.length * stride + ((kernel - 1) * dilation + 1 - stride - crop - pads[rank + time])).affine(1, 0)
    target = Count.of(dims[time])
    if target.later(a.shortest) != whole.later(a.shortest):
        raise Refusal(
            f"gives {target} frames for T input frames, which {whole} frames of blocks do not fill",
            "give the image the size that the blocks fill",
        )
    weight = np.zeros((channels * kernel, 1, kernel), np.float32)
    weight[np.arange(channels * kernel), 0, np.tile(np.arange(kernel), channels)] = 1
    attrs: dict[str, Any] = {
        "kernel_shape": [kernel], "strides": [stride], "dilations": [dilation], "group": channels, "pads": [0, 0],
        "output_padding": [0],
    }  # fmt: skip
    final = x.fact.final.affine(stride, -crop)
    y = a.emit(
        node, Upsample, [x, weight], 2, final, whole, shape=(1, channels, None), op="ConvTranspose", suffix="/added",
        kernel=kernel, stride=stride, dilation=dilation, crop=crop, attrs=attrs,
    )  # fmt: skip
    shape = [1, channels, *([1] * time), None]
    return [a.pointwise(node, [y], 2 + time, attrs={"shape": shape}, op="Reshape")]
