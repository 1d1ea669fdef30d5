"""The frame program: what one frame of a stream computes, with time removed from every shape.

The streaming rewrite knows *when* a frame is made; this module's types say *what* is computed for it. A frame is the
tensor of the model with its time axis taken out: ``[1, 64, T]`` becomes ``(1, 64)``. Nodes carry static shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

LANES = 16  # frames and constants of 16 elements or more are padded to a multiple of this


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``n``."""
    return -(-n // multiple) * multiple


def frame_elements(shape: Sequence[int]) -> int:
    """Elements that a frame of this shape takes in memory: padded to a multiple of 16 if it has 16 or more."""
    n = prod(shape)
    return round_up(n, LANES) if n >= LANES else n


@dataclass(frozen=True, eq=False)
class FrameValue:
    """One frame of a tensor, or a value inside a kernel. Compared by identity.

    name: for messages only. shape: time removed, static. dtype: numpy name ("float32", "int64", "bool").
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class FrameNode:
    """An operation on frames. ``inputs`` hold values or constants (numpy arrays, broadcast by numpy's rules).

    ``op`` is one of the vocabulary in ``docs/kernels.md``. There is one output.
    """

    op: str
    inputs: tuple[FrameValue | np.ndarray | None, ...]
    output: FrameValue
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Access:
    """How a kernel sees an input.

    taps: frames of the input that one output frame reads (1: just a frame).
    contiguous: the taps lie one after the other in memory, ``frame elements`` apart; else each has its own offset.
    row_pitch: elements between the first tap of consecutive output rows, when several rows are made in one call.
    ring: the kernel finds frames itself, ``row_pitch`` elements apart, from the slot of the first on.
    pitch: elements from one frame to the next.
    half: elements lie in memory as float16.
    """

    taps: int = 1
    contiguous: bool = False
    row_pitch: int = 0
    ring: bool = False
    pitch: int = 0
    half: bool = False


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that become one kernel: in order of evaluation, the last node makes the group's only output.

    inputs: the values the group reads from memory, with their access.
    rows: the row counts wanted beside 1 (a kernel for R rows makes R consecutive output frames), e.g. (4,).
    out_row_pitch: elements between consecutive output rows.
    apart: rows wanted of a kernel whose rows come from anywhere, 0 for none: what a row reads of an input lies in one
        piece, one row's piece after the other's.
    shared: whether workers may make a frame together, each a share of the output.
    half: the output lies in memory as float16.
    """

    nodes: tuple[FrameNode, ...]
    inputs: dict[FrameValue, Access]
    rows: tuple[int, ...] = ()
    out_row_pitch: int = 0
    apart: int = 0
    shared: bool = False
    half: bool = False

    @property
    def output(self) -> FrameValue:
        return self.nodes[-1].output
