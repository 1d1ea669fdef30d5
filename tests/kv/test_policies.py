"""Every policy against the float64 model that applies the same slot operations, at every step of random runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attention import Attention, cut, deviation, expected, rope, streamed
from reference import Reference

import runnel
from runnel.kv import parse
from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")

BOUND = 1e-4
STARTS = (0, 2**24 - 8, 2**31 - 8)
POLICIES = (
    "heavy=6,window=5", "heavy=6,window=5,sink=2", "scissorhands=6,window=5,observe=9", "retain=r,budget=6,window=5",
    "retain=r,budget=5,window=4,sink=3", "snap=6,window=9,observe=3", "snap=4,window=8,sink=2", "merge=6,window=5",
    "merge=5,window=4,sink=2", "heavy=6,window=5,positions=contiguous", "scissorhands=6,window=5,positions=contiguous",
    "snap=6,window=9,observe=3,sink=1,positions=contiguous", "merge=6,window=5,positions=contiguous",
    "heavy=6,window=5,positions=contiguous,keys=int8,values=int4",
)  # fmt: skip


def model(kv: str) -> Attention:
    return Attention(8, 2, 8, 12, retain="retain" in kv, more={"rotary": rope(4), "scale": 0.6})


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kv", POLICIES)
def test_every_step_is_the_reference(kv: str, start: int) -> None:
    attention = model(kv)
    x = attention.inputs(70, start % 89)
    stream = attention.program(kv).stream(position=start)
    got = streamed(stream, x, (7, 1, 11))
    wanted, reference = expected(attention, kv, x, start)
    assert deviation(got, wanted) < BOUND
    for (_, kept, dropped), head in zip(stream.kv.layers[0], reference.heads, strict=True):
        assert (kept, dropped) == (len(head.slots), len(head.dropped))


@pytest.mark.parametrize("kv", POLICIES)
def test_less_is_kept_than_was_compiled(kv: str) -> None:
    attention = model(kv)
    parts = [p.split("=") for p in kv.split(",")]
    more = ",".join(f"{name}={int(n) + 4 if n.isdigit() else n}" for name, n in parts)
    x = attention.inputs(60, 3)
    stream = attention.program(more).stream(kv=kv)
    assert deviation(streamed(stream, x), expected(attention, kv, x, 0)[0]) < BOUND


@pytest.mark.parametrize("kv", POLICIES)
def test_bytes_and_work_stay_the_same(kv: str) -> None:
    """Over whole rounds of a policy that compresses now and then."""
    attention = model(kv)
    stream, x = attention.program(kv).stream(), attention.inputs(36 * 4)
    work = []
    for n in range(4):
        before = stream.counters
        streamed(stream, cut(x, 36 * n, 36 * (n + 1)))
        work.append((stream.kv.bytes, *(stream.counters[k] - before[k] for k in before)))
    if "snap" not in kv:
        assert work[1] == work[2] == work[3]
    assert len({w[0] for w in work}) == 1


@pytest.mark.parametrize("start", STARTS)
def test_tables_of_heads_keep_everything_in_some(tmp_path: Path, start: int) -> None:
    table = tmp_path / "heads.tsv"
    table.write_text("0.9\t0.1\n")
    kv = f"heads={table},full=64,sink=2,window=6"
    attention = Attention(more={"rotary": rope(4), "scale": 0.6})
    stream, x = attention.program(kv).stream(position=start), attention.inputs(50)
    assert deviation(streamed(stream, x, (9, 1, 12)), expected(attention, kv, x, start)[0]) < BOUND
    assert stream.kv.layers == (((64, 50, 0), (8, 8, 42)),)


def test_heavy_hitters_stay() -> None:
    """A key that every query looks at is kept for ever, though it is no sink."""
    attention = Attention(2, 1, 8, 8, more={"scale": 1.0})
    x = attention.inputs(80)
    x["q"][..., 0], x["k"][..., 0], x["v"] = 3.0, 0.0, np.zeros_like(x["v"])
    x["k"][0, 0, 5, 0], x["v"][0, 0, 5, :] = 4.0, 1.0
    heavy = streamed(attention.program("heavy=4,window=8").stream(), x)
    window = streamed(attention.program("window=12").stream(), x)
    assert heavy[:, -1].min() > 0.9
    assert np.abs(window[:, -1]).max() == 0


@pytest.mark.parametrize("start", STARTS)
def test_pools_of_classes_do_not_push_each_other_out(start: int) -> None:
    attention, kv = model("pools"), "sink=2,window=6,system=3,vision=8"
    stream, x = attention.program(kv).stream(position=start), attention.inputs(60, 4)
    reference = Reference(attention.node, parse(kv), start)
    got, wanted = [], []
    for n in range(60):
        kind = "system" if n < 5 else "vision" if n % 7 < 4 else "audio" if n % 7 == 4 else "text"
        stream.set_class(kind)
        reference.kind = kind
        if n == 31:
            stream = stream.clone()
        got.append(streamed(stream, cut(x, n, n + 1)))
        wanted.append(reference.step(x["q"][0, :, n], x["k"][0, :, n], x["v"][0, :, n])[:, None])
    assert deviation(np.concatenate(got, axis=1), np.concatenate(wanted, axis=1)) < BOUND
    assert stream.kv.layers[0][0][1] == 2 + 6 + 3 + 8
    assert stream.kv.token_class == "text" or stream.kv.token_class == kind
    with pytest.raises(runnel.StreamError, match="class"):
        stream.set_class("smell")


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kv", ["sink=2,window=9", "heavy=8,window=4", "snap=7,window=5,observe=2"])
def test_budgets_of_each_head(tmp_path: Path, kv: str, start: int) -> None:
    table = tmp_path / "budgets.tsv"
    table.write_text("7 12\n")
    attention = model(kv)
    stream, x = attention.program(f"{kv},budgets={table}").stream(position=start), attention.inputs(50, 2)
    assert deviation(streamed(stream, x), expected(attention, f"{kv},budgets={table}", x, start)[0]) < BOUND
    assert [slots for slots, _, _ in stream.kv.layers[0]] == [7, min(12, parse(kv).most(0))]


@pytest.mark.parametrize("policy", ["heavy=6,window=5", "sink=2,window=9"])
def test_contiguous_positions_with_slopes_and_other_pairs(policy: str) -> None:
    kv = f"{policy},positions=contiguous"
    slopes = {"slopes": np.array([0.5, 0.25, 0.125, 0.0625]), "scale": 0.5}
    pairs = {"rotary": rope(4, interleaved=True, start=2, factor=1.1), "scale": 0.5}
    for attention in (Attention(more=slopes), Attention(4, 1, 12, 6, more=pairs), Attention(8, 1, 70, 6, more=pairs)):
        x = attention.inputs(60, 7)
        assert deviation(streamed(attention.program(kv).stream(), x), expected(attention, kv, x, 0)[0]) < BOUND


def test_contiguous_positions_of_heads_with_budgets(tmp_path: Path) -> None:
    table = tmp_path / "budgets.tsv"
    table.write_text("7 11\n")
    attention = model("")
    for policy in ("sink=2,window=9", "heavy=5,window=4"):
        kv, x = f"{policy},budgets={table},positions=contiguous", attention.inputs(50, 2)
        assert deviation(streamed(attention.program(kv).stream(), x), expected(attention, kv, x, 0)[0]) < BOUND
