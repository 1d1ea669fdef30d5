"""Opens a program in the core, and checks that it is the one that its manifest describes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runnel.errors import BundleError, InputError
from runnel.runtime import native
from runnel.runtime.bundle import Bytes
from runnel.runtime.paging import Paged
from runnel.runtime.program import Port


def open_program(
    manifest: Mapping[str, Any], plan: bytes, weights: Bytes | Paged, image: Bytes, handle: ctypes.c_void_p
) -> None:
    """Sets ``handle`` to the program. Raises BundleError, and InputError for a budget that is too small."""
    core, reason = native.library(), ctypes.create_string_buffer(512)
    executable = (image.ctypes.data if image.size else None, image.size, bytes.fromhex(manifest["program_hash"]))
    if isinstance(weights, Paged):
        code = core.rn_open_paged(
            plan, len(plan), weights.bytes, *executable, ctypes.addressof(weights.arguments), ctypes.byref(handle),
            reason, len(reason),
        )  # fmt: skip
    else:
        code = core.rn_open(
            plan, len(plan), weights.ctypes.data if weights.size else None, weights.size, *executable,
            ctypes.byref(handle), reason, len(reason),
        )  # fmt: skip
    if code == native.OK:
        return
    why = reason.value.decode(errors="replace") or native.message(code)
    if isinstance(weights, Paged) and code == native.NO_MEMORY:
        raise InputError(f"the budget of RAM for '{manifest['name']}' is too small: {why}; give at least that.")
    if isinstance(weights, Paged) and code == native.STORAGE:
        raise InputError(f"the weights of '{manifest['name']}' cannot be paged in: {why}; give another way of reading.")
    raise _unfit(manifest, why)


def check_ports(
    manifest: Mapping[str, Any], handle: ctypes.c_void_p, inputs: Sequence[Port], outputs: Sequence[Port]
) -> None:
    """Raises BundleError where the plan's ports are not the manifest's."""
    core = native.library()
    pairs = (
        (inputs, core.rn_input_count(handle), core.rn_input_frame_bytes),
        (outputs, core.rn_output_count(handle), core.rn_output_frame_bytes),
    )
    for ports, count, frame_bytes in pairs:
        if count != len(ports):
            raise _unfit(manifest, f"it has {count} ports and the manifest {len(ports)}")
        for i, port in enumerate(ports):
            if ports is inputs and core.rn_input_rate(handle, i) != port.per_tick:
                raise _unfit(manifest, f"input '{port.name}' has another rate than in the manifest")
            size = int(np.prod(port.sized(1), dtype=np.int64)) * port.dtype.itemsize
            if port.axis is not None and (planned := frame_bytes(handle, i)) != size:
                raise _unfit(manifest, f"a frame of '{port.name}' has {planned} bytes and {size} in the manifest")


def _unfit(manifest: Mapping[str, Any], why: str) -> BundleError:
    return BundleError(f"the plan of '{manifest['name']}' cannot be used: {why}; compile the model again.")
