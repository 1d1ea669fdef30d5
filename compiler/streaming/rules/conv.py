"""Convolution, transposed convolution and pooling, with time on any spatial axis or as the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runnel.compiler.streaming.ir import Operand, Stream, Upsample, Window
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


@rule("Conv", "ConvInteger")
def conv(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    more = ("weight", "bias") if node.op == "Conv" else ("weight", "zero point", "zero point of its weight")
    constants = [a.constant(node, i + 1, what) for i, what in enumerate(more)]
    weight, zero = constants[:2]
    assert weight is not None
    operands: list[Operand] = [x, *constants]
    attrs = spatial_attrs(node, [int(k) for k in weight.shape[2:]], x)
    if x.axis == 0:
        return [a.pointwise(node, operands, 0, attrs=attrs)]
    fill = float(zero.reshape(-1)[0]) if node.op == "ConvInteger" and zero is not None else 0.0
    return [window_over_time(a, node, operands, attrs, fill)]


def window_over_time(
    a: Analysis, node: Node, operands: list[Operand], attrs: dict[str, Any], fill: float, **emitted: Any
) -> Stream:
    """A convolution or pool over time.

    attrs: explicit, as ``spatial_attrs`` gives them; with ceil_mode the last window may pass the end of the padding if
    it starts before it. emitted: options of ``Analysis.emit``.
    """
    x = operands[0]
    assert isinstance(x, Stream)
    if x.axis == 1:
        raise MixesTime("has time on its channel axis, so it mixes all frames", "move time to a spatial axis")
    attrs = attrs | {"pads": list(attrs["pads"])}
    i, rank = x.axis - 2, len(attrs["kernel_shape"])
    left, right = attrs["pads"][i], attrs["pads"][rank + i]
    attrs["pads"][i] = attrs["pads"][rank + i] = 0
    kernel, stride, dilation = attrs["kernel_shape"][i], attrs["strides"][i], attrs["dilations"][i]
    span = (kernel - 1) * dilation + 1
    length = x.fact.length.affine(1, left + right - span + stride, stride)
    if attrs.get("ceil_mode") and stride > 1:
        right += stride - 1
        starts = x.fact.length.affine(1, left + stride - 1, stride)
        length = x.fact.length.affine(1, left + right - span + stride, stride).minimum_with(starts)
    known = x.fact.made if right > 0 else x.fact.final
    final = known.affine(1, left - span + stride, stride)
    if emitted.get("op", node.op) == "AveragePool" and set(attrs["dilations"]) == {1}:
        del attrs["dilations"]  # an attribute since opset 19
    return a.emit(
        node, Window, operands, x.axis, final, length, kernel=kernel, stride=stride, dilation=dilation, left=left,
        right=right, fill=fill, attrs=attrs, **emitted,
    )  # fmt: skip


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
                pads[i], pads[rank + i] = _same_over_time(x, span, stride, auto == "SAME_UPPER")
                continue
            total = (-(-size // stride) - 1) * stride + span - size
            _check_same(total)
            total = max(0, total)
            small, large = total // 2, total - total // 2
            pads[i], pads[rank + i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    elif auto == "VALID":
        pads = [0] * (2 * rank)
    attrs["pads"] = pads
    return attrs


def _check_same(total: int) -> None:
    """Refuse what auto_pad SAME would take away, which runtimes do differently."""
    if total < -1:
        raise Refusal("pads by less than nothing (auto_pad with a stride beyond its kernel)", "use explicit pads")


def _same_over_time(x: Stream, span: int, stride: int, upper: bool) -> tuple[int, int]:
    """The padding of auto_pad SAME, whose total depends on the length's remainder by the stride.

    The start must be the same for every length. The end is what the longest needs, which makes no frame too many where
    the start is: fewer than ``stride`` frames are added.
    """
    length = x.fact.length
    total = (((length + (stride - 1)) // stride - 1) * stride + span - length).later(length.first(0))
    _check_same(total.minimum)
    some = (total.maximum_with(0) + (0 if upper else 1)) // 2
    if not some.is_const:
        raise Refusal(
            f"pads the start of time by an amount that depends on the length (auto_pad with stride {stride})",
            "use explicit pads",
        )
    start = int(some.values[0])
    return start, span - 1 - start


@rule("ConvTranspose")
def conv_transpose(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    weight, bias = a.constant(node, 1, "weight"), a.constant(node, 2, "bias")
    assert weight is not None
    kernel = [int(k) for k in weight.shape[2:]]
    rank = len(kernel)
    if x.axis == 0:
        return [a.pointwise(node, [x, weight, bias], 0)]
    if "output_shape" in node.attrs:
        raise Refusal("makes a fixed number of frames (output_shape)", "use explicit pads")
    attrs = spatial_attrs(node, kernel, x) if _explicit(node) else _same_transposed(node, kernel)
    attrs["output_padding"] = [int(v) for v in node.attrs.get("output_padding", [0] * rank)]
    if x.axis == 1:
        raise MixesTime("has time on its channel axis, so it mixes all frames", "move time to a spatial axis")
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


def _explicit(node: Node) -> bool:
    return node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")


def _same_transposed(node: Node, kernel: list[int]) -> dict[str, Any]:
    """The attributes of auto_pad SAME: the result is ``stride`` times as long, whatever the length."""
    rank = len(kernel)
    attrs: dict[str, Any] = {"group": int(node.attrs.get("group", 1)), "kernel_shape": kernel, "pads": [0] * (2 * rank)}
    for key in ("strides", "dilations"):
        attrs[key] = [int(v) for v in node.attrs.get(key, [1] * rank)]
    extra = [int(v) for v in node.attrs.get("output_padding", [0] * rank)]
    for i, k in enumerate(kernel):
        total = (k - 1) * attrs["dilations"][i] + 1 - attrs["strides"][i] + extra[i]
        if total < 0:
            raise Refusal("pads by less than nothing (auto_pad with a stride beyond its kernel)", "use explicit pads")
        small, large = total // 2, total - total // 2
        upper = node.attrs["auto_pad"] == "SAME_UPPER"
        attrs["pads"][i], attrs["pads"][rank + i] = (small, large) if upper else (large, small)
    return attrs
