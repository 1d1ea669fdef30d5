"""Activations rounded to codes of 8 bits, block by block: what the named mode ``activations`` puts before products."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.compiler.streaming.ir import StreamNode


@dataclass(eq=False)
class Rounded(StreamNode):
    """x with every ``block`` elements of its last axis as codes of -127 … 127 times a scale, the largest at ±127."""

    block: int = 32
