"""Replays a bundle's golden entries: golden/input_<i>.npy, and golden/output_<j>.npy as the offline model gave them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import runnel
from runnel.errors import BundleError
from runnel.runtime.bundle import Bundle
from runnel.tools.replay import Arrays, chunkings, deviation, leading, opened, play

TOLERANCE = 1e-5  # where the proof in the manifest names no limit


def read_golden(bundle: Bundle, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Arrays, Arrays]:
    """The golden inputs and outputs by name. Raises BundleError if the bundle brings none that can be read."""
    return _arrays(bundle, "input", inputs), _arrays(bundle, "output", outputs)


def _arrays(bundle: Bundle, kind: str, names: Sequence[str]) -> Arrays:
    arrays: Arrays = {}
    for i, name in enumerate(names):
        entry = f"golden/{kind}_{i}.npy"
        try:
            arrays[name] = np.load(io.BytesIO(bundle.read(entry)), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise BundleError(
                f"'{bundle.path}': entry '{entry}' is not an array ({error}); compile it again."
            ) from error
    return arrays


def verify(path: str | Path, backend: str) -> list[dict[str, Any]]:
    """One result for each chunking: its largest error in parts of the output's largest value, and whether it holds.

    Every entry of the bundle is checked in full before. Bits that depend on the chunking do not hold either.
    """
    bundle = Bundle(path)
    bundle.verify()
    program = runnel.load(path, backend=backend)
    inputs, expected = read_golden(bundle, [p.name for p in program.inputs], [p.name for p in program.outputs])
    tolerance = float((program.manifest.get("proof") or {}).get("limit") or TOLERANCE)
    axes = {port.name: leading(port.axis) for port in program.inputs}
    frames = min(port.frames(inputs[port.name]) // port.per_tick for port in program.timed)
    results: list[dict[str, Any]] = []
    first: Arrays | None = None
    for name, chunks in chunkings(frames, program.hop, np.random.default_rng(1)).items():
        got = play(opened(program, inputs), inputs, axes, chunks)
        first = first or got
        error = deviation(got, expected)
        same = all(got[output].tobytes() == value.tobytes() for output, value in first.items())
        results.append(
            {
                "backend": backend,
                "chunking": name,
                "frames": frames,
                "error": error,
                "tolerance": tolerance,
                "same_bits": same,
                "ok": error <= tolerance and same,
            }
        )
    return results
