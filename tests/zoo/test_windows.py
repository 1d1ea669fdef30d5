"""Classifiers of a fixed window: the stream gives what the model gives on each window, without running it whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from runnel.runtime.program import Program
from runnel.tools.replay import deviation, play

ALLOWED = 2e-5  # of the output's range; onnxruntime itself differs by 3e-6 between whole windows and frames
MODELS = {  # file, the sizes of a frame, options
    "sww": ("mlperf-tiny/sww_fp32.onnx", (1, 40), {"window": 30}),
    "pymicro": ("pymicro-vad/vad_offline.onnx", (40,), {"window": 74, "hop": 3}),
    "pymicro-unaligned": ("pymicro-vad/vad_offline.onnx", (40,), {"window": 74, "hop": 2}),
    "kws": ("mlperf-tiny/kws_dscnn_fp32.onnx", (10, 1), {"window": 49, "hop": 2}),
    "kws-unaligned": ("mlperf-tiny/kws_dscnn_fp32.onnx", (10, 1), {"window": 49, "hop": 3}),
}
FRAMES = 151


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunks", [[1], [7], [2, 31, 1, 5], [1000]], ids=["1", "7", "mixed", "whole"])
def test_every_window_is_what_the_model_gives_on_it(
    name: str, zoo: Path, compiled: Callable[..., Path], load: Callable[..., Program], chunks: list[int]
) -> None:
    file, sizes, options = MODELS[name]
    settings: dict[str, Any] = dict(options)
    width, hop = settings["window"], settings.get("hop", 1)
    session = ort.InferenceSession(str(zoo / file), providers=["CPUExecutionProvider"])
    source, result = session.get_inputs()[0].name, session.get_outputs()[0].name
    x = np.random.default_rng(0).standard_normal((1, FRAMES, *sizes)).astype(np.float32)
    starts = range(0, FRAMES - width + 1, hop)
    expected = np.stack([session.run(None, {source: x[:, s : s + width]})[0] for s in starts])
    got = play(load(compiled(name, zoo / file, **settings)).stream(), {source: x}, {source: 1}, chunks)
    assert deviation(got, {result: expected}) <= ALLOWED
    assert np.ptp(expected) > 0.05
