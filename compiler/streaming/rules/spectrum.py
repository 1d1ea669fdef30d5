"""Fourier transforms: of frames of time (STFT), as a strided convolution; of another axis (DFT), as a product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.ir import Stream, Window
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


def turns(rows: int, columns: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 2·pi·row·column / size, exact at whole turns; float64 (rows, columns)."""
    angles = 2 * np.pi / size * (np.outer(np.arange(rows), np.arange(columns)) % size)
    return np.cos(angles), np.sin(angles)


def dft_matrix(count: int, parts: int, size: int, onesided: bool, inverse: bool) -> np.ndarray:
    """(count, parts, bins, 2): ``count`` values of 1 or 2 parts (real, imaginary) to the bins of a DFT of ``size``."""
    used = min(count, size)
    bins = size // 2 + 1 if onesided else size
    cos, sin = turns(used, bins, size)
    if inverse:
        cos, sin = cos / size, -sin / size
    matrix = np.zeros((count, parts, bins, 2))
    matrix[:used, 0] = np.stack([cos, -sin], -1)
    if parts == 2:
        matrix[:used, 1] = np.stack([sin, cos], -1)
    return matrix


def real_inverse_matrix(count: int, size: int) -> np.ndarray:
    """(count, 2, size, 1): the lower half of a spectrum to the real signal that it belongs to."""
    used = min(count, size // 2 + 1)
    cos, sin = turns(used, size, size)
    weight = np.full((used, 1), 2.0 / size)
    weight[0] = 1 / size
    if size % 2 == 0 and used == size // 2 + 1:
        weight[-1] = 1 / size
    matrix = np.zeros((count, 2, size, 1))
    matrix[:used, :, :, 0] = np.stack([cos * weight, -sin * weight], 1)
    return matrix


def stft_kernel(
    window: np.ndarray | None, length: np.ndarray | None, onesided: bool, batch: int, dtype: str
) -> np.ndarray:
    """The weight (batch · bins · 2, 1, frame length) of the convolution, in ``batch`` groups, that is an STFT."""
    size = int(length.reshape(-1)[0]) if length is not None else len(window) if window is not None else 0
    if not size:
        raise Refusal("has no frame length", "give the frame length or the window")
    shape = np.ones(size) if window is None else np.asarray(window, np.float64)
    matrix = dft_matrix(size, 1, size, onesided, False)[:, 0] * shape[:, None, None]
    return np.tile(matrix.reshape(size, -1).T[:, None], (batch, 1, 1)).astype(dtype)


@rule("STFT")
def stft(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    step, window, length = (a.constant(node, i, what) for i, what in ((1, "step"), (2, "window"), (3, "frame length")))
    if x.axis != 1 or (len(x.shape) == 3 and x.shape[2] != 1) or step is None:
        raise Refusal("transforms a complex signal, or one whose time is not axis 1", "transform a real [batch, time]")
    stride, batch = int(step.reshape(-1)[0]), x.shape[0] or 1
    kernel = stft_kernel(window, length, bool(node.attrs.get("onesided", 1)), batch, x.dtype)
    size, bins = kernel.shape[2], kernel.shape[0] // (2 * batch)
    row = a.pointwise(node, [x], 2, {"shape": [1, batch, None]}, op="Reshape", suffix="/rows", shape=(1, batch, None))
    fact = row.fact
    attrs: dict[str, Any] = {
        "kernel_shape": [size], "strides": [stride], "dilations": [1], "pads": [0, 0], "group": batch,
    }  # fmt: skip
    final, count = (f.affine(1, stride - size, stride) for f in (fact.final, fact.length))
    y = a.emit(
        node, Window, [row, kernel], 2, final, count, shape=(1, batch * bins * 2, None), op="Conv", suffix="/bins",
        kernel=size, stride=stride, attrs=attrs,
    )  # fmt: skip
    split = (batch, bins, 2, None)
    y = a.pointwise(node, [y], 3, {"shape": list(split)}, op="Reshape", suffix="/split", shape=split)
    return [a.pointwise(node, [y], 1, {"perm": [0, 3, 1, 2]}, op="Transpose")]


@rule("DFT")
def dft(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    rank = len(x.shape)
    length, given = a.constant(node, 1, "length"), a.constant(node, 2, "axis")
    default = 1 if a.graph.opset < 20 else -2  # an attribute there, with another default
    axis = int(given.reshape(-1)[0]) if given is not None else int(node.attrs.get("axis", default))
    axis %= rank
    if x.axis in (axis, rank - 1):
        raise MixesTime("transforms over the whole of time", "transform frames of time (STFT)")
    count, parts = x.shape[axis], x.shape[rank - 1]
    assert count is not None and parts is not None
    matrix = dft_of(count, parts, length, node.attrs)
    flat = matrix.reshape(count * parts, -1).astype(x.dtype)
    return [_product(a, node, x, axis, flat, *matrix.shape[2:])]


def dft_of(count: int, parts: int, length: np.ndarray | None, attrs: dict[str, Any]) -> np.ndarray:
    """The matrix (count, parts, bins, parts of a bin) of a DFT node."""
    inverse, onesided = bool(attrs.get("inverse", 0)), bool(attrs.get("onesided", 0))
    real = inverse and onesided
    size = int(length.reshape(-1)[0]) if length is not None else 2 * (count - 1) if real else count
    return real_inverse_matrix(count, size) if real else dft_matrix(count, parts, size, onesided, inverse)


def _product(a: Analysis, node: Node, x: Stream, axis: int, matrix: np.ndarray, bins: int, parts: int) -> Stream:
    """x [..., count, ..., parts] with ``axis`` and the last one multiplied by a matrix."""
    rank = len(x.shape)
    perm = [i for i in range(rank) if i not in (axis, rank - 1)] + [axis, rank - 1]
    y = x
    if axis != rank - 2:
        dims = tuple(x.shape[p] for p in perm)
        y = a.pointwise(node, [y], perm.index(x.axis), {"perm": perm}, op="Transpose", suffix="/last", shape=dims)
    lead, time = y.shape[: rank - 2], y.axis
    for suffix, last in (("/flat", (matrix.shape[0],)), ("/bins", (matrix.shape[1],)), ("", (bins, parts))):
        dims = (*lead, *last)
        if suffix == "/bins":
            y = a.pointwise(node, [y, matrix], time, {}, op="MatMul", suffix=suffix, shape=dims)
        else:
            suffix = suffix or ("/split" if axis != rank - 2 else "")
            y = a.pointwise(node, [y], time, {"shape": list(dims)}, op="Reshape", suffix=suffix, shape=dims)
    if axis == rank - 2:
        return y
    back = [perm.index(i) for i in range(rank)]
    return a.pointwise(node, [y], back.index(time), {"perm": back}, op="Transpose")
