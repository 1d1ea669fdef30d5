"""How a budget is shared between neurons and other weights, and how neighbouring neurons are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from relu_layers import NEURONS, WIDTH, beside, network

import runnel
from runnel.compiler.lowering import segments, split
from runnel.runtime.storage_notes import notes, read_bytes
from runnel.tools import build
from runnel.tools.activity import missed


def measured(path: Path, small: float, large: float) -> None:
    """Figures of a storage that reads blocks of 4 KiB and of 1 MiB at so many 10⁶ bytes a second."""
    speeds = [{"bytes": 4096, "depth": 8, "mb_s": small}, {"bytes": 1 << 20, "depth": 8, "mb_s": large}]
    notes().parent.mkdir(parents=True, exist_ok=True)
    notes().write_text(json.dumps({str(os.stat(path).st_dev): {"mb_s": large, "speeds": speeds}}))


def compiled(path: Path, model: bytes) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        for module in (split, segments):
            patch.setattr(module, "SEGMENT_BYTES", 1 << 14)
        sound = np.random.default_rng(1).standard_normal((1, 300, WIDTH)).astype(np.float32)
        runnel.compile(model, path, backend="native", hop=1, sparse="exact", calibration=sound)
    return path


def paged(path: Path, ram: int) -> runnel.Program:
    return runnel.load(path, runtime=runnel.Runtime(ram=ram))


def test_what_one_more_read_costs(storage: Path) -> None:
    assert read_bytes(storage) == 0
    measured(storage, 100.0, 1600.0)
    assert read_bytes(storage) == 15 * 4096
    notes().write_text("{}")
    assert read_bytes(storage) == 0


def test_neurons_that_come_again_have_room_before_weights_that_pass(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the neurons is always active, more than the least slots hold: kept, they save most reads."""
    hot = np.where(np.arange(NEURONS) % 4 == 0, 9.0, -9.0)
    told = compiled(storage / "told.rnl", beside(8, hot))
    monkeypatch.setattr(build, "expected_misses", lambda *_: {})
    untold = compiled(storage / "untold.rnl", beside(8, hot))
    x = np.random.default_rng(2).standard_normal((1, 20, WIDTH)).astype(np.float32)
    facts = []
    for path in (untold, told):
        program = paged(path, paged(path, 1 << 30).paging.least + 130_000)
        stream = program.stream()
        for i in range(20):
            stream.push(x[:, i : i + 1])
        facts.append(program.paging)
        assert facts[-1].peak <= facts[-1].ram
    without, given = facts
    assert without.units.hit_rate == 0
    assert given.units.hit_rate > 0.9
    assert given.units.room > without.units.room
    assert given.pinned < without.pinned
    assert given.bytes_read < without.bytes_read


def test_a_layer_that_is_all_active_is_read_in_large_pieces(storage: Path) -> None:
    path = compiled(storage / "m.rnl", network("gated_second", "plain", "gated", bias=1e3))
    least = paged(path, 1 << 30).paging.least
    program = paged(path, least)
    x = np.random.default_rng(0).standard_normal((1, 20, WIDTH)).astype(np.float32)
    stream = program.stream()
    for i in range(20):
        stream.push(x[:, i : i + 1])
    units = program.paging.units
    assert units.chosen > 20 * 2 * NEURONS
    missed = units.chosen - units.found
    assert missed > 10 * NEURONS
    assert units.reads < missed / 20
    assert units.bytes_read < 1.5 * missed * 2 * 192


def test_a_window_misses_what_it_dropped() -> None:
    """Two layers of three neurons, each in turn: with room for less than all, the one that comes next has just gone."""
    lists = [[[frame % 3] for frame in range(12)] for _ in range(2)]
    assert missed(lists, 0, 0) == [12, 12]
    assert missed(lists, 5, 6) == [6, 6]
    assert missed(lists, 6, 0) == [3, 3]
    assert missed(lists, 6, 6) == [0, 0]
