"""Codes of 8 and 4 bits: the float64 model with the same rounding, and how far codes are from numbers."""

from __future__ import annotations

import numpy as np
import pytest
from attention import Attention, deviation, expected, rope, streamed

from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")

MODELS = {
    "wide": Attention(16, 4, 64, 64, more={"rotary": rope(32), "scale": 0.125}),
    "narrow": Attention(6, 3, 6, 10, more={"rotary": rope(3), "scale": 0.4}),
    "latent": Attention(8, 1, 24, 16, more={"rotary": rope(4, start=16), "scale": 0.3, "shared": True}),
    "slopes": Attention(4, 4, 8, 24, more={"slopes": np.array([0.5, 0.25, 0.125, 0.0625]), "scale": 0.4}),
}
STORAGE = (
    "keys=int8,values=int8", "keys=int8,values=int4", "keys=int4,values=int4", "keys=float32,values=int8",
    "keys=float16,values=float16",
)  # fmt: skip


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", MODELS)
def test_codes_are_rounded_as_in_the_reference(name: str, storage: str) -> None:
    model, kv = MODELS[name], f"sink=3,window=37,{storage}"
    x = model.inputs(70, 5)
    start = 2**24 - 8 if name == "wide" else 2**31 - 8
    got = streamed(model.program(kv).stream(position=start), x, (9, 4))
    assert deviation(got, expected(model, kv, x, start)[0]) < 1e-4


@pytest.mark.parametrize(("storage", "bound"), list(zip(STORAGE, (0.02, 0.16, 0.25, 0.02, 6e-4))))
def test_codes_are_near_the_numbers(storage: str, bound: float) -> None:
    model = MODELS["wide"]
    x = model.inputs(70, 6)
    wanted = expected(model, "sink=3,window=37", x, 0)[0]
    error = deviation(streamed(model.program(f"sink=3,window=37,{storage}").stream(), x), wanted)
    assert bound / 8 < error < bound


@pytest.mark.parametrize(("storage", "bound"), [("keys=int8,values=int8", 0.04), ("keys=int4,values=int4", 0.6)])
def test_one_large_feature_does_not_drown_the_others(storage: str, bound: float) -> None:
    """Rotated, its size is shared by all: without, the others lose 0.1 of their size at 8 bits and all of it at 4."""
    model = MODELS["wide"]
    x = model.inputs(50, 6)
    x["k"][..., 3] += 40.0
    x["v"][..., 5] += 40.0
    wanted = np.delete(expected(model, "window=40", x, 0)[0], 5, axis=-1)
    got = np.delete(streamed(model.program(f"window=40,{storage}").stream(), x), 5, axis=-1)
    assert np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)) < bound


@pytest.mark.parametrize("storage", ["keys=float16,values=float16", "keys=int8,values=int4"])
def test_codes_with_positions_counted_among_what_is_kept(storage: str) -> None:
    for name in ("narrow", "latent"):
        model, kv = MODELS[name], f"sink=3,window=20,positions=contiguous,{storage}"
        x = model.inputs(50, 5)
        got = streamed(model.program(kv).stream(position=2**24 - 8), x, (9, 4))
        assert deviation(got, expected(model, kv, x, 2**24 - 8)[0]) < 1e-4


def test_latent_values_are_stored_once() -> None:
    """Of 72 features 64 are values: a token takes 72 floats and what says which token it is."""
    model = Attention(10, 1, 72, 64, more={"rotary": rope(4, start=64), "scale": 0.15, "shared": True})
    x = model.inputs(30, 7)
    for kv in ("full=256", "heavy=9,window=12", "sink=2,window=15,positions=contiguous", "merge=6,window=9",
               "heavy=5,window=9,positions=contiguous,keys=int8,values=int8"):  # fmt: skip
        stream = model.program(kv).stream(position=2**24 - 8)
        assert deviation(streamed(stream, x), expected(model, kv, x, 2**24 - 8)[0]) < 1e-4, kv
        if kv == "full=256":
            assert stream.kv.bytes < 256 * (72 * 4 + 16) + 1024


@pytest.mark.parametrize("storage", ["keys=int8,values=int4", "keys=int8,values=int8", "keys=float16,values=float16"])
def test_codes_can_be_read(storage: str) -> None:
    model = MODELS["latent"]
    stream, x = model.program(f"window=20,{storage}").stream(), model.inputs(20, 2)
    streamed(stream, x)
    held, order = stream.read(0, 0), 19
    at = int(np.flatnonzero(held.positions == order)[0])
    key = x["k"][0, 0, order]
    assert np.abs(held.keys[at, :16] - key[:16]).max() < 0.03 * np.abs(key).max()
    assert np.abs(held.values[at] - key[:16]).max() < (0.3 if "values=int4" in storage else 0.03) * np.abs(key).max()
    if "float16" in storage:
        np.testing.assert_array_equal(held.values[at], key[:16].astype(np.float16).astype(np.float32))


def test_codes_take_fewer_bytes() -> None:
    model = MODELS["wide"]
    sizes = [
        model.program(f"window=1024,{storage}").stream().kv.bytes
        for storage in ("keys=float32", "keys=int8,values=int8", "keys=int4,values=int4", "keys=float16,values=float16")
    ]
    assert sizes[1] < 0.32 * sizes[0] and sizes[2] < 0.2 * sizes[0] and sizes[3] < 0.52 * sizes[0]


@pytest.mark.parametrize("storage", ["keys=int8,values=int4", "keys=float16,values=float16"])
@pytest.mark.parametrize(
    "kv", ["heavy=6,window=5", "snap=6,window=9,observe=3", "heavy=6,window=5,positions=contiguous"]
)
def test_policies_keep_codes(kv: str, storage: str) -> None:
    model = MODELS["narrow"]
    kv += f",{storage}"
    x = model.inputs(60, 8)
    assert deviation(streamed(model.program(kv).stream(), x), expected(model, kv, x, 0)[0]) < 1e-4
