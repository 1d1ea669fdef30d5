"""The quantised keyword spotter: a recording of features at a time, in codes, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import runnel
from runnel.compiler.graph.fold import session
from runnel.compiler.graph.model import load as read
from runnel.compiler.graph.quantised import integer_form
from runnel.runtime.program import Program
from runnel.tools.replay import play

MODEL = "mlperf-tiny/kws_dscnn_int8_qdq.onnx"


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """Codes of features: (300, 49, 10, 1) int8."""
    rng = np.random.default_rng(0)
    return np.clip(np.round(rng.standard_normal((300, 49, 10, 1)) * 40), -128, 127).astype(np.int8)


@pytest.mark.parametrize("chunks", [[1], [7], [1000]], ids=["1", "7", "whole"])
def test_codes_are_those_of_the_model_in_integers(
    zoo: Path, compiled: Callable[..., Path], load: Callable[..., Program], features: np.ndarray, chunks: list[int]
) -> None:
    bundle = compiled("kws_int8", zoo / MODEL)
    graph = read(zoo / MODEL)
    integer_form(graph)
    expected = session(graph.proto).run(None, {"input_1": features})[0]
    got = play(load(bundle).stream(), {"input_1": features}, {"input_1": 0}, chunks)["Identity"]
    differ = np.abs(got.astype(int) - expected)
    assert differ.max() <= 1 and (differ > 0).mean() <= 1e-3  # behind the softmax, a float island
    assert len(np.unique(expected.argmax(1))) > 1


def test_onnxruntime_on_the_exported_graph_differs_rarely(
    zoo: Path, compiled: Callable[..., Path], load: Callable[..., Program], features: np.ndarray
) -> None:
    """A sum in float32, or another order of multipliers, rounds the other way now and then."""
    program = load(compiled("kws_int8", zoo / MODEL))
    got = play(program.stream(), {"input_1": features}, {"input_1": 0}, [50])["Identity"]
    expected = ort.InferenceSession(str(zoo / MODEL), providers=["CPUExecutionProvider"]).run(
        None, {"input_1": features}
    )[0]
    assert (got != expected).any(1).mean() <= 0.02
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.99
    codes = program.manifest["proof"]["codes"]
    assert codes["islands"] and set(codes["differ"]) == {"onnxruntime", "native"}
    assert codes["optimised"]["differ"] <= 0.05


def test_windows_of_codes_share_their_columns(
    zoo: Path, compiled: Callable[..., Path], load: Callable[..., Program], features: np.ndarray
) -> None:
    """Every 49 frames of a stream of features, five frames apart; the network pads its windows with the zero point."""
    options = {"window": 49, "hop": 5, "time_axis": {"input_1": 1}, "shape": {"input_1": [1, 49, 10, 1]}}
    program = load(compiled("kws_int8_windows", zoo / MODEL, **options))
    graph = read(zoo / MODEL)
    integer_form(graph)
    x = features[:6].reshape(1, -1, 10, 1)
    starts = range(0, x.shape[1] - 49 + 1, 5)
    run = session(graph.proto)
    expected = np.stack([run.run(None, {"input_1": np.ascontiguousarray(x[:, s : s + 49])})[0] for s in starts])
    got = play(program.stream(), {"input_1": x}, {"input_1": 1}, [3, 1, 20])["Identity"]
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 1
    macs = program.manifest["macs"]
    assert macs["per_frame_streamed"] < macs["per_frame_windowed"] / 1.5


class Noise(CalibrationDataReader):
    """Random recordings to calibrate with."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.left = iter([{name: (rng.standard_normal(shape) * 0.5).astype(np.float32)} for _ in range(8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["qdq", "qoperator"])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=["int8", "uint8"])
@pytest.mark.parametrize(
    ("file", "shape", "options"),
    [
        ("mlperf-tiny/sww_fp32.onnx", (1, 30, 1, 40), {"window": 30}),
        ("pymicro-vad/vad_offline.onnx", (1, 74, 40), {"window": 74, "hop": 3}),
        ("mlperf-tiny/vww96_fp32.onnx", (1, 96, 96, 3), {}),
    ],
    ids=["sww", "pymicro", "vww96"],
)
def test_models_that_onnxruntime_quantised(
    zoo: Path, tmp_path: Path, file: str, shape: tuple[int, ...], options: dict[str, Any], form: Any, kind: Any
) -> None:
    """Native, and proved: the same codes as the model in integers."""
    name = ort.InferenceSession(str(zoo / file), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    model = tmp_path / "quantised.onnx"
    settings = {"quant_format": form, "per_channel": True, "activation_type": kind, "weight_type": QuantType.QInt8}
    quantize_static(str(zoo / file), str(model), Noise(name, shape), **settings)
    runnel.compile(model, tmp_path / "quantised.rnl", backend="native", **options)
    proof = runnel.load(tmp_path / "quantised.rnl").manifest["proof"]
    assert set(proof["codes"]["differ"]) == {"onnxruntime", "native"}
    assert max(proof["codes"]["differ"].values()) <= 0.01
    assert proof["codes"]["islands"] or proof["limit"] <= 1e-4
