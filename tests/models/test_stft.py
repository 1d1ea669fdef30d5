"""The STFT models: torch's conventions, computed here with numpy's FFT; streams exact from start to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import runnel
from runnel.errors import StreamError
from runnel.models.stft import export
from runnel.models.stft.export import LAYOUTS, analysis, synthesis, window
from runnel.runtime.chain import Chain

BACKENDS = ("native", "onnxruntime")
SIZES = [(512, 256), (400, 160), (6, 3), (16, 16), (10, 1)]


def run(model: Any, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + shape[-1]).standard_normal(shape).astype(np.float32)


def stft(x: np.ndarray, frame: int, hop: int, name: str, centred: bool) -> np.ndarray:
    """(1, bins, frames, 2) float64 by the definition."""
    wide = np.pad(x[0].astype(np.float64), frame // 2 if centred else 0, mode="reflect")
    starts = range(0, len(wide) - frame + 1, hop)
    spectrum = np.fft.rfft(np.stack([wide[s : s + frame] for s in starts]) * window(name, frame)).T
    return np.stack([spectrum.real, spectrum.imag], -1)[None]


def istft(spectrum: np.ndarray, frame: int, hop: int, name: str) -> np.ndarray:
    """(1, samples) float64 by the definition of torch.istft with centred frames."""
    w = window(name, frame)
    count = spectrum.shape[2]
    total, weight = np.zeros((2, (count - 1) * hop + frame))
    for n in range(count):
        part = np.fft.irfft(spectrum[0, :, n, 0] + 1j * spectrum[0, :, n, 1], frame)
        total[n * hop : n * hop + frame] += part * w
        weight[n * hop : n * hop + frame] += w**2
    half = slice(frame // 2, len(total) - frame // 2)
    return (total[half] / weight[half])[None]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("frame", "hop"), SIZES)
@pytest.mark.parametrize("name", export.WINDOWS)
def test_analysis_is_the_definition(frame: int, hop: int, name: str, centred: bool) -> None:
    x = noise(1, 5 * frame + 3)
    got, expected = run(analysis(frame, hop, name, centred), x), stft(x, frame, hop, name, centred)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("frame", "hop"), [(512, 256), (6, 3), (64, 32)])
def test_synthesis_is_the_definition_also_of_spectra_that_no_sound_has(frame: int, hop: int) -> None:
    spectrum = noise(1, frame // 2 + 1, 7, 2)
    got, expected = run(synthesis(frame, hop), spectrum), istft(spectrum, frame, hop, "sqrt-hann")
    assert got.shape == expected.shape == (1, 6 * hop)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_synthesis_undoes_analysis_in_every_layout(layout: str) -> None:
    x = noise(1, 2000)
    back = run(synthesis(64, 32, layout=layout), run(analysis(64, 32, layout=layout), x))
    assert np.abs(back - x[:, : back.shape[1]]).max() <= 1e-5
    assert back.shape[1] == 2000 // 32 * 32


def test_rectangular_frames_side_by_side_need_no_overlap() -> None:
    x = noise(1, 160)
    spectrum = run(analysis(16, 16, "rectangular", centred=False), x)
    back = run(synthesis(16, 16, "rectangular", centred=False), spectrum)
    assert np.abs(back - x).max() <= 1e-5


@pytest.mark.parametrize(
    "make",
    [
        lambda: analysis(511, 256), lambda: analysis(512, 0), lambda: analysis(512, 513),
        lambda: analysis(512, 256, "kaiser"), lambda: analysis(512, 256, layout="any"), lambda: synthesis(512, 100),
        lambda: synthesis(512, 128), lambda: synthesis(512, 256, "hann"), lambda: synthesis(512, 256, centred=False),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        make()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The command's two files, compiled: frames of 64 every 32."""
    folder = tmp_path_factory.mktemp("stft")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export", "--frame", "64", "--hop", "32", "--out", str(folder)])
        export.main()
    for name in ("stft", "istft"):
        assert runnel.compile(folder / f"{name}.onnx", folder / f"{name}.rnl").manifest["native_refusal"] is None
    return [folder / "stft.rnl", folder / "istft.rnl"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("samples", [33, 64, 95, 96, 1000])
def test_streams_are_exact_at_the_start_and_at_the_end(bundles: list[Path], backend: str, samples: int) -> None:
    first, second = (runnel.load(path, backend=backend, poison=True) for path in bundles)
    x = noise(1, samples)
    spectrum = run(analysis(64, 32), x)
    wav = run(synthesis(64, 32), spectrum)
    for program, given, axis, expected in ((first, x, 2, spectrum), (Chain([first, second]), x, 1, wav)):
        for size in (1, 13, samples):
            stream = program.stream()
            got = [stream.push(given[:, n : n + size]) for n in range(0, samples, size)]
            whole = np.concatenate([*got, stream.flush()], axis)
            assert whole.shape == expected.shape
            assert np.abs(whole - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_little_to_reflect_is_said_at_the_end(bundles: list[Path], backend: str) -> None:
    stream = runnel.load(bundles[0], backend=backend).stream()
    stream.push(noise(1, 32))
    with pytest.raises(StreamError, match="no fewer than 33"):
        stream.flush()
