"""Convolutions, transposed convolutions and pools over time as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.lowering.frame import LANES, FrameNode, FrameValue, round_up
from runnel.compiler.lowering.pointwise import conv_attrs
from runnel.compiler.lowering.quantised import integer_conv
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import NoKernel, Operand, View
from runnel.compiler.streaming.ir import Upsample, Window

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@lowers(Window)
def window(low: Lowering, node: Window) -> View:
    x = node.streams[0]
    view = low.view(x)
    if node.left or node.right:
        view = low.padded(view, node.fill, node.left, node.right, node.name)
    rank = len(node.attrs["kernel_shape"])
    time = x.axis - 2
    attrs = conv_attrs(node.attrs, rank, time)
    out = (1, *node.output.frame_shape[1:])
    if x.shape[0] != 1:
        raise NoKernel("convolves a batch")
    operands: list[Any] = []
    if node.op in ("Conv", "ConvInteger"):
        weight, bias = np.asarray(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
        if node.op == "ConvInteger":
            weight, bias, more = integer_conv(node)
            attrs |= more
        weight = np.moveaxis(weight, 2 + time, 2)
        operands = [np.ascontiguousarray(weight), bias]
        op = "conv"
        if all(d == 1 for d in (*view.shape[2:], *out[2:], *weight.shape[3:])):  # no spatial axes worth the name
            attrs |= {"strides": [], "pads": [], "dilations": []}
            operands[0] = operands[0].reshape(weight.shape[:3])
            view, out = view.reshaped(view.shape[:2]), out[:2]
    else:
        op = "max_pool" if node.op == "MaxPool" else "avg_pool"
        kernel = node.attrs["kernel_shape"]
        attrs |= {"kernel": [kernel[i] for i in range(rank) if i != time]}
        if op == "avg_pool":
            attrs["count_include_pad"] = bool(node.attrs.get("count_include_pad", 0))
            if attrs["count_include_pad"] and node.attrs.get("ceil_mode") and view.shape[2:]:
                raise NoKernel("counts padding but not what lies behind it (ceil_mode)")
    read = low.read(view, offset=-node.left, stride=node.stride, taps=node.kernel, dilation=node.dilation)
    dtype = node.output.dtype
    output = FrameValue(node.name, out, dtype)
    fact = node.output.fact
    signal = low.signal(node.output.name, out, dtype, fact.made, fact.length)
    frame = FrameNode(op, (read.value, *operands), output, attrs)
    return low.add(frame, [read], signal).reshaped(node.output.frame_shape)


@lowers(Upsample)
def upsample(low: Lowering, node: Upsample) -> View:
    x = node.streams[0]
    weight = np.asarray(node.inputs[1], np.float32)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.span == 1 and node.stride == 1 and node.crop == 0:
        return _upsample_inside(low, node, weight, bias if isinstance(bias, np.ndarray) else None)
    if weight.ndim != 3:
        raise NoKernel("upsamples time and another axis at once")
    group = int(node.attrs.get("group", 1))
    inputs, each, _ = weight.shape
    outputs, unit, taps = each * group, node.stride, node.taps
    padded_out = outputs
    if outputs >= LANES or (unit * outputs >= LANES and unit * outputs % LANES):
        padded_out = round_up(outputs, LANES)
    blocks = np.zeros((unit, padded_out, inputs, taps), np.float32)
    for k in range(node.kernel):
        at = k * node.dilation
        i, phase = divmod(at, unit)
        for g in range(group):
            rows = slice(g * inputs // group, (g + 1) * inputs // group)
            blocks[phase, g * each : (g + 1) * each, rows, taps - 1 - i] += weight[rows, :, k].T
    full_bias = np.zeros((unit, padded_out), np.float32)
    if isinstance(bias, np.ndarray):
        full_bias[:, :outputs] = bias
    view = low.padded(low.view(x), 0.0, taps - 1, taps, node.name)
    fact = node.output.fact
    made = x.fact.made.affine(unit, 0)
    length = fact.length.affine(1, node.crop + unit - 1, unit).affine(unit, 0)  # whole blocks
    frame_shape = (1, outputs)
    signal = low.signal(f"{node.output.name}/blocks", frame_shape, x.dtype, made, length, unit=unit, pitch=padded_out)
    read = low.read(view, offset=-(taps - 1), taps=taps)
    output = FrameValue(node.name, (1, unit * padded_out), x.dtype)
    attrs = {"group": 1, "strides": [], "pads": [], "dilations": []}
    kernel = np.ascontiguousarray(blocks.reshape(unit * padded_out, inputs, taps))
    low.add(FrameNode("conv", (read.value, kernel, full_bias.reshape(-1)), output, attrs), [read], signal)
    return View(signal, node.crop, 1, node.output.frame_shape, fact.length)


def _upsample_inside(low: Lowering, node: Upsample, weight: np.ndarray, bias: np.ndarray | None) -> View:
    """A transposed convolution that does nothing to time."""
    x, time = node.streams[0], node.streams[0].axis - 2
    rank = weight.ndim - 2
    if x.shape[0] != 1:
        raise NoKernel("convolves a batch")
    attrs = conv_attrs(node.attrs, rank, time)
    padding = node.attrs.get("output_padding", [0] * rank)
    attrs["output_padding"] = [int(v) for i, v in enumerate(padding) if i != time]
    operands: list[Operand] = [low.view(x), np.ascontiguousarray(weight.squeeze(2 + time)), bias]
    return low.step(node, "conv_transpose", operands, node.output.frame_shape, attrs)
