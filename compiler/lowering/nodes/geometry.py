"""Resampled and spread frames, and streams of one value, as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.lowering.frame import LANES, FrameNode, FrameValue, round_up
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import NoKernel, View
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import StreamNode
from runnel.compiler.streaming.kinds.geometry import Fill, Interleave, Resample, blocks

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@lowers(Fill)
def fill(low: Lowering, node: Fill) -> View:
    shape, dtype, fact = node.output.frame_shape, node.output.dtype, node.output.fact
    signal = low.signal(node.output.name, shape, dtype, fact.made, fact.length)
    value = np.array(node.value, dtype)
    return low.add(FrameNode("identity", (value,), FrameValue(node.name, shape, dtype)), [], signal)


@lowers(Resample)
def resample(low: Lowering, node: Resample) -> View:
    view, fact = low.view(node.streams[0]), node.output.fact
    if node.up == 1 and node.weights is None:
        return view.moved(node.first[0] - node.down * node.crop, fact.length, node.down)
    if node.weights is not None and node.output.dtype != "float32":
        raise NoKernel(f"weighs frames of {node.output.dtype}")
    made = blocks(node.streams[0].fact.made, node.down, max(node.first) + node.taps)
    low_end = min(node.first)
    places = np.array(node.first, np.int32) - low_end
    whole = fact.length.affine(1, node.crop + node.up - 1, node.up)
    picked = _picked(low, node, view, places, node.weights, node.down, low_end, node.span, made, whole)
    if node.up == 1:
        return picked.reshaped(node.output.frame_shape)
    return spread_frames(low, node, picked, node.up, whole).moved(node.crop, fact.length)


@lowers(Interleave)
def spread(low: Lowering, node: Interleave) -> View:
    x = node.streams[0]
    view = low.view(x)
    if view.stride != 1 or view.offset:
        view = low.materialise(view, None, node.name)
    if any(d != 1 for d in x.shape[: x.axis]):
        view = moved_axes(low, node, view, (x.axis, *(i for i in range(len(view.shape)) if i != x.axis)))
    return spread_frames(low, node, view, node.count, x.fact.length)


def moved_axes(low: Lowering, node: StreamNode, view: View, order: tuple[int, ...]) -> View:
    """The frames of a view with their axes in another order, as often as they are made."""
    signal = view.signal
    shape = tuple(view.shape[i] for i in order)
    made = low.signal(f"{node.output.name}/turned", shape, signal.dtype, signal.made, signal.length)
    read = low.read(view)
    output = FrameValue(node.name, shape, signal.dtype)
    return low.add(FrameNode("transpose", (read.value,), output, {"perm": order}), [read], made)


def _picked(
    low: Lowering, node: StreamNode, view: View, places: np.ndarray, weights: np.ndarray | None, stride: int,
    offset: int, taps: int, made: Count, length: Count,
) -> View:  # fmt: skip
    """(len(places), *frame) for each run of ``taps`` frames: those at the places, or sums from there on by weights."""
    read = low.read(view, offset=offset, stride=stride, taps=taps)
    if taps > 1 and view.signal.item_bytes != 4:
        raise NoKernel(f"resamples frames of {view.signal.dtype}")
    shape = (len(places), *view.shape)
    signal = low.signal(f"{node.output.name}/picked", shape, node.output.dtype, made, length)
    weights = None if weights is None else np.ascontiguousarray(weights, np.float32)
    picked = FrameNode("pick", (read.value, places, weights), FrameValue(node.name, shape, signal.dtype))
    return low.add(picked, [read], signal)


def spread_frames(low: Lowering, node: StreamNode, view: View, unit: int, length: Count) -> View:
    """Each frame of the view's signal, (unit, ...), as ``unit`` frames. length: of the view's stream, in its frames."""
    frame = node.output.frame_shape
    elements = int(np.prod(frame, dtype=np.int64))
    pitch = elements
    if elements >= LANES or (unit * elements >= LANES and unit * elements % LANES):
        pitch = round_up(elements, LANES)
    made = view.signal.made.affine(unit, 0)
    signal = low.signal(
        f"{node.output.name}/blocks", frame, node.output.dtype, made, length.affine(unit, 0), unit=unit, pitch=pitch
    )
    if signal.pitch != pitch:
        raise NoKernel(f"spreads frames of {elements} elements of {signal.dtype}, which is no whole number of words")
    read = low.read(view.reshaped((unit, elements)))
    output = FrameValue(node.name, (unit, pitch), signal.dtype)
    attrs: dict[str, object] = {"shape": output.shape}
    if pitch != elements:
        attrs = {"pads": [0, 0, 0, pitch - elements], "value": 0}
    op = "pad" if pitch != elements else "reshape"
    low.add(FrameNode(op, (read.value,), output, attrs), [read], signal)
    return View(signal, 0, 1, frame, node.output.fact.length)
