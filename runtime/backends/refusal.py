"""What the core's codes mean to whoever pushed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.errors import InternalError, RunnelError, StreamError
from runnel.runtime import native
from runnel.runtime.program import Array, describe_nonfinite, too_long

if TYPE_CHECKING:
    from runnel.runtime.backends.native import NativeStream


def refusal(stream: NativeStream, code: int, arrays: list[Array]) -> RunnelError:
    """The error of a push of ``arrays`` to a stream."""
    program = stream.program
    if code == native.NOT_FINITE:
        return StreamError(describe_nonfinite(program.timed, arrays))
    if code == native.TOO_LONG and program.max_frames is not None:
        return too_long(program, stream.position, stream._frames.value)
    if code == native.FLUSHED:
        return StreamError("the stream has ended; call reset() to start it again.")
    if code == native.STORAGE:
        said = program._core.rn_paging_error(program._handle).decode(errors="replace")
        return StreamError(f"{said}; copy the bundle again or look at the storage, and reset the stream.")
    said = native.message(code)
    if code in (native.BAD_STATE, native.TOO_LONG, native.CAPACITY):
        return StreamError(f"{said}.")
    return InternalError(f"{said}; please report this model.")
