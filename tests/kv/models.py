"""The decoders that tests run, by name: every form and family that is accepted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from decoders import SIZES, VOCABULARY, Decoder, Maker, Sizes, empty_past, frequencies, optimum_feeds
from families import OTHERS
from fused import FUSED, tables
from mixtures import scores
from others import MORE

WIDE = Sizes(size=16)
FAMILIES: dict[str, Callable[[], Decoder]] = {}


def family(make: Callable[[], Decoder]) -> Callable[[], Decoder]:
    """Register a decoder under its function's name."""
    FAMILIES[make.__name__] = make
    return make


def primitive(
    sizes: Sizes = SIZES, inv_freq: np.ndarray | None = None, factor: float = 1.0, dims: int | None = None,
    window: int = 0, softcap: float = 0.0, qk_norm: bool = False, experts: int = 0,
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
        x = net.op("Add", x, mixture(net, net.rms(x), experts, sizes.width)) if experts else net.mlp(x, net.rms)
    net.head(x, net.rms)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


def mixture(net: Maker, x: str, experts: int, width: int) -> str:
    """Two experts of several for each token."""
    first, second = net.weight(experts, 2 * 24, width, scale=0.3), net.weight(experts, width, 24, scale=0.3)
    kind = {"activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1}
    return str(net.ms("MoE", x, scores(net, x, experts, width), first, "", second, k=2, **kind))


@family
def grouped_heads() -> Decoder:
    return primitive()


@family
def one_head_of_keys() -> Decoder:
    return primitive(Sizes(kv_heads=1))


@family
def mixtures_of_experts() -> Decoder:
    return primitive(experts=5)


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


def scaled(kind: str, dims: int) -> tuple[np.ndarray, float]:
    """inv_freq as transformers computes it with scaled positions, and the factor of cosines and sines."""
    plain = frequencies(dims)
    if kind == "linear":
        return plain / np.float32(4), 1.0
    if kind == "ntk":
        return frequencies(dims, 10000 * 4 ** (dims / (dims - 2))), 1.0
    waves = 2 * np.pi / plain
    if kind == "llama3":
        low, high, context = 1.0, 4.0, 64
        smooth = np.clip((context / waves - low) / (high - low), 0, 1)
        return ((1 - smooth) * plain / 8 + smooth * plain).astype(np.float32), 1.0
    ramp = np.clip((np.arange(dims // 2) - 0.5) / 2, 0, 1)  # yarn
    return (plain / 4 * ramp + plain * (1 - ramp)).astype(np.float32), float(0.1 * np.log(4) + 1)


for _kind in ("linear", "ntk", "llama3", "yarn"):
    FAMILIES[f"positions_scaled_{_kind}"] = lambda kind=_kind: primitive(  # type: ignore[misc]
        SIZES, *scaled(kind, SIZES.size)
    )


def grouped_query(packed: bool = False, sizes: Sizes = WIDE, sink: bool = False, **attrs: object) -> Decoder:
    """onnxruntime-genai's form: GroupQueryAttention turns, masks and keeps the past; norms of onnxruntime."""
    net = Maker(sizes, opset=21)
    tokens = net.input(["batch_size", "sequence_length"], "input_ids", "int64")
    mask = net.input(["batch_size", "total_sequence_length"], "attention_mask", "int64")
    there = net.op("ReduceSum", mask, net.const([1]), keepdims=0)
    last = net.op("Cast", net.op("Sub", there, net.const(1)), to=6)
    total = net.op("Cast", net.dim(mask, 1), to=6)
    cos, sin = (net.const(t) for t in tables(sizes.size))
    x = net.embedded(tokens)
    gain = net.const(np.ones(sizes.width))
    h = net.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=1e-5)
    for layer in range(sizes.layers):
        q, k, v = net.projections(h)
        if packed:
            q, k, v = net.op("Concat", q, k, v, axis=2), "", ""
        inputs = [q, k, v, net.past(layer, "key"), net.past(layer, "value"), last, total, cos, sin]
        if sink:
            inputs += ["", "", net.const(net.rng.standard_normal(sizes.heads))]
        y, key, value = net.ms(
            "GroupQueryAttention", *inputs, outputs=3, num_heads=sizes.heads, kv_num_heads=sizes.kv_heads, do_rotary=1,
            scale=sizes.size**-0.5, **attrs,
        )  # fmt: skip
        net.named(key, f"present.{layer}.key")
        net.named(value, f"present.{layer}.value")
        y = net.linear(y, sizes.heads * sizes.size, sizes.width)
        h, _, _, x = net.ms("SkipSimplifiedLayerNormalization", x, y, gain, outputs=4, epsilon=1e-5)
        net.nodes[-1].output[1] = net.nodes[-1].output[2] = ""
        wide = net.linear(h, sizes.width, 2 * sizes.width)
        y = net.linear(net.op("Mul", wide, net.op("Sigmoid", wide)), 2 * sizes.width, sizes.width)
        h, _, _, x = net.ms("SkipSimplifiedLayerNormalization", x, y, gain, outputs=4, epsilon=1e-5)
        net.nodes[-1].output[1] = net.nodes[-1].output[2] = ""
    net.named(net.linear(h, sizes.width, VOCABULARY), "logits")
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


FAMILIES |= {
    "group_query": grouped_query,
    "group_query_packed": lambda: grouped_query(packed=True),
    "group_query_window": lambda: grouped_query(local_window_size=7),
    "group_query_capped": lambda: grouped_query(softcap=1.5),
    "group_query_neighbours": lambda: grouped_query(rotary_interleaved=1),
    "group_query_smooth_softmax": lambda: grouped_query(smooth_softmax=1),
    "group_query_sinks": lambda: grouped_query(sink=True),
}

FAMILIES |= FUSED | OTHERS | MORE
