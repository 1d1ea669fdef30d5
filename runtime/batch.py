"""Many streams of one program: lanes that come and go, each at a position of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runnel.errors import StreamError

if TYPE_CHECKING:
    from runnel.runtime.program import Array, Program, Result, Stream


class Batch(ABC):
    """Up to ``capacity`` streams, called lanes, that are pushed together. Used by one thread at a time.

    What a lane gives is bit for bit what a stream of its own would give. Every error names its lane.
    """

    def __init__(self, program: Program, capacity: int) -> None:
        if capacity < 1:
            raise StreamError(f"a batch of {capacity} streams holds none; give a capacity of 1 or more.")
        self.program = program
        self.capacity = capacity
        self._streams: dict[int, Stream] = {}

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes in use."""
        return tuple(sorted(self._streams))

    def join(
        self, state: bytes | None = None, on_nonfinite: str = "error", inputs: Mapping[str, Any] | None = None
    ) -> int:
        """Open a stream, with the arguments of ``Program.stream``; the number of its lane. Raises StreamError."""
        lane = next((i for i in range(self.capacity) if i not in self._streams), None)
        if lane is None:
            raise StreamError(f"all {self.capacity} lanes of the batch are in use; leave one, or open a larger batch.")
        self._streams[lane] = self._open(lane, state, on_nonfinite, inputs)
        return lane

    def leave(self, lane: int) -> None:
        """Close a stream; its lane is free again."""
        self._stream(lane)
        del self._streams[lane]

    def push(self, x: Mapping[int, Array | Mapping[str, Array]]) -> dict[int, Result]:
        """Push into the lanes named, any number of frames each; {lane: what Stream.push gives}.

        Raises StreamError, which names the lane; then every lane is as it was.
        """
        streams = {lane: self._stream(lane) for lane in x}
        for lane, stream in streams.items():
            with _Named(lane):
                stream.check(x[lane])
        results = {}
        for lane, stream in streams.items():
            with _Named(lane):
                results[lane] = stream.push(x[lane])
        return results

    def flush(self, lane: int) -> Result:
        """End one lane's stream; the rest of its outputs."""
        with _Named(lane):
            return self._stream(lane).flush()

    def reset(self, lane: int) -> None:
        """Put one lane back at the start."""
        self._stream(lane).reset()

    def save(self, lane: int) -> bytes:
        """A snapshot of one lane, for any stream or batch of the program."""
        return self._stream(lane).save()

    def restore(self, lane: int, state: bytes) -> None:
        """Let a lane go on from a snapshot. Raises StreamError for one of another program."""
        with _Named(lane):
            self._stream(lane).restore(state)

    def clone(self, lane: int) -> int:
        """A second lane that goes on from where this one is. Raises StreamError where the batch is full."""
        stream = self._stream(lane)
        return self.join(stream.save(), stream.on_nonfinite)

    def set(self, lane: int, name: str, value: Any) -> None:
        """``Stream.set`` of one lane."""
        with _Named(lane):
            self._stream(lane).set(name, value)

    def gap(self, lane: int, frames: int, policy: str = "zero") -> Result:
        """``Stream.gap`` of one lane."""
        with _Named(lane):
            return self._stream(lane).gap(frames, policy)

    def position(self, lane: int) -> int:
        """Input frames that a lane has taken."""
        return self._stream(lane).position

    def __repr__(self) -> str:
        return f"<Batch of '{self.program.manifest.get('name', '')}': {len(self._streams)} of {self.capacity} lanes>"

    @abstractmethod
    def _open(
        self, lane: int, state: bytes | None, on_nonfinite: str, inputs: Mapping[str, Any] | None
    ) -> Stream:  # fmt: skip
        """The stream of a lane that joins."""

    def _stream(self, lane: int) -> Stream:
        if (stream := self._streams.get(lane)) is None:
            used = ", ".join(map(str, self.lanes)) or "none"
            raise StreamError(f"there is no lane {lane} in the batch; those in use are {used}.")
        return stream


class StreamBatch(Batch):
    """Lanes that are streams of their own, pushed one after the other."""

    def _open(
        self, lane: int, state: bytes | None, on_nonfinite: str, inputs: Mapping[str, Any] | None
    ) -> Stream:  # fmt: skip
        return self.program.stream(state, on_nonfinite, inputs)


class _Named:
    """Puts the lane into the errors of what runs inside."""

    def __init__(self, lane: int) -> None:
        self.lane = lane

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, StreamError):
            raise in_lane(self.lane, error) from None


def in_lane(lane: int, error: StreamError) -> StreamError:
    """The error with the lane that it is about."""
    text = str(error)
    return error if text.startswith(("lane ", "there is no lane")) else StreamError(f"lane {lane}: {text}")
