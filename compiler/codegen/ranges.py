"""How large values inside a kernel can become, where they are made of codes: then they are finite and rounding them
needs no care for what no int32 holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue

SAME = {"cast", "relu", "identity", "reshape", "transpose", "slice", "gather", "expand", "abs", "neg", "unfold"}
LARGEST = float(1 << 30)
UNKNOWN = float("inf")


def with_ranges(nodes: Sequence[FrameNode]) -> tuple[FrameNode, ...]:
    """The nodes. Those that quantise what is known to be small say so (``bounded``), and take the place of a relu: then
    codes are not below ``least``, the zero point."""
    sizes: dict[FrameValue, float] = {}
    made: dict[FrameValue, FrameNode] = {}
    for node in nodes:
        sizes[node.output] = _size(node, sizes)
        x = node.inputs[0] if node.inputs else None
        if node.op == "quantize" and _of(x, sizes) <= LARGEST:
            attrs, before = node.attrs | {"bounded": True}, made.get(x) if isinstance(x, FrameValue) else None
            if before is not None and before.op == "relu" and sum(v is x for n in nodes for v in n.inputs) == 1:
                node = replace(node, inputs=before.inputs)
                attrs["least"] = int(attrs["zero"])
                del made[before.output]
            node = replace(node, attrs=attrs)
        made[node.output] = node
    return tuple(made.values())


def _of(operand: Any, sizes: dict[FrameValue, float]) -> float:
    """The largest absolute value of an operand."""
    if isinstance(operand, np.ndarray):
        size = float(np.abs(operand.astype(np.float64)).max()) if operand.size and operand.dtype.kind in "iuf" else 0.0
        return size if np.isfinite(size) else UNKNOWN
    if operand in sizes:
        return sizes[operand]
    return 255.0 if operand is not None and str(operand.dtype) in ("int8", "uint8") else UNKNOWN


def _size(node: FrameNode, sizes: dict[FrameValue, float]) -> float:
    if node.op == "matmul_blocks":  # large constants are not looked at for nothing
        return UNKNOWN
    product = node.op in ("conv", "matmul")
    values = [_of(x, sizes) for x in (node.inputs[:1] if product else node.inputs)]
    if node.op in SAME:
        return values[0]
    if node.op == "quantize":
        return 255.0
    if node.op in ("add", "sub"):
        return values[0] + values[1]
    if node.op in ("min", "max", "concat"):
        return max(values)
    if node.op == "mul":
        return values[0] * values[1] if UNKNOWN not in values else UNKNOWN
    if node.op == "div" and isinstance(node.inputs[1], np.ndarray):
        least = float(np.abs(node.inputs[1].astype(np.float64)).min()) if node.inputs[1].size else 0.0
        return values[0] / least if least > 0 else UNKNOWN
    w = node.inputs[1] if len(node.inputs) > 1 else None
    if product and isinstance(w, np.ndarray) and w.dtype.kind == "i":
        axes = tuple(range(1, w.ndim)) if node.op == "conv" else w.ndim - 2
        return float(np.abs(w.astype(np.float64)).sum(axes).max(initial=0.0)) * values[0]
    return UNKNOWN
