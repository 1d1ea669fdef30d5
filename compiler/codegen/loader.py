"""Runs an image in this process, for tests and for proofs on the host. A board uses the runtime's loader."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from runnel.compiler.codegen.image import PAGE, Image
from runnel.compiler.codegen.memory import round_up


def load_image_for_tests(image: Image) -> dict[str, Callable[..., int]]:
    """Callables by symbol; each takes addresses (int) and returns 0. The code stays mapped while one of them lives."""
    size = round_up(max(len(image.code), 1), PAGE)
    memory = mmap.mmap(-1, size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(image.code)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def bind(offset: int) -> Callable[..., int]:
        function = ctypes.CFUNCTYPE(ctypes.c_int32)(base + offset)

        def call(*addresses: int) -> int:
            assert memory is not None
            return int(function(*(ctypes.c_void_p(a) for a in addresses)))

        return call

    return {name: bind(offset) for name, offset in image.entries.items()}
