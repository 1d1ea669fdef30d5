"""The C++ loader of bundles through ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

from runnel.runtime import native

OK, BAD_BUNDLE = 0, 11


def load_in_core(path: Path | str) -> tuple[int, str]:
    """The code and the sentence of rn_load, and of a check of every entry where it is OK."""
    core = native.library()
    core.rn_unload.argtypes = [ctypes.c_void_p]
    core.rn_unload.restype = None
    bundle, said = ctypes.c_void_p(), ctypes.create_string_buffer(1024)
    code = core.rn_load(str(path).encode(), ctypes.byref(bundle), said, ctypes.c_size_t(len(said)))
    assert (code == OK) == bool(bundle.value)
    if code == OK:
        code = core.rn_bundle_verify(bundle, said, ctypes.c_size_t(len(said)))
        core.rn_unload(bundle)
    return code, said.value.decode(errors="replace")
