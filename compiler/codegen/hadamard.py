"""Hadamard's rotation of rows: every element becomes a signed mean of all, so that no single one sets a code's scale.

Rows whose length is no power of two are rotated in blocks of the largest one that divides it. The rotation is its own
inverse.
"""

from __future__ import annotations

from math import sqrt

from tvm import tirx

from runnel.compiler.codegen.builder import Buffer, Builder, Expr, constant, int32, shuffle, splat

WIDEST = 16


def block_size(size: int) -> int:
    """Elements that are rotated together."""
    return size & -size


def rotate(b: Builder, memory: Buffer, base: Expr, size: int, block: int) -> None:
    """Rotate ``size`` elements from ``base`` on in place, ``block`` of them together: a power of two."""
    if block == 1:
        return
    lanes = min(WIDEST, block)
    with b.loop(size // block, "block") as number:
        start = base + number * block
        parts = [b.let(b.load_vector(memory, start + at, lanes)) for at in range(0, block, lanes)]
        stride = 1
        while stride < lanes:
            parts = [_within(b, part, stride, lanes) for part in parts]
            stride *= 2
        apart = 1
        while apart < len(parts):
            for i in range(len(parts)):
                if i & apart == 0:
                    x, y = parts[i], parts[i + apart]
                    parts[i], parts[i + apart] = b.let(x + y), b.let(x - y)
            apart *= 2
        scale = constant(1 / sqrt(block), "float32", lanes)
        for i, part in enumerate(parts):
            b.store_vector(memory, start + i * lanes, b.let(part * scale))


def _within(b: Builder, x: Expr, stride: int, lanes: int) -> Expr:
    """Sums and differences of lanes ``stride`` apart."""
    other = b.let(shuffle(x, [i ^ stride for i in range(lanes)]))
    lane = tirx.Ramp(int32(0), int32(1), lanes)
    second = tirx.NE(lane & splat(int32(stride), lanes), splat(int32(0), lanes))
    return b.let(tirx.Select(second, other - x, x + other))
