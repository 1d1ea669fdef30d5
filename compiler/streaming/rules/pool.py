"""Pools over time: an average whose windows hold fewer frames at the edges is divided by how many they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.ir import Operand, Pointwise, Shift, Stream, Window
from runnel.compiler.streaming.kinds.geometry import Fill
from runnel.compiler.streaming.registry import Refusal, rule
from runnel.compiler.streaming.rules.conv import spatial_attrs, window_over_time

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


@rule("MaxPool")
def max_pool(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if len(node.outputs) > 1 and node.outputs[1]:
        raise Refusal("gives the indices of its maxima", "export the model without indices")
    attrs = spatial_attrs(node, [int(k) for k in node.attrs["kernel_shape"]], x)
    if x.axis == 0:
        return [a.pointwise(node, [x], 0, attrs=attrs)]
    return [window_over_time(a, node, [x], attrs, _lowest(x.dtype))]


def _lowest(dtype: str) -> float:
    """What a maximum over padding must never be."""
    return -np.inf if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).min)


@rule("AveragePool")
def average_pool(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    attrs = spatial_attrs(node, [int(k) for k in node.attrs["kernel_shape"]], x)
    if x.axis == 0:
        if "dilations" not in node.attrs:
            del attrs["dilations"]  # an attribute since opset 19
        return [a.pointwise(node, [x], 0, attrs=attrs)]
    if x.axis == 1:
        return [window_over_time(a, node, [x], attrs, 0.0)]
    at, rank = x.axis - 2, len(attrs["kernel_shape"])
    left, right = attrs["pads"][at], attrs["pads"][rank + at]
    whole = attrs.get("count_include_pad")
    passes = attrs.get("ceil_mode") and attrs["strides"][at] > 1
    if not passes and (whole or not (left or right)):
        return [window_over_time(a, node, [x], attrs, 0.0)]
    total = window_over_time(a, node, [x], attrs, 0.0, suffix="/sum")
    return [a.pointwise(node, [total, _share(a, node, x, total, right if whole else -1)], x.axis, attrs={}, op="Div")]


@rule("LpPool")
def lp_pool(a: Analysis, node: Node) -> list[Value]:
    """The root of an average of powers, times the number of places in a window."""
    x = a.stream(node)
    kernel, power = [int(k) for k in node.attrs["kernel_shape"]], int(node.attrs.get("p", 2))
    attrs = spatial_attrs(node, kernel, x) | {"count_include_pad": 1}
    if x.axis == 0:
        return [a.pointwise(node, [x], 0)]
    if attrs.get("ceil_mode") and len(kernel) > 1:
        raise Refusal("rounds the size of another axis than time up (ceil_mode)", "use ceil_mode=0")
    if max(attrs["dilations"]) > 1 and a.graph.opset < 19:
        raise Refusal(f"is dilated in opset {a.graph.opset}", "export with opset 19 or newer")

    def step(op: str, inputs: list[Operand], suffix: str) -> Stream:
        return a.pointwise(node, inputs, x.axis, attrs={}, op=op, suffix=suffix, shape=shape)

    shape = x.shape
    h = step("Abs", [x], "/size")
    h = step("Pow", [h, np.array(power, np.float32)], "/power")
    shape = tuple(None if i == x.axis else d for i, d in enumerate(a.shapes[node.outputs[0]][0]))
    h = window_over_time(a, node, [h], attrs, 0.0, op="AveragePool", suffix="/mean", shape=shape)
    h = step("Mul", [h, np.array(np.prod(kernel), np.float32)], "/sum")
    return [a.pointwise(node, [h, np.array(1 / power, np.float32)], x.axis, attrs={}, op="Pow")]


def _share(a: Analysis, node: Node, x: Stream, total: Stream, padding: int) -> Stream:
    """What part of each window counts, one element a frame.

    padding: frames behind the end that count, as all before the start then do; -1: no padding counts.
    """
    window, fact = total.node, x.fact
    assert isinstance(window, Window)
    shape = tuple(None if d is None else 1 for d in x.shape)
    ones = a.emit(node, Fill, [x], x.axis, fact.final, fact.length, shape=shape, op="Fill", suffix="/ones", value=1.0)
    left = window.left
    if padding >= 0:
        ones = a.emit(
            node, Shift, [ones], x.axis, (fact.made if padding else fact.final).affine(1, left),
            fact.length.affine(1, left + padding), shape=shape, op="Shift", suffix="/padding", offset=-left, left=left,
            right=padding, fill=1.0,
        )  # fmt: skip
        left = 0
    rank, at = len(x.shape) - 2, x.axis - 2
    attrs: dict[str, Any] = {key: [1] * rank for key in ("kernel_shape", "strides", "dilations")}
    attrs["kernel_shape"][at], attrs["strides"][at] = window.kernel, window.stride
    attrs["dilations"][at] = window.dilation
    if window.dilation == 1:
        del attrs["dilations"]  # an attribute since opset 19
    share = a.emit(
        node, Window, [ones], x.axis, total.fact.final, total.fact.length, shape=shape, op="AveragePool",
        suffix="/share", kernel=window.kernel, stride=window.stride, dilation=window.dilation, left=left,
        right=max(0, window.right - max(padding, 0)), attrs=attrs | {"pads": [0] * (2 * rank), "count_include_pad": 1},
    )  # fmt: skip
    if window.dilation == 1:
        return share
    least = np.array(0.5 / window.kernel, np.float32)  # a dilated window may hold no frame at all
    return a.emit(
        node, Pointwise, [share, least], x.axis, share.fact.final, share.fact.length, shape=shape, op="Max",
        suffix="/held",
    )  # fmt: skip
