"""Dot products of codes in one instruction: of four in Arm's sdot and in vpdpbusd of AVX512-VNNI and AVX-VNNI, of two
in pmaddwd of other x86-64.

Sums are added up modulo 2^32 like any others, so the result is the same to the bit. Those of four want codes of one
signedness; other codes have their top bit turned over, and what that and the zero point add is taken off at the start.
Those of two take 16 bits, the zero point taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from runnel.compiler.codegen.arithmetic import Arithmetic
from runnel.compiler.codegen.builder import Builder, Expr, constant, splat
from runnel.compiler.codegen.target import Target

QUAD = 4
_PAIRS = {16: "llvm.x86.sse2.pmadd.wd", 32: "llvm.x86.avx2.pmadd.wd", 64: "llvm.x86.avx512.pmaddw.d.512"}
_TOP_BITS = 0x80808080 - (1 << 32)


@dataclass(frozen=True)
class Dots:
    """size: how many products a lane, 4 or 2. intrinsic: LLVM's. flip: whether codes have their top bit turned over.
    zero: of the codes it then works on. code_zero: of the codes as they are.
    """

    b: Builder
    size: int
    intrinsic: str
    flip: bool
    zero: int
    code_zero: int = 0

    @staticmethod
    def of(target: Target, sums: Arithmetic, codes: str, weights: np.ndarray) -> Dots | None:
        """None where the target has none, or weights have more bits than they take."""
        if sums.kind != "int32" or weights.size == 0:
            return None
        low, high = int(weights.min()), int(weights.max())
        if low >= -128 and high <= 127:
            if target.arch == "aarch64" and target.has("dotprod"):
                flip = codes == "uint8"
                return Dots(sums.b, QUAD, "llvm.aarch64.neon.sdot", flip, sums.zero - 128 * flip)
            if target.has({64: "avx512vnni", 32: "avxvnni"}.get(target.vector_bytes, "none")):
                flip = codes == "int8"
                name = f"llvm.x86.avx512.vpdpbusd.{8 * target.vector_bytes}"
                return Dots(sums.b, QUAD, name, flip, sums.zero + 128 * flip)
        if target.arch == "x86_64" and low >= -32768 and high <= 32767:
            wide = target.vector_bytes < 64 or target.has("avx512bw")
            return Dots(sums.b, 2, _PAIRS[target.vector_bytes], False, 0, sums.zero) if wide else None
        return None

    def start(self, weights: np.ndarray) -> np.ndarray:
        """What sums begin with. weights: (groups, taps, inputs, outputs) → (groups, outputs) int32."""
        whole = weights[:, :, : weights.shape[2] // QUAD * QUAD].astype(np.int64).sum(axis=(1, 2))
        return (-self.zero * whole).astype(np.int32)

    def pack(self, panel: np.ndarray) -> np.ndarray:
        """A panel of weights (taps, inputs, width), in groups of inputs: (taps, groups, width, size), then the rest."""
        taps, inputs, width = panel.shape
        whole = inputs // QUAD * QUAD
        groups = panel[:, :whole].reshape(taps, -1, self.size, width).transpose(0, 1, 3, 2).reshape(taps, -1)
        packed = np.concatenate([groups, panel[:, whole:].reshape(taps, -1)], axis=1)
        return packed.astype(np.int8 if self.size == QUAD else np.int16)

    def codes(self, group: Expr, lanes: int) -> Expr:
        """The loaded codes of a group in every lane."""
        if self.size == 2:
            pair = tirx.Cast("int16x2", group) - constant(self.code_zero, "int16", 2)
            return tirx.reinterpret(f"int16x{2 * lanes}", splat(self.b.let(tirx.reinterpret("int32", pair)), lanes))
        word = tirx.reinterpret("int32", group)
        word = self.b.let(word ^ constant(_TOP_BITS, "int32")) if self.flip else self.b.let(word)
        return tirx.reinterpret(f"int8x{QUAD * lanes}", splat(word, lanes))

    def add(self, codes: Expr, weights: Expr, total: Expr) -> Expr:
        """``total`` plus the dot product of each lane."""
        if self.size == 2:
            return total + tirx.call_llvm_pure_intrin(str(total.ty), self.intrinsic, codes, weights)
        return tirx.call_llvm_pure_intrin(str(total.ty), self.intrinsic, total, codes, weights)
