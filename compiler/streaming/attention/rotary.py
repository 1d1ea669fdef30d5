"""RotaryEmbedding, of ONNX and of com.microsoft, taken apart into products with rows of its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.compiler.streaming.attention.fused import Parts


def standard(p: Parts) -> bool:
    """ONNX's op: without positions the tables have a row for each frame."""
    cos, sin, places = p.input(1), p.input(2), p.input(3)
    if places:
        cos, sin = (p.add("Gather", table, places, axis=0) for table in (cos, sin))
    half = p.shape(p.input(1))[-1]
    return _turn(p, cos, sin, half)


def microsoft(p: Parts) -> bool:
    """Onnxruntime's op: one position is that of the first frame."""
    places, cos, sin = (p.input(i) for i in (1, 2, 3))
    if p.attr("is_packed_batching", 0) or p.attr("scale", 1.0) != 1.0:
        return False
    if len(p.shape(places)) == 1:
        count = p.positions(p.input(0), len(p.shape(p.input(0))) - 2)
        places = p.add("Unsqueeze", p.add("Add", count, places), p.const([0]))
    half = p.shape(cos)[-1]
    cos, sin = (p.add("Gather", table, places, axis=0) for table in (cos, sin))
    return _turn(p, cos, sin, half)


def _turn(p: Parts, cos: str, sin: str, half: int) -> bool:
    """The output, turned by tables (B, T, half)."""
    x, rank = p.input(0), len(p.shape(p.input(0)))
    wide, heads = p.shape(x)[-1], int(p.attr("num_heads", 0))
    if rank == 3:
        heads = heads or wide // (2 * half)
        x, wide = p.heads(x, heads), wide // heads
    cos, sin = (p.add("Unsqueeze", table, p.const([1])) for table in (cos, sin))
    y = p.rotated(x, wide, half, cos, sin, bool(p.attr("interleaved", 0)))
    out = p.node.outputs[0]
    if rank == 3:
        y = p.add("Transpose", y, perm=[0, 2, 1, 3])
        p.add("Reshape", y, p.const([0, 0, heads * wide]), output=out)
    else:
        p.add("Identity", y, output=out)
    return True
