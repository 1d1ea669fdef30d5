"""Decoders exported in float16: weights, logits and tables of positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
from decoders import VOCABULARY, Decoder, Feeds
from halves import TOLERANCE, in_half

import runnel
from models import FAMILIES
from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, (1, 23))


def halved(decoder: Decoder) -> Decoder:
    """The decoder with float16 in place of float32, in what it is fed too."""

    def cast(values: Feeds) -> Feeds:
        return {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in values.items()}

    first = cast({name: value for name, (_, value) in decoder.past.items()})
    return replace(
        decoder, model=in_half(decoder.model), statics=cast(decoder.statics),
        feeds=lambda start, now: cast(decoder.feeds(start, now)),
        past={name: (out, first[name]) for name, (out, _) in decoder.past.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["grouped_heads", "group_query_packed", "coded_products", "scatter_nd", "beside_an_encoder"]
)
def test_equals_onnxruntime_with_a_past(tmp_path: Path, name: str) -> None:
    decoder = halved(FAMILIES[name]())
    info = runnel.compile(decoder.model, tmp_path / "m.rnl", kv="sink=2,window=22")
    wanted = decoder.logits(TOKENS, [9, *[1] * 14])
    stream = runnel.load(info.path).stream(inputs=decoder.statics or None)
    got = np.concatenate(
        [stream.push(TOKENS[:, :9]), stream.push(TOKENS[:, 9:10]), stream.push(TOKENS[:, 10:])], axis=1
    )
    assert got.dtype == wanted.dtype == np.float16
    assert oracle.deviation(got, wanted) <= TOLERANCE
    assert info.manifest["proof"]["limit"] == 1e-5 and info.manifest["native_refusal"] is None


def test_a_past_that_is_float16_as_the_model_has_it(tmp_path: Path) -> None:
    """Half of the bytes; what keys and values lose is measured, and lies within what onnxruntime's own run loses."""
    decoder = halved(FAMILIES["grouped_heads"]())
    info = runnel.compile(decoder.model, tmp_path / "m.rnl", kv="sink=2,window=30,keys=float16,values=float16")
    wanted = decoder.logits(TOKENS, [9, *[1] * 14])
    got = runnel.load(info.path).stream().push(TOKENS)
    assert oracle.deviation(got, wanted) <= TOLERANCE
    assert info.manifest["kv"]["deviation"]["logits"]["max"] < TOLERANCE
    assert info.manifest["proof"]["against"] == "its own stream"
