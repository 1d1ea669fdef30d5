"""Models made by others: whole recordings through the portable form, beside the offline model and authors' results."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import oracle
import pytest
from oracle import Check, Offline, deviation
from reference_runner import ReferenceRunner

from runnel.compiler.graph.bind import bind, set_shapes
from runnel.compiler.graph.model import load
from runnel.compiler.graph.states import find_states
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.emit import emit
from runnel.errors import InputError, Refused

ROOT = Path(__file__).resolve().parents[2]
DENOISER = ROOT / "models" / "denoiser"


def zoo(path: str) -> Path:
    """A file of the zoo; skips, naming it, where it is missing."""
    file = Path(os.environ.get("RUNNEL_ZOO") or ROOT.parent / "shared" / "zoo") / path
    if not file.exists():
        pytest.skip(f"{file} is missing; name the zoo's folder in RUNNEL_ZOO")
    return file


def sound(path: Path) -> np.ndarray:
    """A 16-bit recording as (samples,) float32."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
        return samples.reshape(-1, file.getnchannels())[:, 0]


def spectra(samples: np.ndarray, bins: int, width: int = 400, hop: int = 160) -> np.ndarray:
    """(frames, bins) log energies: not a model's own front end, but frames of real sound."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, width)[::hop] * np.hanning(width)
    power = np.abs(np.fft.rfft(frames, 512))[:, 1:] ** 2
    edges = np.linspace(0, power.shape[1], bins + 1).astype(int)
    return np.log(np.stack([power[:, a:b].sum(1) for a, b in zip(edges, edges[1:])], 1) + 1e-6).astype(np.float32)


def test_fireredvad(check: Check) -> None:
    model = zoo("fireredvad/fireredvad_stream_vad.onnx").read_bytes()
    features = spectra(sound(zoo("fireredvad/hello_en.wav")), 80)[None] / 4
    proof = check(
        model, lengths=[len(features[0]), 1, 19, 20, 41], steps=(None, 10), feeds=lambda n: {"feat": features[:, :n]}
    )
    assert len({n for _, n, _ in proof.runs}) >= 4


def test_rtneural_gru_and_its_author_results(check: Check) -> None:
    model = zoo("rtneural-gru/gru_torch_offline.onnx").read_bytes()
    x, y = (np.loadtxt(zoo(f"rtneural-gru/gru_torch_{k}_python.csv"), dtype=np.float32) for k in "xy")
    check(model, lengths=[1, 2, 100, len(x)], steps=(None, 64), feeds=lambda n: {"x": x[:n, None, None]})
    runner = ReferenceRunner(emit(analyse(load(model)), 16))
    got = np.concatenate([r["y"] for r in (runner.push({"x": x[:, None, None]}), runner.flush())])
    assert float(np.abs(got.reshape(-1) - y).max()) <= 1e-5


def test_rtneural_gru_that_carries_its_own_states() -> None:
    offline = zoo("rtneural-gru/gru_torch_offline.onnx").read_bytes()
    graph = load(zoo("rtneural-gru/gru_torch_stream.onnx"))
    set_shapes(graph, {"x": [1, 1, 1]})
    pairs = find_states(graph)
    assert pairs == {f"h{i}_out": f"h{i}" for i in range(4)}
    x = np.random.default_rng(0).standard_normal((200, 1, 1)).astype(np.float32)
    runner = ReferenceRunner(emit(analyse(graph, states=pairs)))
    got = np.concatenate([r["y"] for r in (runner.push({"x": x[:, None]}), runner.flush())])
    wanted = Offline(offline)({"x": x})
    assert wanted is not None
    assert deviation(got.reshape(-1), wanted["y"].reshape(-1)) < oracle.TOLERANCE


def test_sww(check: Check) -> None:
    model = zoo("mlperf-tiny/sww_fp32.onnx").read_bytes()
    features = spectra(sound(zoo("mlperf-tiny/marvin_617de221_0.wav")), 40)[None, :, None] / 4
    check(model, window=30, hop=1, lengths=[29, 30, len(features[0])], feeds=lambda n: {"x": features[:, :n]})


@pytest.mark.parametrize("hop", [1, 2, 3, 6])
def test_vad_offline(check: Check, hop: int) -> None:
    model = zoo("pymicro-vad/vad_offline.onnx").read_bytes()
    features = spectra(sound(zoo("pymicro-vad/speech.wav")), 40)[None] / 4
    name = load(model).inputs[0].name
    check(model, window=74, hop=hop, lengths=[73, 74, 150, len(features[0])], feeds=lambda n: {name: features[:, :n]})


def test_kws_dscnn(check: Check) -> None:
    """Zero padding on both sides, a stride of 2, pooling over the whole window; the batch axis has a made-up name."""
    model = zoo("mlperf-tiny/kws_dscnn_fp32.onnx").read_bytes()
    features = spectra(sound(zoo("mlperf-tiny/marvin_617de221_0.wav")), 10)[None, :, :, None] / 4
    name = load(model).inputs[0].name
    for hop in (1, 2, 3, 10):
        lengths = [48, 49, len(features[0])]
        check(model, window=49, hop=hop, lengths=lengths, feeds=lambda n: {name: features[:, :n]})


def test_denoiser(check: Check) -> None:
    file, noisy = DENOISER / "denoiser.onnx", sorted(DENOISER.glob("*noisy*.wav"))
    if not file.exists() or not noisy:
        pytest.skip(f"{DENOISER} has no denoiser.onnx or no noisy recording")
    samples = sound(noisy[0])
    model = file.read_bytes()
    name = load(model).inputs[0].name
    check(
        model, lengths=[1, 257, 511, 512, 513, 4999, len(samples)], steps=(None, 2048),
        feeds=lambda n: {name: samples[None, :n]},
    )  # fmt: skip


def test_sleepecg_is_bidirectional() -> None:
    with pytest.raises(Refused) as caught:
        analyse(load(zoo("sleepecg/ws_gru.onnx")))
    assert any("bidirectional" in r.reason for r in caught.value.reasons)


def test_stories_has_several_candidate_time_axes() -> None:
    graph = load(zoo("stories260k/stories260k_full.onnx"))
    with pytest.raises(InputError, match="candidate time axes: 'S'"):
        analyse(graph)


def stft(samples: np.ndarray) -> np.ndarray:
    """(frames, 257, 2) float32, centred, square root of Hann, 512 by 256."""
    window = np.sqrt(np.hanning(513)[:512])
    padded = np.pad(samples, 256, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::256] * window
    spectrum = np.fft.rfft(frames)
    return np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)


def inverse(frames: np.ndarray, length: int) -> np.ndarray:
    window = np.sqrt(np.hanning(513)[:512])
    out = np.zeros(256 * (len(frames) + 1))
    scale = np.zeros_like(out)
    for i, frame in enumerate(np.fft.irfft(frames[..., 0] + 1j * frames[..., 1]) * window):
        out[256 * i : 256 * i + 512] += frame
        scale[256 * i : 256 * i + 512] += window**2
    return (out / np.maximum(scale, 1e-8))[256 : 256 + length].astype(np.float32)


def test_gtcrn_makes_its_author_result() -> None:
    graph = load(zoo("gtcrn/gtcrn_simple.onnx"))
    pairs = find_states(graph)
    assert pairs == {f"{n}_cache_out": f"{n}_cache" for n in ("conv", "tra", "inter")}
    mix, wanted = sound(zoo("gtcrn/mix.wav")), sound(zoo("gtcrn/enh.wav"))
    runner = ReferenceRunner(emit(analyse(graph, states=pairs)))
    frames = stft(mix)[:, None, :, None]
    parts = [runner.push({"mix": frames[:7]}), runner.push({"mix": frames[7:]}), runner.flush()]
    enhanced = np.concatenate([p["enh"] for p in parts])[:, 0, :, 0]
    n = min(len(wanted), len(mix)) - 512
    assert float(np.abs(inverse(enhanced, len(mix))[:n] - wanted[:n]).max()) < 1e-3


def test_both_silero_files_agree_with_the_original_step_by_step() -> None:
    samples = sound(zoo("pymicro-vad/speech.wav"))
    blocks = np.lib.stride_tricks.sliding_window_view(samples, 576)[::512].copy()[:, None]
    gathered = []
    for file, bound in (("silero_vad_16k_op15.onnx", True), ("silero_vad_openvino_16k.onnx", False)):
        model = zoo(f"silero-vad/{file}").read_bytes()
        graph = load(model)
        if bound:
            bind(graph, {"sr": np.array(16000)})
        set_shapes(graph, {"input": [1, 576], "state": [2, 1, 128]})
        pairs = find_states(graph)
        assert pairs == {"stateN": "state"}
        runner = ReferenceRunner(emit(analyse(graph, states=pairs)))
        got = np.concatenate([r["output"] for r in (runner.push({"input": blocks}), runner.flush())])
        offline = Offline(model, {"sr": np.array(16000)} if bound else None)
        state = np.zeros((2, 1, 128), np.float32)
        for block, streamed in zip(blocks, got, strict=True):
            wanted = offline({"input": block, "state": state})
            assert wanted is not None
            state = wanted["stateN"]
            assert float(np.abs(streamed - wanted["output"]).max()) < 1e-5
        gathered.append(got)
    assert float(np.abs(gathered[0] - gathered[1]).max()) < 1e-4
    assert gathered[0].max() > 0.5
