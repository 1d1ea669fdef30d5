"""Where the frames of a signal are kept."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.compiler.lowering.signals import Signal

STATE, SCRATCH = 1, 2


@dataclass(eq=False)
class Ring:
    """Where a signal's frames are kept. lead: frames before frame 0 that are read. tail: whether frames after the
    end are read."""

    signal: Signal
    space: int = STATE
    slots: int = 0
    margin: int = 0
    lead: int = 0
    tail: int = 0
    base: int = 0
    init_offset: int = -1

    @property
    def bytes(self) -> int:
        return (self.slots + self.margin) * self.signal.frame_bytes
