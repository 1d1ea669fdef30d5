"""Decoders in the forms of exporters: one stream of tokens equals onnxruntime's own run with a past."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import runners
from decoders import VOCABULARY, Decoder

from models import FAMILIES
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.kinds.cache import CachedAttend

FRAMES = 23


def streamed(decoder: Decoder, tokens: np.ndarray, cuts: list[int], step: int | None, **options: object) -> np.ndarray:
    """The logits of a stream whose caches keep everything."""
    make = runners.reference(decoder.model, {"max_frames": 64, "kv": "full", "step": step, **options})
    stream = make()
    name = next(iter(stream.inputs))  # type: ignore[attr-defined]
    parts, start = [], 0
    for count in cuts:
        parts.append(stream.push({name: tokens[:, start : start + count]})["logits"])
        start += count
    return np.concatenate([*parts, stream.flush()["logits"]], axis=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_onnxruntime_with_a_past(name: str) -> None:
    decoder = FAMILIES[name]()
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, (1, FRAMES))
    wanted = decoder.logits(tokens, [5, 1, 1, 7, *[1] * (FRAMES - 14)])
    for step, cuts in ((None, [1] * FRAMES), (4, [6, 0, 11, 6])):
        got = streamed(decoder, tokens, cuts, step)
        assert got.shape == wanted.shape
        assert oracle.deviation(got, wanted) <= oracle.TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_every_attention_has_a_cache(name: str) -> None:
    graph = analyse(load(FAMILIES[name]().model), kv="full", max_frames=64)
    caches = [n for n in graph.nodes if isinstance(n, CachedAttend)]
    assert [n.layer for n in caches] == list(range(len(caches))) and len(caches) >= 2
