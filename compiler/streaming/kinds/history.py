"""Stacked tensors with those before them, for columns that windows reuse as they are."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.compiler.streaming.ir import Reach, StreamNode


@dataclass(eq=False)
class History(StreamNode):
    """y[n] = x[n - past] … x[n], joined along ``along``. Before the first there is ``fill``."""

    past: int = 0
    along: int = 0
    fill: float = 0.0

    def reach(self, x: Reach) -> Reach:
        return x.moved(-self.past * self.jump, 0)
