"""Pushes without ctypes: Python calls the core, which reads the array itself (runtime/core/include/runnel_python.h)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.runtime import native
from runnel.runtime.program import Array

if TYPE_CHECKING:
    from runnel.runtime.backends.native import NativeStream

OTHER = -1  # RN_PYTHON_OTHER: nothing was done
METH_O = 0x0008
FIELDS = 9  # of an array that the core reads, none larger than a pointer
FUNCTIONS = {"thread_ident": "PyThread_get_thread_ident", "save_thread": "PyEval_SaveThread",
             "restore_thread": "PyEval_RestoreThread", "call_no_args": "PyObject_CallNoArgs",
             "incref": "Py_IncRef"}  # fmt: skip
_pointer, _long = ctypes.c_void_p, ctypes.c_int64


class Call(ctypes.Structure):
    """rn_python_call."""

    _fields_ = [
        *((name, _pointer) for name in (*FUNCTIONS, "array_type", "dtype", "shape")),
        ("axes", ctypes.c_int32), ("nonfinite", ctypes.c_int32), ("thread", ctypes.c_ulong),
        *((name, _pointer) for name in ("workers", "program", "state", "scratch")),
        ("frames", _long), *((name, _pointer) for name in ("outputs", "capacity", "written")),
        ("copied", _long), *((name, _pointer) for name in ("copy", "empty", "none")), ("code", ctypes.c_int32),
    ]  # fmt: skip


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = [("name", ctypes.c_char_p), ("function", _pointer), ("flags", ctypes.c_int), ("text", ctypes.c_char_p)]


@cache
def _functions() -> tuple[dict[str, int], _Method] | None:
    """The addresses of Python's functions, and the method; None where this Python or numpy is laid out otherwise."""
    core = native.library()
    try:
        found = {k: _address(getattr(ctypes.pythonapi, name)) for k, name in FUNCTIONS.items()}
        _ = ctypes.pythonapi.PyCFunction_NewEx
    except AttributeError:
        return None
    for array in (np.zeros((2, 3), np.float32), np.zeros((4, 5, 6), np.int8)[:, 1:3], np.ones(7, np.int64)[:0]):
        if _seen(core, array) != _facts(array):
            return None
    return found, _Method(b"push", _address(core.rn_python_push), METH_O, None)


def _address(function: Any) -> int:
    return ctypes.cast(function, _pointer).value or 0


def _seen(core: Any, array: Array) -> tuple[Any, ...]:
    """What the core reads of an array."""
    if np.ndarray.__basicsize__ < FIELDS * ctypes.sizeof(_pointer):
        return ()
    pointers, numbers = (_pointer * 4)(), (ctypes.c_int32 * 2)()
    core.rn_python_sees(id(array), pointers, numbers)
    kind, data, dtype, shape = pointers
    if (kind, dtype, numbers[0]) != (id(np.ndarray), id(array.dtype), array.ndim):
        return ()  # the shape is read no further
    sides = (ctypes.c_ssize_t * array.ndim).from_address(shape or 0)
    return kind, data, dtype, tuple(sides), bool(numbers[1])


def _facts(array: Array) -> tuple[Any, ...]:
    flags = array.flags
    return id(np.ndarray), array.ctypes.data, id(array.dtype), array.shape, flags.c_contiguous and flags.aligned


class Direct:
    """The call of one stream. push: takes an array; gives a result, or None and says why in ``code``."""

    push: Callable[[Any], Array | None]

    def __init__(self, stream: NativeStream, functions: dict[str, int], method: _Method) -> None:
        memory = np.zeros(ctypes.sizeof(Call), np.uint8)
        self.call = call = Call.from_buffer(memory.data)
        for name, address in functions.items():
            setattr(call, name, address)
        call.array_type, call.none, call.code = id(np.ndarray), id(None), OTHER
        program = stream.program
        call.workers, call.program, call.state = program._workers, program._handle, stream._state
        call.outputs, call.capacity = ctypes.addressof(stream._outputs), ctypes.addressof(stream._capacity)
        call.written = ctypes.addressof(stream._written)
        call.nonfinite = stream._policy.value
        self.empty = stream._empty[0]
        self.copy: Callable[[], Array] = self.empty.copy
        call.empty, call.copied = id(self.empty), -1
        make = ctypes.pythonapi.PyCFunction_NewEx
        make.restype, make.argtypes = ctypes.py_object, [_pointer, ctypes.py_object, _pointer]
        self.push = make(ctypes.addressof(method), memory, None)

    @property
    def code(self) -> int:
        return int(self.call.code)

    def agree(self, x: Array, frames: int, scratch: ctypes.c_void_p) -> None:
        """Take arrays like this one from this thread on."""
        self.shape = (ctypes.c_ssize_t * x.ndim)(*x.shape)
        self.dtype = x.dtype
        call = self.call
        call.shape, call.axes, call.dtype = ctypes.addressof(self.shape), x.ndim, id(self.dtype)
        call.frames, call.scratch, call.thread = frames, scratch, threading.get_ident()

    def gives(self, frames: int, copy: Callable[[], Array]) -> None:
        """What to return where the output has so many frames; -1: nothing."""
        self.copy = copy
        self.call.copied, self.call.copy = frames, id(copy)


def direct(stream: NativeStream) -> Direct | None:
    """Of a stream with one input and one output that come together; None for others."""
    program = stream.program
    found = _functions() if program._core is native.library() else None
    if found is None or stream._feed is not None or len(program.timed) != 1 or len(program.inputs) != 1:
        return None
    return Direct(stream, *found) if len(program.outputs) == 1 else None
