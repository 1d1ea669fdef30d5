"""The C++ core through ctypes: no Python headers are needed where it is built, no Python version where it runs."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from runnel.errors import InputError, InternalError

LIBRARY = Path(__file__).resolve().parent / "_lib" / "librunnel.so"
ABI_VERSION = 5

# rn_code of runnel.h
OK, BAD_ARGUMENT, BAD_PLAN, NO_MEMORY, NOT_FINITE, CAPACITY = range(6)
FLUSHED, BAD_STATE, KERNEL, TOO_LONG, UNSUPPORTED = range(6, 11)
CACHE_FULL, STORAGE = 13, 14

NONFINITE = {"error": 0, "zero": 1, "reset": 2}
ALIGNMENT = 64

_pointer = ctypes.c_void_p
_int64s = ctypes.POINTER(ctypes.c_int64)
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "rn_abi_version": (ctypes.c_int, []),
    "rn_message": (ctypes.c_char_p, [ctypes.c_int]),
    "rn_open": (
        ctypes.c_int,
        [
            *(_pointer, ctypes.c_size_t) * 3,
            ctypes.c_char_p,
            ctypes.POINTER(_pointer),
            ctypes.c_char_p,
            ctypes.c_size_t,
        ],
    ),
    "rn_open_paged": (
        ctypes.c_int,
        [
            *(_pointer, ctypes.c_size_t, ctypes.c_size_t, _pointer, ctypes.c_size_t, ctypes.c_char_p, _pointer),
            *(ctypes.POINTER(_pointer), ctypes.c_char_p, ctypes.c_size_t),
        ],
    ),
    "rn_read_speed": (
        ctypes.c_int,
        [
            *(ctypes.c_char_p, ctypes.c_int, ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int32),
            *(ctypes.c_int32, _int64s, ctypes.POINTER(ctypes.c_int32)),
        ],
    ),
    "rn_paging_status": (ctypes.c_int, [_pointer, _pointer]),
    "rn_paging_error": (ctypes.c_char_p, [_pointer]),
    "rn_set_ram": (ctypes.c_int, [_pointer, ctypes.c_uint64, ctypes.c_int32]),
    "rn_budget_open": (ctypes.c_int, [ctypes.c_uint64, ctypes.POINTER(_pointer)]),
    "rn_budget_close": (None, [_pointer]),
    "rn_set_priority": (ctypes.c_int, [_pointer, ctypes.c_int32]),
    "rn_close": (None, [_pointer]),
    "rn_state_bytes": (ctypes.c_size_t, [_pointer]),
    "rn_scratch_bytes": (ctypes.c_size_t, [_pointer]),
    "rn_hop": (ctypes.c_int64, [_pointer]),
    "rn_batch_scratch_bytes": (ctypes.c_size_t, [_pointer, ctypes.c_int32]),
    "rn_input_rate": (ctypes.c_int64, [_pointer, ctypes.c_int32]),
    "rn_input_count": (ctypes.c_int32, [_pointer]),
    "rn_output_count": (ctypes.c_int32, [_pointer]),
    "rn_input_frame_bytes": (ctypes.c_int64, [_pointer, ctypes.c_int32]),
    "rn_output_frame_bytes": (ctypes.c_int64, [_pointer, ctypes.c_int32]),
    "rn_init": (ctypes.c_int, [_pointer, _pointer, ctypes.c_int]),
    "rn_reset": (ctypes.c_int, [_pointer, _pointer]),
    "rn_set": (ctypes.c_int, [_pointer, _pointer, ctypes.c_int32, _pointer]),
    "rn_due": (ctypes.c_int, [_pointer, _pointer, ctypes.c_int64, ctypes.c_int, _int64s]),
    "rn_workers_open": (ctypes.c_int, [ctypes.c_int32, ctypes.POINTER(_pointer)]),
    "rn_workers_close": (None, [_pointer]),
    "rn_push_on": (ctypes.c_int, []),  # hot: its arguments are ctypes objects made once, see backends/native.py
    "rn_push_many_on": (ctypes.c_int, []),  # hot too
    "rn_python_push": (_pointer, [_pointer] * 2),
    "rn_python_sees": (None, [_pointer] * 3),
    "rn_has_prefill": (ctypes.c_int, [_pointer]),
    "rn_prefill": (ctypes.c_int, []),  # hot too
    "rn_cache_bytes": (ctypes.c_int64, [_pointer, _int64s]),
    "rn_init_cache": (ctypes.c_int, [_pointer, _pointer, _int64s, ctypes.c_int]),
    "rn_cache_class": (ctypes.c_int, [_pointer, _pointer, ctypes.c_int64]),
    "rn_rollback": (ctypes.c_int, [_pointer, _pointer, ctypes.c_int64]),
    "rn_cache_read": (ctypes.c_int64, [_pointer, _pointer, ctypes.c_int32, ctypes.c_int32, *(_pointer,) * 4]),
    "rn_cache_drop": (
        ctypes.c_int,
        [_pointer, _pointer, ctypes.c_int32, ctypes.c_int32, _pointer, ctypes.c_int64],
    ),
    "rn_fork": (ctypes.c_int, [_pointer, _pointer, _pointer]),
    "rn_state_size": (ctypes.c_int64, [_pointer]),
    "rn_cache_words": (ctypes.c_int64, [_pointer, _pointer, _int64s, ctypes.c_int64]),
    "rn_flush": (ctypes.c_int, [_pointer, _pointer, _pointer, _pointer, _pointer, _pointer]),
    "rn_has_nonfinite": (ctypes.c_int, [_pointer, _pointer, ctypes.c_int64]),
    "rn_check_state": (ctypes.c_int, [_pointer, ctypes.c_char_p, ctypes.c_size_t]),
    "rn_position": (ctypes.c_int64, [_pointer, _pointer]),
    "rn_counters": (None, [_pointer, _int64s]),
    "rn_crc32c": (ctypes.c_uint32, [_pointer, ctypes.c_size_t, ctypes.c_uint32]),
}


@cache
def library() -> ctypes.CDLL:
    """The loaded core. Raises InputError where it was never built, InternalError where it does not fit this Python."""
    if not LIBRARY.exists():
        raise InputError(
            f"the native core is not installed ({LIBRARY} is missing); reinstall runnel where there is a C++ compiler, "
            "or use backend='onnxruntime'."
        )
    try:
        core = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise InputError(f"the native core cannot be loaded ({error}); reinstall runnel on this machine.") from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(core, name, None)
        if function is None:
            raise InternalError(f"the native core lacks {name}; reinstall runnel.")
        function.restype = result
        if arguments:
            function.argtypes = arguments
    if core.rn_abi_version() != ABI_VERSION:
        raise InternalError(
            f"the native core has ABI {core.rn_abi_version()} and this code needs {ABI_VERSION}; reinstall runnel."
        )
    return core


def message(code: int) -> str:
    """The core's sentence for a code."""
    return str(library().rn_message(code).decode())


def crc32c(address: int, size: int) -> int:
    """CRC-32C of memory."""
    return int(library().rn_crc32c(address, size, 0))


def crc32c_of(data: bytes) -> int:
    """CRC-32C of bytes."""
    return int(library().rn_crc32c(data, len(data), 0))
