"""Attributes of convolutions and pools with every size known: explicit pads, whatever auto_pad or ceil_mode meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runnel.compiler.graph.model import Node

PADDED = ("Conv", "MaxPool", "AveragePool", "LpPool", "QLinearConv", "ConvInteger")


def explicit(node: Node, sizes: Sequence[int], made: Sequence[int], kernel: Sequence[int]) -> dict[str, Any]:
    """The node's attributes for spatial axes of ``sizes`` that become ``made``.

    kernel_shape, strides, dilations and pads are given for every axis. The pads after an axis are as many as the last
    window reads. ceil_mode stays only for averages that count declared padding and not what lies behind it.
    """
    rank = len(kernel)
    attrs = {k: v for k, v in node.attrs.items() if k not in ("auto_pad", "ceil_mode")}
    strides = [int(v) for v in node.attrs.get("strides", [1] * rank)]
    dilations = [int(v) for v in node.attrs.get("dilations", [1] * rank)]
    given = [int(v) for v in node.attrs.get("pads", [0] * (2 * rank))]
    auto = node.attrs.get("auto_pad", "NOTSET")
    before, after = [], []
    for i in range(rank):
        span = (kernel[i] - 1) * dilations[i] + 1
        reads = strides[i] * (made[i] - 1) + span
        left = given[i] if auto == "NOTSET" else 0
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = max(0, reads - sizes[i])
            left = total // 2 if auto == "SAME_UPPER" else total - total // 2
        right = max(0, reads - left - sizes[i])
        if right > given[rank + i] and auto == "NOTSET" and node.attrs.get("count_include_pad"):
            return dict(node.attrs)
        before.append(left)
        after.append(right)
    attrs |= {"kernel_shape": [int(k) for k in kernel], "strides": strides, "pads": before + after}
    attrs["dilations"] = dilations
    if "dilations" not in node.attrs and node.op in ("AveragePool", "LpPool"):
        del attrs["dilations"]  # an attribute since opset 19
    return attrs


def pad_amounts(node: Node, operands: Sequence[Any], rank: int) -> tuple[list[int], np.ndarray]:
    """What a Pad adds before and after each axis, and the value it pads with. operands: its inputs, as constants."""
    given = [v if isinstance(v, np.ndarray) else None for v in (*operands[1:], None, None, None)][:3]
    amounts = [int(v) for v in (node.attrs["pads"] if given[0] is None else given[0].reshape(-1))]
    if given[2] is not None:
        listed = [int(v) % rank for v in given[2].reshape(-1)]
        full = [0] * (2 * rank)
        for i, axis in enumerate(listed):
            full[axis], full[rank + axis] = amounts[i], amounts[len(listed) + i]
        amounts = full
    return amounts, np.asarray(node.attrs.get("value", 0) if given[1] is None else given[1])
