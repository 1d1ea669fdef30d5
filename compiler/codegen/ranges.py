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
    """The nodes; those that quantise what is known to be small say so (``bounded``)."""
    sizes: dict[FrameValue, float] = {}
    marked = []
    for node in nodes:
        size = _size(node, sizes)
        sizes[node.output] = size
        if node.op == "quantize" and _of(node.inputs[0], sizes) <= LARGEST:
            node = replace(node, attrs=node.attrs | {"bounded": True})
        marked.append(node)
    return tuple(marked)


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
