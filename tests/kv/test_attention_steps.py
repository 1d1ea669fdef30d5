"""Native attention over a cache against the float64 model, at every step, wherever a stream starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention import Attention, cut, deviation, expected, rope, streamed
from reference import dense

from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")

STARTS = (0, 2**24 - 8, 2**31 - 8)
BOUND = 1e-4


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kv", ["full=64", "window=7", "sink=4,window=9", "sink=4,window=9,positions=contiguous"])
def test_every_step_is_the_reference(kv: str, start: int) -> None:
    model = Attention(more={"rotary": rope(4), "scale": 0.3})
    x = model.inputs(45, start % 97)
    got = streamed(model.program(kv).stream(position=start), x)
    assert deviation(got, expected(model, kv, x, start)[0]) < BOUND


VARIANTS: dict[str, Attention] = {
    "heads of one key": Attention(8, 1, 16, 16, more={"rotary": rope(8)}),
    "as many keys as queries": Attention(3, 3, 12, 20, more={"rotary": rope(6)}),
    "some features turn": Attention(4, 2, 24, 8, more={"rotary": rope(4, start=8)}),
    "pairs side by side": Attention(4, 2, 10, 6, more={"rotary": rope(5, interleaved=True, factor=1.2)}),
    "no positions": Attention(4, 4, 5, 7),
    "softcap": Attention(more={"rotary": rope(4), "softcap": 2.0, "scale": 1.5}),
    "slopes": Attention(more={"slopes": np.array([0.5, 0.25, 0.125, 0.0625])}),
    "bias": Attention(more={"bias": np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)}),
    "learned sinks": Attention(more={"rotary": rope(4), "sinks": np.array([0.1, -1, 3, 0], np.float32)}),
    "the model's own window": Attention(more={"rotary": rope(4), "window": 5}),
    "wide heads": Attention(16, 4, 64, 96, more={"rotary": rope(32), "scale": 0.125}),
    "three axes": Attention(axes=3, more={"rotary": rope(4, sections=(0, 1, 2, 0))}),
    "values in the keys": Attention(8, 1, 24, 16, more={"rotary": rope(4, start=16), "shared": True}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_forms_of_attention(name: str) -> None:
    model = VARIANTS[name]
    x = model.inputs(40, len(name))
    contiguous = [] if model.axes else ["sink=3,window=8,positions=contiguous"]
    for kv in ("full=64", "sink=2,window=11", *contiguous):
        got = streamed(model.program(kv).stream(position=2**24 - 8), x, (5, 1, 9))
        assert deviation(got, expected(model, kv, x, 2**24 - 8)[0]) < BOUND, kv


@pytest.mark.parametrize("kv", ["full=64", "sink=4,window=9", "sink=4,window=9,positions=contiguous"])
def test_bits_do_not_depend_on_the_chunks(kv: str) -> None:
    model = Attention(more={"rotary": rope(4)})
    program, x = model.program(kv), model.inputs(40)
    whole = streamed(program.stream(), x)
    for chunks in ((40,), (1, 2, 3, 4, 5, 6), (17, 23)):
        assert np.array_equal(streamed(program.stream(), x, chunks), whole)


@pytest.mark.parametrize("start", STARTS)
def test_what_only_drops_is_a_dense_run_that_masks(start: int) -> None:
    model, kv = Attention(more={"rotary": rope(4), "scale": 0.3}), "sink=3,window=8"
    x = model.inputs(40)
    got = streamed(model.program(kv).stream(position=start), x)
    n, m = np.arange(40)[:, None], np.arange(40)[None, :]
    kept = np.broadcast_to((m <= n) & ((m < 3) | (n - m < 8)), (2, 40, 40))
    assert deviation(got, dense(model.node, x["q"][0], x["k"][0], x["v"][0], kept, start)) < BOUND


def test_a_stream_chooses_within_what_was_compiled() -> None:
    model = Attention(more={"rotary": rope(4)})
    program, x = model.program("sink=4,window=40"), model.inputs(60)
    sizes = []
    for kv in ("sink=4,window=40", "sink=2,window=5", "window=3"):
        stream = program.stream(kv=kv)
        assert deviation(streamed(stream, x), expected(model, kv, x, 0)[0]) < BOUND
        sizes.append(stream.state_bytes)
        assert len(stream.save()) == stream.state_bytes
    assert sizes[0] == program.state_bytes and sizes[0] > sizes[1] >= sizes[2]


def test_a_prefill_leaves_the_state_of_a_push() -> None:
    model = Attention(hop=8, layers=2, more={"rotary": rope(4)})
    program, x = model.program("sink=2,window=9"), model.inputs(50)
    a, b = program.stream(), program.stream()
    whole, last = a.push(cut(x, 0, 30)), b.push(cut(x, 0, 30), last=True)
    for name in whole:
        assert last[name].shape[2] == 1
        assert np.array_equal(last[name], whole[name][:, :, -1:])
    assert streamed(a, cut(x, 30, 50)).tobytes() == streamed(b, cut(x, 30, 50)).tobytes()
    assert b.counters["kernel_calls"] < a.counters["kernel_calls"]


def test_saved_and_cloned_streams_go_on() -> None:
    model = Attention(more={"rotary": rope(4)})
    program, x = model.program("sink=2,window=9"), model.inputs(50)
    stream = program.stream(kv="sink=1,window=6", position=77)
    streamed(stream, cut(x, 0, 23))
    others = [stream.clone(), program.stream(state=stream.save())]
    rest = streamed(stream, cut(x, 23, 50))
    for other in others:
        assert other.kv.position == 77
        assert np.array_equal(streamed(other, cut(x, 23, 50)), rest)


def test_counts_of_work_and_bytes_stay_the_same() -> None:
    model = Attention(more={"rotary": rope(4)})
    stream, x = model.program("sink=2,window=9").stream(), model.inputs(64)

    def work(start: int, stop: int) -> tuple[Any, ...]:
        before = stream.counters
        streamed(stream, cut(x, start, stop))
        return (stream.kv.bytes, *(stream.counters[k] - before[k] for k in before))

    work(0, 16)
    assert work(16, 32) == work(48, 64)
    facts = stream.kv
    assert facts.layers == (((11, 11, 48 - 11), (11, 11, 48 - 11)),)
