"""The decoders that tests run, by name: every form and family that is accepted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from decoders import SIZES, Decoder, Maker, Sizes, empty_past, frequencies, optimum_feeds

FAMILIES: dict[str, Callable[[], Decoder]] = {}


def family(make: Callable[[], Decoder]) -> Callable[[], Decoder]:
    """Register a decoder under its function's name."""
    FAMILIES[make.__name__] = make
    return make


def primitive(
    sizes: Sizes = SIZES, inv_freq: np.ndarray | None = None, factor: float = 1.0, dims: int | None = None,
    window: int = 0, softcap: float = 0.0, qk_norm: bool = False,
) -> Decoder:  # fmt: skip
    """Optimum's form in plain ops: rotary positions in halves, repeated heads, a mask from the padding mask."""
    net = Maker(sizes)
    tokens, padding, positions, total = net.optimum()
    inv_freq = frequencies(dims or sizes.size) if inv_freq is None else inv_freq
    cos, sin = net.tables(positions, inv_freq, factor)
    mask = net.causal(tokens, total, window, padding)
    x = net.embedded(tokens)
    for layer in range(sizes.layers):
        q, k, v = net.projections(net.rms(x))
        q, k, v = net.split(q, sizes.heads), net.split(k, sizes.kv_heads), net.split(v, sizes.kv_heads)
        if qk_norm:
            q, k = net.rms(q, sizes.size), net.rms(k, sizes.size)
        q, k = net.half_turned(q, cos, sin, dims), net.half_turned(k, cos, sin, dims)
        k, v = net.grown(layer, "key", k), net.grown(layer, "value", v)
        bend = None
        if softcap:
            cap = net.const(softcap)
            bend = lambda s, cap=cap: net.op("Mul", net.op("Tanh", net.op("Div", s, cap)), cap)  # noqa: E731
        x = net.op("Add", x, net.joined(net.attended(q, net.repeated(k), net.repeated(v), mask, bend=bend)))
        x = net.mlp(x, net.rms)
    net.head(x, net.rms)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


@family
def grouped_heads() -> Decoder:
    return primitive()


@family
def one_head_of_keys() -> Decoder:
    return primitive(Sizes(kv_heads=1))


@family
def as_many_heads_of_keys() -> Decoder:
    return primitive(Sizes(kv_heads=4))


@family
def normalised_queries_and_keys() -> Decoder:
    return primitive(qk_norm=True)


@family
def partly_turned() -> Decoder:
    return primitive(dims=4)


@family
def sliding_window() -> Decoder:
    return primitive(window=9)


@family
def capped_scores() -> Decoder:
    return primitive(softcap=2.0)
