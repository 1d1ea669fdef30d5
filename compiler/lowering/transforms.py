"""Analysis and synthesis by a windowed Fourier basis as steps of two thin products each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.lowering.fourier import Factors, factors
from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.signals import Read, Signal, View
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import StreamNode

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


def analysis(
    low: Lowering, read: Read, found: Factors, bias: np.ndarray | None, output: FrameValue, signal: Signal,
    positions: int = 1, step: int = 0,
) -> View:  # fmt: skip
    """Windows times basis vectors: (vectors, positions) a frame.

    read: samples in one piece; window q begins ``step``·q samples behind the first.
    """
    each = (positions * found.first[0].size,)
    sums = low.signal(f"{output.name}/sums", each, "float32", signal.made, signal.length)
    attrs = {"positions": positions}
    comb = FrameNode("comb_product", (read.value, found.first), _value(sums), attrs | {"step": step})
    summed = low.read(low.add(comb, [read], sums))
    rows, second = found.rows.copy(), found.second.copy()
    for group in range(len(rows)):  # what has no row is made as the first again
        spare = rows[group] < 0
        rows[group, spare], second[group][:, spare] = rows[group, 0], second[group][:, :1]
    picked = FrameNode("picked_product", (summed.value, second, bias), output, attrs | {"puts": rows})
    return low.add(picked, [summed], signal)


def inside(
    low: Lowering, node: StreamNode, view: View, weight: np.ndarray, bias: np.ndarray | None, attrs: dict[str, Any],
    out: tuple[int, ...],
) -> View | None:  # fmt: skip
    """A convolution of one channel along an axis of a frame, (1, 1, samples) → (1, vectors, positions), where its
    weight (vectors, 1, samples) is a Fourier basis; None where it is not, or pads."""
    if weight.ndim != 3 or weight.shape[1] != 1 or weight.dtype != np.float32 or view.shape[:2] != (1, 1):
        return None
    if any(attrs["pads"]) or attrs["dilations"] != [1] or (found := factors(weight[:, 0])) is None:
        return None
    fact = node.output.fact
    signal = low.signal(node.output.name, out, "float32", fact.made, fact.length)
    output = FrameValue(node.name, out)
    return analysis(low, low.read(view), found, bias, output, signal, out[2], attrs["strides"][0])


def product(low: Lowering, node: StreamNode, view: View, weight: np.ndarray, bias: np.ndarray | None) -> View | None:
    """A frame (samples) times a matrix (samples, vectors), or the vectors weighted by a frame, where they are a Fourier
    basis; None where they are not."""
    fact = node.output.fact
    if view.shape != weight.shape[:1] or view.signal.dtype != "float32":
        return None
    if (found := factors(weight.T)) is not None:
        shape = (weight.shape[1],)
        signal = low.signal(node.output.name, shape, "float32", fact.made, fact.length)
        return analysis(low, low.read(view), found, bias, FrameValue(node.name, shape), signal)
    if bias is None and (found := factors(weight)) is not None:
        return synthesis(low, view, found, fact.made, fact.length, node.output.name)
    return None


def synthesis(low: Lowering, view: View, found: Factors, made: Count, length: Count, name: str) -> View:
    """Basis vectors weighted by frames of numbers and added up: (samples) a frame."""
    read = low.read(view)
    groups, _, rows = found.second.shape
    sums = low.signal(f"{name}/sums", (found.first[0].size,), "float32", made, length)
    picks = np.where(found.rows < 0, found.rows[:, :1], found.rows)  # times zero
    second = np.ascontiguousarray(found.second.transpose(0, 2, 1))
    weighted = FrameNode("picked_product", (read.value, second, None), _value(sums), {"picks": picks})
    summed = low.read(low.add(weighted, [read], sums))
    samples = found.first.shape[0] * found.first.shape[2]
    whole = low.signal(f"{name}/windows", (samples,), "float32", made, length)
    first = np.ascontiguousarray(found.first.transpose(1, 0, 2))
    return low.add(FrameNode("comb_product", (summed.value, first), _value(whole)), [summed], whole)


def _value(signal: Signal) -> FrameValue:
    return FrameValue(signal.name, signal.shape, signal.dtype)
