"""The random Llama that runtimes are compared on: the same numbers in every form."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import runnel
from runnel.tools.decoding import flash, limit, model, worker
from runnel.tools.decoding.flash import without_arithmetic

SMALL = model.Shape(layers=1, width=64, hidden=96, heads=2, kv_heads=1, vocabulary=96, capacity=64)


def test_the_shape_is_that_of_336_million_weights() -> None:
    assert model.Shape().parameters == 336_068_608


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_gguf_stand_for_the_same_weights(bits: int) -> None:
    codes, scales = model.matrix("0.q", 64, 64, bits)
    assert codes.min() >= -(1 << (bits - 1)) and codes.max() < 1 << (bits - 1)
    blocks = model._blocks("0.q", 64, 64, bits, heads=2).reshape(64, 2, -1)
    steps = blocks[..., :2].copy().view(np.float16)
    held = blocks[..., 2:]
    if bits == 4:
        held = np.concatenate([held & 15, held >> 4], -1).astype(np.int8) - 8
    real = (held.view(np.int8) * steps.astype(np.float32)).reshape(2, 16, 2, 64)  # head, pair, half, inputs
    expected = codes * np.repeat(scales.astype(np.float32), model.BLOCK, 1)
    np.testing.assert_array_equal(real.swapaxes(1, 2).reshape(64, 64), expected)


def test_ours_and_onnxruntime_give_the_same_logits(tmp_path: Path) -> None:
    model.write_onnx(tmp_path / "small.onnx", SMALL, 4)
    runnel.compile(tmp_path / "small.onnx", tmp_path / "small.rnl", kv="window=64", backend="native")
    tokens = worker.tokens_of(12, SMALL.vocabulary)
    answers = []
    for run in (worker.Own(str(tmp_path / "small.rnl")), worker.Onnxruntime(str(tmp_path / "small.onnx"))):
        rows = [run.start(tokens[:8]), run.step(int(tokens[8]))]
        run.rewind()
        rows += [run.step(int(t)) for t in tokens[8:]]
        np.testing.assert_array_equal(rows[1], rows[2])
        answers.append(np.stack(rows))
    assert np.abs(answers[0] - answers[1]).max() <= 1e-5 * np.ptp(answers[1])
    without_arithmetic(tmp_path / "small.rnl", tmp_path / "idle.rnl")
    idle = worker.Own(str(tmp_path / "idle.rnl"), ram="8M")
    assert np.abs(idle.start(tokens[:8]) - answers[0][0]).max() > 0.1 * np.ptp(answers[0])
    assert idle.program.paging.weights == runnel.load(tmp_path / "small.rnl", ram="8M").paging.weights


def test_runs_over_their_budget_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.rnl").write_bytes(bytes(100_000))
    seen: list[tuple[int, int]] = []

    class Group:
        version, kills = 2, 1
        peaks = iter([30_000, 50_000, 40_000, 40_960])

        def run(self, words: list[object], most: int) -> tuple[subprocess.CompletedProcess[str], int]:
            seen.append((int(str(words[words.index("--ram") + 1])), most))
            return subprocess.CompletedProcess([], 0, '{"p50": 0.1}', ""), next(self.peaks)

    made = Group()
    monkeypatch.setattr(limit, "group", lambda name: nullcontext(made))
    monkeypatch.setattr(flash.build_board, "build", lambda out: out.write_bytes(b""))
    said: list[str] = []
    rows = flash.repeated(tmp_path / "m.rnl", 2, said.append)
    budget = 9 * 4096
    assert seen == [(budget, budget)] * 2 + [(budget, budget * 3 // 2)] * 2
    assert [(r["over"], r["charged"], r["kills"]) for r in rows] == [(1, 50_000, 1), (2, 40_960, 1)]
    assert "1 runs over the budget" in said[0]
