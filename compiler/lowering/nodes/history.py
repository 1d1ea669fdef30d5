"""Stacked tensors with those before them, as one kernel that reads them from their ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import View
from runnel.compiler.streaming.kinds.history import History

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@lowers(History)
def history(low: Lowering, node: History) -> View:
    x, fact = node.streams[0], node.output.fact
    view = low.padded(low.view(x), node.fill, node.past, 0, node.name)
    read = low.read(view, offset=-node.past, taps=node.past + 1)
    shape = x.frame_shape
    shape = (*shape[: node.along], node.past + 1, *shape[node.along :])
    output = FrameValue(node.name, shape, view.signal.dtype)
    signal = low.signal(node.output.name, shape, output.dtype, fact.made, fact.length)
    joined = low.add(FrameNode("unfold", (read.value,), output, {"axis": node.along}), [read], signal)
    return joined.reshaped(node.output.frame_shape)
