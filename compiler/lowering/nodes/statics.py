"""Static inputs: a frame in the state that is set, read by every frame; what is made of them alone is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import View
from runnel.compiler.streaming.kinds.statics import Spread, Static

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@lowers(Static)
def static(low: Lowering, node: Static) -> View:
    x = node.output
    signal = low.signal(x.name, x.frame_shape, x.dtype, x.fact.made, x.fact.length)
    low.statics.append(signal)
    return View(signal, 0, 1, signal.shape, x.fact.length)


@lowers(Spread)
def spread(low: Lowering, node: Spread) -> View:
    return View(low.view(node.streams[0]).signal, 0, 0, node.output.frame_shape, node.output.fact.length)
