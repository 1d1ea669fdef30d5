"""Dot products of four codes of 8 bits in one instruction: Arm's sdot, and vpdpbusd of AVX512-VNNI and AVX-VNNI.

Sums are added up modulo 2^32 like any others, so the result is the same to the bit. The instructions want codes of one
signedness; other codes have their top bit turned over, and what that and the zero point add is taken off at the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from runnel.compiler.codegen.arithmetic import Arithmetic
from runnel.compiler.codegen.builder import Builder, Expr, constant, splat
from runnel.compiler.codegen.target import Target

QUAD = 4
_TOP_BITS = 0x80808080 - (1 << 32)


@dataclass(frozen=True)
class Dots:
    """intrinsic: LLVM's. flip: whether codes have their top bit turned over. zero: of the codes it then works on."""

    b: Builder
    intrinsic: str
    flip: bool
    zero: int

    @staticmethod
    def of(target: Target, sums: Arithmetic, codes: str, weights: np.ndarray) -> Dots | None:
        """None where the target has none, or weights have more than 8 bits."""
        if sums.kind != "int32" or weights.size == 0 or weights.min() < -128 or weights.max() > 127:
            return None
        if target.arch == "aarch64" and target.has("dotprod"):
            flip = codes == "uint8"
            return Dots(sums.b, "llvm.aarch64.neon.sdot", flip, sums.zero - 128 * flip)
        wide = target.vector_bytes == 64 and target.has("avx512vnni")
        if wide or (target.vector_bytes == 32 and target.has("avxvnni")):
            flip = codes == "int8"
            name = f"llvm.x86.avx512.vpdpbusd.{8 * target.vector_bytes}"
            return Dots(sums.b, name, flip, sums.zero + 128 * flip)
        return None

    def start(self, weights: np.ndarray) -> np.ndarray:
        """What sums begin with. weights: (groups, taps, inputs, outputs) → (groups, outputs) int32."""
        whole = weights[:, :, : weights.shape[2] // QUAD * QUAD].astype(np.int64).sum(axis=(1, 2))
        return (-self.zero * whole).astype(np.int32)

    def pack(self, panel: np.ndarray) -> np.ndarray:
        """Weights of a panel, (taps, inputs, width), in quads of inputs: (taps, quads, width, 4), then the rest."""
        taps, inputs, width = panel.shape
        whole = inputs // QUAD * QUAD
        quads = panel[:, :whole].reshape(taps, -1, QUAD, width).transpose(0, 1, 3, 2).reshape(taps, -1)
        return np.concatenate([quads, panel[:, whole:].reshape(taps, -1)], axis=1).astype(np.int8)

    def codes(self, quad: Expr, lanes: int) -> Expr:
        """Four loaded codes in every lane."""
        word = tirx.reinterpret("int32", quad)
        word = self.b.let(word ^ constant(_TOP_BITS, "int32")) if self.flip else self.b.let(word)
        return tirx.reinterpret(f"int8x{QUAD * lanes}", splat(word, lanes))

    def add(self, codes: Expr, weights: Expr, total: Expr) -> Expr:
        """``total`` plus the dot product of each lane."""
        return tirx.call_llvm_pure_intrin(str(total.ty), self.intrinsic, total, codes, weights)
