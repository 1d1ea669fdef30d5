"""Which kernels make rows of several streams in one call, and which ones workers may share."""

from __future__ import annotations

import numpy as np

from runnel.compiler.lowering.fuse import NUMBERED, FusedStep
from runnel.compiler.lowering.work import macs

ROWS_APART = 4
LEAST_WEIGHTS = 1 << 10
"""Weights from which on reading them once for several rows pays for putting the rows side by side."""

LEAST_SHARED = 1 << 17
"""Multiply-adds of a call, a microsecond or more of one core, from which on sharing it pays for waking and waiting."""


def rows_apart(group: FusedStep) -> int:
    """The rows of such a call; 0 where a frame uses its weights more than twice, or where there are few."""
    anchor = group.anchor
    if (
        anchor is None
        or anchor.chosen is not None
        or anchor.node.op not in ("conv", "matmul")
        or any(s.node.op in NUMBERED for s in group.steps)
    ):
        return 0
    weights = anchor.node.inputs[1]
    if not isinstance(weights, np.ndarray) or weights.size < LEAST_WEIGHTS or macs(anchor.node) > 2 * weights.size:
        return 0
    return ROWS_APART if all(r.ended is None and not r.ring for r in group.reads) else 0
