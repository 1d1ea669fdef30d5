"""Recordings that are not what the model takes: resampled or mixed and said so, or one plain sentence."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import RATE, command, listing

import runnel
from runnel.runtime.io import read_wav, write_wav
from runnel.runtime.io.wav import wav_header

Complaint = Callable[..., str]
TONE = (0.25 * np.sin(np.arange(4000) / 9)).astype(np.float32)


def run(folder: Path, source: str, *more: str) -> dict[str, Any]:
    """What ``runnel run --json`` prints for a recording that is taken; out.wav lies in the folder then."""
    done = command("run", "tiny.rnl", "--in", source, "--out", "out.wav", "--json", *more, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def pcm24(path: Path, samples: np.ndarray) -> None:
    values = np.rint(samples * 2**23).astype("<i4")
    data = values.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    layout = struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE * 3, 3, 24)
    parts = b"WAVEfmt " + layout + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(parts)) + parts)


def test_another_rate_is_resampled_and_said(bundle: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "in.wav", TONE, 8000)
    facts = run(tmp_path, "in.wav")
    assert facts["notes"] == ["resampled from 8000 Hz to 16000 Hz (soxr HQ)."]
    assert facts["timing"]["frames"] == 8000
    page = command("run", "tiny.rnl", "--in", "in.wav", cwd=tmp_path).stdout.decode()
    assert "Resampled from 8000 Hz to 16000 Hz" in page


def test_stereo_is_mixed_and_said(bundle: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "in.wav", np.stack([TONE, 0.5 * TONE]), RATE, "float32")
    write_wav(tmp_path / "mono.wav", 0.75 * TONE, RATE, "float32")
    assert run(tmp_path, "in.wav")["notes"] == ["stereo mixed to mono."]
    mixed = read_wav(tmp_path / "out.wav").samples
    assert run(tmp_path, "mono.wav")["notes"] == []
    np.testing.assert_allclose(mixed, read_wav(tmp_path / "out.wav").samples, atol=2 / 32768)


def test_24_bits_are_read(bundle: Path, tmp_path: Path) -> None:
    pcm24(tmp_path / "in.wav", TONE)
    write_wav(tmp_path / "float.wav", TONE, RATE, "float32")
    assert run(tmp_path, "in.wav")["notes"] == []
    fine = read_wav(tmp_path / "out.wav").samples
    run(tmp_path, "float.wav")
    np.testing.assert_allclose(fine, read_wav(tmp_path / "out.wav").samples, atol=1 / 32768)
    assert fine.shape == (1, 3998)


def test_nan_is_an_error_or_silence(bundle: Path, tmp_path: Path, complaint: Complaint) -> None:
    broken = TONE.copy()
    broken[[1600, 1601]] = np.nan, np.inf
    write_wav(tmp_path / "in.wav", broken, RATE, "float32")
    said = complaint("run", "tiny.rnl", "--in", "in.wav", "--out", "out.wav")
    assert "2 samples are NaN or infinite, the first at 0.100 s" in said and "--on-nonfinite zero" in said
    assert "taken as silence" in run(tmp_path, "in.wav", "--on-nonfinite", "zero")["notes"][0]
    np.save(tmp_path / "in.npy", broken[None, None])
    (tmp_path / "out.wav").unlink()
    assert "nan" in complaint("run", "tiny.rnl", "--in", "in.npy", "--out", "out.wav")


def empty(path: Path) -> None:
    write_wav(path, np.zeros((1, 0), np.float32), RATE)


def header_of(promised: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(wav_header(1, RATE, promised) + bytes(64)) and None  # type: ignore[return-value]


def text(path: Path) -> None:
    path.write_text("not a recording\n")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def short(path: Path) -> None:
    write_wav(path, TONE[:2], RATE)


def folder(path: Path) -> None:
    path.mkdir()


def absent(path: Path) -> None:
    pass


def six_channels(path: Path) -> None:
    path.write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 85, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (empty, "has 0 samples"),
        (header_of(4_000_000_000), "its header promises 4000000000 bytes of samples and 64 are there"),
        (text, "is not a wav file"),
        (nothing, "is not a wav file"),
        (short, "takes no fewer than 3; push more"),
        (folder, "Is a directory"),
        (absent, "No such file"),
        (six_channels, "of a kind that is not read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_recordings_that_cannot_be(
    bundle: Path, tmp_path: Path, complaint: Complaint, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "in.wav")
    assert said in complaint("run", "tiny.rnl", "--in", "in.wav", "--out", "out.wav")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--out", "none/out.wav"], "no folder"),
        (["--out", "."], "'.' is not known"),
        (["--out", "wav:."], "not a file that can be replaced"),
        (["--out", "out.mp3"], "'out.mp3' is not known"),
        (["--out", "sum=out.wav"], "there is no output 'sum' but 'y'"),
        (["--out", "a.wav", "--out", "b.wav"], "is given two places"),
        (["--chunk", "0"], "--chunk 0 is 0 frames"),
        (["--chunk", "0.01ms"], "0.16 frames"),
        (["--chunk", "soon"], "not understood"),
        (["--rate", "0"], "not a whole number above 0"),
        (["--backend", "tpu"], "there is no backend 'tpu'"),
        (["--in", "ftp:in.wav"], "ftp:in.wav"),
        (["--in", "-"], "no samples came in"),
        (["--in", "in.npy"], "takes [1, 1, 'time'] float32"),
        (["--in", "many.npz"], "not known"),
        (["--in", "npy:many.npz"], "several arrays"),
        (["--in", "cut.npy"], "cut.npy"),
        (["--in", "objects.npy"], "objects.npy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_runs_that_cannot_be(bundle: Path, tmp_path: Path, complaint: Complaint, argv: list[str], said: str) -> None:
    write_wav(tmp_path / "in.wav", TONE, RATE)
    np.save(tmp_path / "in.npy", TONE)
    np.savez(tmp_path / "many.npz", a=TONE, b=TONE)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "in.npy").read_bytes()[:200])
    source = [] if "--in" in argv else ["--in", "in.wav"]
    sink = [] if "--out" in argv else ["--out", "out.wav"]
    assert said in complaint("run", "tiny.rnl", *source, *sink, *argv)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_endless_input_that_is_stopped_leaves_nothing(bundle: Path, tmp_path: Path, how: signal.Signals) -> None:
    before = listing(tmp_path)
    words = [sys.executable, "-m", "runnel", "run", "tiny.rnl", "--in", "-", "--out", "out.wav"]
    with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(bytes(3200))
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while listing(tmp_path) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert listing(tmp_path) != before, "it writes beside its target while it runs"
        process.send_signal(how)
        assert process.wait(60) == 130
        assert process.stderr.read().strip() == b"runnel: interrupted"
    assert listing(tmp_path) == before


def test_a_wav_of_the_wrong_rate_from_python_is_the_callers(bundle: Path) -> None:
    """Arrays carry no rate: the program says which one it was made for."""
    assert runnel.load(bundle).rate == RATE
