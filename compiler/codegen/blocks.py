"""Products of float32 by weights of 2, 4 or 8 bits with a scale for each block of inputs, and by weights that are
float16, for steps that memory limits.

y[n] = bias[n] + sum over taps and blocks of scale[n] · (sum over the block of x[k] · code[k, n] - zero[n] · sum of x).
Codes stay packed and become float32 in registers. They lie [panel of outputs][tap, block][inputs][width]: 8 bits a
byte each; 4 and 2 bits in words of 32, the first of 8 or 16 consecutive inputs lowest. Each element is reduced in one
order: inputs of a block, then blocks, whatever the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import halves
from runnel.compiler.codegen.builder import (
    Buffer,
    Expr,
    constant,
    dtype_of,
    int32,
    lanes_of,
    shuffle,
    splat,
    vector_type,
)
from runnel.compiler.codegen.context import Context, View
from runnel.compiler.codegen.elementwise import apply_epilogue, spill_and_apply
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.evaluate import Index
from runnel.compiler.codegen.linear import view_of
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.codegen.reduce import tree_sum
from runnel.compiler.codegen.target import Target
from runnel.compiler.lowering.frame import FrameNode

HALVES = 8  # inputs of float16 that are loaded together
AHEAD = 4096  # bytes ahead of their use at which weights are asked for
LINE = 64
_PERMUTE = "llvm.x86.avx512.permvar.sf.512"
_NIBBLES = [float(v if v < 8 else v - 16) for v in range(16)]


@dataclass(frozen=True)
class Problem:
    """codes: (taps, inputs, outputs) int8 about zero, or float16 without scales. scales, zeros: (taps, blocks, outputs)
    float32, zeros or None.

    bias: (outputs,) or None. inner: rows within one frame. half: inputs are float16, and so are sums over a block.
    """

    node: FrameNode
    x: View
    codes: np.ndarray
    scales: np.ndarray | None
    zeros: np.ndarray | None
    bias: np.ndarray | None
    bits: int
    block: int
    inner: int
    half: bool = False

    @property
    def taps(self) -> int:
        return int(self.codes.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.codes.shape[1])

    @property
    def outputs(self) -> int:
        return int(self.codes.shape[2])

    @property
    def blocks(self) -> int:
        return -(-self.inputs // self.block)

    @property
    def together(self) -> int:
        """Codes of one output that lie in one element of memory."""
        return 1 if self.bits >= 8 else 32 // self.bits


def emit_matmul(context: Context, node: FrameNode) -> None:
    """matmul_blocks: x through taps by codes, scales, zeros, bias."""
    x, codes, scales, zeros, bias = (
        view_of(context, node),
        *(None if v is None else np.asarray(v) for v in node.inputs[1:]),
    )
    assert codes is not None
    bits, block = int(node.attrs["bits"]), int(node.attrs["block"])
    taps, inputs, _ = codes.shape
    blocks = -(-inputs // block)
    if node.attrs.get("packed"):
        from runnel.compiler.codegen.packed import Packed, words

        assert scales is not None and taps == 1 and x.value.shape[-1] == words(inputs, block)
        inner = int(np.prod(x.value.shape[:-1], dtype=np.int64))
        Packed(context, Problem(node, x, codes, scales, zeros, bias, bits, block, inner)).emit()
        return
    fits = (scales is None and bits == 16) or (scales is not None and scales.shape == (taps, blocks, codes.shape[2]))
    if x.value.shape[-1] != inputs or x.access.taps != taps or not fits:
        raise Unsupported(node.op, f"codes {codes.shape} do not fit {x.access.taps} taps of {x.value.shape}")
    if (block % 16 and bits != 16) or bits not in (2, 4, 8, 16) or str(x.value.dtype) != "float32":
        raise Unsupported(node.op, f"of {x.value.dtype} by {bits} bits in blocks of {block}")
    inner = int(np.prod(x.value.shape[:-1], dtype=np.int64))
    half = bool(node.attrs.get("half"))
    Blocks(context, Problem(node, x, codes, scales, zeros, bias, bits, block, inner, half)).emit()


class Blocks:
    """Tiles of rows by panels of outputs, vectors over outputs."""

    def __init__(self, context: Context, p: Problem) -> None:
        self.context, self.p, self.b = context, p, context.b
        target = context.target
        registers = LANES // min(target.lanes, LANES)
        self.vectors = max(1, target.registers // (4 * registers))
        self.padded = round_up(p.outputs, LANES)
        self.width = min(self.vectors * LANES, self.padded)
        self.permute = permutes(target)
        self.half = target.halves
        self.unit = 1
        self.ahead = target.arch == "x86_64"
        self.pitch = p.x.value.shape[-1]
        self._pack()

    def _panels(self, values: np.ndarray) -> np.ndarray:
        """(rows, outputs) as panels one after the other."""
        wide = np.zeros((values.shape[0], self.padded), values.dtype)
        wide[:, : values.shape[1]] = values
        panels = [wide[:, n : n + self.width].reshape(-1) for n in range(0, self.padded, self.width)]
        return np.concatenate(panels)

    def _pack(self) -> None:
        p, key = self.p, id(self.p.node)
        depth = round_up(p.inputs, p.together)
        codes = np.zeros((p.taps, depth, p.outputs), p.codes.dtype)
        codes[:, : p.inputs] = p.codes
        if p.bits == 16:
            codes = codes.view(np.int16) if self.half else codes.astype(np.float32)
        self.depth = depth // p.together
        if p.bits < 8:
            groups = codes.reshape(p.taps, self.depth, p.together, p.outputs).astype(np.uint32) & ((1 << p.bits) - 1)
            shifts = (p.bits * np.arange(p.together, dtype=np.uint32))[:, None]
            codes = np.bitwise_or.reduce(groups << shifts, axis=2).view(np.int32)
        self.codes = self.context.constant((key, "w"), self._panels(codes.reshape(-1, p.outputs)))
        self.scales = None if p.scales is None else self._reals("s", p.scales)
        self.zeros = None if p.zeros is None else self._reals("z", p.zeros)
        self._pack_bias()

    def _pack_bias(self) -> None:
        bias = self.p.bias
        self.bias = None
        if bias is not None:
            packed = self._panels(bias.reshape(1, -1).astype(np.float32))
            self.bias = self.context.constant((id(self.p.node), "b"), packed)

    def _reals(self, name: str, values: np.ndarray) -> Buffer:
        """One float32 a block and output, in fewer bytes where that loses nothing."""
        flat = self._panels(values.reshape(-1, self.p.outputs).astype(np.float32))
        narrow = flat.astype(np.float16)
        narrower = self.p.node.attrs.get("halves")  # of all units, where a kernel is for several
        exact = np.array_equal(narrow.astype(np.float32), flat) if narrower is None else bool(narrower)
        exact &= self.half
        return self.context.constant((id(self.p.node), name), narrow.view(np.int16) if exact else flat)

    def _real(self, value: Expr) -> Expr:
        """Loaded float32, or float16 made float32."""
        if dtype_of(value) == "float32":
            return value
        return halves.single(self.b, tirx.reinterpret(vector_type("uint16", lanes_of(value)), value))

    def emit(self) -> None:
        """All rows and panels."""
        if self.context.packs_only:
            return
        if self.p.inner == 1:
            self._rows(self.context.rows, inner=False)
            return
        with self.b.loop(self.context.rows, "row") as row:
            self.context.row = row
            self._rows(self.p.inner, inner=True)

    def _rows(self, rows: int, inner: bool) -> None:
        tile = min(rows, 4)
        with self.b.loop(rows // tile, "tile") as i:
            self._panel_loop([i * tile + r for r in range(tile)], inner)
        for r in range(rows - rows % tile, rows):
            self._panel_loop([int32(r)], inner)

    def _panel_loop(self, rows: list[Expr], inner: bool) -> None:
        tail = self.p.outputs % LANES
        full = (self.padded - (LANES if tail else 0)) // self.width
        with self.b.loop(full, "panel") as panel:
            self._panel(rows, inner, panel, self.width, 0)
        done = full * self.width
        if done < self.padded:
            self._panel(rows, inner, int32(full), self.padded - done, tail)

    def _panel(self, rows: list[Expr], inner: bool, panel: Expr, width: int, tail: int) -> None:
        """One panel, as many vectors at a time as there are registers for."""
        step = width if len(rows) == 1 else LANES * max(1, self.vectors // len(rows))
        for v in range(0, width, step):
            some = min(step, width - v)
            self._tile(rows, inner, panel, width, v, some // LANES, tail if v + some == width else 0)

    def _tile(
        self, rows: list[Expr], inner: bool, panel: Expr, width: int, first: int, vectors: int, tail: int
    ) -> None:
        b, p = self.b, self.p
        outer = panel * self.width
        columns = [first + v * LANES for v in range(vectors)]
        totals = [[b.local("float32", LANES) for _ in columns] for _ in rows]
        for j, column in enumerate(columns):
            start: Expr = constant(0.0, "float32", LANES)
            if self.bias is not None:
                start = b.let(b.load_vector(self.bias, outer + column, LANES))
            for row in totals:
                b.store_vector(row[j], 0, start)
        codes = b.let(panel * (p.taps * self.depth * self.width * self.unit))
        scales = b.let(panel * (p.taps * p.blocks * self.width))
        whole = p.inputs // p.block
        with b.loop(p.taps, "tap") as tap:
            bases = [b.let(p.x.tap(tap) + self._row_offset(row, inner)) for row in rows]
            at_tap = b.let(codes + tap * (self.depth * width * self.unit))

            def block(number: Expr, count: int) -> None:
                at = b.let(scales + (tap * p.blocks + number) * width)
                self._block(number, count, bases, at_tap, at, width, columns, totals)

            with b.loop(whole, "block") as number:
                block(number, p.block)
            if p.inputs % p.block:
                block(int32(whole), p.inputs % p.block)
        for row, row_totals in zip(rows, totals, strict=True):
            if not inner:
                self.context.row = row
            origin = (row * p.outputs if inner else 0) + outer
            self._finish([origin + c for c in columns], [b.load_vector(t, 0, LANES) for t in row_totals], tail)

    def _block(
        self, number: Expr, count: int, bases: list[Expr], at_tap: Expr, scales: Expr, width: int, columns: list[int],
        totals: list[list[Buffer]],
    ) -> None:  # fmt: skip
        """``count`` inputs of a block, onto the totals. scales: where the block's lie."""
        b, p = self.b, self.p
        kind = "float16" if p.half else "float32"
        sums = [[b.local(kind, LANES) for _ in columns] for _ in bases]
        for row in sums:
            for total in row:
                b.store_vector(total, 0, constant(0.0, kind, LANES))
        at = b.let(at_tap + number * (p.block // p.together * width))
        k0 = number * p.block
        group_of, step = (partial(self._halves, width), HALVES) if p.half else (self._group, p.together)
        with b.loop(count // step, "k") as group:
            starts = [b.let(base + k0 + group * step) for base in bases]
            group_of(starts, b.let(at + group * (step // p.together * width)), columns, sums, step)
        if count % step:
            last = count // step
            starts = [b.let(base + k0 + last * step) for base in bases]
            group_of(starts, b.let(at + last * (step // p.together * width)), columns, sums, count % step)
        self._end(k0, count, bases, scales, columns, sums, totals)

    def _group(self, starts: list[Expr], at: Expr, columns: list[int], sums: list[list[Buffer]], count: int) -> None:
        """Products of the first ``count`` codes of an element of memory."""
        b, p = self.b, self.p
        item = np.dtype(str(self.codes.dtype)).itemsize
        for c in columns:
            if c * item % LINE == 0:
                self._ask(self.codes, at + c, item)
        packed = [b.let(b.load_vector(self.codes, at + c, LANES)) for c in columns]
        for i in range(count):
            xs = [splat(b.let(b.load_vector(p.x.memory, start + i, 1)), LANES) for start in starts]
            for j, codes in enumerate(packed):
                w = self._decoded(codes, i)
                w = b.let(w) if len(starts) > 1 else w
                for x, row in zip(xs, sums, strict=True):
                    b.store_vector(row[j], 0, b.fma(x, w, b.load_vector(row[j], 0, LANES)))

    def _halves(
        self, width: int, starts: list[Expr], at: Expr, columns: list[int], sums: list[list[Buffer]], count: int
    ) -> None:
        """Products of ``count`` inputs by their weights, ``width`` of them a row, in float16."""
        b, kind = self.b, vector_type("float16", LANES)
        lanes = 1 << (count.bit_length() - 1)
        for first in range(0, count, lanes):
            some = min(lanes, count - first)
            xs = [b.load_vector(self.p.x.memory, start + first, some) for start in starts]
            xs = [b.let(tirx.Cast(vector_type("float16", some), x)) for x in xs]
            for i in range(some):
                packed = [b.load_vector(self.codes, at + (first + i) * width + c, LANES) for c in columns]
                ws = [b.let(tirx.reinterpret(kind, codes)) for codes in packed]
                for x, row in zip(xs, sums, strict=True):
                    one = splat(shuffle(x, [i]) if some > 1 else x, LANES)
                    for w, memory in zip(ws, row, strict=True):
                        b.store_vector(memory, 0, b.fma(one, w, b.load_vector(memory, 0, LANES)))

    def _decoded(self, codes: Expr, i: int) -> Expr:
        """Code i of each lane as float32."""
        return self._real(codes) if self.p.bits == 16 else decoded(codes, self.p.bits, i, self.permute)

    def _end(
        self, k0: Expr, count: int, bases: list[Expr], at: Expr, columns: list[int], sums: list[list[Buffer]],
        totals: list[list[Buffer]],
    ) -> None:  # fmt: skip
        """A block's sums, scaled, onto the totals."""
        b = self.b
        if self.scales is None:
            for row, total in zip(sums, totals, strict=True):
                for one, other in zip(row, total, strict=True):
                    sums_of = tirx.Cast(vector_type("float32", LANES), b.load_vector(one, 0, LANES))
                    b.store_vector(other, 0, b.load_vector(other, 0, LANES) + sums_of)
            return
        around = [self._sum_of(base + k0, count) for base in bases] if self.zeros is not None else []
        for j, column in enumerate(columns):
            scale = b.let(self._real(b.load_vector(self.scales, at + column, LANES)))
            for r, (row, total) in enumerate(zip(sums, totals, strict=True)):
                value = b.load_vector(row[j], 0, LANES)
                if self.zeros is not None:
                    zero = self._real(b.load_vector(self.zeros, at + column, LANES))
                    value = b.let(b.fma(zero, splat(around[r], LANES), value))
                b.store_vector(total[j], 0, b.fma(value, scale, b.load_vector(total[j], 0, LANES)))

    def _sum_of(self, at: Expr, count: int) -> Expr:
        """Less the sum of x over a block."""
        b, p = self.b, self.p
        total = b.let(constant(0.0, "float32"))
        if count >= 16:
            lanes = b.local("float32", 16)
            b.store_vector(lanes, 0, b.load_vector(p.x.memory, at, 16))
            for k in range(16, count - 15, 16):
                b.store_vector(lanes, 0, b.load_vector(lanes, 0, 16) + b.load_vector(p.x.memory, at + k, 16))
            total = tree_sum(b, b.load_vector(lanes, 0, 16))
        for k in range(count - count % 16, count):
            total = b.let(total + b.load_vector(p.x.memory, at + k, 1))
        return b.let(total * constant(-1.0, "float32"))

    def _ask(self, memory: Buffer, position: Expr, item: int) -> None:
        """Ask for what lies some way behind ``position``, once for each line of memory."""
        if self.ahead:
            self.b.prefetch(memory, position + AHEAD // item)

    def _row_offset(self, row: Expr, inner: bool) -> Expr:
        outer = self.context.at_row(self.p.x.access)
        return outer + row * self.pitch if inner else row * self.p.x.access.row_pitch

    def _finish(self, positions: list[Expr], totals: list[Expr], tail: int) -> None:
        b, context, anchor = self.b, self.context, self.p.node.output
        for j, (position, total) in enumerate(zip(positions, totals, strict=True)):
            if tail and j == len(totals) - 1:
                spill_and_apply(context, anchor, b.let(total), position, tail)
                continue
            with b.vector(LANES) as lane:
                apply_epilogue(context, anchor, b.let(total), Index(anchor.shape, flat=position + lane))


def permutes(target: Target) -> bool:
    """Whether codes of 4 bits are looked up in a register."""
    return target.vector_bytes == 64


def decoded(codes: Expr, bits: int, i: int, permute: bool) -> Expr:
    """Code i of each lane as float32: of 8 bits the lane itself, of fewer those bits of a word."""
    kind = vector_type("float32", LANES)
    if bits == 8:
        return tirx.Cast(kind, tirx.Cast(vector_type("int32", LANES), codes))
    if bits == 4 and permute:
        shifted = codes >> constant(4 * i, "int32", LANES) if i else codes
        return tirx.call_llvm_pure_intrin(kind, _PERMUTE, _table(), shifted)
    left = 32 - bits * (i + 1)
    moved = codes << constant(left, "int32", LANES) if left else codes
    return tirx.Cast(kind, moved >> constant(32 - bits, "int32", LANES))


def _table() -> Expr:
    return tirx.Shuffle([constant(v, "float32") for v in _NIBBLES], list(range(16)))
