"""Plays a bundle on storage that fails in each way, for each way of reading, and prints what came of it as JSON."""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import time
import warnings

import numpy as np

import runnel

ERROR, SHORT, SLOW, BUSY = range(1, 5)
ROW = -1  # the bytes of a row of a table, or of an expert
FAULTS = {
    "error": (ERROR, 1, 0, {}),
    "error of a row": (ERROR, 1, ROW, {}),
    "short reads": (SHORT, 1000, 0, {}),
    "slow": (SLOW, 1, 0, {"patience": 0.25}),
    "slow row": (SLOW, 1, ROW, {"patience": 0.25}),
    "slow, and goes on": (SLOW, 2, 0, {"patience": 0.25, "slow": "warn"}),
    "slow row, and goes on": (SLOW, 2, ROW, {"patience": 0.25, "slow": "warn"}),
    "slow, without patience": (SLOW, 1, 0, {}),
    "full queue": (BUSY, 1000, 0, {}),
}
LIBC = ctypes.CDLL(None)


def set_fault(kind: int, left: int, size: int) -> None:
    for name, value in (("fault_left", left), ("fault_bytes", size), ("fault_seen", 0), ("fault_kind", kind)):
        ctypes.c_int32.in_dll(LIBC, name).value = value


def play(program: runnel.Program, x: np.ndarray) -> str:
    stream = program.stream()
    parts = [stream.push(x[:, i : i + 5]) for i in range(0, x.shape[1], 5)] + [stream.flush()]
    arrays = [a for part in parts for a in (part.values() if isinstance(part, dict) else [part])]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def outcome(path: str, ram: int, row: int, tokens: np.ndarray, way: str, fault: str) -> dict[str, object]:
    """said: the error, None without one; after: whether the program then plays right on storage that is whole."""
    kind, left, size, options = FAULTS[fault]
    runtime = runnel.Runtime(ram=ram, io=way, io_threads=1 if way == "threads" else 0, **options)
    program = runnel.load(path, runtime=runtime)
    set_fault(kind, left, row if size == ROW else size)
    said, bits = None, ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            bits = play(program, tokens)
        except runnel.StreamError as error:
            said = str(error)
        seen = ctypes.c_int32.in_dll(LIBC, "fault_seen").value
        set_fault(0, 0, 0)
        if said:
            time.sleep(0.6)  # a read that was given up comes
        after = play(program, tokens)
    late = program.paging.late
    return {
        "said": said, "bits": bits, "after": after, "seen": seen, "late": late,
        "warned": [str(w.message) for w in warned],
    }  # fmt: skip


def main() -> None:
    path, ram, row, *ways = sys.argv[1:]
    rng, whole = np.random.default_rng(3), runnel.load(path)
    first = whole.inputs[0]
    sizes = [37 if axis == first.axis else int(n or 1) for axis, n in enumerate(first.shape)]
    x = rng.integers(0, 300, sizes) if first.dtype == "int64" else rng.standard_normal(sizes, np.float32)
    found = {way: {fault: outcome(path, int(ram), int(row), x, way, fault) for fault in FAULTS} for way in ways}
    print(json.dumps({"expected": play(whole, x), "found": found}))


if __name__ == "__main__":
    main()
