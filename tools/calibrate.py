"""What the named modes of a stream cost: its deviation from the offline model on a calibration recording."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.emit import natural_hop
from runnel.compiler.streaming.ir import STACKED, Stream
from runnel.compiler.streaming.kinds.cache import keeps_all, kept_at_least
from runnel.compiler.streaming.widths import MODE as EXPERTS
from runnel.errors import InputError, Reason, Refused
from runnel.runtime.io import open_source
from runnel.runtime.program import load
from runnel.tools.cases import noise, offline
from runnel.tools.prove import Arrays, Case
from runnel.tools.replay import SMALLEST_RANGE, leading, opened, play

if TYPE_CHECKING:
    from runnel.tools.rewritten import Rewritten

TOGETHER = "measured together with the other modes: without them the model does not stream"
NOISE = "noise"
NOISE_HOPS = 1000
NOISE_WINDOWS = 200

Calibration = str | Path | np.ndarray | Mapping[str, np.ndarray]


def read_calibration(given: Calibration, inputs: Sequence[Stream], rate: float | None) -> tuple[str, Arrays]:
    """(its name, arrays by input) of a .npy, .npz or .wav file, of an array, or of arrays by input name.

    Raises InputError where it does not fit the model's inputs.
    """
    name, arrays = "arrays", given
    if isinstance(given, (str, Path)):
        name, arrays = Path(given).name, _read_file(Path(given), inputs, rate)
    if not isinstance(arrays, Mapping):
        if len(inputs) != 1:
            known = ", ".join(s.name for s in inputs)
            raise InputError(f"the model has the inputs {known}; give a calibration array for each (.npz, by name).")
        arrays = {inputs[0].name: np.asarray(arrays)}
    if odd := sorted(set(arrays) ^ {s.name for s in inputs}):
        raise InputError(f"the calibration recording and the model differ in the input '{odd[0]}'; name them alike.")
    return name, {s.name: _fitted(np.asarray(arrays[s.name]), s) for s in inputs}


def _read_file(path: Path, inputs: Sequence[Stream], rate: float | None) -> Any:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"the calibration file '{path}' cannot be read: {error}.") from None
    if path.suffix != ".wav":
        raise InputError(f"the calibration file '{path}' is neither .npy, .npz nor .wav.")
    source = open_source(str(path), inputs[0], None if rate is None else round(rate))
    return next(source.chunks(None))


def _fitted(values: np.ndarray, stream: Stream) -> np.ndarray:
    shape = [None, *stream.shape] if stream.axis == STACKED and not stream.fact.static else list(stream.shape)
    fits = values.ndim == len(shape) and all(d in (None, n) for d, n in zip(shape, values.shape, strict=True))
    if not fits or values.dtype.kind != np.dtype(stream.dtype).kind:
        wanted = ", ".join("time" if d is None else str(d) for d in shape)
        raise InputError(
            f"calibration of input '{stream.name}' is {values.dtype} {list(values.shape)}; it takes {stream.dtype} "
            f"[{wanted}]."
        )
    return np.ascontiguousarray(values, stream.dtype)


def streamed(path: Path, cases: Sequence[Case], backend: str = "onnxruntime") -> list[Case]:
    """The cases with the answers of the bundle's own portable form (or another backend), streamed whole."""
    program = load(path, backend=backend, poison=True)
    return [Case(c.inputs, _played(program, c.inputs, c.frames), c.frames) for c in cases]


def record_modes(
    path: Path, rewritten: Rewritten, given: Calibration | None, rate: float | None, backend: str, first: Case
) -> dict[str, Any]:
    """The bundle's ``modes`` section: what was used, and how far the result is from the offline model.

    first: an input that the offline model takes, for where noise of the usual length is too long for it.
    """
    graph = rewritten.graph
    if given is None:
        name, recording, expected = NOISE, *_noise(rewritten, first)
    else:
        name, recording = read_calibration(given, [*graph.inputs, *graph.statics], rate)
        try:
            expected = offline(rewritten, recording)
        except Exception as error:
            raise InputError(f"the offline model does not take the calibration recording: {error}") from None
    frames = _frames(recording, graph.inputs)
    if graph.max_frames is not None and frames > graph.max_frames:
        raise InputError(f"the calibration recording has {frames} frames; the model takes {graph.max_frames}.")
    program = load(path, backend=backend)
    got = _played(program, recording, frames)
    axes = {port.name: leading(port.axis) for port in program.outputs}
    deviation = {k: distance(got[k], expected[k], axes[k]) for k in got}
    digest = hashlib.sha256(b"".join(x.tobytes() for x in recording.values())).hexdigest()
    used = {
        mode: {
            "value": value, "nodes": graph.mode_nodes.get(mode, []),
            **({"layers": graph.experts} if mode == EXPERTS else {}),
            **({"deviation": deviation} if len(graph.modes) == 1 else {"deviation": None, "why": TOGETHER}),
        }
        for mode, value in sorted(graph.modes.items())
    }  # fmt: skip
    calibration = {"name": name, "frames": frames, "sha256": digest}
    return {"used": used, "deviation": deviation, "calibration": calibration}


def reuse_deviation(modes: Mapping[str, Any], threshold: float, name: str) -> float:
    """The largest NRMSE of an output; Refused above the threshold, or where it cannot be told."""
    errors = [d.get("nrmse", 0.0 if d.get("differ") == 0 else None) for d in modes["deviation"].values()]
    worst = max((float("inf") if e is None else e for e in errors), default=0.0)
    if not worst <= threshold:
        on = modes["calibration"]["name"]
        reason = f"the mode reuse has an NRMSE of {worst:.3g} on {on}, above the threshold of {threshold:g}"
        remedy = "use mode=exact, a larger hop, a recording that is like the real signal, or a larger threshold"
        raise Refused([Reason(name, "window", reason, remedy)])
    return worst


def distance(got: np.ndarray, expected: np.ndarray, axis: int) -> dict[str, Any]:
    """How far a result is from the offline one.

    max: largest error, of the largest magnitude. rms: of the root mean square. snr_db: None without any error. Integers
    have the share that differs instead. A running answer is compared by its last frame along ``axis``, and an output of
    another length not at all.
    """
    compared = "all"
    if got.shape != expected.shape and got.ndim and got.shape[axis] and got.size // got.shape[axis] == expected.size:
        got, compared = np.take(got, -1, axis).reshape(expected.shape), "the last frame"
    if got.shape != expected.shape or not expected.size:
        return {"compared": "nothing"}
    if expected.dtype.kind != "f":
        return {"compared": compared, "differ": float((got != expected).mean())}
    wanted = expected.astype(np.float64)
    error = got.astype(np.float64) - wanted
    rms = float(np.sqrt((error**2).mean())) / max(float(np.sqrt((wanted**2).mean())), SMALLEST_RANGE)
    most = float(np.abs(error).max()) / max(float(np.abs(wanted).max()), SMALLEST_RANGE)
    finite, whole = np.isfinite(rms), compared == "all"
    return {
        "compared": compared, "max": most if finite else None, "rms": rms if finite else None,
        "nrmse": nrmse(*(np.moveaxis(v, axis, 0) for v in (got, wanted))) if whole and wanted.ndim else None,
        "snr_db": float(-20 * np.log10(rms)) if finite and rms > 0 else None,
    }  # fmt: skip


def nrmse(got: np.ndarray, wanted: np.ndarray) -> float | None:
    """Root mean square error over the range of what is wanted, as StreamiNNC has it; None for what is not finite.

    The mean over the elements of a frame, each over all frames, which lie along the first axis.
    """
    error = np.sqrt(((got.astype(np.float64) - wanted) ** 2).mean(0))
    value = float((error / np.maximum(wanted.max(0) - wanted.min(0), SMALLEST_RANGE)).mean())
    return value if np.isfinite(value) else None


def _noise(rewritten: Rewritten, first: Case) -> tuple[Arrays, Arrays]:
    graph = rewritten.graph
    hops = NOISE_HOPS if graph.window is None else NOISE_WINDOWS  # the offline model is run again for each window
    frames = max(first.frames, hops * natural_hop(graph))
    if graph.max_frames is not None:
        frames = min(frames, graph.max_frames)
    if not keeps_all(graph.kv):
        frames = min(frames, kept_at_least(graph.kv or ""))
    rng = np.random.default_rng(11)
    recording = {s.name: noise(s, frames, rng, graph) for s in [*graph.inputs, *graph.statics]}
    try:
        return recording, offline(rewritten, recording)
    except Exception:  # a length that the offline model itself does not take
        return first.inputs, offline(rewritten, first.inputs)


def _frames(arrays: Arrays, inputs: Sequence[Stream]) -> int:
    return min(arrays[s.name].shape[leading(s.axis)] // int(s.fact.rate) for s in inputs)


def _played(program: Any, inputs: Arrays, frames: int) -> Arrays:
    axes = {port.name: leading(port.axis) for port in program.inputs}
    return play(opened(program, inputs), inputs, axes, [max(frames, 1)])
