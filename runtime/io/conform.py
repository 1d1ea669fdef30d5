"""Makes sound what a model takes: its channels, its rate, finite numbers; each step is said in a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.errors import InputError
from runnel.runtime.io.wav import Audio

STEEPEST = 1000  # the largest ratio of rates that is believed


def conform(audio: Audio, rate: int | None, channels: int = 1, on_nonfinite: str = "error") -> Audio:
    """``audio`` at ``rate`` (as it is, if None) with ``channels``. Raises InputError for what cannot be made to fit."""
    samples, notes = audio.samples, list(audio.notes)
    bad = ~np.isfinite(samples)
    if bad.any():
        first = int(np.argmax(bad.any(axis=0)))
        what = f"{int(bad.sum())} samples are NaN or infinite, the first at {first / audio.rate:.3f} s"
        if on_nonfinite == "error":
            raise InputError(f"{what}; mend the recording, or take them as silence with --on-nonfinite zero.")
        if on_nonfinite == "zero":
            samples = np.where(bad, np.float32(0), samples)
            notes.append(f"{what}; they were taken as silence.")
    if samples.shape[0] != channels:
        if channels != 1:
            raise InputError(f"the model takes {channels} channels and the recording has {samples.shape[0]}.")
        notes.append(f"{'stereo' if samples.shape[0] == 2 else f'{samples.shape[0]} channels'} mixed to mono.")
        samples = samples.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    if rate is not None and rate != audio.rate:
        samples = resample(samples, audio.rate, rate)
        notes.append(f"resampled from {audio.rate} Hz to {rate} Hz (soxr HQ).")
    return Audio(np.ascontiguousarray(samples, np.float32), rate or audio.rate, tuple(notes))


def resample(samples: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
    """A whole recording, (channels, frames) float32, from ``source`` to ``target`` Hz."""
    soxr = import_soxr(source, target)
    if samples.shape[1] == 0:
        return samples
    frames = soxr.resample(np.ascontiguousarray(samples.T), source, target, quality="HQ")
    return np.ascontiguousarray(np.asarray(frames, np.float32).reshape(-1, samples.shape[0]).T)


def import_soxr(source: int, target: int) -> Any:
    """The resampling library, or a sentence on how to get it."""
    if not 1 / STEEPEST <= source / target <= STEEPEST:
        raise InputError(f"the recording is at {source} Hz and the model takes {target} Hz; that is not resampled.")
    try:
        import soxr
    except ImportError:
        raise InputError(
            f"the recording is at {source} Hz and the model takes {target} Hz; resampling needs a library: "
            "pip install soxr"
        ) from None
    return soxr
