"""Four stacked GRUs on audio against the output that their authors recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runnel.runtime.chain import Chain
from runnel.runtime.program import Program

ALLOWED = 1e-5


@pytest.mark.parametrize("form", ["offline", "stream"])
@pytest.mark.parametrize("size", [1, 7, 1024, 100_000])
def test_the_stream_is_the_authors_output(
    zoo: Path, compiled: Callable[..., Path], load: Callable[..., Program], size: int, form: str
) -> None:
    folder = zoo / "rtneural-gru"
    x, expected = (
        np.loadtxt(folder / f"gru_torch_{name}_python.csv", dtype=np.float64).astype(np.float32).reshape(-1, 1, 1)
        for name in ("x", "y")
    )
    options = {"shape": {"x": [1, 1, 1]}} if form == "stream" else {}  # which brings its own states
    stream = Chain([load(compiled(f"rtneural_{form}", folder / f"gru_torch_{form}.onnx", **options))]).stream()
    if form == "stream":
        x, expected = x[..., None], expected[..., None]
    got = np.concatenate([stream.push(x[n : n + size]) for n in range(0, len(x), size)] + [stream.flush()])
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= ALLOWED
