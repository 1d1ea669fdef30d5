"""Decoders of several families far from the first token, beside a float64 run of their graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoders import VOCABULARY
from float64 import Float64

import runnel
from models import FAMILIES
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.runtime import native

FRAMES = 21
RULES = "sink=2,window=9"


@pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")
@pytest.mark.parametrize("name", ["positions_scaled_yarn", "alibi_keys", "absorbed"])
def test_equals_float64_at_any_position(tmp_path: Path, name: str) -> None:
    model = FAMILIES[name]().model
    program = runnel.load(runnel.compile(model, tmp_path / "m.rnl", kv=RULES).path)
    tokens = np.random.default_rng(5).integers(0, VOCABULARY, (1, FRAMES))
    for start in (2**24 - 8, 2**31 - 8):
        got = program.stream(position=start).push(tokens)[0]
        reference = Float64(analyse(load(model), kv=RULES), start)
        wanted = [reference.step({"input_ids": tokens[:, [i]]})["logits"].reshape(-1) for i in range(FRAMES)]
        assert np.abs(got - np.stack(wanted)).max() <= 1e-4 * np.ptp(wanted)
