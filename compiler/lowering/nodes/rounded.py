"""Rounded activations as a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import View
from runnel.compiler.streaming.kinds.rounded import HALF, Rounded

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@lowers(Rounded)
def rounded(low: Lowering, node: Rounded) -> View:
    x = low.view(node.streams[0])
    if node.block == HALF:
        return x if x.signal.half else low.elementwise(node, "cast", [x], {"to": "float16"})
    return low.step(node, "round_blocks", [x.reshaped(node.output.frame_shape)], x.shape, {"block": node.block})
