"""Convolution, transposed convolution and pooling, with time on any spatial axis or as the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.ir import Operand, Stream, Upsample, Window
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


@rule("Conv", "ConvInteger", "MaxPool", "AveragePool")
def window(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    operands: list[Operand] = [x]
    if node.op in ("Conv", "ConvInteger"):
        more = ("weight", "bias") if node.op == "Conv" else ("weight", "zero point", "zero point of its weight")
        operands += [a.constant(node, i + 1, what) for i, what in enumerate(more)]
        weight = operands[1]
        assert isinstance(weight, np.ndarray)
        kernel = [int(k) for k in weight.shape[2:]]
    else:
        kernel = [int(k) for k in node.attrs["kernel_shape"]]
    if node.op == "MaxPool" and len(node.outputs) > 1 and node.outputs[1]:
        raise Refusal("gives the indices of its maxima", "export the model without indices")
    attrs = spatial_attrs(node, kernel, x)
    if x.axis == 0:
        if node.op == "AveragePool" and "dilations" not in node.attrs:
            del attrs["dilations"]
        return [a.pointwise(node, operands, 0, attrs=attrs)]
    if x.axis == 1:
        raise MixesTime("has time on its channel axis, so it mixes all frames", "move time to a spatial axis")
    i = x.axis - 2
    rank = len(kernel)
    left, right = attrs["pads"][i], attrs["pads"][rank + i]
    attrs["pads"][i] = attrs["pads"][rank + i] = 0
    stride, dilation = attrs["strides"][i], attrs["dilations"][i]
    if attrs.pop("ceil_mode", 0):
        raise Refusal("rounds its number of frames up (ceil_mode)", "use ceil_mode=0")
    if node.op == "AveragePool" and (left or right) and not node.attrs.get("count_include_pad"):
        raise Refusal("averages over fewer frames at the edges", "use count_include_pad=1 or no padding over time")
    if (left or right) and a.window is not None:
        raise Refusal(
            "pads the edges of every window with zeros, so windows do not share these frames",
            "export the model without padding over time",
        )
    if node.op == "AveragePool" and "dilations" not in node.attrs:
        del attrs["dilations"]  # an attribute since opset 19
    span = (kernel[i] - 1) * dilation + 1
    known = x.fact.made if right > 0 else x.fact.final
    final = known.affine(1, left - span + stride, stride)
    length = x.fact.length.affine(1, left + right - span + stride, stride)
    fill = _lowest(x.dtype) if node.op == "MaxPool" else 0.0
    if node.op == "ConvInteger" and isinstance(zero := operands[2], np.ndarray):
        fill = float(zero.reshape(-1)[0])
    return [
        a.emit(
            node, Window, operands, x.axis, final, length, kernel=kernel[i], stride=stride, dilation=dilation,
            left=left,
            right=right, fill=fill, attrs=attrs,
        )
    ]  # fmt: skip


def _lowest(dtype: str) -> float:
    """What a maximum over padding must never be."""
    return -np.inf if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).min)


def spatial_attrs(node: Node, kernel: list[int], x: Stream) -> dict[str, Any]:
    """The node's attributes with explicit pads, strides and dilations."""
    rank = len(kernel)
    attrs = {k: v for k, v in node.attrs.items() if k in ("group", "count_include_pad", "ceil_mode")}
    attrs["kernel_shape"] = kernel
    attrs["strides"] = [int(v) for v in node.attrs.get("strides", [1] * rank)]
    attrs["dilations"] = [int(v) for v in node.attrs.get("dilations", [1] * rank)]
    pads = [int(v) for v in node.attrs.get("pads", [0] * (2 * rank))]
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * (2 * rank)
        for i in range(rank):
            span = (kernel[i] - 1) * attrs["dilations"][i] + 1
            size, stride = x.shape[i + 2], attrs["strides"][i]
            if size is None:
                if stride != 1:
                    raise Refusal(
                        "pads time by an amount that depends on the length (auto_pad with a stride)",
                        "use explicit pads",
                    )
                total = span - 1
            else:
                total = max(0, (-(-size // stride) - 1) * stride + span - size)
            small, large = total // 2, total - total // 2
            pads[i], pads[rank + i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    elif auto == "VALID":
        pads = [0] * (2 * rank)
    attrs["pads"] = pads
    return attrs


@rule("ConvTranspose")
def conv_transpose(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    weight, bias = a.constant(node, 1, "weight"), a.constant(node, 2, "bias")
    assert weight is not None
    kernel = [int(k) for k in weight.shape[2:]]
    rank = len(kernel)
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in node.attrs:
        raise Refusal("computes its padding from the output's shape", "use explicit pads")
    attrs = spatial_attrs(node, kernel, x)
    attrs["output_padding"] = [int(v) for v in node.attrs.get("output_padding", [0] * rank)]
    if x.axis == 0:
        return [a.pointwise(node, [x, weight, bias], 0, attrs=attrs)]
    if x.axis == 1:
        raise MixesTime("has time on its channel axis, so it mixes all frames", "move time to a spatial axis")
    if a.window is not None:
        raise MixesTime("makes frames at the window's edges from fewer inputs", "use window mode on a model without it")
    i = x.axis - 2
    left, right = attrs["pads"][i], attrs["pads"][rank + i]
    extra = attrs["output_padding"][i]
    attrs["pads"][i] = attrs["pads"][rank + i] = attrs["output_padding"][i] = 0
    stride, dilation = attrs["strides"][i], attrs["dilations"][i]
    span = (kernel[i] - 1) * dilation + 1
    final = x.fact.made.affine(stride, -left)
    length = x.fact.length.affine(stride, span - stride - left - right + extra)
    return [
        a.emit(
            node, Upsample, [x, weight, bias], x.axis, final, length, kernel=kernel[i], stride=stride,
            dilation=dilation,
            crop=left, attrs=attrs,
        )
    ]  # fmt: skip
