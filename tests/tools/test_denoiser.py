"""The main job through the command line: the project's own denoiser, compiled for this machine and run on sound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel import models
from runnel.runtime.io import read_wav, write_wav
from runnel.tools.cli import main
from runnel.tools.demo import offline, si_sdr

FOLDER = Path(models.__path__[0]) / "denoiser"
MODEL = FOLDER / "denoiser.onnx"
NOISY = FOLDER / "demo_noisy.wav"
BACKENDS = ("native", "onnxruntime")


def allowed(manifest: dict[str, Any]) -> float:
    return float(manifest["proof"]["limit"])


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The denoiser's bundle for this machine."""
    path = tmp_path_factory.mktemp("denoiser") / "denoiser.rnl"
    assert main(["compile", str(MODEL), "--rate", "16000", "--out", str(path), "--backend", "native"]) == 0
    assert [p.name for p in path.parent.iterdir()] == ["denoiser.rnl"]
    return path


def manifest(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return dict(json.loads(archive.read("manifest.json")))


def test_the_same_model_gives_the_same_bytes(denoiser: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.rnl"
    assert main(["compile", str(MODEL), "--rate", "16000", "--out", str(again), "--backend", "native"]) == 0
    assert again.read_bytes() == denoiser.read_bytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_verify_holds(denoiser: Path, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(denoiser), "--backend", backend, "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["ok"] and all(result["same_bits"] for result in page["results"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_recording_streams_as_the_offline_model_gives_it(denoiser: Path, backend: str, tmp_path: Path) -> None:
    noisy = read_wav(NOISY).samples[0][:40001]
    np.save(tmp_path / "in.npy", noisy[None])
    out = tmp_path / "out.npy"
    argv = ["run", str(denoiser), "--in", str(tmp_path / "in.npy"), "--out", str(out), "--backend", backend]
    assert main([*argv, "--chunk", "10ms"]) == 0
    expected, _ = offline(MODEL, noisy)
    streamed = np.load(out)[0]
    assert streamed.shape == expected.shape
    assert np.abs(streamed - expected).max() <= allowed(manifest(denoiser)) * np.abs(expected).max()
    for chunk in ("997", "all"):
        before = out.read_bytes()
        assert main([*argv, "--chunk", chunk]) == 0
        assert out.read_bytes() == before


def test_the_demos_recording_becomes_cleaner(denoiser: Path, tmp_path: Path) -> None:
    assert main(["run", str(denoiser), "--in", str(NOISY), "--out", str(tmp_path / "clean.wav")]) == 0
    noisy, cleaned, clean = (
        read_wav(path).samples[0] for path in (NOISY, tmp_path / "clean.wav", FOLDER / "demo_clean.wav")
    )
    assert si_sdr(cleaned, clean) >= si_sdr(noisy, clean) + 6


def test_running_a_bundle_needs_nothing_of_the_laptops(denoiser: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from runnel.tools.cli import main\n"
        f"code = main(['run', {str(denoiser)!r}, '--in', {str(NOISY)!r}, '--out', {str(tmp_path / 'clean.wav')!r}])\n"
        "heavy = {n.split('.')[0] for n in sys.modules} & {'tvm', 'onnx', 'onnxruntime', 'torch', 'matplotlib'}\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(("rate", "channels"), [(44100, 1), (8000, 2), (16000, 2)])
def test_other_recordings_are_made_to_fit_and_that_is_said(
    denoiser: Path, tmp_path: Path, rate: int, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(
        tmp_path / "in.wav", np.random.default_rng(0).uniform(-0.1, 0.1, (channels, rate)).astype(np.float32), rate
    )
    argv = ["run", str(denoiser), "--in", str(tmp_path / "in.wav"), "--out", str(tmp_path / "out.wav"), "--json"]
    assert main(argv) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
    assert ("resampled" in notes) == (rate != 16000)
    assert ("stereo" in notes) == (channels == 2)
    assert read_wav(tmp_path / "out.wav").rate == 16000


def sentence(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a user's mistake prints: exit code 2 and one line."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_broken_bundles_get_one_sentence(denoiser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = denoiser.read_bytes()
    bad = tmp_path / "bad.rnl"
    argv = ["run", str(bad), "--in", str(NOISY)]
    for data in (b"", b"junk", whole[:1000], whole[: len(whole) // 2], whole[:-1]):
        bad.write_bytes(data)
        assert "bad.rnl" in sentence(argv, capsys)
    with zipfile.ZipFile(denoiser) as archive:
        names = [n for n in archive.namelist() if n == "plan" or n.startswith(("kernels/", "weights/"))]
        starts = {n: archive.getinfo(n).header_offset + 30 + len(n) for n in names}
    assert len(names) == 3
    for name, start in starts.items():
        altered = bytearray(whole)
        altered[start + 8] ^= 0x40
        bad.write_bytes(altered)
        assert name in sentence(argv, capsys)


def test_models_that_are_none_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.onnx"
    whole = MODEL.read_bytes()
    for command in ("inspect", "compile"):
        assert "m.onnx" in sentence([command, str(model)], capsys)
        for data in (b"", b"junk" * 100, whole[:100], whole[: len(whole) // 2], os.urandom(4096)):
            model.write_bytes(data)
            sentence(
                [command, str(model), *(["--out", str(tmp_path / "m.rnl")] if command == "compile" else [])], capsys
            )
        model.unlink()
    assert list(tmp_path.iterdir()) == []
