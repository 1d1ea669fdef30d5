"""Tokens taken back: the stream goes on as if they had never come."""

from __future__ import annotations

import numpy as np
import pytest
from attention import Attention, cut, rope, streamed

import runnel
from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")

POLICIES = (
    "full=64", "sink=2,window=7", "sink=2,window=7,positions=contiguous", "heavy=5,window=4,keys=int8,values=int4",
    "sink=2,window=7,keys=float16,values=float16",
    "scissorhands=5,window=4,observe=6", "retain=r,budget=5,window=4",
    "heavy=5,window=4,positions=contiguous",
)  # fmt: skip


@pytest.mark.parametrize("kv", POLICIES)
def test_what_was_taken_back_never_was(kv: str) -> None:
    model = Attention(8, 2, 8, 12, retain="retain" in kv, more={"rotary": rope(4), "scale": 0.6})
    program, x, other = model.program(f"{kv},spare=6"), model.inputs(60, 1), model.inputs(60, 2)
    straight, wavering = program.stream(), program.stream()
    wanted, at, found = streamed(straight, x), 0, []
    for steps, back in ((3, 3), (9, 1), (14, 6), (2, 2), (10, 5), (12, 4)):
        found.append(streamed(wavering, cut(x, at, at + steps)))
        at += steps
        streamed(wavering, cut(other, 0, back))
        wavering.rollback(back)
    found.append(streamed(wavering, cut(x, at, 60)))
    assert np.array_equal(np.concatenate(found, axis=1), wanted)
    assert wavering.position == 60
    assert wavering.kv.layers == straight.kv.layers


def test_how_far_a_stream_can_go_back() -> None:
    model = Attention(more={"rotary": rope(4)})
    program, x = model.program("sink=2,window=7,spare=4"), model.inputs(30)
    stream = program.stream()
    streamed(stream, cut(x, 0, 2))
    with pytest.raises(runnel.StreamError, match="spare"):
        stream.rollback(3)
    streamed(stream, cut(x, 2, 20))
    stream.rollback(3)
    stream.rollback(1)
    with pytest.raises(runnel.StreamError, match="spare"):
        stream.rollback(1)
    with pytest.raises(runnel.StreamError, match="spare"):
        program.stream(kv="sink=2,window=7").rollback(1)
    with pytest.raises(runnel.InputError, match="go back"):
        model.program("snap=4,window=8,spare=2")
