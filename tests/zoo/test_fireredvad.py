"""fireredvad, an offline model whose padding and slicing make it causal, on the features of a real voice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from runnel.runtime.io import read_wav
from runnel.runtime.program import Program
from runnel.tools.replay import deviation, play

ALLOWED = 1e-5  # of the output's range
RATE, FRAME, HOP, FFT, BINS = 16000, 400, 160, 512, 80


def fbank(samples: np.ndarray) -> np.ndarray:
    """Kaldi's log mel energies without dither, (samples,) in ±1 → (frames, 80)."""
    starts = range(0, len(samples) - FRAME + 1, HOP)
    rows = np.stack([samples[s : s + FRAME] for s in starts]).astype(np.float64) * 32768
    rows -= rows.mean(1, keepdims=True)
    rows = rows - 0.97 * np.concatenate([rows[:, :1], rows[:, :-1]], 1)
    rows *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / (FRAME - 1))) ** 0.85
    power = np.abs(np.fft.rfft(rows, FFT))[:, : FFT // 2] ** 2

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127 * np.log1p(hertz / 700)

    edges = np.linspace(mel(np.array(20.0)), mel(np.array(RATE / 2)), BINS + 2)
    place = mel(np.arange(FFT // 2) * RATE / FFT)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.clip(np.minimum((place - low) / (centre - low), (high - place) / (high - centre)), 0, None)
    return np.log(np.maximum(power @ weights, np.finfo(np.float32).eps))


def normalised(features: np.ndarray, ark: Path) -> np.ndarray:
    """With the mean and variance of Kaldi's statistics, (1, frames, 80) float32."""
    data = ark.read_bytes()
    start = data.index(b"\0BDM ") + 5
    rows, columns = (int.from_bytes(data[start + at + 1 : start + at + 5], "little") for at in (0, 5))
    sums, squares = np.frombuffer(data[start + 10 :], "<f8", rows * columns).reshape(rows, columns)
    mean = sums[:-1] / sums[-1]
    spread = np.sqrt(squares[:-1] / sums[-1] - mean**2)
    return ((features - mean) / spread).astype(np.float32)[None]


@pytest.fixture(scope="module")
def voice(zoo: Path) -> np.ndarray:
    """The features of hello_en.wav behind and before half a second of near silence."""
    audio = read_wav(zoo / "fireredvad" / "hello_en.wav")
    assert audio.rate == RATE
    hush = 1e-4 * np.random.default_rng(0).standard_normal((2, RATE // 2)).astype(np.float32)
    samples = np.concatenate([hush[0], audio.samples[0], hush[1]])
    return normalised(fbank(samples), zoo / "fireredvad" / "cmvn.ark")


@pytest.mark.parametrize("chunks", [[1], [13], [3, 1, 40, 7], [100_000]], ids=["1", "13", "mixed", "whole"])
def test_a_voice_streams_as_the_offline_model_gives_it(
    zoo: Path, compiled: Callable[..., Path], load: Callable[..., Program], voice: np.ndarray, chunks: list[int]
) -> None:
    model = zoo / "fireredvad" / "fireredvad_stream_vad.onnx"
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"feat": voice})))
    got = play(load(compiled("fireredvad", model)).stream(), {"feat": voice}, {"feat": 1}, chunks)
    assert got.keys() == expected.keys()
    assert deviation(got, expected) <= ALLOWED
    speech = got["probs"].reshape(-1)
    assert speech.max() > 0.9 and np.mean(speech > 0.5) > 0.3
    assert max(speech[:30].max(), speech[-20:].max()) < 0.1
