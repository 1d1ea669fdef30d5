"""Streams whose values are affine in the number of the frame: position tables, indices of frames, masks from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runnel.compiler.streaming.ir import Operand, Pointwise, Shift, Stream
from runnel.compiler.streaming.kinds.positions import END, Positions, Table


@dataclass(frozen=True)
class Numbers:
    """Frame n is start + step·n. Both have the tensor's rank, with one at the time axis."""

    start: np.ndarray
    step: np.ndarray

    @property
    def pace(self) -> int | None:
        """The step, where it is one whole number for all elements."""
        first = self.step.reshape(-1)[0]
        return int(first) if (self.step == first).all() and first == int(first) else None


def numbers_of(x: Operand) -> Numbers | None:
    """What x is as numbers, None where it depends on data or is not affine."""
    if isinstance(x, np.ndarray):
        return Numbers(x, np.zeros_like(x)) if x.dtype.kind in "iuf" else None
    if x is None:
        return None
    node = x.node
    if isinstance(node, Positions):
        return Numbers(np.array([node.start]), np.array([node.step]))
    if isinstance(node, Table):
        return _of_table(node)
    if isinstance(node, Shift) and not node.pads and node.mode == "constant":
        inner = numbers_of(node.streams[0])
        return inner and Numbers(inner.start + inner.step * node.offset, inner.step)
    if isinstance(node, Pointwise) and not node.domain and x.axis >= 0:
        return _of_pointwise(node, x)
    return None


def _of_table(node: Table) -> Numbers | None:
    rows, axis = node.rows, node.output.axis
    if rows.dtype.kind not in "iu":
        return None
    first = rows.take([0], axis)
    if node.is_constant:
        return Numbers(first, np.zeros_like(first))
    if node.beyond != END or rows.shape[axis] < 2:
        return None
    steps = np.diff(rows, axis=axis)
    return Numbers(first, steps.take([0], axis)) if (steps == steps.take([0], axis)).all() else None


def _of_pointwise(node: Pointwise, x: Stream) -> Numbers | None:
    op = node.op
    if op in ("Add", "Sub", "Mul"):
        a, b = (numbers_of(v) for v in node.inputs)
        if a is None or b is None:
            return None
        if op != "Mul":
            sign = 1 if op == "Add" else -1
            return Numbers(a.start + sign * b.start, a.step + sign * b.step)
        if a.step.any() and b.step.any():
            return None
        return Numbers(a.start * b.start, a.step * b.start + b.step * a.start)
    inner = numbers_of(node.inputs[0])
    if inner is None:
        return None
    shape = [1 if d is None else d for d in x.shape]
    if op == "Identity" or (op == "Cast" and np.dtype(x.dtype).kind in "if" and x.dtype != "float16"):
        return inner
    if op == "Neg":
        return Numbers(-inner.start, -inner.step)
    if op in ("Unsqueeze", "Squeeze", "Reshape", "Flatten"):
        return Numbers(inner.start.reshape(shape), inner.step.reshape(shape))
    if op == "Expand":
        return Numbers(np.broadcast_to(inner.start, shape), np.broadcast_to(inner.step, shape))
    if op == "Transpose":
        perm = node.attrs["perm"]
        return Numbers(inner.start.transpose(perm), inner.step.transpose(perm))
    return None
