"""Replays a bundle's golden entries: golden/input_<i>.npy, and golden/output_<j>.npy as the offline model gave them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import runnel
from runnel.errors import BundleError
from runnel.tools.measure import by_name

Array = NDArray[Any]
LEAST_TOLERANCE = 1e-5  # of the output's range; the manifest may allow what onnxruntime itself varies by
FEW_FRAMES = 20_000  # up to here the chunking of one frame is replayed too


def read_golden(path: str | Path, inputs: int, outputs: int) -> tuple[list[Array], list[Array]]:
    """The golden inputs and outputs. Raises BundleError if the bundle brings none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [
                [f"golden/{kind}_{i}.npy" for i in range(n)] for kind, n in (("input", inputs), ("output", outputs))
            ]
            missing = sorted({name for group in names for name in group} - set(archive.namelist()))
            if missing:
                raise BundleError(f"'{path}' brings no {missing[0]}; compile it again with its golden examples.")
            first, second = ([np.load(io.BytesIO(archive.read(name)), allow_pickle=False) for name in g] for g in names)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise BundleError(f"the golden examples of '{path}' cannot be read: {error}.") from error
    return first, second


def chunkings(frames: int, hop: int) -> dict[str, list[int]]:
    """Ways to cut ``frames``: {what a person calls it: lengths}."""
    random = np.random.default_rng(frames)
    sizes = {"hop": hop, "prime": 997 if frames > 3000 else 7, "whole": frames}
    if frames <= FEW_FRAMES:
        sizes["1 frame"] = 1
    cuts = {name: [min(size, frames - at) for at in range(0, frames, size)] for name, size in sizes.items()}
    lengths: list[int] = []
    while (left := frames - sum(lengths)) > 0:
        lengths.append(min(left, int(random.integers(0, 3 * hop + 2))))
    return {**cuts, "random": lengths}


def verify(path: str | Path, backend: str) -> list[dict[str, Any]]:
    """One result for each chunking and output: the largest error in parts of its range, and whether it holds.

    On the native backend an output whose bits depend on the chunking is a result that does not hold.
    """
    program = runnel.load(path, backend=backend)
    given, expected = read_golden(path, len(program.inputs), len(program.outputs))
    tolerance = max(LEAST_TOLERANCE, float((program.manifest.get("proof") or {}).get("tolerance") or 0))
    frames = max(value.shape[port.axis] for port, value in zip(program.inputs, given) if port.axis is not None)
    results, first = [], None
    for name, lengths in chunkings(frames, program.hop).items():
        got = replay(program, given, lengths)
        for port, want, have in zip(program.outputs, expected, got):
            error = range_error(have, want)
            results.append(_result(backend, port.name, name, error, tolerance, error <= tolerance))
        first = first or got
        if backend == "native":
            for port, one, other in zip(program.outputs, first, got):
                if one.tobytes() != other.tobytes():
                    results.append(
                        _result(backend, port.name, f"{name}: other bits", range_error(other, one), 0.0, False)
                    )
    return results


def _result(backend: str, output: str, chunking: str, error: float, tolerance: float, ok: bool) -> dict[str, Any]:
    return {
        "backend": backend, "output": output, "chunking": chunking, "error": error, "tolerance": tolerance, "ok": ok,
    }  # fmt: skip


def replay(program: Any, inputs: Sequence[Array], lengths: Sequence[int]) -> list[Array]:
    """The whole outputs of a new stream for ``inputs`` cut into ``lengths``."""
    timed = [(port, value) for port, value in zip(program.inputs, inputs) if port.axis is not None]
    fixed = {port.name: value for port, value in zip(program.inputs, inputs) if port.axis is None}
    stream = program.stream(inputs=fixed) if fixed else program.stream()
    parts: dict[str, list[Array]] = {port.name: [] for port in program.outputs}

    def take(values: Array | Mapping[str, Array]) -> None:
        for name, array in by_name(values, program.outputs).items():
            parts[name].append(np.array(array))

    for start, stop in _spans(lengths):
        cut = {port.name: _cut(value, port.axis, start, stop) for port, value in timed}
        take(stream.push(cut if len(cut) > 1 else next(iter(cut.values()))))
    take(stream.flush())
    return [
        np.concatenate(parts[port.name], port.axis) if port.axis is not None else parts[port.name][-1]
        for port in program.outputs
    ]


def _spans(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    at = 0
    for length in lengths:
        yield at, at + length
        at += length


def _cut(value: Array, axis: int, start: int, stop: int) -> Array:
    index = [slice(None)] * value.ndim
    index[axis] = slice(start, stop)
    return np.ascontiguousarray(value[tuple(index)])


def range_error(got: Array, expected: Array) -> float:
    """The largest difference in parts of the range of ``expected``; infinite for another shape or a stray NaN."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf")
    if got.size == 0 or np.array_equal(got, expected, equal_nan=got.dtype.kind == "f"):
        return 0.0
    a, b = got.astype(np.float64), expected.astype(np.float64)
    span = float(np.nanmax(b) - np.nanmin(b)) or max(float(np.nanmax(np.abs(b))), 1e-30)
    worst = float(np.max(np.abs(a - b))) / span
    return worst if np.isfinite(worst) else float("inf")
