"""Dot products of codes in one instruction: of four in Arm's sdot and in vpdpbusd of AVX512-VNNI and AVX-VNNI, of two
in pmaddwd of other x86-64 and in smull and sadalp of other Arm; of eight, for two rows and outputs, in Arm's i8mm.

Sums are added up modulo 2^32 like any others, so the result is the same to the bit. Those of bytes want codes of one
signedness; other codes have their top bit turned over, and what that and the zero point add is taken off at the start.
pmaddwd takes 16 bits, the zero point taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from runnel.compiler.codegen.arithmetic import Arithmetic
from runnel.compiler.codegen.builder import Builder, Expr, constant, lanes_of, splat
from runnel.compiler.codegen.target import Target

QUAD = 4
_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
_QUADS = {lanes: f"llvm.x86.avx512.vpdpbusd.{32 * lanes}" for lanes in (4, 8, 16)}
_SDOT, _USDOT = {4: "llvm.aarch64.neon.sdot"}, {4: "llvm.aarch64.neon.usdot"}
_BLOCKS = {"int8": "llvm.aarch64.neon.smmla", "uint8": "llvm.aarch64.neon.usmmla"}
EIGHT = 8
_ADD_PAIRS = {"aarch64": {4: "llvm.aarch64.neon.saddlp"}, "armv7": {4: "llvm.arm.neon.vpaddls"}}
_TOP_BITS = {1: -128, 4: 0x80808080 - (1 << 32), 2: 0x8080 - (1 << 16)}


def prefers_unsigned(target: Target) -> bool:
    """Whether its dot products take unsigned codes."""
    return target.has({64: "avx512vnni", 32: "avxvnni"}.get(target.vector_bytes, "none"))


@dataclass(frozen=True)
class Dots:
    """size: how many codes of an input are multiplied at once, 4 or 2, or 8 in blocks. intrinsics: LLVM's, by lanes.
    wide: whether codes and weights take 16 bits. flip: whether codes have their top bit turned over. zero: of the codes
    it then works on. code_zero: of the codes as they are, where it is taken off each. block: LLVM's intrinsic for two
    rows and two outputs; "" where sums are one row's.
    """

    b: Builder
    size: int
    intrinsics: dict[int, str]
    wide: bool
    flip: bool
    zero: int
    code_zero: int = 0
    block: str = ""

    @staticmethod
    def of(target: Target, sums: Arithmetic, codes: str, weights: np.ndarray, several: bool = False) -> Dots | None:
        """None where the target has none, or weights have more bits than they take. several: whether sums of several
        rows are under way."""
        if sums.kind != "int32" or weights.size == 0:
            return None
        low, high = int(weights.min()), int(weights.max())
        if low >= -128 and high <= 127:
            if target.arch in _ADD_PAIRS:
                dot = target.arch == "aarch64" and target.has("dotprod")
                if dot and target.has("i8mm"):
                    names = _USDOT if codes == "uint8" else _SDOT
                    size, block = (EIGHT, _BLOCKS[codes]) if several else (QUAD, "")
                    return Dots(sums.b, size, names, False, False, sums.zero, block=block)
                flip = codes == "uint8"
                zero = sums.zero - 128 * flip
                return Dots(sums.b, QUAD if dot else 2, _SDOT if dot else _ADD_PAIRS[target.arch], False, flip, zero)
            if prefers_unsigned(target):
                flip, most = codes == "int8", target.lanes
                narrow = target.vector_bytes == 32 or target.has("avx512vl")
                names = {n: name for n, name in _QUADS.items() if n == most or (n < most and narrow)}
                return Dots(sums.b, QUAD, names, False, flip, sums.zero + 128 * flip)
        if target.arch == "x86_64" and low >= -32768 and high <= 32767:
            names = {n: name for n, name in _PAIRS.items() if n <= target.lanes}
            fits = target.vector_bytes < 64 or target.has("avx512bw")
            return Dots(sums.b, 2, names, True, False, 0, sums.zero) if fits else None
        return None

    @property
    def dtype(self) -> str:
        """What weights are stored as."""
        return "int16" if self.wide else "int8"

    @property
    def unit(self) -> int:
        """Inputs beyond a multiple of it are multiplied one by one."""
        return max(QUAD, self.size)

    def start(self, weights: np.ndarray) -> np.ndarray:
        """What sums begin with. weights: (groups, taps, inputs, outputs) → (groups, outputs) int32."""
        whole = weights[:, :, : weights.shape[2] // self.unit * self.unit].astype(np.int64).sum(axis=(1, 2))
        return (-self.zero * whole).astype(np.int32)

    def pack(self, panel: np.ndarray) -> np.ndarray:
        """A panel of weights (taps, inputs, width), in groups of inputs: (taps, groups, width, size), then the rest."""
        taps, inputs, width = panel.shape
        whole = inputs // self.unit * self.unit
        groups = panel[:, :whole].reshape(taps, -1, self.size, width).transpose(0, 1, 3, 2).reshape(taps, -1)
        packed = np.concatenate([groups, panel[:, whole:].reshape(taps, -1)], axis=1)
        return packed.astype(self.dtype)

    def codes(self, group: Expr, lanes: int) -> Expr:
        """The loaded codes of a group in every lane."""
        size = self.size
        if self.wide:
            pair = tirx.Cast("int16x2", group) - constant(self.code_zero, "int16", 2)
            return tirx.reinterpret(f"int16x{2 * lanes}", splat(self.b.let(tirx.reinterpret("int32", pair)), lanes))
        kind = f"int{8 * size}"
        words = splat(self.b.let(tirx.reinterpret(kind, group)), lanes)
        if self.flip:  # in every lane, which takes an instruction less than before they are filled
            words = (self.b.fence(words) if size == QUAD else words) ^ constant(_TOP_BITS[size], kind, lanes)
        return self.b.let(tirx.reinterpret(f"int8x{size * lanes}", words))

    def lanewise(self, group: Expr) -> Expr:
        """Loaded codes that differ from lane to lane, ``size`` a lane. Their zero point is not taken off."""
        lanes = lanes_of(group)
        if self.wide:
            return tirx.Cast(f"int16x{lanes}", group)
        group = tirx.reinterpret(f"int8x{lanes}", group)
        return self.b.let(group ^ constant(-128, "int8", lanes)) if self.flip else group

    def add_block(self, codes: Expr, weights: Expr, total: Expr) -> Expr:
        """``total``, rows by outputs, plus two rows of eight codes times the weights of two outputs."""
        return tirx.call_llvm_pure_intrin(str(total.ty), self.block, total, codes, weights)

    def add(self, codes: Expr, weights: Expr, total: Expr) -> Expr:
        """``total`` plus the dot product of each lane."""
        name, kind = self.intrinsics[lanes_of(total)], str(total.ty)
        if self.wide:
            return total + tirx.call_llvm_pure_intrin(kind, name, codes, weights)
        if self.size == 2:
            wide = f"int16x{lanes_of(codes)}"
            return total + tirx.call_llvm_pure_intrin(kind, name, tirx.Cast(wide, codes) * tirx.Cast(wide, weights))
        return tirx.call_llvm_pure_intrin(kind, name, total, codes, weights)
