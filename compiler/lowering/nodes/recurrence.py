"""Recurrences along time as steps: forward ones frame by frame, backward ones in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.recurrence import Cell, lower_recurrent
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import NoKernel, View
from runnel.compiler.streaming.ir import Recurrent
from runnel.compiler.streaming.kinds.recurrence import Backward

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

STILL = {"GRU": 1e4, "LSTM": -1e4, "RNN": 0.0}
"""What the input's part of every gate reads after the end: it saturates the gates so that a state of zero stays zero
exactly."""


@lowers(Recurrent)
def recurrent(low: Lowering, node: Recurrent) -> View:
    return lower_recurrent(low, node)


@lowers(Backward)
def backward(low: Lowering, node: Backward) -> View:
    x = node.streams[0]
    if any(isinstance(v, np.ndarray) and v.any() for v in node.inputs[4:6]):
        raise NoKernel("starts backwards from a state other than zero")
    if any(v is not None for v in node.inputs[6:]):
        raise NoKernel("has peephole weights")
    cell = Cell(node.op, node.inputs[1:4], node.attrs)
    size, batch, hidden = node.ahead, x.frame_shape[0], cell.hidden
    after = node.op == "GRU" and cell.reset_after
    bias = cell.wb if after else cell.wb + cell.rb.reshape(-1)

    read = low.read(low.view(x))
    wide = FrameValue(f"{node.name}/gates", (batch, cell.w.shape[1]), x.dtype)
    gates = low.signal(f"{node.output.name}/gates", wide.shape, x.dtype, x.fact.made, x.fact.length)
    view = low.add(FrameNode("matmul", (read.value, cell.w, bias), wide), [read], gates)
    view = low.padded(view, STILL[node.op], 0, 2 * size, node.name)

    fact = node.output.fact
    made, length = fact.made.affine(1, 0, size), fact.length.affine(1, size - 1, size)
    read = low.read(view, stride=size, taps=2 * size)
    run = FrameValue(f"{node.name}/run", (2 * size, batch, wide.shape[1]), x.dtype)
    signal = low.signal(f"{node.output.name}/run", run.shape, x.dtype, made, length)
    view = low.add(FrameNode("unfold", (read.value,), run, {"axis": 0}), [read], signal)

    attrs = {"reverse": [True], "linear_before_reset": int(after), "activation": cell.activation}
    zeros = [np.zeros((1, batch, hidden), np.float32) for _ in range(2 if node.op == "LSTM" else 1)]
    states = FrameValue(f"{node.name}/states", (2 * size, 1, batch, hidden), x.dtype)
    signal = low.signal(f"{node.output.name}/states", states.shape, x.dtype, made, length)
    read = low.read(view)
    rb = cell.rb if after else None
    view = low.add(
        FrameNode(f"{node.op.lower()}_sequence", (read.value, cell.r, rb, *zeros), states, attrs), [read], signal
    )

    read = low.read(view.reshaped((2 * size * batch * hidden,)))
    kept = FrameValue(node.name, (size * batch * hidden,), x.dtype)
    signal = low.signal(
        node.output.name, (batch, hidden), x.dtype, made.affine(size, 0), length.affine(size, 0), unit=size
    )
    cut = {"starts": [0], "ends": [kept.shape[0]], "steps": [1]}
    low.add(FrameNode("slice", (read.value,), kept, cut), [read], signal)
    return View(signal, 0, 1, node.output.frame_shape, fact.length)
