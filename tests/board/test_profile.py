"""``runnel-run profile``: what each instruction of a plan takes."""

from __future__ import annotations

import ctypes
import itertools
import json
import subprocess

import numpy as np
import pytest
from small_models import compiled

import runnel
from runnel.runtime import native
from runnel.runtime.bundle import Bundle


@pytest.mark.parametrize("name", ["gru", "two-rates", "at-the-end"])
def test_every_instruction_is_named_and_timed(binary, tmp_path, name):
    path = compiled(tmp_path, name)
    done = subprocess.run([binary, "profile", path, "--seconds", "0.1", "--json"], capture_output=True, check=True)
    row = json.loads(done.stdout)
    manifest = Bundle(path).manifest
    parts = row["instructions"]
    assert [(p["output"], p["ops"]) for p in parts] == [(k["output"], k["ops"]) for k in manifest["kernels"]]
    assert sum(p["share"] for p in parts) == pytest.approx(1, abs=1e-4)
    assert 0 < sum(p["seconds"] for p in parts) < row["step"]
    per_step = manifest["macs"]["per_frame_streamed"] * row["chunk_frames"]
    assert sum(p["macs"] for p in parts) <= per_step * 1.001


def test_the_costliest_comes_first_as_text(binary, tmp_path):
    path = compiled(tmp_path, "denoiser")
    done = subprocess.run([binary, "profile", path, "--seconds", "0.1"], capture_output=True, text=True, check=True)
    shares = [float(line.split("%")[0]) for line in done.stdout.splitlines()[2:]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == len(Bundle(path).manifest["kernels"])


class Profile(ctypes.Structure):
    """rn_profile."""

    _fields_ = [("now", ctypes.CFUNCTYPE(ctypes.c_int64)), *((n, ctypes.c_void_p) for n in ("spent", "calls", "macs"))]


def test_the_clock_is_asked_twice_an_instruction_and_no_bit_changes(tmp_path):
    program = runnel.load(compiled(tmp_path, "gru"))
    core, handle = native.library(), program._handle
    count, frames = core.rn_instructions(handle), 11
    x = np.random.default_rng(1).standard_normal((frames, 1, 6)).astype(np.float32)
    state, scratch = (aligned(int(size(handle))) for size in (core.rn_state_bytes, core.rn_scratch_bytes))
    assert core.rn_init(handle, ctypes.c_void_p(state.ctypes.data), 0) == 0
    y = np.zeros((frames, 1, 16), np.float32)
    inputs, outputs = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data)
    capacity, written = ctypes.c_int64(frames), ctypes.c_int64()
    asked = itertools.count()
    figures = np.zeros((3, count), np.int64)
    clock = Profile._fields_[0][1](lambda: next(asked))
    profile = Profile(clock, *(row.ctypes.data for row in figures))
    call = [
        handle, ctypes.c_void_p(state.ctypes.data), ctypes.c_void_p(scratch.ctypes.data), ctypes.byref(inputs),
        ctypes.c_int64(frames), ctypes.byref(outputs), ctypes.byref(capacity), ctypes.byref(written), 0,
    ]  # fmt: skip
    assert core.rn_push_profiled(*call, ctypes.byref(profile)) == 0
    assert y.reshape(-1)[: written.value * 16].tobytes() == program.stream().push(x).tobytes()
    spent, calls, macs = figures
    assert spent.sum() * 2 == next(asked)  # a clock that goes on by one each time it is asked
    assert spent.min() >= 1 and calls.min() >= 0 and macs.sum() > 0
    assert core.rn_push_profiled(*call, None) == native.BAD_ARGUMENT


def aligned(size: int) -> np.ndarray:
    """Memory at a multiple of 64 bytes."""
    block = np.zeros(size + 64, np.uint8)
    return block[-block.ctypes.data % 64 :][:size]
