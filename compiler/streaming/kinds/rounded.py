"""Activations rounded to codes of 8 bits, block by block, or to float16: what the named mode ``activations`` puts in
front of products."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.compiler.streaming.ir import StreamNode

HALF = 0


@dataclass(eq=False)
class Rounded(StreamNode):
    """x with every ``block`` elements of its last axis as codes of -127 … 127 times a scale, the largest at ±127; block
    HALF: x rounded to float16."""

    block: int = 32
