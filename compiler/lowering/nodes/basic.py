"""Inputs, states, frame-local ops, recurrences, shifts and windows as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.lowering.pointwise import HANDLERS
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import NoKernel, View
from runnel.compiler.streaming.ir import Feedback, Pointwise, Shift, Source, Unfold
from runnel.compiler.streaming.registry import CONTRIBUTED

MODES = {"constant": 0, "reflect": 1, "edge": 2}

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@lowers(Source)
def source(low: Lowering, node: Source) -> View:
    fact = node.output.fact
    signal = low.signal(node.output.name, node.output.frame_shape, node.output.dtype, fact.made, fact.length)
    low.inputs.append(signal)
    return View(signal, 0, 1, signal.shape, fact.length)


@lowers(Feedback)
def feedback(low: Lowering, node: Feedback) -> View:
    fact = node.output.fact
    shape = node.output.frame_shape
    initial = np.zeros(shape, node.output.dtype) if node.initial is None else node.initial
    signal = low.signal(node.output.name, shape, node.output.dtype, fact.made, fact.length, initial=initial[None])
    low.feedback.append((node, signal))
    return View(signal, -1, 1, shape, fact.length)


@lowers(Pointwise)
def pointwise(low: Lowering, node: Pointwise) -> View:
    known = not node.domain or (node.domain, node.op) in CONTRIBUTED
    handler = HANDLERS.get(node.op) if known else None
    if handler is None:
        raise NoKernel("has no kernel")
    view = handler(low, node)
    return View(view.signal, view.offset, view.stride, node.output.frame_shape, node.output.fact.length)


@lowers(Shift)
def shift(low: Lowering, node: Shift) -> View:
    view = low.view(node.streams[0])
    fact = node.output.fact
    right = node.right
    if node.mode == "constant":
        if node.pads:
            view = low.padded(view, node.fill, node.left, 1 if right is None else right, node.name)
        return view.moved(node.offset, fact.length)
    signal = low.signal(node.output.name, view.shape, view.signal.stored, fact.made, fact.length)
    if view.offset or view.stride != 1 or view.signal.unit != 1 or view.signal.length != view.length:
        view = low.materialise(view, None, node.name)
    edges = node.left + (right or 0)
    low.copy(view, signal, node.offset, MODES[node.mode], 0.0, back=2 * edges)
    return View(signal, 0, 1, view.shape, fact.length)


@lowers(Unfold)
def unfold(low: Lowering, node: Unfold) -> View:
    x = node.streams[0]
    view = low.view(x)
    fact = node.output.fact
    if node.kernel == 1:
        offset = view.offset + view.stride * node.offset
        return View(view.signal, offset, view.stride * node.stride, node.output.frame_shape, fact.length)
    return low.unfolded(
        node, view, x.axis, offset=node.offset, stride=node.stride, taps=node.kernel, dilation=node.dilation
    )
