"""Decoders in the forms of exporters: one stream of tokens equals onnxruntime's own run with a past."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from decoders import VOCABULARY, Feeds
from others import several_axes
from reference_runner import ReferenceRunner

from models import FAMILIES
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.emit import PortableForm, emit
from runnel.compiler.streaming.kinds.cache import CachedAttend
from runnel.compiler.streaming.optimise import optimise

FRAMES = 23
STEP_BY_STEP = ("grouped_heads", "learned_sinks", "alibi_keys", "latent")


def streamed(form: PortableForm, tokens: np.ndarray, cuts: list[int], statics: Feeds) -> np.ndarray:
    """The logits of a stream."""
    stream = ReferenceRunner(form, statics=statics)
    name = next(iter(stream.inputs))
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
    graph = analyse(load(decoder.model), kv="full", max_frames=64)
    caches = [n for n in graph.nodes if isinstance(n, CachedAttend)]
    assert [(n.layer, n.shared) for n in caches] == [(0, name == "absorbed"), (1, name == "absorbed")]
    if name in STEP_BY_STEP:
        assert (
            oracle.deviation(streamed(emit(graph), tokens, [1] * FRAMES, decoder.statics), wanted) <= oracle.TOLERANCE
        )
    optimise(graph)
    got = streamed(emit(graph, 4), tokens, [6, 0, 11, 6], decoder.statics)
    assert got.shape == wanted.shape
    assert oracle.deviation(got, wanted) <= oracle.TOLERANCE


def test_positions_that_a_stream_is_told() -> None:
    """Three axes that go their own ways, as for the patches of a picture."""
    decoder = several_axes()
    rng = np.random.default_rng(4)
    tokens, places = rng.integers(0, VOCABULARY, (1, FRAMES)), rng.integers(0, 40, (3, 1, FRAMES))
    plain = decoder.feeds
    decoder.feeds = lambda start, now: plain(start, now) | {"position_ids": places[:, :, start : start + now.shape[1]]}
    wanted = decoder.logits(tokens, [5, 1, 1, 7, *[1] * (FRAMES - 14)])
    graph = analyse(load(decoder.model), kv="full", max_frames=64, time_axis={"input_ids": 1, "position_ids": 2})
    stream, parts = ReferenceRunner(emit(graph, 4)), []
    for a, b in ((0, 6), (6, 17), (17, FRAMES)):
        parts.append(stream.push({"input_ids": tokens[:, a:b], "position_ids": places[:, :, a:b]})["logits"])
    got = np.concatenate([*parts, stream.flush()["logits"]], axis=1)
    assert oracle.deviation(got, wanted) <= oracle.TOLERANCE
    rotary = next(n.rotary for n in graph.nodes if isinstance(n, CachedAttend))
    assert rotary is not None and rotary.sections == (0, 0, 1, 1, 1, 2, 2, 2)
