"""Static inputs and inputs of several rates on the command line, and what is said when they are given wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.tools.cli import main

FLOAT = TensorProto.FLOAT


def port(name: str, shape: list[Any] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(path: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], **weights: Any) -> Path:
    initial = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, initial)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def gained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of y = x · gain."""
    folder = tmp_path_factory.mktemp("gain")
    model = save(
        folder / "gain.onnx", [helper.make_node("Mul", ["x", "gain"], ["y"], "mul")],
        [port("x", [1, 1, "T"]), port("gain", [1])], [port("y", [1, 1, "T"])],
    )  # fmt: skip
    assert main(["compile", str(model), "--rate", "16000", "--out", str(folder / "gain.rnl")]) == 0
    np.save(folder / "x.npy", np.ones((1, 1, 50), np.float32))
    return folder


@pytest.mark.parametrize("value", ["3", "gain.npy"])
def test_run_sets_a_static_input(gained: Path, value: str) -> None:
    np.save(gained / "gain.npy", np.array([3.0], np.float32))
    value = str(gained / value) if value.endswith(".npy") else value
    argv = ["run", str(gained / "gain.rnl"), "--in", str(gained / "x.npy"), "--out", str(gained / "y.npy")]
    assert main([*argv, "--set", f"gain={value}"]) == 0
    assert (np.load(gained / "y.npy") == 3).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the static inputs 'gain' float32[1] have no value"),
        (["--set", "volume=3"], "'volume' is no static input of this program; those are: 'gain'"),
        (["--set", "gain=loud"], "'gain=loud' gives neither a number nor a .npy file"),
        (["--set", "gain=/nowhere/x.npy"], "gives neither a number nor a .npy file"),
    ],
)
def test_a_wrong_static_input_is_one_sentence(
    gained: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    argv = ["run", str(gained / "gain.rnl"), "--in", str(gained / "x.npy"), "--out", str(gained / "z.npy")]
    try:
        code = main([*argv, *options])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    errors = capsys.readouterr().err.strip()
    assert said in errors and "\n" not in errors
    assert not (gained / "z.npy").exists()


def test_verify_and_bench_give_static_inputs_values(gained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["--backend", "native,onnxruntime"]
    assert main(["verify", str(gained / "gain.rnl"), *both]) == 0
    backends = ["--backend", "native,onnxruntime-bound", "--steps", "20", "--rounds", "2"]
    assert main(["bench", str(gained / "gain.rnl"), *backends]) == 0


@pytest.fixture(scope="module")
def lips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that adds audio, brought to the rate of the video, to the video."""
    return save(
        tmp_path_factory.mktemp("lips") / "lips.onnx",
        [
            helper.make_node("Conv", ["audio", "w"], ["a"], "conv", strides=[640]),
            helper.make_node("Add", ["a", "video"], ["y"], "add"),
        ],
        [port("audio", [1, 1, "samples"]), port("video", [1, 2, "frames"])], [port("y", [1, 2, "frames"])],
        w=np.full((2, 1, 640), 1 / 640, np.float32),
    )  # fmt: skip


RATES = ["--rate", "audio:16000", "--rate", "video:25"]


def test_rates_by_name(lips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(lips), *RATES]) == 0
    page = capsys.readouterr().out
    assert "640 a tick, receptive field 640 of its frames" in page and "latency              0 ticks (0.0 ms)" in page
    out = tmp_path / "lips.rnl"
    assert main(["compile", str(lips), *RATES, "--hop", "80ms", "--out", str(out), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert manifest["hop"] == 2 and manifest["clock"]["rate"] == 25 and manifest["clock"]["ahead"] == 25
    assert main(["verify", str(out), "--backend", "native,onnxruntime"]) == 0
    stream = runnel.load(out).stream()
    y = [stream.push({"audio": np.ones((1, 1, 1000), np.float32)}), stream.push({"video": np.ones((1, 2, 1), "f4")})]
    assert [part.shape[2] for part in y] == [0, 1] and np.allclose(y[1], 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "16000"], "inputs of different rates take them by name"),
        (["--rate", "16000", "--rate", "25"], "--rate is given once, or once for each input"),
        (["--rate", "audio:16000"], "'video' has an open axis 2, so it needs a rate too"),
        ([*RATES, "--rate", "mouse:60"], "'mouse' needs to be an input with a rate"),
        ([*RATES, "--window", "16"], "windows of inputs with different rates are not available"),
        ([*RATES, "--time-axis", "audio:7"], "outside"),
        (["--rate", "audio:fast"], "is not a number of frames a second"),
    ],
)
def test_wrong_rates_are_one_sentence(
    lips: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    try:
        code = main(["inspect", str(lips), *options])
    except SystemExit as end:
        code = int(end.code or 0)
    errors = capsys.readouterr().err.strip()
    assert code == 2 and said in errors and "\n" not in errors
