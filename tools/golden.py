"""Replays a bundle's golden entries: golden/input_<i>.npy, and golden/output_<j>.npy as the offline model gave them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import runnel
from runnel.errors import BundleError
from runnel.tools.replay import Arrays, chunkings, deviation, leading, play

TOLERANCE = 1e-5  # where the proof in the manifest names no limit


def read_golden(path: str | Path, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Arrays, Arrays]:
    """The golden inputs and outputs by name. Raises BundleError if the bundle brings none that can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _arrays(archive, "input", inputs), _arrays(archive, "output", outputs)
    except KeyError as error:
        raise BundleError(f"'{path}' brings no golden examples: {error.args[0]}; compile it again.") from error
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise BundleError(f"the golden examples of '{path}' cannot be read: {error}.") from error


def _arrays(archive: zipfile.ZipFile, kind: str, names: Sequence[str]) -> Arrays:
    files = [io.BytesIO(archive.read(f"golden/{kind}_{i}.npy")) for i in range(len(names))]
    return {name: np.load(file, allow_pickle=False) for name, file in zip(names, files)}


def verify(path: str | Path, backend: str) -> list[dict[str, Any]]:
    """One result for each chunking: its largest error in parts of the output's largest value, and whether it holds.

    An output whose bits depend on the chunking does not hold either.
    """
    program = runnel.load(path, backend=backend)
    inputs, expected = read_golden(path, [p.name for p in program.inputs], [p.name for p in program.outputs])
    tolerance = float((program.manifest.get("proof") or {}).get("limit") or TOLERANCE)
    axes = {port.name: leading(port.axis) for port in program.inputs}
    frames = min(inputs[name].shape[axis] for name, axis in axes.items())
    results: list[dict[str, Any]] = []
    first: Arrays | None = None
    for name, chunks in chunkings(frames, program.hop, np.random.default_rng(1)).items():
        got = play(program.stream(), inputs, axes, chunks)
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
