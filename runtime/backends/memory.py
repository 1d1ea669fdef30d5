"""The memory that the native backend shares with the core: states, staging, and the words of a call."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import numpy as np

from runnel.runtime import native
from runnel.runtime.bundle import Bytes
from runnel.runtime.program import Array, Port

if TYPE_CHECKING:
    from runnel.runtime.backends.native import NativeProgram


def round_up(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // native.ALIGNMENT) * native.ALIGNMENT


def aligned(size: int, zero: bool = False) -> Bytes:
    """Memory at a multiple of 64 bytes."""
    block = (np.zeros if zero else np.empty)(size + native.ALIGNMENT, np.uint8)
    start = -block.ctypes.data % native.ALIGNMENT
    return block[start : start + size]


class Scratch(threading.local):
    """One scratch block for each thread that steps a program."""

    def __init__(self, size: int) -> None:
        self.memory = aligned(size)
        self.pointer = ctypes.c_void_p(self.memory.ctypes.data)


class Staging:
    """Room for an output between the core and the caller: results are copied out of it."""

    def __init__(self, port: Port, frames: int) -> None:
        self.frames = frames
        self.memory = np.empty(port.sized(frames), port.dtype)
        self._axis = 0 if port.axis is None else port.axis
        self._parts: dict[int, Array] = {}

    def taken(self, frames: int) -> Array:
        """The first frames, as an array of the caller's own."""
        return self.part(frames).copy()

    def part(self, frames: int) -> Array:
        """The first frames where the core writes them."""
        if (view := self._parts.get(frames)) is None:
            view = self._parts[frames] = self.memory[(slice(None),) * self._axis + (slice(0, frames),)]
        return view


class Words:
    """What the core is told and tells of ``lanes`` streams, in arrays that one call takes whole; and their states.

    state_bytes: of one; 0: the most that the program takes. zero: whether states are zero.
    """

    def __init__(self, program: NativeProgram, lanes: int, state_bytes: int = 0, zero: bool = False) -> None:
        self.inputs, self.outputs = len(program.inputs), len(program.outputs)
        self.state_bytes = state_bytes or program.block_bytes
        self.block = round_up(self.state_bytes)
        self.memory = aligned(self.block * lanes, zero)
        self.states = (ctypes.c_void_p * lanes)()
        self.addresses = (ctypes.c_void_p * (lanes * self.inputs))()
        self.frames = (ctypes.c_int64 * lanes)(*[-1] * lanes)
        self.pointers = (ctypes.c_void_p * (lanes * self.outputs))()
        self.capacity = (ctypes.c_int64 * (lanes * self.outputs))()
        self.written = (ctypes.c_int64 * (lanes * self.outputs))()
        self.policies = (ctypes.c_int * lanes)()

    def lane(self, lane: int) -> Lane:
        return Lane(self, lane)


class Lane:
    """The part of one lane in ``Words``."""

    def __init__(self, words: Words, lane: int) -> None:
        inputs, outputs, i, o = words.inputs, words.outputs, lane * words.inputs * 8, lane * words.outputs * 8
        self.memory = words.memory[lane * words.block : lane * words.block + words.state_bytes]
        words.states[lane] = self.memory.ctypes.data
        self.bytes = (ctypes.c_char_p * inputs).from_buffer(words.addresses, i)  # the same words
        self.addresses = (ctypes.c_void_p * inputs).from_buffer(words.addresses, i)
        self.frames = ctypes.c_int64.from_buffer(words.frames, lane * 8)
        self.pointers = (ctypes.c_void_p * outputs).from_buffer(words.pointers, o)
        self.capacity = (ctypes.c_int64 * outputs).from_buffer(words.capacity, o)
        self.written = (ctypes.c_int64 * outputs).from_buffer(words.written, o)
        self.policy = ctypes.c_int.from_buffer(words.policies, lane * ctypes.sizeof(ctypes.c_int))
