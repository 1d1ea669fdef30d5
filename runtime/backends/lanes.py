"""Batches on the native backend: lanes whose states lie in one block, stepped by one call of the core."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from runnel.errors import RunnelError, StreamError
from runnel.runtime import native
from runnel.runtime.backends.memory import Words, aligned
from runnel.runtime.backends.native import NativeProgram, NativeStream
from runnel.runtime.batch import Batch, in_lane
from runnel.runtime.program import Array, Result, check_policy


class NativeBatch(Batch):
    """Lanes over one block of states."""

    def __init__(self, program: NativeProgram, capacity: int) -> None:
        super().__init__(program, capacity)
        self.program: NativeProgram = program
        self._streams: dict[int, NativeStream] = {}  # type: ignore[assignment]
        self._words = Words(program, capacity)
        self._scratch = aligned(int(program._core.rn_batch_scratch_bytes(program._handle, capacity)))
        self._scratch_pointer = ctypes.c_void_p(self._scratch.ctypes.data)
        self._count, self._failed = ctypes.c_int32(capacity), ctypes.c_int32(-1)

    def push(self, x: Mapping[int, Array | Mapping[str, Array]]) -> dict[int, Result]:
        arrays: dict[int, list[Array]] = {}
        try:
            for lane, value in x.items():
                stream = self._stream(lane)
                try:
                    arrays[lane] = stream.prepare(value)
                except StreamError as error:
                    raise in_lane(lane, error) from None
            code = self._call()
            if code == native.CAPACITY:
                for lane in arrays:
                    self._streams[lane].make_room()
                code = self._call()
            if code != native.OK:
                raise self._refusal(code, arrays)
        except Exception:
            for lane in arrays:
                self._streams[lane].undo()
            raise
        finally:
            for lane in x:
                if lane in self._streams:
                    self._streams[lane].rest()
        return {lane: self._streams[lane].results() for lane in arrays}

    def gap(self, lane: int, frames: int, policy: str = "zero") -> Result:
        try:
            return super().gap(lane, frames, policy)
        finally:
            if lane in self._streams:
                self._streams[lane].rest()

    def _open(
        self, lane: int, state: bytes | None, on_nonfinite: str, inputs: Mapping[str, Any] | None
    ) -> NativeStream:  # fmt: skip
        check_policy(on_nonfinite)
        if self.program.has_caches:
            from runnel.runtime.cache.stream import lane_stream

            stream: NativeStream = lane_stream(self.program, self._words.lane(lane), state, on_nonfinite, inputs)
        else:
            stream = NativeStream(self.program, self._words.lane(lane), state, on_nonfinite, inputs)
        stream.rest()
        return stream

    def _stream(self, lane: int) -> NativeStream:
        return super()._stream(lane)  # type: ignore[return-value]

    def _call(self) -> int:
        words, program = self._words, self.program
        return int(
            program._core.rn_push_many_on(
                program._workers, program._handle, self._count, words.states, self._scratch_pointer,
                words.addresses, words.frames, words.pointers, words.capacity, words.written, words.policies,
                ctypes.byref(self._failed),
            )
        )  # fmt: skip

    def _refusal(self, code: int, arrays: Mapping[int, list[Array]]) -> RunnelError:
        lane = self._failed.value
        if lane not in arrays:
            return next(iter(self._streams.values())).error(code, [])
        error = self._streams[lane].error(code, arrays[lane])
        return in_lane(lane, error) if isinstance(error, StreamError) else error
