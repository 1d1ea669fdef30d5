"""Decoders whose past is a state of fixed size: streams equal onnxruntime's own run, also on kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
from decoders import VOCABULARY
from recurrent import RECURRENT

import runnel
from runnel.runtime import native

FRAMES = 19
BACKENDS = ["onnxruntime", pytest.param("native", marks=pytest.mark.skipif(not native.LIBRARY.exists(), reason="core"))]


@pytest.mark.parametrize("name", RECURRENT)
def test_equals_onnxruntime(tmp_path: Path, name: str) -> None:
    decoder = RECURRENT[name]()
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, (1, FRAMES))
    wanted = decoder.logits(tokens, [1] * FRAMES).reshape(FRAMES, VOCABULARY)
    info = runnel.compile(decoder.model, tmp_path / "m.rnl")
    assert "native" in info.manifest["backends"], info.manifest["native_refusal"]
    for backend in info.manifest["backends"] if native.LIBRARY.exists() else ["onnxruntime"]:
        program = runnel.load(info.path, backend=backend)
        x = tokens if program.inputs[0].axis else tokens.reshape(FRAMES, 1, 1)
        stream = program.stream()
        axis = program.outputs[0].axis or 0
        parts = [stream.push(x.take(range(a, b), program.inputs[0].axis)) for a, b in ((0, 4), (4, 5), (5, FRAMES))]
        got = np.concatenate([*parts, stream.flush()], axis).reshape(FRAMES, VOCABULARY)
        assert oracle.deviation(got, wanted) <= oracle.TOLERANCE, backend
