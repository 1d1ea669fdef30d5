"""The native backend: the plan and kernels of a bundle, run by the C++ core."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from runnel.errors import InputError, RunnelError, StreamError
from runnel.runtime import native, paging
from runnel.runtime.backends import direct
from runnel.runtime.backends.memory import Lane, Scratch, Staging, Words
from runnel.runtime.backends.opening import check_ports, open_program
from runnel.runtime.backends.refusal import refusal
from runnel.runtime.batch import Batch
from runnel.runtime.bundle import Bundle, Bytes
from runnel.runtime.feed import Feed
from runnel.runtime.paging import Paged, PagingFacts
from runnel.runtime.program import (
    FOREIGN_STATE,
    Array,
    Program,
    Result,
    Stream,
    check_policy,
    checked_inputs,
    checked_out,
    offered,
)
from runnel.runtime.runtime import Runtime

STAGED = 1 << 18  # bytes of an output up to which a stream keeps room of its own
SMALL = 1 << 14  # bytes up to which copying an array costs less than asking numpy for its address


class NativeProgram(Program):
    """A plan over weights and a kernel image.

    plan: the plan's words. weights: bytes at 64-byte alignment. image: executable bytes. The three stay as they are
    while the program lives. Raises BundleError when they do not fit each other or the manifest.
    """

    backend = "native"

    def __init__(
        self, manifest: Mapping[str, Any], plan: bytes, weights: Bytes | Paged, image: Bytes, poison: bool = False,
        runtime: Runtime | None = None,
    ) -> None:  # fmt: skip
        super().__init__(manifest)
        self._handle = ctypes.c_void_p()
        self._core: Any = native.library()
        self._workers = (runtime or Runtime()).handle
        self._kept = (weights, image, runtime)
        self._poison = poison
        open_program(manifest, plan, weights, image, self._handle)
        budget = runtime.budget if runtime is not None else None
        if budget is not None and budget.slow == "warn":
            self._core = paging.Watched(self._core, self._handle, manifest["name"], budget.patience)
        self.block_bytes = int(self._core.rn_state_bytes(self._handle))
        self.has_caches = int(self._core.rn_cache_words(self._handle, None, None, 0)) > 0
        check_ports(self.manifest, self._handle, self.inputs, self.outputs)
        self.hop = int(self._core.rn_hop(self._handle))
        self._scratch = Scratch(int(self._core.rn_scratch_bytes(self._handle)))

    @staticmethod
    def from_bundle(
        bundle: Bundle, poison: bool = False, runtime: Runtime | None = None, priority: int = 0
    ) -> NativeProgram:
        """Raises BundleError, and InputError for a budget that is too small."""
        image = bundle.kernels()  # first: a bundle for another machine is told before anything else about it
        plan = bundle.read("plan")
        weights: Bytes | Paged = (
            bundle.weights()
            if runtime is None or runtime.budget is None
            else paging.paged(bundle, runtime.budget, priority)
        )
        return NativeProgram(bundle.manifest, plan, weights, image, poison, runtime)

    @property
    def paging(self) -> PagingFacts | None:
        """How the weights pass through memory; None where all are in it."""
        return paging.status(self._handle)

    def set_weight_budget(self, ram: int | str, streams: int = 1) -> None:
        """Move to another budget (bytes, "256M", "auto") without reading what stays. Not while a stream is stepped.

        It is that of all programs of the runtime. streams: whose states count. Raises InputError below the least
        budget, or where all weights are in memory.
        """
        paging.move(self._handle, ram, streams)

    def set_priority(self, priority: int) -> None:
        """Change what was given to ``load``. Raises InputError for a program without a budget."""
        if self._core.rn_set_priority(self._handle, priority) != native.OK:
            raise InputError("this program shares no budget; load it with Runtime(ram=…).load.")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._core.rn_close(self._handle)

    @property
    def state_bytes(self) -> int:
        feed = self.feed()
        return self.block_bytes + (feed.state_bytes if feed is not None else 0)

    def stream(
        self, state: bytes | None = None, on_nonfinite: str = "error", inputs: Mapping[str, Any] | None = None,
        kv: str | None = None, position: int = 0,
    ) -> NativeStream:  # fmt: skip
        check_policy(on_nonfinite)
        if self.has_caches:
            from runnel.runtime.cache.stream import open_stream

            return open_stream(self, state, on_nonfinite, inputs, kv, position)
        self.check_no_caches(kv, position)
        return NativeStream(self, Words(self, 1).lane(0), state, on_nonfinite, inputs)

    def batch(self, capacity: int) -> Batch:
        from runnel.runtime.backends.lanes import NativeBatch

        return NativeBatch(self, capacity)


class NativeStream(Stream):
    """A state block and the call that steps it. Nothing is allocated in the core."""

    def __init__(
        self, program: NativeProgram, lane: Lane, state: bytes | None, on_nonfinite: str,
        inputs: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        self.program: NativeProgram = program
        self.on_nonfinite = on_nonfinite
        self._core = program._core
        self._lane = lane  # keeps the memory
        self._memory = lane.memory
        self._state = ctypes.c_void_p(self._memory.ctypes.data)
        self._bytes, self._addresses = lane.bytes, lane.addresses
        self._outputs, self._capacity, self._written = lane.pointers, lane.capacity, lane.written
        self._due = (ctypes.c_int64 * len(program.outputs))()
        self._frames, self._policy = lane.frames, lane.policy
        self._policy.value = native.NONFINITE[on_nonfinite]
        self._push_on, self._scratch = program._core.rn_push_on, program._scratch
        self._first = (program._workers, program._handle, self._state)
        self._rest = (self._addresses, self._frames, self._outputs, self._capacity, self._written, self._policy)
        self._seen: tuple[int, ...] | None = None  # the shape of the last push, known to fit
        self._seen_frames = 0
        self._seen_dtype = program.timed[0].dtype
        self._feed = program.feed()
        self._staging = [Staging(port, 0) for port in program.outputs]
        self._large, self._single = False, len(program.timed) == 1
        self._before: bytes | None = None  # of a restart, until the push that it is for is done
        self._empty = [np.empty(port.sized(0) if port.axis is not None else (0, *port.sized(0)), port.dtype)
                       for port in program.outputs]  # fmt: skip
        self._use([s.memory for s in self._staging], [0] * len(self._staging))
        self._direct: direct.Direct | None = None
        self._pushed = False  # by itself, not in a batch
        values = program.check_statics(inputs, whole=state is None)
        if state is None:
            self._init()
        else:
            self.restore(state)
        for name, value in values.items():
            self._set_static(name, value)

    def push(self, x: Array | Mapping[str, Array], out: Result | None = None) -> Result:
        if out is None and self._direct is not None:
            result = self._direct.push(x)
            if result is not None:
                return result
            if (code := self._direct.code) == native.OK:
                return self.results()
            if code not in (direct.OTHER, native.CAPACITY):
                self._frames.value = self._direct.call.frames
                raise self.error(code, [np.asarray(x)])
        arrays = self.prepare(x)
        if out is not None:
            try:
                given = checked_out(self.program, out, self._count_due(self._frames.value, end=False))
            except StreamError:
                self.undo()
                raise
            return self._push_into(given, arrays)
        code = self._push_on(*self._first, self._scratch.pointer, *self._rest)
        if code == native.CAPACITY:
            self.make_room()
            code = self._push_on(*self._first, self._scratch.pointer, *self._rest)
        if code != native.OK:
            self.undo()
            raise self.error(code, arrays)
        if not self._pushed:
            self._direct, self._pushed = direct.direct(self), True
        if self._direct is not None:
            self._direct.agree(arrays[0], self._frames.value, self._scratch.pointer)
        return self.results()

    def prepare(self, x: Array | Mapping[str, Array]) -> list[Array]:
        """Point the core at the arrays of a push; they are returned, and must live until it ran. Raises StreamError."""
        if x.__class__ is np.ndarray and x.shape == self._seen and x.dtype is self._seen_dtype:
            arrays: list[Array] = [x]
            self._frames.value = self._seen_frames
        elif self._feed is not None:
            arrays = self._offered(self._feed, x)
        else:
            arrays, self._frames.value = checked_inputs(self.program, x)
            self._seen, self._seen_frames = (arrays[0].shape if self._single else None), self._frames.value
        for i, array in enumerate(arrays):
            if array.nbytes <= SMALL:
                self._bytes[i] = array.tobytes()
            else:
                arrays[i] = array = np.ascontiguousarray(array)
                self._addresses[i] = array.ctypes.data
        return arrays

    def results(self) -> Result:
        """What the core wrote."""
        if self._feed is not None:
            self._feed.commit()
            self._before = None
        if self._large:
            return self._given_away()
        if len(self._staging) == 1:
            n = self._written[0]
            if n == 0:
                return self._empty[0]
            if self._direct is not None:
                self._direct.gives(n, self._staging[0].part(n).copy)
            return self._staging[0].taken(n)
        return {
            port.name: staging.taken(n) if n else empty
            for port, staging, empty, n in zip(self.program.outputs, self._staging, self._empty, self._written)
        }

    def _given_away(self) -> Result:
        """What the core wrote, where that is more than a stream keeps room for."""
        results = [s.memory if s.frames == n else s.taken(n) for s, n in zip(self._staging, self._written)]
        self._staging, self._large = [Staging(port, 0) for port in self.program.outputs], False
        self._use([s.memory for s in self._staging], [0] * len(self._staging))
        return self._named(
            [r if r.size or p.axis is not None else e for r, p, e in zip(results, self.program.outputs, self._empty)]
        )

    def make_room(self) -> None:
        """Room for what the core says is due."""
        if self._direct is not None:
            self._direct.gives(-1, self._empty[0].copy)
        for i, (port, n) in enumerate(zip(self.program.outputs, self._written)):
            if n > self._staging[i].frames:
                self._staging[i] = Staging(port, n)
                self._large |= self._staging[i].memory.nbytes > STAGED
        self._use([s.memory for s in self._staging], [s.frames for s in self._staging])

    def undo(self) -> None:
        """Take back what was done for a push that is refused."""
        if self._before is not None:
            self.restore(self._before)
            self._before = None

    def rest(self) -> None:
        """Take no part in the next call of a batch."""
        self._frames.value = -1

    def check(self, x: Array | Mapping[str, Array]) -> None:
        if self._ended():
            raise self.error(native.FLUSHED, [])
        arrays = self.prepare(x)
        handle = self.program._handle
        bad = self._core.rn_has_nonfinite(handle, self._addresses, self._frames)
        try:
            if self.on_nonfinite == "error" and bad:
                raise self.error(native.NOT_FINITE, arrays)
            self.check_room(self._frames.value, 0 if bad and self.on_nonfinite == "reset" else None)
        finally:
            self.undo()

    def _offered(self, feed: Feed, x: Array | Mapping[str, Array]) -> list[Array]:
        if self._ended():
            raise self.error(native.FLUSHED, [])
        ready, restart = offered(self.program, x, self.on_nonfinite)
        arrays, self._frames.value = feed.offer(ready, fresh=restart)
        if restart:
            self._before = self.save()
            self.reset()
        return arrays

    def flush(self) -> Result:
        if not self._ended():
            if self._feed is not None:
                self._feed.check_end()
            self.check_length()
        due = self._count_due(0, end=True)
        results = [np.empty(p.sized(0 if p.axis is None else n), p.dtype) for p, n in zip(self.program.outputs, due)]
        code = self._flush_into(results, due)
        if code != native.OK:
            raise self.error(code, [])
        return self._named(results)

    def _init(self) -> None:
        code = self._core.rn_init(self.program._handle, self._state, int(self.program._poison))
        if code != native.OK:
            raise self.error(code, [])

    def reset(self) -> None:
        code = self._core.rn_reset(self.program._handle, self._state)
        if code != native.OK:
            raise self.error(code, [])
        if self._feed is not None:
            self._feed.clear()

    def save(self) -> bytes:
        return self._memory.tobytes() + (self._feed.save() if self._feed is not None else b"")

    def restore(self, state: bytes) -> None:
        size = len(self._memory)
        try:
            state = bytes(memoryview(state))
            if self._core.rn_check_state(self.program._handle, state[:size], len(state[:size])) != native.OK:
                raise ValueError
            if self._feed is not None:
                self._feed.load(state[size:])
            elif len(state) != size:
                raise ValueError
        except (TypeError, ValueError):
            raise StreamError(FOREIGN_STATE) from None
        self._memory[:] = np.frombuffer(state, np.uint8, size)

    def clone(self) -> NativeStream:
        return self.program.stream(self.save(), self.on_nonfinite)

    def _set_static(self, name: str, value: Array) -> None:
        index = next(i for i, port in enumerate(self.program.inputs) if port.name == name)
        code = self._core.rn_set(self.program._handle, self._state, index, value.ctypes.data)
        if code != native.OK:
            raise self.error(code, [])

    @property
    def position(self) -> int:
        return int(self._core.rn_position(self.program._handle, self._state))

    @property
    def counters(self) -> dict[str, int]:
        """Since the start: steps, kernel calls, bytes copied to keep the margins of rings, multiply-adds."""
        values = (ctypes.c_int64 * 4)()
        self._core.rn_counters(self._state, values)
        return dict(zip(("steps", "kernel_calls", "margin_bytes", "macs"), values))

    def _ended(self) -> bool:
        return bool(self._core.rn_due(self.program._handle, self._state, 1, 0, self._due) == native.FLUSHED)

    def _push_into(self, results: list[Array], arrays: list[Array]) -> Result:
        ports = self.program.outputs
        room = [a.shape[0 if p.axis is None else p.axis] if a.ndim else 0 for a, p in zip(results, ports)]
        self._use(results, room)
        code = self._push_on(*self._first, self._scratch.pointer, *self._rest)
        self._use([s.memory for s in self._staging], [s.frames for s in self._staging])
        if code != native.OK:
            self.undo()
            raise self.error(code, arrays)
        if self._feed is not None:
            self._feed.commit()
            self._before = None
        parts = [
            a[(slice(None),) * (p.axis or 0) + (slice(0, n),)] if n < r else a
            for a, p, n, r in zip(results, ports, self._written, room)
        ]
        return self._named(parts)

    def _flush_into(self, results: list[Array], capacity: list[int]) -> int:
        self._use(results, capacity)
        program = self.program
        code = self._core.rn_flush(
            program._handle, self._state, program._scratch.pointer, self._outputs, self._capacity, self._written
        )
        self._use([s.memory for s in self._staging], [s.frames for s in self._staging])
        return int(code)

    def _use(self, arrays: list[Array], frames: list[int]) -> None:
        for i, (array, n) in enumerate(zip(arrays, frames)):
            self._outputs[i] = array.ctypes.data
            self._capacity[i] = n

    def _count_due(self, frames: int, end: bool) -> list[int]:
        code = self._core.rn_due(self.program._handle, self._state, frames, int(end), self._due)
        if code != native.OK:
            raise self.error(code, [])
        return list(self._due)

    def _named(self, results: list[Array]) -> Result:
        if len(results) == 1:
            return results[0]
        return {port.name: array for port, array in zip(self.program.outputs, results)}

    def error(self, code: int, arrays: list[Array]) -> RunnelError:
        """What a code of the core means for a push of ``arrays``."""
        return refusal(self, code, arrays)
