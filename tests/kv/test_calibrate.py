"""Which heads have to keep everything: the tool that finds out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoders import VOCABULARY

import runnel
from models import FAMILIES
from runnel.runtime import native
from runnel.tools.calibrate_heads import Tabled, calibrate, scaled

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, 96)


def test_a_changed_table_is_a_compiled_one(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(FAMILIES["grouped_heads"]().model)
    heads = np.array([[True, False], [False, False]])
    table = tmp_path / "own.tsv"
    table.write_text("1 0\n0 0\n")
    info = runnel.compile(model, tmp_path / "own.rnl", kv=f"heads={table},full=48,sink=2,window=6")
    wanted = runnel.load(info.path).stream().push(TOKENS[None, :48])
    tabled = Tabled(model, 48, 2, 6, tmp_path)
    assert tabled.shape == (2, 2)
    assert np.array_equal(tabled.program(heads).stream().push(TOKENS[None, :48]), wanted)
    assert not np.array_equal(tabled.program(~heads).stream().push(TOKENS[None, :48]), wanted)


def test_a_text_says_what_heads_are_worth(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(FAMILIES["grouped_heads"]().model)
    found = calibrate(model, TOKENS, sink=2, window=6, sparsity=0.5, piece=48)
    assert found.worth.shape == (2, 2) and found.worth.min() > 0
    best = np.unravel_index(found.worth.argmax(), (2, 2))
    assert found.table[best] == 1.0 and (found.table < 0.5).sum() == 2
    assert len({found.full, found.streaming, found.chosen}) == 3
    with pytest.raises(runnel.InputError, match="more text"):
        calibrate(model, TOKENS[:60], 2, 6, 0.5, piece=48)


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 1.0])
def test_ranks_leave_so_many_heads_below_the_line(sparsity: float) -> None:
    table = scaled(np.random.default_rng(1).random((3, 4)), sparsity)
    assert (table < 0.5).sum() == round(12 * sparsity)
    assert table.min() >= 0 and table.max() <= 1
