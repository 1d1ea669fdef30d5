"""Named modes: what is written into the bundle and said about them, with a stand-in for a rule that uses one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "streaming"))
from nets import stack

import runnel
from runnel.compiler.streaming import rules as _rules  # noqa: F401  (registers them)
from runnel.compiler.streaming.registry import RULES, MixesTime
from runnel.errors import InputError, Refused
from runnel.runtime.io import write_wav
from runnel.tools.cli import main


def _softsign_in_a_mode(a: Any, node: Any) -> list[Any]:
    """Stands in for a rule: what it computes instead is a Tanh."""
    if "pool" not in a.modes:
        raise MixesTime("stands in for an op that mixes time", "use another", ["pool=cumulative"])
    a.used_modes["pool"] = a.modes["pool"]
    return [a.pointwise(node, [a.stream(node)], a.stream(node).axis, op="Tanh")]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(RULES, "Softsign", _softsign_in_a_mode)
    net, x = stack(2)
    h = net.op("Softsign", net.conv(x, 2, 2, 3, pads=[1, 1]))
    (tmp_path / "model.onnx").write_bytes(net.model(net.op("Relu", h)))
    return tmp_path / "model.onnx"


def recording(frames: int = 300) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 2, frames)).astype(np.float32)


def test_refused_with_the_mode_that_would_run_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Refused, match="--mode pool=cumulative would run it") as refused:
        runnel.inspect(model)
    assert refused.value.reasons[0].modes == ("pool=cumulative",)
    assert refused.value.decided == {"exact": {"Conv": 1}, "refused": {"Softsign": 1}, "undecided": {"Relu": 1}}
    assert main(["inspect", str(model)]) == 2
    page = capsys.readouterr().err
    assert "exact: Conv 1" in page
    assert "behind a refused op, so not decided: Relu 1" in page
    assert main(["inspect", str(model), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["refused"][0]["modes"] == ["pool=cumulative"]


def test_inspect_says_what_is_not_exact(model: Path) -> None:
    report = runnel.inspect(model, mode="pool=cumulative")
    assert report.decided == {"exact": {"Conv": 1, "Relu": 1}, "pool=cumulative": {"Softsign": 1}}
    assert "streams exactly" not in report.text()
    assert "not exact            pool=cumulative in Softsign 'node_Softsign" in report.text()


def test_a_mode_that_nothing_needs_changes_nothing(model: Path, tmp_path: Path) -> None:
    info = runnel.compile(model, tmp_path / "m.rnl", mode=["pool=cumulative", "norm=running"])
    assert list(info.manifest["modes"]["used"]) == ["pool"]


@pytest.mark.parametrize("kind", ["npy", "npz", "array", "arrays"])
def test_deviation_on_a_recording(model: Path, tmp_path: Path, kind: str) -> None:
    x = recording()
    np.save(tmp_path / "c.npy", x)
    np.savez(tmp_path / "c.npz", x=x)
    given = {"npy": tmp_path / "c.npy", "npz": str(tmp_path / "c.npz"), "array": x, "arrays": {"x": x}}[kind]
    info = runnel.compile(model, tmp_path / "m.rnl", mode="pool=cumulative", calibration=given, backend="onnxruntime")
    modes = info.manifest["modes"]
    assert modes["calibration"]["frames"] == 300
    assert modes["calibration"]["name"] == ("arrays" if kind in ("array", "arrays") else f"c.{kind}")
    stream = runnel.load(tmp_path / "m.rnl", backend="onnxruntime").stream()
    got = np.concatenate([stream.push(x), stream.flush()], 2)
    assert modes["used"]["pool"]["deviation"] == modes["deviation"]
    (measured,) = modes["deviation"].values()
    h = np.arctanh(np.minimum(got, 1 - 1e-7).astype(np.float64))
    offline = h / (1 + h)
    rms = np.sqrt(((got - offline) ** 2).mean() / (offline**2).mean())
    assert measured["rms"] == pytest.approx(rms, rel=1e-3)
    assert measured["snr_db"] == pytest.approx(-20 * np.log10(rms), rel=1e-3)


def test_several_modes_are_measured_together(tmp_path: Path) -> None:
    net, x = stack(2)
    h = net.op("InstanceNormalization", x, net.weight(2), net.weight(2))
    h = net.op("Mul", h, net.op("Sigmoid", net.op("GlobalAveragePool", x)))
    (tmp_path / "model.onnx").write_bytes(net.model(h))
    modes = ["pool=cumulative", "norm=running"]
    info = runnel.compile(tmp_path / "model.onnx", tmp_path / "m.rnl", mode=modes, backend="onnxruntime")
    assert info.manifest["modes"]["deviation"]
    for used in info.manifest["modes"]["used"].values():
        assert used["deviation"] is None and "together" in used["why"]
    assert runnel.load(tmp_path / "m.rnl", backend="onnxruntime").manifest["modes"] == info.manifest["modes"]


def test_proof_and_verify_are_about_the_streamed_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "m.rnl")
    assert main(["compile", str(model), "--out", out, "--mode", "pool=cumulative"]) == 0
    page = capsys.readouterr().out
    assert "pool=cumulative in Softsign" in page
    assert "on noise of" in page
    manifest = runnel.load(out).manifest
    assert manifest["backends"] == ["native", "onnxruntime"]
    assert manifest["proof"]["against"] == "the portable form"
    assert main(["verify", out, "--backend", "native,onnxruntime"]) == 0
    assert "in named modes" in capsys.readouterr().out
    np.save(tmp_path / "x.npy", recording())
    assert main(["run", out, "--in", str(tmp_path / "x.npy")]) == 0
    assert "not exact" in capsys.readouterr().out
    assert main(["run", out, "--in", str(tmp_path / "x.npy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modes"] == {"pool": "cumulative"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros((1, 3, 50), np.float32), r"takes float32 \[1, 2, time\]"),
        (np.zeros((1, 2, 50), np.int64), "is int64"),
        ({"y": np.zeros((1, 2, 50), np.float32)}, "differ in the input"),
        ("missing.npy", "cannot be read"),
        ("sound.mp3", "neither"),
    ],
)
def test_recordings_that_do_not_fit(model: Path, tmp_path: Path, given: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        runnel.compile(model, tmp_path / "m.rnl", mode="pool=cumulative", calibration=given)
    assert not (tmp_path / "m.rnl").exists()


def test_a_wav_file_calibrates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(RULES, "Softsign", _softsign_in_a_mode)
    net, x = stack(1)
    (tmp_path / "model.onnx").write_bytes(net.model(net.op("Softsign", net.conv(x, 1, 1, 3))))
    write_wav(tmp_path / "c.wav", recording(2000)[0, 0], 16000)
    options = ["--mode", "pool=cumulative", "--calibration", str(tmp_path / "c.wav"), "--rate", "16000"]
    assert main(["compile", str(tmp_path / "model.onnx"), "--out", str(tmp_path / "m.rnl"), *options]) == 0
    assert runnel.load(tmp_path / "m.rnl").manifest["modes"]["calibration"]["frames"] == 2000
