"""Running answers: what a value at the end would be if the stream ended with each frame."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.compiler.streaming.ir import StreamNode


@dataclass(eq=False)
class Stack(StreamNode):
    """Each frame of x as a whole tensor of its own, with the shape of the output."""


@dataclass(eq=False)
class Unstack(StreamNode):
    """Whole tensors along an axis of time, on which each of them has one element."""
