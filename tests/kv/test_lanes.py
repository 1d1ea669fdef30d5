"""Streams with caches that are pushed together: the bits of single ones, whatever each chose."""

from __future__ import annotations

import numpy as np
import pytest
from attention import Attention, cut, rope, streamed

from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")


def test_lanes_are_single_streams() -> None:
    model = Attention(more={"rotary": rope(4)})
    program = model.program("sink=2,window=9")
    chosen = (None, "window=4", "sink=1,window=6")
    inputs = [model.inputs(30, seed) for seed in range(3)]
    wanted = [streamed(program.stream(kv=kv), x) for kv, x in zip(chosen, inputs, strict=True)]
    batch = program.batch(3)
    lanes = [batch.join() if kv is None else batch.join(state=program.stream(kv=kv).save()) for kv in chosen]
    found: list[list[np.ndarray]] = [[], [], []]
    for at in range(0, 30, 5):
        results = batch.push({lane: cut(x, at, at + 5) for lane, x in zip(lanes, inputs, strict=True)})
        for parts, lane in zip(found, lanes, strict=True):
            parts.append(-np.asarray(results[lane])[0])
    for parts, whole, lane in zip(found, wanted, lanes, strict=True):
        assert np.array_equal(np.concatenate(parts, axis=1), whole)
        assert batch.position(lane) == 30
    assert len(batch.save(lanes[1])) < len(batch.save(lanes[2])) < len(batch.save(lanes[0]))


def test_a_stream_takes_a_state_that_fits_its_room() -> None:
    model = Attention(more={"rotary": rope(4)})
    program, x = model.program("sink=2,window=9"), model.inputs(30)
    small = program.stream(kv="window=4")
    streamed(small, cut(x, 0, 12))
    stream = program.stream()
    stream.restore(small.save())
    assert stream.kv.spec.window == 4 and stream.state_bytes == small.state_bytes
    assert np.array_equal(streamed(stream, cut(x, 12, 30)), streamed(small, cut(x, 12, 30)))
