"""The bound peer computes what the onnxruntime backend computes, so that bench compares like with like."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import runnel
from runnel import models
from runnel.tools.cli import main
from runnel.tools.peer import BoundProgram


def test_bound_calls_give_what_the_backend_gives(tmp_path: Path) -> None:
    model = Path(models.__path__[0]) / "denoiser" / "denoiser.onnx"
    path = tmp_path / "m.rnl"
    assert main(["compile", str(model), "--rate", "16000", "--out", str(path), "--backend", "onnxruntime"]) == 0
    program = runnel.load(path, backend="onnxruntime")
    stream, bound = program.stream(), BoundProgram(path).stream()
    x = np.random.default_rng(0).standard_normal((1, 30 * program.hop)).astype(np.float32)
    steps = np.split(x, 30, axis=1)
    expected = np.concatenate([stream.push(step) for step in steps], 1)
    got = np.concatenate([bound.push(step)[0].copy() for step in steps], 1)
    assert expected.shape[1] > 10 * program.hop
    late = got[:, got.shape[1] - expected.shape[1] :]  # with other rewrites of the graph, so not to the last bit
    np.testing.assert_allclose(late, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_steady_calls_agree_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    model = Path(models.__path__[0]) / "denoiser" / "denoiser.onnx"
    path = tmp_path / "m.rnl"
    assert main(["compile", str(model), "--rate", "16000", "--out", str(path), "--backend", "onnxruntime"]) == 0
    bound, steady = BoundProgram(path).stream(), BoundProgram(path, steady=True).stream()
    x = np.zeros((1, 512), np.float32)
    for _ in range(40):  # silence: what the start leaves behind fades from the recurrent state
        expected, got = bound.push(x)[0].copy(), steady.push(x)[0].copy()
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert len(BoundProgram(path, steady=True).whole.session.get_inputs()) < len(
        BoundProgram(path).whole.session.get_inputs()
    )
