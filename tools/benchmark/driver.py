"""Compiles driver.cc for this very machine, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from runnel.runtime import build_core

SOURCE = Path(__file__).with_name("driver.cc")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")


def build(folder: Path) -> Path:
    """The compiled driver in ``folder``; made once for each of its versions. Raises NoCompiler."""
    command = build_core.find_compiler()
    zig = "ziglang" in command
    own = ["-mcpu=native", "-fno-sanitize=undefined"] if zig else ["-march=native"]
    digest = hashlib.sha256(SOURCE.read_bytes() + repr((command, FLAGS)).encode()).hexdigest()[:16]
    out = folder / f"driver-{digest}.so"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            line = [*command, *FLAGS, *own, str(SOURCE), "-o", f"{made}/driver.so"]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise build_core.NoCompiler(f"'{shlex.join(line)}' fails:\n{done.stderr[-2000:]}")
            os.replace(f"{made}/driver.so", out)
    return out


@cache
def library() -> ctypes.CDLL:
    """The driver that RUNNEL_BENCH_DRIVER names."""
    found = ctypes.CDLL(os.environ["RUNNEL_BENCH_DRIVER"])
    found.time_steps.restype = found.time_lanes.restype = found.time_phases.restype = ctypes.c_int
    found.read_bandwidth.restype = found.peak_float32.restype = found.peak_int8.restype = ctypes.c_double
    found.read_bandwidth.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_double]
    found.peak_float32.argtypes = found.peak_int8.argtypes = [ctypes.c_double]
    return found
