"""Where the windows of convolutions and pools lie, one axis at a time.

A transposed convolution of stride s is s convolutions, one for each phase of the output position, so both kinds come
down to: output position ``q * out_step + out_first`` reads input positions ``q * in_step + first + n * step``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Any

from runnel.compiler.codegen.builder import Builder, Expr, int32


@dataclass(frozen=True)
class Axis:
    """Windows along one spatial axis, see above.

    count: number of q. taps: number of n. size: of the input. weight, weight_step: n's place in the kernel.
    """

    count: int
    taps: int
    size: int
    in_step: int = 1
    first: int = 0
    step: int = 1
    weight: int = 0
    weight_step: int = 1
    out_step: int = 1
    out_first: int = 0

    @property
    def interior(self) -> tuple[int, int]:
        """The range of q for which all taps lie inside the input; empty as (0, 0)."""
        if not self.taps:
            return 0, self.count
        low = min(self.first, self.first + (self.taps - 1) * self.step)
        high = max(self.first, self.first + (self.taps - 1) * self.step)
        begin = min(max(-(low // self.in_step), 0), self.count)
        end = max(min((self.size - 1 - high) // self.in_step + 1, self.count), 0)
        return (begin, end) if begin < end else (0, 0)


def windows(size: int, out: int, kernel: int, stride: int, dilation: int, pad: int) -> Axis:
    """The windows of a convolution or pool."""
    return Axis(out, kernel, size, in_step=stride, first=-pad, step=dilation)


def transposed_windows(size: int, out: int, kernel: int, stride: int, dilation: int, pad: int) -> list[Axis]:
    """The windows of a transposed convolution, one axis for each phase. A phase may have no taps."""
    phases = []
    for phase in range(min(stride, out)):
        taps = [j for j in range(kernel) if (phase + pad - j * dilation) % stride == 0]
        every = stride // gcd(stride, dilation)
        phases.append(
            Axis(
                count=-(-(out - phase) // stride),
                taps=len(taps),
                size=size,
                first=(phase + pad - taps[0] * dilation) // stride if taps else 0,
                step=-(every * dilation // stride),
                weight=taps[0] if taps else 0,
                weight_step=every,
                out_step=stride,
                out_first=phase,
            )
        )
    return phases


@dataclass(frozen=True)
class Tap:
    """One place of a window: coordinates in the input's spatial axes, and the flat place in the kernel."""

    inputs: list[Expr]
    weight: Expr


@contextmanager
def over_window(b: Builder, axes: Sequence[Axis], q: Sequence[Expr], kernel: Sequence[int]) -> Iterator[Tap]:
    """Loops over the places of the window at ``q`` that lie inside the input."""
    with ExitStack() as stack:
        inputs: list[Expr] = []
        weight: Expr = int32(0)
        for axis, at, size in zip(axes, q, kernel, strict=True):
            n = stack.enter_context(b.loop(axis.taps, "n"))
            position = at * axis.in_step + n * axis.step + axis.first
            for inside in (position >= 0, position < axis.size):
                if not b.analyzer.can_prove(inside):
                    stack.enter_context(b.when(inside))
            inputs.append(position)
            weight = weight * size + n * axis.weight_step + axis.weight
        yield Tap(inputs, weight)


def spatial_attributes(attrs: dict[str, Any], rank: int) -> tuple[list[int], list[int], list[int]]:
    """strides, dilations and the pads before each axis."""
    strides = [int(s) for s in attrs.get("strides") or [1] * rank]
    dilations = [int(d) for d in attrs.get("dilations") or [1] * rank]
    pads = [int(p) for p in attrs.get("pads") or [0] * (2 * rank)]
    return strides, dilations, pads[:rank]
