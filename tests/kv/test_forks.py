"""Copies of streams: equal to the bit from there on, and as dear as what is kept, not as what could be."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from attention import Attention, cut, rope, streamed

import runnel
from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")

POLICIES = (
    "full=64,spare=6", "sink=2,window=11,keys=int8,values=int4", "heavy=6,window=9,positions=contiguous",
    "snap=6,window=9,observe=3", "merge=6,window=9", "external=64",
)  # fmt: skip


@pytest.mark.parametrize("kv", POLICIES)
def test_a_fork_goes_on_as_its_source(kv: str) -> None:
    model = Attention(4, 2, 8, 12, more={"rotary": rope(4)})
    program, x, other = model.program(kv, poison=False), model.inputs(60, 1), model.inputs(60, 2)
    source, spare = program.stream(position=5), program.stream(position=5)
    streamed(spare, cut(other, 0, 50))
    streamed(source, cut(x, 0, 30))
    forks = [source.clone(), source.clone(into=spare)]
    assert forks[1] is spare
    streamed(source.clone(), cut(other, 30, 60))  # what becomes of one is nothing to the others
    wanted = streamed(source, cut(x, 30, 60))
    for fork in forks:
        assert fork.kv.position == 5 and fork.position == 30
        assert np.array_equal(streamed(fork, cut(x, 30, 60)), wanted)
        assert fork.kv == source.kv
        assert np.array_equal(program.stream(state=fork.save()).save(), fork.save())
    if "spare" in kv:
        for stream in (source, *forks):
            stream.rollback(3)
        assert np.array_equal(streamed(forks[0], cut(x, 57, 60)), wanted[:, -3:])


def test_a_stream_becomes_no_other_kind() -> None:
    model = Attention(more={"rotary": rope(4)})
    program = model.program("sink=2,window=9")
    with pytest.raises(runnel.StreamError, match="same program"):
        program.stream().clone(into=program.stream(kv="window=3"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see resident memory")
def test_a_fork_costs_what_is_kept() -> None:
    """Of a cache for 2^17 tokens that holds 64: little memory (a page may have 2 MiB) and time."""
    model = Attention(4, 4, 32, 32, more={"rotary": rope(16)})
    stream = model.program("full=131072", poison=False).stream()
    streamed(stream, model.inputs(64), (64,))
    before = int(Path("/proc/self/statm").read_text().split()[1])
    forks = [stream.clone() for _ in range(8)]
    grown = (int(Path("/proc/self/statm").read_text().split()[1]) - before) * 4096
    assert grown < 8 * stream.state_bytes / 4

    def least(run: object, rounds: int) -> float:
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            run()  # type: ignore[operator]
            times.append(time.perf_counter() - begun)
        return min(times)

    assert least(lambda: stream.clone(into=forks[0]), 20) < least(stream.save, 3) / 20
