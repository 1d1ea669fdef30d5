"""The committed denoiser: a valid small ONNX file, the right lengths, and noise taken off the demo recording."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parents[2] / "models" / "denoiser"
MODEL = FOLDER / "denoiser.onnx"
ALLOWED_OPS = """
    Conv ConvTranspose GRU MatMul Gemm LayerNormalization BatchNormalization PRelu Relu Sigmoid Tanh Add Sub Mul Div
    Sqrt Pow Log Exp ReduceMean Transpose Unsqueeze Squeeze Reshape Slice Split Concat Shape Gather Constant Identity
"""


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return ort.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])


def read(name: str) -> NDArray[np.float32]:
    """A 16 kHz mono 16-bit recording as (samples,) float32."""
    with wave.open(str(FOLDER / name)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def si_sdr(reference: NDArray[np.float32], estimate: NDArray[np.float32]) -> float:
    """Scale-invariant signal to distortion ratio in dB."""
    s, e = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (reference, estimate))
    target = (e @ s) / (s @ s) * s
    residue = e - target
    return float(10 * np.log10((target @ target) / (residue @ residue)))


def test_file_is_valid_small_and_uses_only_the_agreed_operators() -> None:
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert MODEL.stat().st_size <= 2_000_000
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert {node.op_type for node in model.graph.node} <= set(ALLOWED_OPS.split())


@pytest.mark.parametrize("samples", [1, 2, 255, 256, 257, 511, 512, 513, 5000, 16001])
def test_output_has_the_length_of_the_input(session: ort.InferenceSession, samples: int) -> None:
    noisy = np.random.default_rng(samples).standard_normal((1, samples)).astype(np.float32) * 0.1
    (clean,) = session.run(["clean"], {"noisy": noisy})
    assert clean.shape == noisy.shape
    assert np.isfinite(clean).all()


def test_silence_stays_silent(session: ort.InferenceSession) -> None:
    (clean,) = session.run(["clean"], {"noisy": np.zeros((1, 8000), np.float32)})
    assert np.abs(clean).max() < 1e-6


def test_looks_ahead_at_most_200_ms(session: ort.InferenceSession) -> None:
    generator = np.random.default_rng(0)
    noisy = (0.1 * generator.standard_normal((1, 24000))).astype(np.float32)
    (whole,) = session.run(["clean"], {"noisy": noisy})
    for start in range(12000, 12512, 37):
        altered = noisy.copy()
        altered[0, start:] = generator.standard_normal(24000 - start)
        (clean,) = session.run(["clean"], {"noisy": altered})
        np.testing.assert_array_equal(clean[0, : start - 3200], whole[0, : start - 3200])


def test_takes_6_db_of_noise_off_the_demo_recording(session: ort.InferenceSession) -> None:
    reference, noisy = read("demo_clean.wav"), read("demo_noisy.wav")
    (clean,) = session.run(["clean"], {"noisy": noisy[None]})
    assert si_sdr(reference, clean[0]) - si_sdr(reference, noisy) >= 6.0
