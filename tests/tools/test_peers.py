"""The table of what streams exactly: its models, our column, and the page."""

from __future__ import annotations

import numpy as np
import pytest

from runnel.tools.peers import run_tract, table
from runnel.tools.peers.models import MODELS

BY_NAME = {model.name: model for model in MODELS}


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_models_run_offline(model: object) -> None:
    x = table.recording(model)  # type: ignore[arg-type]
    assert table.offline(model.proto(), x).size  # type: ignore[attr-defined]


def test_our_column() -> None:
    assert table.by_runnel(BY_NAME["residual around a symmetric convolution"]) == "exact"
    assert table.by_runnel(BY_NAME["attention, causal (Trilu)"]) == "exact (given max_frames=1024)"
    said = table.by_runnel(BY_NAME["squeeze-excite over time"])
    assert said.startswith("refused: ")
    assert "runs with pool=cumulative" in said


def test_a_wrong_stream_is_called_wrong() -> None:
    wanted = np.arange(40, dtype=np.float32).reshape(1, 1, 40)
    pulses = np.stack(np.split(np.pad(wanted, [(0, 0), (0, 0), (2, 10)]), 13, axis=2))
    assert run_tract.verdict(pulses, wanted, 2, delay=2) == "exact"
    assert run_tract.verdict(pulses, wanted, 2, delay=3).startswith("**wrong**")
    pulses[10] += 5
    assert "in the last 2 frames" in run_tract.verdict(pulses, wanted, 2, delay=2)


def test_the_page_is_of_these_models_and_none_is_wrong() -> None:
    lines = table.PAGE.read_text("utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ") and "---" not in line][1:]
    assert [row[0].removeprefix("| ") for row in rows] == list(BY_NAME)
    for row in rows:
        assert row[1].startswith(("exact", "refused: ")), row
