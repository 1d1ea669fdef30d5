"""Attention over a cache as one instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import Cached, NoKernel, Read, View
from runnel.compiler.streaming.ir import Stream
from runnel.compiler.streaming.kinds.cache import CachedAttend

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@lowers(CachedAttend)
def cached(low: Lowering, node: CachedAttend) -> View:
    fact = node.output.fact
    q, k, v, retain, positions = (*node.inputs, None, None, None)[:5]

    def read(x: Stream, dtype: str) -> Read:
        view = low.view(x).reshaped(x.frame_shape)
        if view.signal.dtype != dtype:
            raise NoKernel(f"takes {view.signal.dtype} where a cache takes {dtype}")
        view = low.stored_as(view, dtype, x.name)
        if view.stride != 1 or view.offset:
            view = low.materialise(view, None, x.name)
        found = low.read(view)
        found.count, found.loop = fact.made, low.loop
        return found

    assert isinstance(q, Stream) and isinstance(k, Stream)
    if not node.shared and not isinstance(v, Stream):
        raise NoKernel("has constant values")
    operands = [read(q, "float32"), read(k, "float32")]
    if isinstance(v, Stream):
        operands.append(read(v, "float32"))
    signal = low.signal(node.output.name, node.output.frame_shape, "float32", fact.made, fact.length)
    step = Cached(node, operands, signal, loop=low.loop)
    if isinstance(retain, Stream):
        step.retain = read(retain, "float32")
    if isinstance(positions, Stream):
        step.positions = read(positions, "int64")
    step.reads += [r for r in (step.retain, step.positions) if r is not None]
    low.steps.append(step)
    return View(signal, 0, 1, node.output.frame_shape, signal.length)
