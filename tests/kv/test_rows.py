"""Frames of a prompt that attend to a cache together: the bits of frames that come one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attention import Attention, cut, deviation, expected, rope, streamed

from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")

CHUNKS = (16, 1, 16, 3, 16, 9, 15)
POLICIES = (
    "full=96", "sink=2,window=21", "sink=3,window=18,positions=contiguous", "window=5", "heavy=9,window=14",
    "retain=r,budget=9,window=12,sink=2", "window=17,keys=float16,values=float16",
    "snap=12,window=18,observe=5,keys=int8,values=int4", "external=96",
    "sink=1,window=20,vision=9,keys=int4,values=int8", "sink=2,window=19,spare=20",
)  # fmt: skip


def together(stream: object, model: Attention) -> bool:
    """Whether a full chunk takes fewer calls than its frames one by one, which are three for each and KV head."""
    before = stream.counters["kernel_calls"]  # type: ignore[attr-defined]
    stream.push(model.inputs(16, 9))  # type: ignore[attr-defined]
    calls = stream.counters["kernel_calls"] - before  # type: ignore[attr-defined]
    return calls < 16 * (2 + 2 * model.kv_heads)


@pytest.mark.parametrize("kv", POLICIES)
def test_bits_are_those_of_single_frames(kv: str) -> None:
    model = Attention(4, 4, 8, 12, hop=16, retain="retain" in kv, more={"rotary": rope(4), "scale": 0.7})
    program, x = model.program(kv), model.inputs(96 - 16, 2)
    single, chunked = program.stream(position=2**24 - 8), program.stream(position=2**24 - 8)
    wanted = streamed(single, x)
    assert np.array_equal(streamed(chunked, x, CHUNKS), wanted)
    assert chunked.kv.layers == single.kv.layers
    assert kv.startswith("heavy") or together(chunked, model)


@pytest.mark.parametrize("heads", [(6, 2, 40, 24), (5, 1, 64, 72), (8, 1, 12, 6)])
def test_bits_do_not_depend_on_the_shape(heads: tuple[int, int, int, int]) -> None:
    more = {"rotary": rope(3, start=2), "softcap": 4.0, "sinks": np.linspace(-1, 1, heads[0], dtype=np.float32)}
    model, kv = Attention(*heads, hop=16, more=more), "sink=2,window=30"
    program, x = model.program(kv), model.inputs(80, 4)
    got = streamed(program.stream(), x, CHUNKS)
    assert np.array_equal(got, streamed(program.stream(), x))
    assert deviation(got, expected(model, kv, x, 0)[0]) < 1e-4


def test_heads_with_budgets_of_their_own(tmp_path: Path) -> None:
    table = tmp_path / "budgets.tsv"
    table.write_text("9 33 20 70\n")
    model = Attention(4, 4, 8, 8, hop=16, more={"rotary": rope(4)})
    program, x = model.program(f"sink=2,window=60,positions=contiguous,budgets={table}"), model.inputs(80, 4)
    assert np.array_equal(streamed(program.stream(), x, CHUNKS), streamed(program.stream(), x))


def test_what_comes_later_does_not_spoil_what_was_before() -> None:
    """Values that overflow reach no frame before them."""
    model = Attention(4, 4, 8, 8, hop=16, more={"rotary": rope(4)})
    program, x = model.program("window=24"), model.inputs(48, 4)
    clean = streamed(program.stream(), x, (16, 16, 16))
    x["v"][..., 40, :] = x["k"][..., 41, :] = 3e38
    spoiled = streamed(program.stream(), cut(x, 0, 48), (16, 16, 16))
    assert np.array_equal(spoiled[:, :40], clean[:, :40])
    assert not np.isfinite(spoiled[:, 40:]).all()
