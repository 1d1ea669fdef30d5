"""Attention over a ring of keys and values as one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import NoKernel, Operand, Read, View
from runnel.compiler.streaming.kinds.attention import Attend

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

MOST_ELEMENTS = 1 << 30


@lowers(Attend)
def attend(low: Lowering, node: Attend) -> View:
    q, k, v = (low.view(x).reshaped(x.frame_shape) for x in node.streams[:3])
    if any(x.signal.dtype != "float32" for x in (q, k, v)):
        raise NoKernel("attends to values that are not float32")
    if k.stride != 1 or v.stride != 1:
        raise NoKernel("attends to every second frame or fewer")
    span = node.back + node.ahead + 1
    if span * max(k.signal.pitch, v.signal.pitch) > MOST_ELEMENTS:
        raise NoKernel(f"keeps {span} keys, more than a kernel can reach")
    reads: list[Read] = [low.read(q), *(low.read(x, offset=-node.back, ring=span) for x in (k, v))]
    operands: list[FrameValue | Operand] = [r.value for r in reads]
    if node.relative is not None:
        reads.append(low.read(low.view(node.streams[3]).reshaped(node.streams[3].frame_shape)))
        operands += [reads[-1].value, np.ascontiguousarray(node.relative[..., ::-1, :])]
    band, fact = node.band, node.output.fact
    attrs = {
        "length": node.streams[1].fact.length, "low": band.low, "high": band.high, "left": band.left,
        "right": band.right, "back": node.back, "scale": band.scale, "softcap": band.softcap, "bias": band.bias,
        "size": q.shape[-1],
    }  # fmt: skip
    signal = low.signal(node.output.name, node.output.frame_shape, "float32", fact.made, fact.length)
    output = FrameValue(node.name, node.output.frame_shape, "float32")
    return low.add(FrameNode("attend", tuple(operands), output, attrs), reads, signal)  # type: ignore[arg-type]
