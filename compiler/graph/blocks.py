"""Float products by constant codes, whose weights stay codes: MatMul and Gemm by DequantizeLinear of a constant become
MatMulNBits of com.microsoft, the one form that has a rule and a kernel.

Activations stay float32: an ``accuracy_level`` that lets onnxruntime round them is taken off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import helper

from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.graph.quantised import Rewriter

DOMAIN = "com.microsoft"
BITS = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
LARGEST_BLOCK = 128
SMALLEST_BLOCK = 16
LARGEST_MERGED = 1024


@dataclass(frozen=True)
class Blocks:
    """Weights (inputs, outputs) as (codes - zeros) · scales, each scale for ``block`` inputs of one output.

    codes: (inputs, outputs) int8 about zero, or float16 where bits are 16, whose scales are 1. scales:
    (blocks, outputs) float32. zeros: the same, None for none.
    """

    bits: int
    block: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None

    def real(self) -> np.ndarray:
        """The weights (inputs, outputs) float32."""
        wide = [np.repeat(v, self.block, axis=0)[: len(self.codes)] for v in (self.scales, self.zeros) if v is not None]
        return (self.codes.astype(np.float32) - (wide[1] if len(wide) > 1 else 0)) * wide[0]

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What MatMulNBits takes: codes (outputs, blocks, bytes), scales (outputs · blocks), zeros in bytes or None."""
        blocks, outputs = self.scales.shape
        middle = 1 << (self.bits - 1)
        full = np.full((blocks * self.block, outputs), middle, np.uint8)
        full[: len(self.codes)] = (self.codes.astype(np.int16) + middle).astype(np.uint8)
        codes = _to_bytes(full.T.reshape(outputs, blocks, self.block), self.bits)
        zeros = None
        if self.zeros is not None:
            zeros = _to_bytes((self.zeros.T + middle).astype(np.uint8), self.bits)
        return codes, np.ascontiguousarray(self.scales.T).reshape(-1), zeros

    def merged(self) -> Blocks:
        """The same with neighbours of the same scales and zeros as one."""
        blocks, scales, zeros = self.block, self.scales, self.zeros
        while len(scales) > 1 and blocks < LARGEST_MERGED:
            pairs = [v for v in (scales, zeros) if v is not None]
            if any(not np.array_equal(v[: len(v) // 2 * 2 : 2], v[1::2]) for v in pairs):
                break
            scales, zeros, blocks = scales[::2], None if zeros is None else zeros[::2], 2 * blocks
        return replace(self, block=blocks, scales=scales, zeros=zeros)


def unpack(
    bits: int, block: int, shape: tuple[int, int], codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None
) -> Blocks:
    """The weights of a MatMulNBits. shape: (inputs, outputs)."""
    inputs, outputs = shape
    blocks, middle = -(-inputs // block), 1 << (bits - 1)
    flat = _from_bytes(codes.reshape(outputs, blocks, -1), bits)[..., :block].reshape(outputs, -1)[:, :inputs]
    about = (flat.astype(np.int16) - middle).astype(np.int8)
    offsets = None
    if zeros is not None and zeros.dtype == np.uint8:
        offsets = _from_bytes(zeros.reshape(outputs, -1), bits)[:, :blocks].astype(np.float32) - middle
    elif zeros is not None:
        offsets = zeros.reshape(outputs, blocks).astype(np.float32) - middle
    if offsets is not None:
        offsets = np.ascontiguousarray(offsets.T) if offsets.any() else None
    steps = np.ascontiguousarray(scales.reshape(outputs, blocks).T, np.float32)
    return Blocks(bits, block, np.ascontiguousarray(about.T), steps, offsets)


def _to_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis in bytes, the first lowest."""
    each = 8 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    parts = codes.reshape(*codes.shape[:-1], -1, each).astype(np.uint16) << (bits * np.arange(each))
    return parts.sum(-1).astype(np.uint8)


def _from_bytes(data: np.ndarray, bits: int) -> np.ndarray:
    parts = data[..., None] >> (bits * np.arange(8 // bits, dtype=np.uint8)) & ((1 << bits) - 1)
    return parts.reshape(*data.shape[:-1], -1)


class Coded(np.ndarray):
    """Float32 weights that are codes: of a convolution tap by tap, of a matrix (inputs, outputs) as one tap. What is
    made from it is a plain array."""

    taps: tuple[Blocks, ...] = ()


def coded_matrix(blocks: Blocks) -> Coded:
    """The weights (inputs, outputs) with their codes."""
    matrix = blocks.real().view(Coded)
    matrix.taps = (blocks,)
    return matrix


def weights_in_blocks(graph: Graph) -> bool:
    """Write every such product of the graph as MatMulNBits, in place; whether results differ from the graph's."""
    rewriter = Rewriter(graph)
    changed = False
    for node in graph.nodes:
        if node.domain == DOMAIN and node.op == "MatMulNBits":
            changed |= int(node.attrs.pop("accuracy_level", 0)) > 1
            _without_order(rewriter, node)
        elif node.domain in ("", "ai.onnx") and node.op in ("MatMul", "Gemm") and (new := _product(rewriter, node)):
            node = new
        elif node.domain in ("", "ai.onnx") and node.op == "Conv":
            _convolution(rewriter, node)
        rewriter.nodes.append(node)
    graph.nodes = rewriter.nodes
    return changed


def nbits(rewriter: Rewriter, like: Node, x: str, blocks: Blocks, bias: str) -> Node:
    """The MatMulNBits node of x by blocks, with the outputs of ``like``."""
    codes, scales, zeros = blocks.packed()
    names = [x, rewriter.const(codes), rewriter.const(scales), "" if zeros is None else rewriter.const(zeros), "", bias]
    while not names[-1]:
        names.pop()
    inputs, outputs = blocks.codes.shape
    attrs = {"K": inputs, "N": outputs, "bits": blocks.bits, "block_size": blocks.block}
    if DOMAIN not in {o.domain for o in rewriter.graph.proto.opset_import}:
        rewriter.graph.proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return Node("MatMulNBits", like.name, names, list(like.outputs), attrs, DOMAIN)


def _without_order(r: Rewriter, node: Node) -> None:
    """Take off a g_idx that says what is so without it."""
    order = r.constant(node, 4)
    block = int(node.attrs.get("block_size", 0))
    if order is not None and block and np.array_equal(order.reshape(-1), np.arange(order.size) // block):
        node.inputs[4] = ""


def _product(r: Rewriter, node: Node) -> Node | None:
    attrs = node.attrs
    plain = not attrs.get("transA") and float(attrs.get("alpha", 1.0)) == 1.0 == float(attrs.get("beta", 1.0))
    blocks = dequantised(r, node.inputs[1], bool(attrs.get("transB"))) if plain else None
    if blocks is None:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if bias:
        value = r.graph.constants.get(bias)
        if value is None or value.dtype != np.float32 or value.size != blocks.codes.shape[1]:
            return None
        bias = r.const(value.reshape(-1))
    return nbits(r, node, node.inputs[0], blocks, bias)


def dequantised(r: Rewriter, name: str, turned: bool) -> Blocks | None:
    """The constant codes (inputs, outputs) behind a DequantizeLinear. turned: whether they lie (outputs, inputs)."""
    made = r.producers.get(name)
    while made is not None and made.op == "Transpose" and list(made.attrs.get("perm", (1, 0))) == [1, 0]:
        turned, made = not turned, r.producers.get(made.inputs[0])
    found = _constant_codes(r, made, 2)
    if found is None:
        return None
    codes, scales, zeros = found
    assert made is not None
    axis, size = int(made.attrs.get("axis", 1)) % 2, int(made.attrs.get("block_size", 0))
    along = axis == (1 if turned else 0)
    if turned:
        codes = codes.T
        scales, zeros = (v.T if v.ndim == 2 else v for v in (scales, zeros))
    return _in_blocks(codes, scales, zeros, size if scales.ndim == 2 else 0, along)


def _constant_codes(r: Rewriter, node: Node | None, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Codes, scales and zero points of a DequantizeLinear of a constant of few bits and of ``rank`` axes."""
    if node is None or node.op != "DequantizeLinear":
        return None
    codes, scales, zeros = (r.constant(node, i) for i in range(3))
    if codes is None or scales is None or scales.dtype != np.float32 or codes.ndim != rank or not codes.size:
        return None
    if str(codes.dtype) not in BITS or (len(node.inputs) > 2 and node.inputs[2] and zeros is None):
        return None
    return codes, scales, np.zeros(scales.shape, codes.dtype) if zeros is None else zeros


def _in_blocks(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, size: int, along: bool) -> Blocks | None:
    """Codes (inputs, outputs) of any type. size: of blocks of inputs, 0 where there is one scale, or one along an axis:
    that of the inputs if ``along``."""
    (inputs, outputs), kind = codes.shape, str(codes.dtype)
    bits = BITS[kind]
    middle = (1 << (bits - 1)) if kind.startswith("u") else 0
    offsets = zeros.astype(np.int16) - middle
    if size:
        block = min(size & -size, LARGEST_BLOCK)
        if not along or block < SMALLEST_BLOCK:
            return None
        scales, offsets = (np.repeat(v, size // block, axis=0)[: -(-inputs // block)] for v in (scales, offsets))
    elif scales.size == 1 or not along:
        block = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, 1 << (inputs - 1).bit_length()))
        scales, offsets = (np.broadcast_to(v.reshape(1, -1), (-(-inputs // block), outputs)) for v in (scales, offsets))
    else:
        return None
    about = np.ascontiguousarray((codes.astype(np.int16) - middle).astype(np.int8))
    return Blocks(
        bits, block, about, np.ascontiguousarray(scales), offsets.astype(np.float32) if offsets.any() else None
    )


def _convolution(r: Rewriter, node: Node) -> None:
    """Make the weights of a convolution Coded, where they come from codes and have one axis of taps."""
    made = r.producers.get(node.inputs[1])
    found = _constant_codes(r, made, 3)
    if found is None or int(node.attrs.get("group", 1)) != 1:
        return
    codes, scales, zeros = found
    assert made is not None
    axis, size = int(made.attrs.get("axis", 1)) % 3, int(made.attrs.get("block_size", 0))
    taps = []
    for k in range(codes.shape[2]):
        steps, offsets = (v[:, :, k].T if v.ndim == 3 else v for v in (scales, zeros))
        taps.append(_in_blocks(codes[:, :, k].T, steps, offsets, size if scales.ndim == 3 else 0, axis == 1))
    if axis == 2 and scales.size > 1:
        return
    kept = tuple(t for t in taps if t is not None)
    if len(kept) == len(taps):
        weights = np.stack([t.real().T for t in kept], axis=2).view(Coded)
        weights.taps = kept
        node.inputs[1] = r.const(weights)
        r.graph.constants[node.inputs[1]] = weights
