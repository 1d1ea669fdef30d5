"""compile, run, verify and bench with a stand-in for the compiled program."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runnel
from runnel.runtime.io import read_wav, write_wav
from runnel.tools.cli import main

TONE = (0.25 * np.sin(np.arange(16000) / 30)).astype(np.float32)


def doubled(x: np.ndarray) -> np.ndarray:
    return x + np.concatenate([x[3:], np.zeros(3, np.float32)])


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    write_wav(tmp_path / "in.wav", TONE, 16000, "float32")
    return tmp_path / "in.wav"


def test_run_streams_a_wav_and_flushes(
    bundle: Path, wav: Path, tmp_path: Path, program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(bundle), "--in", str(wav), "--out", str(tmp_path / "out.wav")]) == 0
    got = read_wav(tmp_path / "out.wav")
    assert got.rate == 16000
    np.testing.assert_allclose(got.samples[0], doubled(TONE), atol=1 / 32768)
    assert program.streams[0].chunks == [160] * 100
    out = capsys.readouterr().out
    assert "16000 frames, 1.00 s, in 100 steps of 160 frames (10.0 ms)" in out
    assert "3 frames (0.2 ms)" in out
    assert "real-time factor" in out


@pytest.mark.parametrize(("chunk", "sizes"), [("1600", [1600] * 10), ("125ms", [2000] * 8), ("all", [16000])])
def test_run_takes_chunks_as_asked(bundle: Path, wav: Path, program: Any, chunk: str, sizes: list[int]) -> None:
    assert main(["run", str(bundle), "--in", str(wav), "--chunk", chunk, "--on-nonfinite", "zero"]) == 0
    assert program.streams[0].chunks == sizes
    assert program.options == [{"on_nonfinite": "zero", "inputs": {}}]


@pytest.mark.parametrize(
    ("chunk", "sentence"),
    [("0", "0 frames"), ("0.1ms", "1.6 frames"), ("a", "not understood"), ("-5", "not understood")],
)
def test_chunks_that_cannot_be_are_refused(
    bundle: Path, wav: Path, chunk: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(bundle), "--in", str(wav), f"--chunk={chunk}"]) == 2
    assert sentence in capsys.readouterr().err


def test_run_prints_json_with_the_notes(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav(tmp_path / "in.wav", np.stack([TONE, TONE]), 8000)
    assert main(["run", str(bundle), "--in", str(tmp_path / "in.wav"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["notes"] == ["stereo mixed to mono.", "resampled from 8000 Hz to 16000 Hz (soxr HQ)."]
    assert facts["timing"]["frames"] == 32000
    assert facts["latency_ms"] == 3 / 16


def test_run_pipes_raw_pcm_and_keeps_the_figures_out_of_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    data = np.rint(TONE * 32767).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert main(["run", str(bundle), "--in", "-", "--out", "-"]) == 0
    captured = capsysbinary.readouterr()
    np.testing.assert_allclose(np.frombuffer(captured.out, "<i2") / 32768, doubled(TONE), atol=2e-4)
    assert b"real-time factor" in captured.err


def test_a_failed_run_leaves_no_file(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.wav"
    assert main(["run", str(bundle), "--in", str(tmp_path / "none.wav"), "--out", str(out)]) == 2
    assert "none.wav' cannot be read: No such file" in capsys.readouterr().err
    write_wav(tmp_path / "nan.wav", np.array([0.0, np.nan], np.float32), 16000, "float32")
    assert main(["run", str(bundle), "--in", str(tmp_path / "nan.wav"), "--out", str(out)]) == 2
    assert not out.exists()
    assert main(["run", str(bundle), "--in", str(tmp_path / "nan.wav"), "--out", "out.mp3"]) == 2


def test_realtime_takes_as_long_as_the_recording(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "in.wav", TONE[:3200], 16000)
    assert main(["run", str(bundle), "--in", str(tmp_path / "in.wav"), "--realtime", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["timing"]["deadline_misses"] is not None


def test_verify_holds(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["ok"] is True
    assert {r["chunking"] for r in page["results"]} == {"frame by frame", "prime", "random", "whole"}
    assert main(["verify", str(bundle)]) == 0


def test_verify_notices_a_wrong_program(bundle: Path, program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    program.gain = np.float32(1.0001)
    assert main(["verify", str(bundle)]) == 1
    assert "NOT verified" in capsys.readouterr().out
    program.manifest = {"proof": {"limit": 1e-3}}
    assert main(["verify", str(bundle)]) == 0


def test_verify_without_a_bundle(tmp_path: Path, program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.rnl").write_bytes(b"not a zip")
    assert main(["verify", str(tmp_path / "m.rnl")]) == 2
    assert "m.rnl" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none.rnl")]) == 2


def test_bench_compares_backends(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "bench",
        str(bundle),
        "--backend",
        "native,onnxruntime",
        "--steps",
        "20",
        "--rounds",
        "2",
        "--chunk",
        "10ms",
    ]
    assert main([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["backend"] for row in rows] == ["native", "onnxruntime"]
    assert all(row["timing"]["steps"] == 20 and row["timing"]["frames"] == 3200 for row in rows)
    assert main(argv) == 0
    assert "takes" in capsys.readouterr().out


def test_compile_passes_what_was_asked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    manifest = {
        "target": {"name": "host", "arch": "x86_64"}, "backends": ["native"], "native_refusal": None, "hop": 160,
        "clock": {"rate": 16000}, "latency_frames": 320, "proof": {
            "error": {"native": 1.5e-7}, "limit": 1e-5, "frames": [100, 7], "where": "this machine",
            "chunkings": ["whole"], "not_covered": "other lengths",
        },
        "macs": {"per_second_streamed": 1e7, "per_second_windowed": 1e9},
    }  # fmt: skip

    def fake_compile(model: str, out: Path, **options: Any) -> Any:
        asked.update(options, model=model)
        out.write_bytes(b"x" * 2048)
        return SimpleNamespace(path=out, manifest=manifest)

    monkeypatch.setitem(vars(runnel), "compile", fake_compile)
    monkeypatch.chdir(tmp_path)
    argv = ["compile", "a/m.onnx", "--hop", "10ms", "--rate", "16000", "--time-axis", "x:0:1", "--state", "h_out:h"]
    argv += ["--bind", "sr:16000", "--shape", "h:2,1,128"]
    assert main(argv) == 0
    assert (tmp_path / "m.rnl").exists()
    assert asked["hop"] == 160
    assert asked["time_axis"] == {"x:0": 1}
    assert asked["state"] == {"h_out": "h"}
    assert asked["bind"]["sr"] == 16000
    assert asked["shape"] == {"h": [2, 1, 128]}
    out = capsys.readouterr().out
    assert "320 frames (20.0 ms)" in out
    assert "100 times as many" in out
    assert "1.5e-07" in out
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["hop"] == 160


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--target", "moon"], "there is no target 'moon'; known are: "),
        (["--hop", "10ms"], "give --rate"),
        (["--mode", "reuse"], "give --window"),
        (["--out", "m.onnx"], "is the model itself"),
    ],
)
def test_compile_options_that_cannot_be(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "m.onnx", *options]) == 2
    assert sentence in capsys.readouterr().err
