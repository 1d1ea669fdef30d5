"""The native backend: the plan and kernels of a bundle, run by the C++ core."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from runnel.errors import BundleError, InternalError, RunnelError, StreamError
from runnel.runtime import native
from runnel.runtime.bundle import Bundle, Bytes
from runnel.runtime.program import (
    FOREIGN_STATE,
    Array,
    Port,
    Program,
    Result,
    Stream,
    check_policy,
    checked_inputs,
    checked_out,
    describe_nonfinite,
)

SMALL = 1 << 14  # bytes up to which copying an array costs less than asking numpy for its address
STAGED = 1 << 18  # bytes of an output up to which a stream keeps room of its own


def aligned(size: int) -> Bytes:
    """Memory at a multiple of 64 bytes."""
    block = np.empty(size + native.ALIGNMENT, np.uint8)
    start = -block.ctypes.data % native.ALIGNMENT
    return block[start : start + size]


class _Scratch(threading.local):
    """One scratch block for each thread that steps a program."""

    def __init__(self, size: int) -> None:
        self.memory = aligned(size)
        self.pointer = ctypes.c_void_p(self.memory.ctypes.data)


class NativeProgram(Program):
    """A plan over weights and a kernel image.

    plan: the plan's words. weights: bytes at 64-byte alignment. image: executable bytes. The three stay as they are
    while the program lives. Raises BundleError when they do not fit each other or the manifest.
    """

    backend = "native"

    def __init__(
        self, manifest: Mapping[str, Any], plan: bytes, weights: Bytes, image: Bytes, poison: bool = False
    ) -> None:
        super().__init__(manifest)
        self._handle = ctypes.c_void_p()
        self._core = native.library()
        self._kept = (weights, image)
        self._poison = poison
        reason = ctypes.create_string_buffer(512)
        code = self._core.rn_open(
            plan, len(plan), weights.ctypes.data if weights.size else None, weights.size,
            image.ctypes.data if image.size else None, image.size, bytes.fromhex(manifest["program_hash"]),
            ctypes.byref(self._handle), reason, len(reason),
        )  # fmt: skip
        if code != native.OK:
            why = reason.value.decode(errors="replace") or native.message(code)
            raise self._unfit(why)
        self._state_bytes = int(self._core.rn_state_bytes(self._handle))
        self._check_ports()
        self.hop = int(self._core.rn_hop(self._handle))
        self._scratch = _Scratch(int(self._core.rn_scratch_bytes(self._handle)))

    @staticmethod
    def from_bundle(bundle: Bundle, poison: bool = False) -> NativeProgram:
        """Raises BundleError."""
        image = bundle.kernels()  # first: a bundle for another machine is told before anything else about it
        return NativeProgram(bundle.manifest, bundle.read("plan"), bundle.weights(), image, poison)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._core.rn_close(self._handle)

    @property
    def state_bytes(self) -> int:
        return self._state_bytes

    def stream(self, state: bytes | None = None, on_nonfinite: str = "error") -> NativeStream:
        check_policy(on_nonfinite)
        if state is not None and self._core.rn_check_state(self._handle, state, len(state)) != native.OK:
            raise StreamError(FOREIGN_STATE)
        return NativeStream(self, state, on_nonfinite)

    def _unfit(self, why: str) -> BundleError:
        return BundleError(f"the plan of '{self.manifest['name']}' cannot be used: {why}; compile the model again.")

    def _check_ports(self) -> None:
        core, handle = self._core, self._handle
        pairs = (
            (self.inputs, core.rn_input_count(handle), core.rn_input_frame_bytes),
            (self.outputs, core.rn_output_count(handle), core.rn_output_frame_bytes),
        )
        for ports, count, frame_bytes in pairs:
            if count != len(ports):
                raise self._unfit(f"it has {count} ports and the manifest {len(ports)}")
            for i, port in enumerate(ports):
                size = int(np.prod(port.sized(1), dtype=np.int64)) * port.dtype.itemsize
                if port.axis is not None and (planned := frame_bytes(handle, i)) != size:
                    raise self._unfit(f"a frame of '{port.name}' has {planned} bytes and {size} in the manifest")


class _Staging:
    """Room for an output between the core and the caller: results are copied out of it."""

    def __init__(self, port: Port, frames: int) -> None:
        self.frames = frames
        self.memory = np.empty(port.sized(frames), port.dtype)
        self._axis = 0 if port.axis is None else port.axis
        self._parts: dict[int, Array] = {}

    def part(self, frames: int) -> Array:
        """The first frames, as a view."""
        if (view := self._parts.get(frames)) is None:
            view = self._parts[frames] = self.memory[(slice(None),) * self._axis + (slice(0, frames),)]
        return view


class NativeStream(Stream):
    """A state block and the call that steps it. Nothing is allocated in the core."""

    def __init__(self, program: NativeProgram, state: bytes | None, on_nonfinite: str) -> None:
        self.program: NativeProgram = program
        self._on_nonfinite = on_nonfinite
        self._core = program._core
        self._memory = aligned(program.state_bytes)
        self._state = ctypes.c_void_p(self._memory.ctypes.data)
        inputs, outputs = len(program.inputs), len(program.outputs)
        self._bytes = (ctypes.c_char_p * inputs)()
        self._addresses = (ctypes.c_void_p * inputs).from_buffer(self._bytes)  # the same words
        self._outputs = (ctypes.c_void_p * outputs)()
        self._capacity = (ctypes.c_int64 * outputs)()
        self._written = (ctypes.c_int64 * outputs)()
        self._due = (ctypes.c_int64 * outputs)()
        self._frames = ctypes.c_int64()
        self._policy = ctypes.c_int(native.NONFINITE[on_nonfinite])
        self._single = inputs == 1
        self._seen: tuple[int, ...] | None = None  # the shape of the last push, known to fit
        self._seen_dtype = program.inputs[0].dtype
        self._staging = [_Staging(port, 0) for port in program.outputs]
        self._empty = [np.empty(port.sized(0) if port.axis is not None else (0, *port.sized(0)), port.dtype)
                       for port in program.outputs]  # fmt: skip
        if state is None:
            self.reset()
        else:
            self._memory[:] = np.frombuffer(state, np.uint8)

    def push(self, x: Array | Mapping[str, Array], out: Result | None = None) -> Result:
        if x.__class__ is np.ndarray and x.shape == self._seen and x.dtype is self._seen_dtype:
            arrays: list[Array] = [x]
        else:
            arrays, self._frames.value = checked_inputs(self.program, x)
            self._seen = arrays[0].shape if self._single else None
        for i, array in enumerate(arrays):
            if array.nbytes <= SMALL:
                self._bytes[i] = array.tobytes()
            else:
                arrays[i] = array = np.ascontiguousarray(array)
                self._addresses[i] = array.ctypes.data
        if out is not None:
            given = checked_out(self.program, out, self._count_due(self._frames.value, end=False))
            return self._push_into(given, arrays)
        code = self._call()
        if code == native.OK:
            if len(self._staging) == 1:
                n = self._written[0]
                return self._staging[0].part(n).copy() if n else self._empty[0]
            return {
                port.name: staging.part(n).copy() if n else empty
                for port, staging, empty, n in zip(self.program.outputs, self._staging, self._empty, self._written)
            }
        if code != native.CAPACITY:
            raise self._error(code, arrays)
        return self._push_more(arrays)

    def flush(self) -> Result:
        if not self._ended():
            self.check_length()
        due = self._count_due(0, end=True)
        results = [self._allocate(port, n) for port, n in zip(self.program.outputs, due)]
        code = self._flush_into(results, due)
        if code != native.OK:
            raise self._error(code, [])
        return self._named(results)

    def reset(self) -> None:
        code = self._core.rn_init(self.program._handle, self._state, int(self.program._poison))
        if code != native.OK:
            raise self._error(code, [])

    def save(self) -> bytes:
        return self._memory.tobytes()

    def clone(self) -> NativeStream:
        return NativeStream(self.program, self.save(), self._on_nonfinite)

    @property
    def position(self) -> int:
        return int(self._core.rn_position(self.program._handle, self._state))

    @property
    def counters(self) -> dict[str, int]:
        """Since the start: steps, kernel calls, bytes copied to keep the margins of rings."""
        values = (ctypes.c_int64 * 3)()
        self._core.rn_counters(self._state, values)
        return dict(zip(("steps", "kernel_calls", "margin_bytes"), values))

    def _ended(self) -> bool:
        return bool(self._core.rn_due(self.program._handle, self._state, 1, 0, self._due) == native.FLUSHED)

    def _call(self) -> int:
        program = self.program
        return int(
            self._core.rn_push(
                program._handle, self._state, program._scratch.pointer, self._addresses, self._frames,
                self._outputs, self._capacity, self._written, self._policy,
            )
        )  # fmt: skip

    def _push_more(self, arrays: list[Array]) -> Result:
        """The push again, with room for what is due."""
        handle = self.program._handle
        if self._on_nonfinite == "reset" and self._core.rn_has_nonfinite(handle, self._addresses, self._frames):
            self.reset()
        due = self._count_due(self._frames.value, end=False)
        ports = self.program.outputs
        if max(n * int(np.prod(port.sized(1))) * port.dtype.itemsize for n, port in zip(due, ports)) > STAGED:
            return self._push_into([self._allocate(port, n) for port, n in zip(ports, due)], arrays)
        for i, (port, n) in enumerate(zip(ports, due)):
            if n > self._staging[i].frames:
                self._staging[i] = _Staging(port, n)
        self._use([s.memory for s in self._staging], [s.frames for s in self._staging])
        code = self._call()
        if code != native.OK:
            raise self._error(code, arrays)
        return self._named([s.part(n).copy() if n else e for s, n, e in zip(self._staging, self._written, self._empty)])

    def _push_into(self, results: list[Array], arrays: list[Array]) -> Result:
        ports = self.program.outputs
        room = [a.shape[0 if p.axis is None else p.axis] if a.ndim else 0 for a, p in zip(results, ports)]
        self._use(results, room)
        code = self._call()
        self._use([s.memory for s in self._staging], [s.frames for s in self._staging])
        if code != native.OK:
            raise self._error(code, arrays)
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
            raise self._error(code, [])
        return list(self._due)

    def _allocate(self, port: Port, frames: int) -> Array:
        return np.empty(port.sized(frames) if port.axis is not None else port.sized(0), port.dtype)

    def _named(self, results: list[Array]) -> Result:
        if len(results) == 1:
            return results[0]
        return {port.name: array for port, array in zip(self.program.outputs, results)}

    def _error(self, code: int, arrays: list[Array]) -> RunnelError:
        if code == native.NOT_FINITE:
            return StreamError(describe_nonfinite(self.program, arrays))
        if code == native.FLUSHED:
            return StreamError("the stream has ended; call reset() to start it again.")
        said = native.message(code)
        if code in (native.BAD_STATE, native.TOO_LONG, native.CAPACITY):
            return StreamError(f"{said}.")
        return InternalError(f"{said}; please report this model.")
