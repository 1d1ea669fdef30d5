"""The portable form of stacked tensors with those before them: the state is what they are made of."""

from __future__ import annotations

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.kinds.history import History
from runnel.compiler.streaming.portable.registry import Chunks, read, writes


@writes(History)
def _history(b: Builder, node: History, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    size = int(x.shape[node.along] or 0)
    shape = tuple(node.past * size if a == node.along else int(d or 0) for a, d in enumerate(x.shape))
    state, out = b.state(f"history.{node.output.name}", shape, x.dtype, float(node.fill))
    whole = b.node("Concat", [state, chunk.name], axis=node.along)
    b.slice(whole, size, (node.past + 1) * size, node.along, out)
    return Chunk(whole, chunk.delay, 1)
