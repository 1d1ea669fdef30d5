"""The main job over its whole recording: streamed equals offline, whatever the chunks, start and end included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import runnel
from runnel import models
from runnel.runtime.io import read_wav
from runnel.tools.replay import deviation, play

FOLDER = Path(models.__path__[0]) / "denoiser"
RNG = np.random.default_rng(3)
CHUNKS = {
    "frame by frame": [1],
    "prime": [499],
    "random": [int(n) for n in RNG.integers(1, 3000, 97)],
    "whole": [1 << 30],
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("denoiser") / "denoiser.rnl"
    runnel.compile(FOLDER / "denoiser.onnx", path, rate=16000)
    return path


@pytest.fixture(scope="module")
def recording() -> tuple[np.ndarray, np.ndarray]:
    noisy = read_wav(FOLDER / "demo_noisy.wav").samples[:1]
    session = onnxruntime.InferenceSession(FOLDER / "denoiser.onnx", providers=["CPUExecutionProvider"])
    return noisy, session.run(None, {"noisy": noisy})[0]


@pytest.mark.parametrize("backend", ["native", "onnxruntime"])
def test_streamed_equals_offline_in_any_chunks(
    bundle: Path, recording: tuple[np.ndarray, np.ndarray], backend: str
) -> None:
    noisy, clean = recording
    program = runnel.load(bundle, backend=backend, poison=True)
    results = {n: play(program.stream(), {"noisy": noisy}, {"noisy": 1}, c)["clean"] for n, c in CHUNKS.items()}
    for name, result in results.items():
        assert deviation({"clean": result}, {"clean": clean}) <= 1e-5, name
        assert result.tobytes() == results["whole"].tobytes(), name


def test_a_hop_of_any_size_gives_the_same_bits(
    bundle: Path, recording: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    noisy = recording[0][:, :40011]
    expected = play(runnel.load(bundle).stream(), {"noisy": noisy}, {"noisy": 1}, [160])["clean"]
    for hop in (1000, 8192):
        runnel.compile(FOLDER / "denoiser.onnx", tmp_path / f"{hop}.rnl", hop=hop)
        got = play(runnel.load(tmp_path / f"{hop}.rnl").stream(), {"noisy": noisy}, {"noisy": 1}, [12345])["clean"]
        assert got.tobytes() == expected.tobytes()


def test_the_native_look_ahead_is_what_the_manifest_says(bundle: Path) -> None:
    """Frame by frame, output n comes with input n + latency at the latest, and once exactly then."""
    program = runnel.load(bundle)
    stream = program.stream()
    made, latest = 0, 0
    for received in range(1, 12001):
        due = stream.push(np.zeros((1, 1), np.float32)).shape[1]
        if due:
            latest = max(latest, received - (made + 1))  # the first of a burst waited longest
        made += due
    assert latest == program.latency_frames
