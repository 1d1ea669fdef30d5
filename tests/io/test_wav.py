"""The wav parser: every kind of sample, and one plain sentence for everything that is not a wav file."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runnel.errors import InputError
from runnel.runtime.io import read_wav, write_wav
from runnel.runtime.io.wav import GUID_TAIL

SQUARE = [[0.0, 0.5, -0.5, -1.0], [0.25, -0.25, 0.75, -0.75]]  # exact at 8 bits and more


def chunk(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    return kind + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def wav(
    tag: int,
    bits: int,
    data: bytes,
    channels: int = 2,
    rate: int = 16000,
    extensible: bool = False,
    promised: int | None = None,
) -> bytes:
    block = channels * bits // 8
    layout = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, channels, rate, rate * block, block, bits)
    if extensible:
        layout += struct.pack("<HHI", 22, bits, 3) + struct.pack("<H", tag) + GUID_TAIL
    body = b"WAVE" + chunk(b"fmt ", layout) + chunk(b"LIST", b"odd") + chunk(b"data", data, promised)
    return chunk(b"RIFF", body)


def encoded(tag: int, bits: int) -> bytes:
    frames = np.array(SQUARE).T
    if tag == 3:
        return frames.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return (frames * 128 + 128).astype(np.uint8).tobytes()
    whole = (frames * 2.0 ** (bits - 1)).astype(np.int64)
    return b"".join(int(v).to_bytes(bits // 8, "little", signed=True) for v in whole.reshape(-1))


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("tag", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
def test_every_kind_of_sample_is_read(tmp_path: Path, tag: int, bits: int, extensible: bool) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(tag, bits, encoded(tag, bits), extensible=extensible))
    audio = read_wav(path)
    assert audio.rate == 16000
    assert audio.samples.dtype == np.float32
    np.testing.assert_array_equal(audio.samples, np.array(SQUARE, np.float32))


@pytest.mark.parametrize("encoding", ["int16", "float32"])
def test_what_is_written_is_read_back(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.wav"
    assert write_wav(path, np.array(SQUARE, np.float32), 48000, encoding) == 0  # type: ignore[arg-type]
    audio = read_wav(path)
    assert audio.rate == 48000
    np.testing.assert_array_equal(audio.samples, np.array(SQUARE, np.float32))


def test_the_standard_library_reads_what_is_written(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([0.0, 0.5, 1.5, -1.5, np.nan], np.float32), 8000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (1, 8000, 5)
        assert np.frombuffer(file.readframes(5), "<i2").tolist() == [0, 16384, 32767, -32768, 0]


def test_clipped_samples_are_counted(tmp_path: Path) -> None:
    assert write_wav(tmp_path / "a.wav", [0.0, 1.5, -2.0], 8000) == 2


def test_a_streamed_file_without_a_size_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(1, 16, b"\0\x40" * 10, channels=1, promised=0xFFFFFFFF))
    assert read_wav(path).samples.tolist() == [[0.5] * 10]


def test_no_samples_are_no_error_of_the_parser(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(1, 16, b""))
    assert read_wav(path).samples.shape == (2, 0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "does not begin with RIFF"),
        (b"ID3\x03" + bytes(100), "does not begin with RIFF"),
        (wav(1, 16, b"1234")[:20], "goes past the end"),
        (wav(1, 16, b"1234")[:36], "no samples"),
        (wav(1, 16, bytes(400))[:-100], "truncated: its header promises 400 bytes of samples and 300"),
        (wav(1, 16, b"1234", promised=0xFFFFFFF0), "truncated"),
        (wav(1, 16, b"1234", channels=0), "cannot be"),
        (wav(1, 16, b"1234", rate=0), "cannot be"),
        (wav(1, 16, b"1234", rate=1_000_001), "cannot be"),
        (wav(7, 8, b"1234"), "format tag 7, 8 bits"),
        (wav(1, 12, b"1234"), "PCM, 12 bits"),
        (wav(2, 4, b"1234", extensible=True), "format tag 2"),
        (chunk(b"RIFF", b"WAVE" + chunk(b"data", b"1234")), "before its format"),
        (chunk(b"RIFF", b"WAVE" + chunk(b"fmt ", b"1234")), "format part has 4 bytes"),
        (chunk(b"RIFF", b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 0xFFFE, 1, 8000, 0, 2, 16))), "extensible"),
    ],
)  # fmt: skip
def test_what_is_not_a_wav_file_gets_one_sentence(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(InputError, match=sentence) as caught:
        read_wav(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_wav(tmp_path / "a.wav")
    with pytest.raises(InputError, match="directory"):
        read_wav(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_crash_the_parser(tmp_path: Path, data: st.DataObject) -> None:
    tag, bits = data.draw(st.sampled_from([(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)]))
    whole = bytearray(wav(tag, bits, encoded(tag, bits), extensible=data.draw(st.booleans())))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        whole[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.wav"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        audio = read_wav(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert audio.samples.ndim == 2
        assert audio.samples.size <= len(whole)
