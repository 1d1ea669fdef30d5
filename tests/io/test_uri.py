"""Sources and sinks: what a model takes is made from what a person has, and each step is said."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runnel.errors import InputError
from runnel.runtime.io import open_sink, open_source, read_wav, write_wav


@dataclass(frozen=True)
class FakePort:
    shape: tuple[int | None, ...]
    axis: int | None
    name: str = "wav"
    dtype: str = "float32"


MONO = FakePort((1, None), 1)
FEATURES = FakePort((1, None, 40), 1, "features")
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(4410) / 44100)).astype(np.float32)


def gathered(
    uri: str, port: FakePort, rate: int | None, chunk: int | None = 100, **options: object
) -> tuple[np.ndarray, list[str]]:
    source = open_source(uri, port, rate, **options)  # type: ignore[arg-type]
    assert port.axis is not None
    return np.concatenate(list(source.chunks(chunk)), port.axis), source.notes


def test_wav_comes_in_chunks_of_the_models_shape(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", TONE, 16000, "float32")
    source = open_source(str(tmp_path / "a.wav"), FakePort((1, 1, None), 2), 16000)
    chunks = list(source.chunks(1000))
    assert [c.shape for c in chunks] == [(1, 1, 1000)] * 4 + [(1, 1, 410)]
    np.testing.assert_array_equal(np.concatenate(chunks, 2).reshape(-1), TONE)
    assert source.notes == []


def test_stereo_is_mixed_and_said(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.stack([TONE, 0 * TONE]), 16000, "float32")
    values, notes = gathered(f"wav:{tmp_path / 'a.wav'}", MONO, 16000)
    np.testing.assert_allclose(values[0], TONE / 2, atol=1e-7)
    assert notes == ["stereo mixed to mono."]


def test_another_rate_is_resampled_and_said(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", TONE, 44100, "float32")
    values, notes = gathered(str(tmp_path / "a.wav"), MONO, 16000)
    assert values.shape == (1, 1600)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1600) / 16000)
    assert np.abs(values[0] - expected)[100:-100].max() < 1e-3
    assert notes == ["resampled from 44100 Hz to 16000 Hz (soxr HQ)."]


def test_resampling_without_the_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "a.wav", TONE, 44100)
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(InputError, match="pip install soxr"):
        gathered(str(tmp_path / "a.wav"), MONO, 16000)


def test_nan_is_an_error_or_silence(tmp_path: Path) -> None:
    broken = TONE.copy()
    broken[[441, 500]] = np.nan, np.inf
    write_wav(tmp_path / "a.wav", broken, 44100, "float32")
    with pytest.raises(InputError, match="2 samples are NaN or infinite, the first at 0.010 s"):
        gathered(str(tmp_path / "a.wav"), MONO, 44100)
    values, notes = gathered(str(tmp_path / "a.wav"), MONO, 44100, on_nonfinite="zero")
    assert values[0, 441] == values[0, 500] == 0
    assert "taken as silence" in notes[0]


def test_no_samples_are_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", TONE[:0], 16000)
    with pytest.raises(InputError, match="0 samples"):
        gathered(str(tmp_path / "a.wav"), MONO, 16000)


def test_sound_for_a_model_that_takes_none_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", TONE, 16000)
    with pytest.raises(InputError, match="use npy:PATH"):
        gathered(str(tmp_path / "a.wav"), FEATURES, 16000)


def test_npy_in_and_out(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((1, 1003, 40), dtype=np.float32)
    np.save(tmp_path / "a.npy", values)
    read, _ = gathered(f"npy:{tmp_path / 'a.npy'}", FEATURES, None)
    np.testing.assert_array_equal(read, values)
    with open_sink(str(tmp_path / "b.npy"), FEATURES, None) as sink:
        for part in np.split(values, [5, 5, 900], axis=1):
            sink.write(part)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), values)


def test_npy_of_another_shape_says_what_is_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 7, 41)))
    with pytest.raises(InputError, match=r"\[1, 7, 41\] float64; input 'features' takes \[1, 'time', 40\] float32"):
        gathered(str(tmp_path / "a.npy"), FEATURES, None)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00", b"junk" * 10, b"\x93NUMPY\x01\x00\x10\x00{'descr': [}  \n"]
)
def test_a_broken_npy_gets_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError) as caught:
        gathered(str(tmp_path / "a.npy"), FEATURES, None)
    assert "\n" not in str(caught.value)


def test_a_hostile_npy_header_allocates_nothing(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 9999999999999, 40)}".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header)
    with pytest.raises(InputError):
        gathered(str(tmp_path / "a.npy"), FEATURES, None)


def pcm(values: np.ndarray) -> bytes:
    return np.rint(values * 32767).astype("<i2").tobytes()


def test_raw_pcm_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm(TONE) + b"x")))
    values, notes = gathered("-", MONO, 16000, given_rate=16000)
    np.testing.assert_allclose(values[0], TONE, atol=1e-4)
    assert notes == ["the raw PCM ended inside a sample; its last byte was dropped."]


def test_raw_pcm_of_another_rate_is_resampled_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm(TONE))))
    values, notes = gathered("-", MONO, 16000, given_rate=44100)
    assert abs(values.shape[1] - 1600) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1500) / 16000)
    assert np.abs(values[0, :1500] - expected)[100:].max() < 1e-3
    assert notes == ["resampled from 44100 Hz to 16000 Hz (soxr HQ)."]


def test_raw_pcm_without_a_rate_or_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(InputError, match="--rate"):
        gathered("-", MONO, None)
    with pytest.raises(InputError, match="no samples came in"):
        gathered("-", MONO, 16000)


def test_raw_pcm_out(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    with open_sink("-", MONO, 16000) as sink:
        sink.write(np.array([[0.5, -2.0]], np.float32))
    assert np.frombuffer(out.getvalue(), "<i2").tolist() == [16384, -32768]


def test_wav_out_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with open_sink(str(path), MONO, 16000) as sink:
        for part in np.array_split(TONE[None], 7, axis=1):
            sink.write(part)
            assert not path.exists()
    audio = read_wav(path)
    assert audio.samples.shape == (1, TONE.size)
    assert np.abs(audio.samples[0] - TONE).max() <= 1 / 65536 + 1e-7
    with pytest.raises(KeyboardInterrupt), open_sink(str(path), MONO, 16000) as sink:
        sink.write(TONE[None])
        raise KeyboardInterrupt
    assert read_wav(path).samples.shape == (1, TONE.size)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_output_clipping_is_said(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "a.wav"), MONO, 16000) as sink:
        sink.write(np.array([[1.5, 0.0, math.inf]], np.float32))
    assert sink.notes == ["2 output samples were clipped to 16 bits."]


@pytest.mark.parametrize("uri", ["", "speech", "ftp://x", "mic:", "a.mp3", ".wav/"])
def test_unknown_uris_list_the_known_ones(uri: str) -> None:
    with pytest.raises(InputError, match="wav:PATH, npy:PATH"):
        open_source(uri, MONO, 16000)
    with pytest.raises(InputError, match="wav:PATH, npy:PATH"):
        open_sink(uri, MONO, 16000)
