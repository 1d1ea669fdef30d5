"""Quantise, dequantise and integer products inside a frame as frame nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.graph.blocks import unpack
from runnel.compiler.lowering.pointwise import handler, without_time
from runnel.compiler.lowering.signals import NoKernel, View
from runnel.compiler.streaming.ir import Operand, Pointwise, Stream
from runnel.compiler.streaming.kinds.rounded import Rounded

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

KINDS = ("int8", "uint8", "int16", "uint16", "int32")


def integer_weights(codes: Operand, zero: Operand, axis: int) -> np.ndarray:
    """Constant codes with their zero point (one, or one a column) taken off: int8 where that fits, else int16.

    axis: that of the outputs, whose sums must stay within int32.
    """
    assert isinstance(codes, np.ndarray) and not isinstance(zero, Stream)
    centred = codes.astype(np.int32) - (0 if zero is None else zero.astype(np.int32))
    others = tuple(i for i in range(centred.ndim) if i != axis)
    if centred.size and np.abs(centred).sum(axis=others, dtype=np.int64).max() * 255 >= 1 << 31:
        raise NoKernel("may add up codes beyond int32")
    fits = not centred.size or (centred.min() >= -128 and centred.max() <= 127)
    return centred.astype(np.int8 if fits else np.int16)


def zero_point(zero: Operand) -> int:
    """The zero point of a stream of codes."""
    if zero is None:
        return 0
    assert isinstance(zero, np.ndarray)
    if len(np.unique(zero)) > 1:
        raise NoKernel("has several zero points for its input")
    return int(zero.reshape(-1)[0])


def along_axis(node: Pointwise, value: np.ndarray) -> np.ndarray:
    """Scales or zero points in the shape that broadcasts against a frame of the node's output."""
    if value.size == 1:
        return value.reshape(())
    rank = len(node.output.shape)
    axis = int(node.attrs.get("axis", 1)) % rank
    return without_time(node, value.reshape([-1 if i == axis else 1 for i in range(rank)]))


@handler("DequantizeLinear")
def dequantise(low: Lowering, node: Pointwise) -> View:
    """(code - zero) · scale, rounded once."""
    x = low.view(node.streams[0])
    scale = node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if not isinstance(scale, np.ndarray) or scale.dtype != np.float32 or x.signal.dtype not in KINDS[:2]:
        raise NoKernel("dequantises other codes than 8 bits, or to another type than float32")
    value = low.elementwise(node, "cast", [x], {"to": "float32"})
    if isinstance(zero, np.ndarray) and zero.any():
        value = low.elementwise(node, "sub", [value, along_axis(node, zero.astype(np.float32))], {})
    return low.elementwise(node, "mul", [value, along_axis(node, scale)], {})


@handler("QuantizeLinear")
def quantise(low: Lowering, node: Pointwise) -> View:
    """x / scale, rounded half to even, plus zero, within the type's range."""
    x, scale = low.view(node.streams[0]), node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    to = node.output.dtype
    if not isinstance(scale, np.ndarray) or x.signal.dtype != "float32" or to not in KINDS[:2]:
        raise NoKernel("quantises to other codes than 8 bits, or from another type than float32")
    if not (scale == 1).all():
        x = low.elementwise(node, "div", [x, along_axis(node, scale)], {})
    return low.elementwise(node, "quantize", [x], {"zero": zero_point(zero), "to": to})


@handler("MatMulInteger")
def product(low: Lowering, node: Pointwise) -> View:
    x = low.view(node.streams[0])
    names = [*node.inputs, None, None][:4]
    if not isinstance(names[1], np.ndarray) or names[1].ndim != 2:
        raise NoKernel("multiplies two integer tensors that both depend on time, or by a batch of matrices")
    weight = integer_weights(names[1], names[3], 1)
    if not x.shape or x.shape[-1] != weight.shape[0]:
        x = x.reshaped((*x.shape, weight.shape[0]))
    out = (*x.shape[:-1], weight.shape[1])
    attrs = {"zero_point": zero_point(names[2])}
    return low.step(node, "matmul", [x, weight, None], out, attrs, "int32").reshaped(node.output.frame_shape)


@handler("MatMulNBits")
def product_of_blocks(low: Lowering, node: Pointwise) -> View:
    x = low.view(node.streams[0])
    names = [*node.inputs, None, None, None][:6]
    if any(isinstance(v, Stream) for v in names[1:]) or names[4] is not None or x.signal.dtype != "float32":
        raise NoKernel("has weights that depend on time, in an order of their own, or activations other than float32")
    codes, scales, zeros, _, bias = names[1:]
    assert isinstance(codes, np.ndarray) and isinstance(scales, np.ndarray) and not isinstance(zeros, Stream)
    inputs, outputs = int(node.attrs["K"]), int(node.attrs["N"])
    blocks = unpack(int(node.attrs["bits"]), int(node.attrs["block_size"]), (inputs, outputs), codes, scales, zeros)
    blocks = blocks if isinstance(node.streams[0].node, Rounded) else blocks.merged()
    return low.block_product(node, x, [blocks], bias, node.output.frame_shape)  # type: ignore[arg-type]


def integer_conv(node: Any) -> tuple[np.ndarray, None, dict[str, Any]]:
    """Weight, (no) bias and attributes of a ConvInteger."""
    names = [*node.inputs, None, None][:4]
    return integer_weights(names[1], names[3], 0), None, {"zero_point": zero_point(names[2])}
