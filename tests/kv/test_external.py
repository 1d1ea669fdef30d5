"""Policies in Python over native streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention import Attention, cut, rope, streamed
from reference import dense

import runnel
from runnel.runtime import native
from runnel.runtime.cache.policy import Scored, ScoredStream

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")


def by_key_norm(scored: Scored) -> np.ndarray:
    """Short keys get attention (Knorm)."""
    return -np.linalg.norm(scored.keys, axis=-1)


class Whole:
    """The parts of a push by name, as ``streamed`` wants them, through a scored stream of several inputs."""

    def __init__(self, inner: ScoredStream) -> None:
        self.inner, self.seen = inner, []

    def push(self, x: dict[str, np.ndarray]) -> Any:
        if self.inner.stream.kv.kept == self.inner.slots:
            self.inner.compress()
            self.seen.append([self.inner.stream.read(0, h).positions for h in range(2)])
        return self.inner.stream.push(x)


@pytest.mark.parametrize("start", [0, 2**24 - 8, 2**31 - 8])
def test_a_scorer_decides_what_stays(start: int) -> None:
    model = Attention(more={"rotary": rope(4), "scale": 0.5})
    program, x = model.program("external=12"), model.inputs(50)
    whole = Whole(ScoredStream(program, by_key_norm, keep=8, sink=2, recent=3, position=start))
    got = streamed(whole, x)
    norms = np.linalg.norm(x["k"][0].astype(np.float64), axis=-1)
    kept = np.zeros((2, 50, 50), bool)
    for h in range(2):
        held: list[int] = []
        for n in range(50):
            if len(held) == 12:
                middle = sorted(held[2:-3], key=lambda p: norms[h, p])[:3]
                held = [p for p in held if p in held[:2] or p in held[-3:] or p in middle]
            held.append(n)
            kept[h, n, held] = True
    wanted = dense(model.node, x["q"][0], x["k"][0], x["v"][0], kept, start)
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert all(len(p) == 8 and {start, start + 1} <= set(p.tolist()) for both in whole.seen for p in both)


def test_what_a_stream_holds_can_be_read() -> None:
    model = Attention(more={"scale": 0.5})
    stream, x = model.program("external=20").stream(position=7), model.inputs(9)
    streamed(stream, x)
    held = stream.read(0, 1)
    assert held.positions.tolist() == list(range(7, 16))
    assert np.array_equal(held.keys, x["k"][0, 1]) and np.array_equal(held.values, x["v"][0, 1])
    assert abs(held.attention.sum() - 9 * 2) < 1e-4
    stream.drop(0, 1, np.array([2, 5]))
    assert sorted(stream.read(0, 1).positions.tolist()) == [7, 8, 10, 11, 13, 14, 15]
    assert stream.read(0, 0).positions.tolist() == list(range(7, 16))


def test_what_a_scorer_cannot_do() -> None:
    model = Attention()
    with pytest.raises(runnel.StreamError, match="external"):
        ScoredStream(model.program("window=12"), by_key_norm, keep=4)
    program = model.program("external=12")
    with pytest.raises(runnel.StreamError, match="less than"):
        ScoredStream(program, by_key_norm, keep=12)
    stream = ScoredStream(program, lambda scored: np.zeros((1, 2, 3)), keep=4)
    streamed(stream.stream, model.inputs(12))
    with pytest.raises(runnel.StreamError, match="should give"):
        stream.compress()
    with pytest.raises(runnel.StreamError, match="each once"):
        stream.stream.drop(0, 0, np.array([1, 1]))
    with pytest.raises(runnel.StreamError, match="own policy"):
        model.program("window=12").stream().drop(0, 0, np.array([0]))
    with pytest.raises(runnel.StreamError, match="do not fit a cache"):
        streamed(stream.stream, cut(model.inputs(13), 0, 13))
