"""Products of activations rounded to 8 bits by weights of 8 or 4 bits: dot products of four codes in one instruction.

Where the processor has such instructions, a rounded frame is kept as words of 32 bits: its codes, four a word; then for
each block its scale (a float32) and the sum of its codes. Weights lie [panel of outputs][block][four inputs][width][4],
of 4 bits the second four inputs above the first. A block's sum is an int32, exact; then blocks in order, in float32.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import math as m
from runnel.compiler.codegen import ops
from runnel.compiler.codegen.blocks import LINE, Blocks
from runnel.compiler.codegen.builder import Buffer, Expr, constant, int32, splat, vector_type
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.elementwise import apply_epilogue
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.reduce import tree, tree_sum
from runnel.compiler.codegen.target import Target
from runnel.compiler.lowering.frame import FrameNode

QUAD = 4
_LEAST = 1e-30


def dots_of_four(target: Target) -> str | None:
    """LLVM's dot product of four codes a lane of the target's vectors; None where it has none."""
    if target.arch == "aarch64" and target.has("dotprod"):
        return "llvm.aarch64.neon.sdot"
    if target.has({64: "avx512vnni", 32: "avxvnni"}.get(target.vector_bytes, "none")):
        return f"llvm.x86.avx512.vpdpbusd.{8 * target.vector_bytes}"
    return None


def emit_rounding(context: Context, node: FrameNode) -> None:
    """round_blocks: float32 again, or words where the node says ``packed``."""
    x, b, block = view_of(context, node), context.b, int(node.attrs["block"])
    inputs, packed = x.value.shape[-1], bool(node.attrs.get("packed"))
    rows, blocks = int(np.prod(x.value.shape[:-1], dtype=np.int64)), -(-inputs // block)
    width = words(inputs, block) if packed else inputs

    def one(row: Expr, number: Expr, count: int) -> None:
        base = b.let(context.at_row(x.access) + row * inputs + number * block)
        largest = b.local("float32", LANES)
        for k in range(0, count, LANES):
            size = b.let(b.intrinsic("llvm.fabs", b.load_vector(x.memory, base + k, LANES)))
            if k:
                so_far = b.load_vector(largest, 0, LANES)
                size = tirx.Select(size > so_far, size, so_far)
            b.store_vector(largest, 0, size)
        scale = b.let(tree(b, b.load_vector(largest, 0, LANES), lambda p, q: tirx.Select(p > q, p, q)))
        scale = b.let(scale / constant(127.0, "float32"))
        divisor = b.let(splat(tirx.Select(scale > m.like(scale, _LEAST), scale, m.like(scale, _LEAST)), LANES))
        sums = b.local("int32", LANES)
        for k in range(0, count, LANES):
            quotient = b.let(b.load_vector(x.memory, base + k, LANES) / divisor)
            if not packed:
                code = b.let(b.intrinsic("llvm.roundeven", quotient))
                at = row * width + number * block + k
                with b.vector(LANES) as lane:
                    result = b.let(code * splat(scale, LANES))
                    apply_epilogue(context, node.output, result, Index(node.output.shape, flat=at + lane))
                continue
            code = b.let(b.whole(quotient))
            b.store_vector(sums, 0, b.load_vector(sums, 0, LANES) + code if k else code)
            narrow = b.let(ops.cast(b, code, "int8"))
            four = tirx.reinterpret(f"int32x{LANES // QUAD}", narrow)
            at = context.out_row + row * width + number * (block // QUAD) + k // QUAD
            b.store_vector(context.out, at, b.fence(four))
        if packed:
            at = b.let(context.out_row + row * width + inputs // QUAD + number)
            b.store_vector(context.out, at, tirx.reinterpret("int32", scale))
            b.store_vector(context.out, at + blocks, tree_sum(b, b.load_vector(sums, 0, LANES)))

    with b.loop(context.rows, "row") as outer:
        context.row = outer
        with b.loop(rows, "m") as row:
            with b.loop(inputs // block, "block") as number:
                one(row, number, block)
            if inputs % block:
                one(row, int32(inputs // block), inputs % block)


def words(inputs: int, block: int) -> int:
    """Words of 32 bits of a rounded row."""
    return inputs // QUAD + 2 * -(-inputs // block)


class Packed(Blocks):
    """Tiles of rows by panels of outputs, as for float32 activations."""

    def _pack(self) -> None:
        p, target = self.p, self.context.target
        self.unit = QUAD
        self.name = dots_of_four(target) or ""
        self.lanes = min(target.lanes, LANES)
        self.above = 128 if target.arch == "x86_64" else 0  # what makes weights of 8 bits unsigned
        if p.bits == 4:
            self.above = 8
        depth = round_up(p.inputs, 2 * QUAD)
        codes = np.zeros((depth, p.outputs), np.int16)
        codes[: p.inputs] = p.codes[0]
        codes = (codes + self.above).astype(np.uint8)
        groups = codes.reshape(-1, QUAD, p.outputs)
        if p.bits == 4:
            groups = groups[0::2] | groups[1::2] << 4
        self.depth = len(groups)
        wide = np.zeros((*groups.shape[:2], self.padded), np.uint8)
        wide[..., : p.outputs] = groups
        panels = [wide[..., n : n + self.width].swapaxes(1, 2).reshape(-1) for n in range(0, self.padded, self.width)]
        self.codes = self.context.constant((id(p.node), "w"), np.concatenate(panels).view(np.int8))
        assert p.scales is not None
        self.scales = self._reals("s", p.scales)
        self.zeros = None if p.zeros is None else self._reals("z", p.zeros)
        self._pack_bias()

    def _block(
        self, number: Expr, count: int, bases: list[Expr], at_tap: Expr, scales: Expr, width: int, columns: list[int],
        totals: list[list[Buffer]],
    ) -> None:  # fmt: skip
        b, p, lanes = self.b, self.p, self.lanes
        each = QUAD * (2 if p.bits == 4 else 1)
        memory = p.x.memory
        last = p.inputs // QUAD
        scale_of = [
            b.let(tirx.reinterpret("float32", b.load_vector(memory, base + last + number, 1))) for base in bases
        ]
        around = [b.let(b.load_vector(memory, base + (last + p.blocks) + number, 1)) for base in bases]
        parts = [(j, column + v) for j, column in enumerate(columns) for v in range(0, LANES, lanes)]
        starts = [b.let(s * constant(-self.above, "int32")) if self.above else constant(0, "int32") for s in around]
        accumulators = [[b.local("int32", lanes) for _ in parts] for _ in bases]
        for row, start in zip(accumulators, starts, strict=True):
            for total in row:
                b.store_vector(total, 0, splat(start, lanes))
        at = b.let(at_tap + number * (p.block // each * width * QUAD))
        first = number * (p.block // QUAD)
        mask = constant(0x0F0F0F0F, "int32", lanes)

        def group(k: Expr, halves: int) -> None:
            place = b.let(at + k * (width * QUAD))
            for half in range(halves):
                at_word = first + k * (each // QUAD) + half
                words_of = [b.let(splat(b.load_vector(memory, base + at_word, 1), lanes)) for base in bases]
                for i, (_, column) in enumerate(parts):
                    if not half and column * QUAD % LINE == 0:
                        self._ask(self.codes, place + column * QUAD, 1)
                    w = b.load_vector(self.codes, place + column * QUAD, QUAD * lanes)
                    if p.bits == 4:
                        nibbles = tirx.reinterpret(vector_type("int32", lanes), w)
                        nibbles = nibbles >> constant(4, "int32", lanes) if half else nibbles
                        w = tirx.reinterpret(f"int8x{QUAD * lanes}", nibbles & mask)
                    w = b.let(w)
                    for word, row in zip(words_of, accumulators, strict=True):
                        codes = tirx.reinterpret(f"int8x{QUAD * lanes}", word)
                        total = b.load_vector(row[i], 0, lanes)
                        kind = vector_type("int32", lanes)
                        b.store_vector(row[i], 0, tirx.call_llvm_pure_intrin(kind, self.name, total, w, codes))

        with b.loop(count // each, "k") as k:
            group(k, each // QUAD)
        if count % each:
            group(int32(count // each), 1)
        kind = vector_type("float32", lanes)
        for r, row in enumerate(accumulators):
            less = b.let(tirx.Cast("float32", around[r]) * constant(-1.0, "float32"))
            for i, (j, column) in enumerate(parts):
                value = b.let(tirx.Cast(kind, b.load_vector(row[i], 0, lanes)))
                if self.zeros is not None:
                    zero = self._real(b.load_vector(self.zeros, scales + column, lanes))
                    value = b.let(b.fma(zero, splat(less, lanes), value))
                value = b.let(value * splat(scale_of[r], lanes))
                scale = self._real(b.load_vector(self.scales, scales + column, lanes))
                where = column - columns[j]
                total = b.load_vector(totals[r][j], where, lanes)
                b.store_vector(totals[r][j], where, b.fma(value, scale, total))
