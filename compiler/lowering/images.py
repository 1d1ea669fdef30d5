"""Which convolutions gain from images whose channels lie last."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from runnel.compiler.lowering.frame import FrameNode, round_up
from runnel.compiler.lowering.work import macs

_FEWEST = 4
"""Output channels below which vectors over them are no use."""

Order = list[int]


def turned(shape: Sequence[int], channels: int) -> Order | None:
    """The order of a shape's axes with those in front, of ``channels`` elements, last; None where none end there."""
    for k in range(1, len(shape)):
        if prod(shape[:k]) == channels:
            return [*range(k, len(shape)), *range(k)]
    return None


def is_image_conv(node: FrameNode) -> bool:
    """Whether a node is a convolution that can put its channels last: dense, in groups, or a filter a channel."""
    if node.op != "conv" or "channels_last" in node.attrs:
        return False
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    group, outputs, spatial = int(node.attrs.get("group", 1)), w.shape[0], w.shape[3:]
    # Codes of neighbouring channels are multiplied together, however few a group has.
    wide = group == outputs == x.shape[1] or x.dtype != "float32" or outputs // group >= _FEWEST
    return len(spatial) >= 1 and outputs >= _FEWEST and prod(node.output.shape[2:]) > 1 and wide


def gain(node: FrameNode, lanes: int) -> float:
    """What a convolution saves by channels that lie last, as multiply-adds at full speed: a rule of thumb.

    Vectors over places fill where rows are long; without channels last short rows get one place at a time.
    """
    if node.inputs[0].dtype != "float32":  # type: ignore[union-attr]
        # Only neighbouring channels are multiplied four at a time; filters of a channel are a fifth of the work else.
        return (30.0 if node.inputs[1].shape[1] == 1 else 4.0) * macs(node)  # type: ignore[union-attr]
    shape, kernel = node.output.shape, node.inputs[1].shape[3:]  # type: ignore[union-attr]
    row = shape[-1] if prod(kernel) > 1 else prod(shape[2:])
    group, each = int(node.attrs.get("group", 1)), node.inputs[1].shape[1] == 1  # type: ignore[union-attr]
    wide = shape[1] if each else shape[1] // group
    filled, channels = row / round_up(row, lanes), wide / round_up(wide, min(lanes, 1 << wide.bit_length()))
    if group > 1 and each:
        before, after = 0.2 * filled, 0.6 * channels
    elif row < 8:
        before, after = 0.25 * channels, 0.9 * channels
    else:
        before, after = filled * (0.75 if prod(kernel) > 1 else 0.85), 0.9 * channels
    return macs(node) * (1 / before - 1 / after)
