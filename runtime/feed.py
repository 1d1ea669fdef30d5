"""Inputs of different rates: what one has brought and the others have not caught up with yet."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runnel.errors import StreamError

if TYPE_CHECKING:
    from runnel.runtime.program import Port

Array = NDArray[Any]


class Feed:
    """A FIFO of fixed size for each input. A tick is the time in which every input brings a whole number of frames.

    ports: the inputs with time. ahead: how many ticks an input may be ahead of the others. An offer changes nothing
    until it is committed.
    """

    def __init__(self, ports: Sequence[Port], ahead: int) -> None:
        self.ports = tuple(ports)
        self._room = [ahead * port.per_tick for port in ports]
        self._held = [np.zeros(port.sized(room), port.dtype) for port, room in zip(ports, self._room)]
        self._counts = [0] * len(self.ports)
        self._left: list[Array] = []

    @property
    def state_bytes(self) -> int:
        """Of a snapshot."""
        return 8 * len(self.ports) + sum(held.nbytes for held in self._held)

    def offer(self, x: Mapping[str, Array], fresh: bool = False) -> tuple[list[Array], int]:
        """The frames of every input that make whole ticks together, and the number of ticks.

        x: any of the inputs, checked, with any number of frames each. fresh: as if nothing had waited. Raises
        StreamError where an input runs too far ahead.
        """
        whole = []
        for port, held, count in zip(self.ports, self._held, self._counts):
            waiting = _frames(held, port, 0, 0 if fresh else count)
            new = x.get(port.name)
            whole.append(waiting.copy() if new is None else np.concatenate([waiting, new], axis=port.axis or 0))
        ticks = min(port.frames(array) // port.per_tick for port, array in zip(self.ports, whole))
        left = [_frames(a, p, ticks * p.per_tick, p.frames(a)) for a, p in zip(whole, self.ports)]
        for port, room, array in zip(self.ports, self._room, left):
            if port.frames(array) > room:
                slow = min(self.ports, key=lambda p: p.frames(whole[self.ports.index(p)]) / p.per_tick)
                raise StreamError(
                    f"input '{port.name}' runs ahead of '{slow.name}': {port.frames(array)} of its frames would wait, "
                    f"and a stream holds {room}; push the inputs closer together in time."
                )
        self._left = left
        return [_frames(a, p, 0, ticks * p.per_tick) for a, p in zip(whole, self.ports)], ticks

    def commit(self) -> None:
        """Keep what the last offer left over."""
        for i, (port, array) in enumerate(zip(self.ports, self._left)):
            count = port.frames(array)
            _frames(self._held[i], port, 0, count)[...] = array
            self._counts[i] = count
        self._left = []

    def clear(self) -> None:
        self._counts = [0] * len(self.ports)

    def check_end(self) -> None:
        """Raises StreamError, which says what is missing, where the inputs do not end together."""
        if not any(self._counts):
            return
        ticks = max(-(-count // port.per_tick) for port, count in zip(self.ports, self._counts))
        short = [(p.name, ticks * p.per_tick - n) for p, n in zip(self.ports, self._counts) if n < ticks * p.per_tick]
        missing = ", ".join(f"{n} frames of '{name}'" for name, n in short)
        raise StreamError(f"the inputs do not end together: {missing or 'nothing'} missing; push them before flush.")

    def save(self) -> bytes:
        """A snapshot, of the same size always."""
        parts = []
        for port, held, count in zip(self.ports, self._held, self._counts):
            kept = np.zeros_like(held)
            _frames(kept, port, 0, count)[...] = _frames(held, port, 0, count)
            parts.append(kept.tobytes())
        return struct.pack(f"<{len(self._counts)}q", *self._counts) + b"".join(parts)

    def load(self, snapshot: bytes) -> None:
        """Go on from a snapshot. Raises ValueError for one that does not fit."""
        n = len(self.ports)
        if len(snapshot) != self.state_bytes:
            raise ValueError("another size")
        counts = list(struct.unpack_from(f"<{n}q", snapshot))
        if any(not 0 <= count <= room for count, room in zip(counts, self._room)):
            raise ValueError("more frames than there is room for")
        at = 8 * n
        for i, held in enumerate(self._held):
            self._held[i] = np.frombuffer(snapshot, held.dtype, held.size, at).reshape(held.shape).copy()
            at += held.nbytes
        self._counts = counts


def _frames(array: Array, port: Port, start: int, stop: int) -> Array:
    return array[(slice(None),) * (port.axis or 0) + (slice(start, stop),)]
