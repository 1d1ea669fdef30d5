"""Convolutions, transposed convolutions and pools over time as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.lowering.fourier import Factors, factors
from runnel.compiler.lowering.frame import LANES, FrameNode, FrameValue, round_up
from runnel.compiler.lowering.nodes.geometry import moved_axes, spread_frames
from runnel.compiler.lowering.pointwise import batch_as_groups, conv_attrs
from runnel.compiler.lowering.quantised import integer_conv
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import NoKernel, Operand, Read, Signal, View
from runnel.compiler.lowering.transforms import analysis, synthesis
from runnel.compiler.lowering.weights import block_operands, coded
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Stream, Upsample, Window

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
    batch, channels, *rest = node.output.frame_shape
    out = (1, batch * channels, *rest)
    operands: list[Any] = []
    if node.op in ("Conv", "ConvInteger"):
        weight, bias = np.asarray(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
        if node.op == "ConvInteger":
            weight, bias, more = integer_conv(node)
            attrs |= more
        if batch != 1:
            if node.op == "ConvInteger" or isinstance(bias, Stream):
                raise NoKernel("convolves a batch of codes")
            view, weight, bias, attrs["group"] = batch_as_groups(view, weight, bias, attrs["group"])
        weight = np.moveaxis(weight, 2 + time, 2)
        operands = [np.ascontiguousarray(weight), bias]
        op = "conv"
        if all(d == 1 for d in (*view.shape[2:], *out[2:], *weight.shape[3:])):  # no spatial axes worth the name
            attrs |= {"strides": [], "pads": [], "dilations": []}
            operands[0] = operands[0].reshape(weight.shape[:3])
            view, out = view.reshaped(view.shape[:2]), out[:2]
            if node.op == "Conv" and attrs["group"] == 1 and not isinstance(bias, Stream):
                taps = getattr(node.inputs[1], "taps", ()) or coded(low.graph.modes, [*operands[0].transpose(2, 1, 0)])
                if taps:
                    op = "matmul_blocks"
                    weights, attrs = block_operands(taps)
                    operands = [*weights, bias]
    else:
        op = "max_pool" if node.op == "MaxPool" else "avg_pool"
        view = view.reshaped((1, batch * channels, *view.shape[2:]))
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
    if op == "conv" and (found := _fourier(view, node, attrs, operands)) is not None:
        return analysis(low, read, found, operands[1], output, signal).reshaped(node.output.frame_shape)
    frame = FrameNode(op, (read.value, *operands), output, attrs)
    return low.add(frame, [read], signal).reshaped(node.output.frame_shape)


def _fourier(view: View, node: Window, attrs: dict[str, Any], operands: list[Any]) -> Factors | None:
    """The factors of a convolution over samples that lie side by side."""
    weight, bias = operands
    beside = view.stride == 1 and view.signal.pitch == 1 and view.signal.stored == "float32"
    if not beside or attrs["group"] != 1 or attrs["strides"] or node.dilation != 1 or weight.dtype != np.float32:
        return None
    if weight.ndim != 3 or weight.shape[1] != 1 or isinstance(bias, Stream):
        return None
    return factors(weight[:, 0])


@lowers(Upsample)
def upsample(low: Lowering, node: Upsample) -> View:
    x = node.streams[0]
    view = low.view(x)
    weight = np.asarray(node.inputs[1], np.float32)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.span == 1 and node.stride == 1 and node.crop == 0:
        return _upsample_inside(low, node, weight, bias if isinstance(bias, np.ndarray) else None)
    time, taps = x.axis - 2, node.taps
    group, unit = int(node.attrs.get("group", 1)), node.stride
    batch, channels, *rest = node.output.frame_shape
    frame = (1, batch * channels, *rest)
    if batch != 1:
        constant = bias if isinstance(bias, np.ndarray) else None
        view, weight, bias, group = batch_as_groups(view, weight, constant, group)
    weight = np.moveaxis(weight, 2 + time, 2)
    inputs, each = weight.shape[:2]
    phases = np.zeros((inputs, unit, each, taps, *weight.shape[3:]), np.float32)
    for k in range(node.kernel):
        i, phase = divmod(k * node.dilation, unit)
        phases[:, phase, :, taps - 1 - i] += weight[:, :, k]
    fact = node.output.fact
    made, length = x.fact.made, fact.length.affine(1, node.crop + unit - 1, unit)
    if weight.ndim == 3 and frame == (1, 1) and group == 1 and node.dilation == 1 and unit % LANES == 0:
        found = factors(weight[:, 0]) if view.shape == (1, inputs) else None
        if found is not None and not isinstance(bias, Stream):
            blocks = _overlapped(low, node, synthesis(low, view, found, made, x.fact.length, node.name), bias, length)
            return View(blocks, node.crop, 1, frame, fact.length)
    view = low.padded(view, 0.0, taps - 1, taps, node.name)
    read = low.read(view, offset=-(taps - 1), taps=taps)
    full = np.zeros(group * each, np.float32) if not isinstance(bias, np.ndarray) else bias.astype(np.float32)
    if weight.ndim == 3 and group == 1:
        blocks = _blocks(low, node, read, phases, full, made, length)
        return View(blocks, node.crop, 1, frame, fact.length)
    attrs = conv_attrs(node.attrs, weight.ndim - 2, time) | {"group": group}
    padding = node.attrs.get("output_padding", [0] * (weight.ndim - 2))
    attrs["output_padding"] = [int(v) for i, v in enumerate(padding) if i != time]
    op = "conv_transpose"
    kernel = phases.reshape(inputs, unit * each, *phases.shape[3:])
    if weight.ndim == 3:
        op, attrs = "conv", {"group": group, "strides": [], "pads": [], "dilations": []}
        parts = phases.reshape(group, inputs // group, unit * each, taps)
        kernel = parts.transpose(0, 2, 1, 3).reshape(group * unit * each, inputs // group, taps)
    shape = (1, group * unit * each, *frame[2:])
    biases = np.broadcast_to(full.reshape(group, 1, each), (group, unit, each)).reshape(-1)
    signal = low.signal(f"{node.output.name}/phases", shape, x.dtype, made, length)
    output = FrameValue(node.name, shape, x.dtype)
    step = FrameNode(op, (read.value, np.ascontiguousarray(kernel), np.ascontiguousarray(biases)), output, attrs)
    phased = low.add(step, [read], signal)
    if group > 1:
        phased = moved_axes(low, node, phased.reshaped((group, unit, each * int(np.prod(frame[2:])))), (1, 0, 2))
    return spread_frames(low, node, phased, unit, length).moved(node.crop, fact.length)


def _blocks(
    low: Lowering, node: Upsample, read: Read, phases: np.ndarray, bias: np.ndarray, made: Count, length: Count
) -> Signal:
    """Frames of channels alone, a block of them by one product. phases: (Cin, unit, Cout, taps)."""
    inputs, unit, outputs, taps = phases.shape
    padded = outputs
    if outputs >= LANES or (unit * outputs >= LANES and unit * outputs % LANES):
        padded = round_up(outputs, LANES)
    wide = np.zeros((unit, padded, inputs, taps), np.float32)
    wide[:, :outputs] = phases.transpose(1, 2, 0, 3)
    biases = np.zeros((unit, padded), np.float32)
    biases[:, :outputs] = bias
    signal = low.signal(
        f"{node.output.name}/blocks", (1, outputs), node.output.dtype, made.affine(unit, 0), length.affine(unit, 0),
        unit=unit, pitch=padded,
    )  # fmt: skip
    output = FrameValue(node.name, (1, unit * padded), signal.dtype)
    attrs = {"group": 1, "strides": [], "pads": [], "dilations": []}
    kernel = wide.reshape(unit * padded, inputs, taps)
    low.add(FrameNode("conv", (read.value, kernel, biases.reshape(-1)), output, attrs), [read], signal)
    return signal


def _overlapped(low: Lowering, node: Upsample, windows: View, bias: np.ndarray | None, length: Count) -> Signal:
    """Windows, ``stride`` samples apart, added up: blocks of that many samples."""
    unit, (samples,), made = node.stride, windows.shape, windows.signal.made
    windows = low.padded(windows, 0.0, node.taps - 1, node.taps, node.name)

    def apply(op: str, of: list[View], size: int, back: int = 0, **attrs: Any) -> View:
        reads = [low.read(x, offset=-back) for x in of]
        signal = low.signal(f"{node.output.name}/{op}", (size,), "float32", made, length)
        output = FrameValue(node.name, (size,))
        return low.add(FrameNode(op, tuple(r.value for r in reads), output, attrs), reads, signal)

    total: View | None = None
    for tap in range(node.taps):
        begin, end = tap * unit, min((tap + 1) * unit, samples)
        part = apply("slice", [windows], end - begin, tap, starts=[begin], ends=[end], steps=[1])
        if end - begin < unit:
            part = apply("pad", [part], unit, pads=[0, unit - (end - begin)], value=0.0)
        total = part if total is None else apply("add", [total, part], unit)
    assert total is not None
    last = low.read(total)
    blocks = low.signal(
        f"{node.output.name}/blocks", (1, 1), "float32", made.affine(unit, 0), length.affine(unit, 0), unit=unit
    )
    shift = np.float32(0 if bias is None else bias.reshape(-1)[0])
    low.add(FrameNode("add", (last.value, np.array(shift)), FrameValue(node.name, (unit,))), [last], blocks)
    return blocks


def _upsample_inside(low: Lowering, node: Upsample, weight: np.ndarray, bias: np.ndarray | None) -> View:
    """A transposed convolution that does nothing to time."""
    x, time = node.streams[0], node.streams[0].axis - 2
    rank = weight.ndim - 2
    view = low.view(x)
    batch, channels, *rest = node.output.frame_shape
    attrs = conv_attrs(node.attrs, rank, time)
    if batch != 1:
        view, weight, bias, attrs["group"] = batch_as_groups(view, weight, bias, attrs["group"])
    padding = node.attrs.get("output_padding", [0] * rank)
    attrs["output_padding"] = [int(v) for i, v in enumerate(padding) if i != time]
    operands: list[Operand] = [view, np.ascontiguousarray(weight.squeeze(2 + time)), bias]
    made = low.step(node, "conv_transpose", operands, (1, batch * channels, *rest), attrs)
    return made.reshaped(node.output.frame_shape)
