"""Decoders whose attention is one op: the standard's, and MultiHeadAttention; and caches of a fixed size."""

from __future__ import annotations

import numpy as np
from decoders import SIZES, Decoder, Feeds, Maker, Sizes, empty_past, frequencies, optimum_feeds

MANY = Sizes(kv_heads=4, size=16)
CAPACITY = 48


def tables(dims: int, count: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (count, dims / 2) float32."""
    angles = np.arange(count)[:, None] * frequencies(dims).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def multi_head(padded: bool, sizes: Sizes = MANY) -> Decoder:
    """MultiHeadAttention with a past, behind onnxruntime's RotaryEmbedding."""
    net = Maker(sizes, opset=17)
    tokens, padding, positions, total = net.optimum()
    cos, sin = (net.const(t) for t in tables(sizes.size))
    mask = net.causal(tokens, total, padding=None if padded else padding)
    there = net.op("Cast", padding, to=6) if padded else ""
    x = net.embedded(tokens)
    for layer in range(sizes.layers):
        q, k, v = net.projections(net.rms(x))
        q, k = (net.ms("RotaryEmbedding", y, positions, cos, sin, num_heads=sizes.heads, interleaved=0) for y in (q, k))
        past = [net.past(layer, what) for what in ("key", "value")]
        y, key, value = net.ms("MultiHeadAttention", q, k, v, "", there, mask, *past, outputs=3, num_heads=sizes.heads)
        net.named(key, f"present.{layer}.key")
        net.named(value, f"present.{layer}.value")
        x = net.op("Add", x, net.linear(y, sizes.heads * sizes.size, sizes.width))
        x = net.mlp(x, net.rms)
    net.head(x, net.rms)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


def standard(
    flat: bool, sizes: Sizes = SIZES, opset: int = 23, masked: bool = False, interleaved: int = 0, **attrs: object
) -> Decoder:
    """The standard's Attention, RotaryEmbedding and RMSNormalization, with a past. flat: (1, T, heads·size)."""
    net = Maker(sizes, opset=opset)
    tokens, padding, positions, total = net.optimum()
    cos, sin = (net.const(t) for t in tables(sizes.size))
    mask = net.causal(tokens, total, padding=padding) if masked else ""
    counts = {"q_num_heads": sizes.heads, "kv_num_heads": sizes.kv_heads} if flat else {}

    def norm(x: str) -> str:
        return str(net.op("RMSNormalization", x, net.const(np.ones(sizes.width)), epsilon=1e-5))

    x = net.embedded(tokens)
    for layer in range(sizes.layers):
        q, k, v = net.projections(norm(x))
        if not flat:
            q, k, v = net.split(q, sizes.heads), net.split(k, sizes.kv_heads), net.split(v, sizes.kv_heads)
        heads = (sizes.heads, sizes.kv_heads)
        q, k = (
            net.op("RotaryEmbedding", y, cos, sin, positions, interleaved=interleaved, num_heads=n if flat else None)
            for y, n in zip((q, k), heads, strict=True)
        )
        past = [net.past(layer, what) for what in ("key", "value")]
        y, key, value = net.op(
            "Attention", q, k, v, mask, *past, outputs=3, is_causal=int(not masked), **counts, **attrs
        )
        net.named(key, f"present.{layer}.key")
        net.named(value, f"present.{layer}.value")
        y = net.linear(y, sizes.heads * sizes.size, sizes.width) if flat else net.joined(y)
        x = net.mlp(net.op("Add", x, y), norm)
    net.head(x, norm)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


def fixed_cache(how: str, sizes: Sizes = SIZES) -> Decoder:
    """A cache of CAPACITY places that is written at a position: TensorScatter, ScatterND or ScatterElements."""
    net = Maker(sizes, opset=24 if how == "TensorScatter" else 18)
    tokens = net.input([1, "sequence_length"], "input_ids", "int64")
    places = net.input(["sequence_length"], "cache_position", "int64")
    positions = net.op("Unsqueeze", places, net.const([0]))
    cos, sin = net.tables(positions, frequencies(sizes.size))
    j = net.op("Unsqueeze", net.op("Range", net.const(0), net.const(CAPACITY), net.const(1)), net.const([0]))
    hidden = net.op("Greater", j, net.op("Unsqueeze", places, net.const([1])))
    mask = net.op("Where", hidden, net.const(-np.inf, "float32"), net.const(0.0))
    if how == "TensorScatter":
        mask = net.input([1, 1, "sequence_length", "cache_length"], "causal_mask", "float32")
        start = net.input([1], "write_indices", "int64")
    x = net.embedded(tokens)
    shape = [1, sizes.kv_heads, CAPACITY, sizes.size]

    def written(layer: int, what: str, now: str) -> str:
        cache = net.input(shape, f"past_key_values.{layer}.{what}")
        if how == "TensorScatter":
            y = net.op("TensorScatter", cache, now, start, axis=2, mode="linear")
        elif how == "ScatterND":
            turned, fresh = (net.op("Transpose", t, perm=[2, 0, 1, 3]) for t in (cache, now))
            y = net.op("ScatterND", turned, net.op("Unsqueeze", places, net.const([1])), fresh)
            y = net.op("Transpose", y, perm=[1, 2, 0, 3])
        else:
            rows = net.op("Reshape", places, net.const([1, 1, -1, 1]))
            y = net.op("ScatterElements", cache, net.op("Expand", rows, net.op("Shape", now)), now, axis=2)
        return net.named(y, f"present.{layer}.{what}")

    for layer in range(sizes.layers):
        q, k, v = net.projections(net.rms(x))
        q, k, v = net.split(q, sizes.heads), net.split(k, sizes.kv_heads), net.split(v, sizes.kv_heads)
        q, k = net.half_turned(q, cos, sin), net.half_turned(k, cos, sin)
        k, v = written(layer, "key", k), written(layer, "value", v)
        if how == "TensorScatter":
            y = net.op("Attention", q, k, v, mask)
        else:
            y = net.attended(q, net.repeated(k), net.repeated(v), mask)
        x = net.mlp(net.op("Add", x, net.joined(y)), net.rms)
    net.head(x, net.rms)
    past = {n: (out, np.zeros(shape, np.float32)) for n, (out, _) in empty_past(sizes).items()}
    return Decoder(net.made(), _fixed_feeds, past)


def _fixed_feeds(start: int, tokens: np.ndarray) -> Feeds:
    count = tokens.shape[1]
    places = np.arange(start, start + count)
    hidden = np.arange(CAPACITY)[None, :] > places[:, None]
    return {
        "input_ids": tokens, "cache_position": places, "write_indices": np.array([start]),
        "causal_mask": np.where(hidden, np.float32(-np.inf), np.float32(0))[None, None],
    }  # fmt: skip


FUSED = {
    "multi_head": lambda: multi_head(False),
    "multi_head_padding": lambda: multi_head(True),
    "standard_flat": lambda: standard(True),
    "standard_heads": lambda: standard(False),
    "standard_24": lambda: standard(False, opset=24),
    "standard_masked": lambda: standard(False, masked=True),
    "standard_capped": lambda: standard(True, softcap=1.5, scale=0.3),
    "standard_neighbours": lambda: standard(False, interleaved=1),
    "tensor_scatter": lambda: fixed_cache("TensorScatter"),
    "scatter_nd": lambda: fixed_cache("ScatterND"),
    "scatter_elements": lambda: fixed_cache("ScatterElements"),
}
