"""Decoders of other families: positions that are learned or biases, latent attention, sinks, several sequences."""

from __future__ import annotations

import numpy as np
from decoders import SIZES, Decoder, Feeds, Maker, Sizes, empty_past, frequencies, optimum_feeds


def learned_positions(sizes: Sizes = SIZES, rows: int = 64) -> Decoder:
    """GPT-2's form: positions are rows of a table; q, k and v are one product; LayerNormalization and Gelu."""
    net = Maker(sizes, opset=20)
    tokens, padding, positions, total = net.optimum()
    mask = net.causal(tokens, total, padding=padding)
    x = net.op("Add", net.embedded(tokens), net.op("Gather", net.weight(rows, sizes.width, scale=0.5), positions))

    def norm(x: str) -> str:
        return str(net.op("LayerNormalization", x, net.weight(sizes.width), net.weight(sizes.width), axis=-1))

    wide = (sizes.heads + 2 * sizes.kv_heads) * sizes.size
    ends = np.cumsum([sizes.heads, sizes.kv_heads, sizes.kv_heads]) * sizes.size
    for layer in range(sizes.layers):
        packed = net.op("Add", net.linear(norm(x), sizes.width, wide), net.weight(wide))
        parts = net.const(np.diff([0, *ends]))
        q, k, v = net.op("Split", packed, parts, outputs=3, axis=2)
        q, k, v = net.split(q, sizes.heads), net.split(k, sizes.kv_heads), net.split(v, sizes.kv_heads)
        k, v = net.grown(layer, "key", k), net.grown(layer, "value", v)
        x = net.op("Add", x, net.joined(net.attended(q, net.repeated(k), net.repeated(v), mask)))
        h = net.op("Gelu", net.linear(norm(x), sizes.width, 2 * sizes.width))
        x = net.op("Add", x, net.linear(h, 2 * sizes.width, sizes.width))
    net.head(x, norm)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


def biased(kind: str, sizes: Sizes = SIZES) -> Decoder:
    """No positions but a bias: ALiBi's slopes over keys or over distances, or T5's table by distance."""
    net = Maker(sizes)
    tokens, padding, _, total = net.optimum()
    net.inputs.pop()
    mask = net.causal(tokens, total, padding=padding)
    past = net.op("Sub", total, net.dim(tokens, 1))
    i = net.op("Unsqueeze", net.op("Range", past, total, net.const(1)), net.const([1]))
    j = net.op("Unsqueeze", net.op("Range", net.const(0), total, net.const(1)), net.const([0]))
    if kind == "buckets":
        bucket = net.op("Min", net.op("Max", net.op("Sub", i, j), net.const(0)), net.const(11))
        table = net.op("Gather", net.weight(12, sizes.heads, scale=1.0), bucket, axis=0)
        bias = net.op("Unsqueeze", net.op("Transpose", table, perm=[2, 0, 1]), net.const([0]))
    else:
        place = net.op("Cast", j if kind == "keys" else net.op("Sub", j, i), to=1)
        slopes = net.const((2.0 ** -(np.arange(1, sizes.heads + 1) * 2)).reshape(1, -1, 1, 1))
        bias = net.op("Mul", net.op("Unsqueeze", place, net.const([0, 1])), slopes)
    mask = net.op("Add", mask, bias)
    x = net.embedded(tokens)
    for layer in range(sizes.layers):
        q, k, v = net.projections(net.rms(x))
        q, k, v = net.split(q, sizes.heads), net.split(k, sizes.kv_heads), net.split(v, sizes.kv_heads)
        k, v = net.grown(layer, "key", k), net.grown(layer, "value", v)
        x = net.mlp(net.op("Add", x, net.joined(net.attended(q, net.repeated(k), net.repeated(v), mask))), net.rms)
    net.head(x, net.rms)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


def latent(layers: int = 2, heads: int = 4, plain: int = 8, turned: int = 4, rank: int = 12) -> Decoder:
    """DeepSeek's form: keys and values from one latent, a part of each key turned and shared by all heads."""
    size, sizes = plain + turned, Sizes(layers, heads, heads, plain + turned)
    net = Maker(sizes)
    tokens, padding, positions, total = net.optimum()
    cos, sin = net.tables(positions, frequencies(turned))
    mask = net.causal(tokens, total, padding=padding)
    x, width = net.embedded(tokens), sizes.width

    def halves(y: str) -> str:
        """Neighbours in the weights, halves in the product, as DeepSeek's code has it."""
        pairs = net.op("Reshape", y, net.const([0, 0, -1, turned // 2, 2]))
        return str(net.op("Reshape", net.op("Transpose", pairs, perm=[0, 1, 2, 4, 3]), net.const([0, 0, -1, turned])))

    def rotated(y: str) -> str:
        y = net.op("Transpose", halves(y), perm=[0, 2, 1, 3])
        negative = net.op("Neg", net.cut(y, turned // 2, turned, 3))
        swapped = net.op("Concat", negative, net.cut(y, 0, turned // 2, 3), axis=-1)
        return str(net.op("Add", net.op("Mul", y, cos), net.op("Mul", swapped, sin)))

    for layer in range(layers):
        h = net.rms(x)
        q = net.op("Reshape", net.linear(h, width, heads * size), net.const([0, 0, heads, size]))
        q_turned = rotated(net.cut(q, plain, size, 3))
        q = net.op("Concat", net.op("Transpose", net.cut(q, 0, plain, 3), perm=[0, 2, 1, 3]), q_turned, axis=3)
        low = net.linear(h, width, rank + turned)
        shared = rotated(net.op("Reshape", net.cut(low, rank, rank + turned, 2), net.const([0, 0, 1, turned])))
        wide = net.linear(net.rms(net.cut(low, 0, rank, 2), rank), rank, heads * 2 * plain)
        both = net.op("Transpose", net.op("Reshape", wide, net.const([0, 0, heads, 2 * plain])), perm=[0, 2, 1, 3])
        length = net.op("Unsqueeze", net.dim(shared, 2), net.const([0]))
        every = net.op("Concat", net.const([1, heads]), length, net.const([turned]), axis=0)
        k = net.op("Concat", net.cut(both, 0, plain, 3), net.op("Expand", shared, every), axis=3)
        v = net.cut(both, plain, 2 * plain, 3)
        k = net.named(net.op("Concat", net.past(layer, "key"), k, axis=2), f"present.{layer}.key")
        v = net.named(net.op("Concat", net.past(layer, "value", size=plain), v, axis=2), f"present.{layer}.value")
        y = net.op("Transpose", net.attended(q, k, v, mask), perm=[0, 2, 1, 3])
        y = net.linear(net.op("Reshape", y, net.const([0, 0, heads * plain])), heads * plain, width)
        x = net.mlp(net.op("Add", x, y), net.rms)
    net.head(x, net.rms)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes, plain))


def learned_sinks(sizes: Sizes = SIZES) -> Decoder:
    """gpt-oss: a logit beside the scores of each head, and a window in every second layer."""
    net = Maker(sizes)
    tokens, padding, positions, total = net.optimum()
    cos, sin = net.tables(positions, frequencies(sizes.size))
    masks = [net.causal(tokens, total, window, padding) for window in (6, 0)]
    x = net.embedded(tokens)
    for layer in range(sizes.layers):
        q, k, v = net.projections(net.rms(x))
        q, k, v = net.split(q, sizes.heads), net.split(k, sizes.kv_heads), net.split(v, sizes.kv_heads)
        q, k = net.half_turned(q, cos, sin), net.half_turned(k, cos, sin)
        k, v = net.grown(layer, "key", k), net.grown(layer, "value", v)
        scores = net.op("MatMul", q, net.op("Transpose", net.repeated(k), perm=[0, 1, 3, 2]))
        scores = net.op("Add", net.op("Mul", scores, net.const(sizes.size**-0.5)), masks[layer % 2])
        rows = net.op("Unsqueeze", net.dim(scores, 2), net.const([0]))
        column = net.op("Concat", net.const([1, sizes.heads]), rows, net.const([1]), axis=0)
        sink = net.op("Expand", net.op("Reshape", net.weight(sizes.heads, scale=1.0), net.const([1, -1, 1, 1])), column)
        both = net.op("Concat", scores, sink, axis=-1)
        both = net.op("Sub", both, net.op("ReduceMax", both, axes=[-1], keepdims=1))
        weights = net.cut(net.op("Softmax", both, axis=-1), 0, -1, -1)
        x = net.mlp(net.op("Add", x, net.joined(net.op("MatMul", weights, net.repeated(v)))), net.rms)
    net.head(x, net.rms)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


def stacked_past(sizes: Sizes = SIZES) -> Decoder:
    """GPT-2's oldest form: one past a layer, (2, batch, heads, past, size)."""
    net = Maker(sizes)
    tokens = net.input(["batch_size", "sequence_length"], "input_ids", "int64")
    net.past_rank = 5
    x = net.embedded(tokens)
    past: dict[str, tuple[str, np.ndarray]] = {}
    shape = [2, "batch_size", sizes.kv_heads, "past_sequence_length", sizes.size]
    for layer in range(sizes.layers):
        before = net.input(shape, f"past_{layer}")  # type: ignore[arg-type]
        past[before] = (f"present_{layer}", np.zeros((2, 1, sizes.kv_heads, 0, sizes.size), np.float32))
        q, k, v = net.projections(net.rms(x))
        q, k, v = net.split(q, sizes.heads), net.split(k, sizes.kv_heads), net.split(v, sizes.kv_heads)
        k, v = (
            net.op("Concat", net.op("Gather", before, net.const(n), axis=0), y, axis=2) for n, y in enumerate((k, v))
        )
        both = net.op("Concat", *(net.op("Unsqueeze", y, net.const([0])) for y in (k, v)), axis=0)
        net.named(both, f"present_{layer}")
        mask = net.causal(tokens, net.dim(k, 2))
        x = net.mlp(net.op("Add", x, net.joined(net.attended(q, net.repeated(k), net.repeated(v), mask))), net.rms)
    net.head(x, net.rms)
    return Decoder(net.made(), lambda start, now: {"input_ids": now}, past)


def without_past(sizes: Sizes = SIZES) -> Decoder:
    """A full sequence, with positions and mask of its own, turned by rows of tables as neighbours (llama2.c)."""
    net = Maker(sizes)
    tokens = net.input(["batch", "T"], "tokens", "int64")
    length = net.dim(tokens, 1)
    angles = np.arange(64)[:, None] * frequencies(sizes.size).astype(np.float64)
    rows = [net.cut(net.const(f(angles)), 0, 0, 0) for f in (np.cos, np.sin)]
    for node in net.nodes[-2:]:
        node.input[2] = net.op("Unsqueeze", length, net.const([0]))
    net.nodes = [*net.nodes[:2], *sorted(net.nodes[2:], key=lambda n: n.op_type == "Slice")]
    cos, sin = (net.op("Unsqueeze", r, net.const([0, 1])) for r in rows)
    mask = net.causal(tokens, length)
    x = net.embedded(tokens)

    def turned(y: str) -> str:
        a, b = (net.cut(y, n, sizes.size, 3, 2) for n in (0, 1))
        first = net.op("Sub", net.op("Mul", a, cos), net.op("Mul", b, sin))
        second = net.op("Add", net.op("Mul", b, cos), net.op("Mul", a, sin))
        both = net.op("Concat", *(net.op("Unsqueeze", t, net.const([4])) for t in (first, second)), axis=4)
        return str(net.op("Reshape", both, net.const([0, 0, 0, sizes.size])))

    for _ in range(sizes.layers):
        q, k, v = net.projections(net.rms(x))
        q, k, v = net.split(q, sizes.heads), net.split(k, sizes.kv_heads), net.split(v, sizes.kv_heads)
        y = net.attended(turned(q), net.repeated(turned(k)), net.repeated(v), mask)
        x = net.mlp(net.op("Add", x, net.joined(y)), net.rms)
    net.head(x, net.rms)
    return Decoder(net.made(), _whole)


def _whole(start: int, now: np.ndarray) -> Feeds:
    return {"tokens": now}


OTHERS = {
    "learned_positions": learned_positions,
    "alibi_keys": lambda: biased("keys"),
    "alibi_distances": lambda: biased("distances"),
    "bias_by_buckets": lambda: biased("buckets"),
    "latent": latent,
    "learned_sinks": learned_sinks,
    "stacked_past": stacked_past,
    "without_past": without_past,
}


def absorbed(layers: int = 2, heads: int = 4, rank: int = 12, turned: int = 4) -> Decoder:
    """Latent attention in its absorbed form: one key for all heads, the latent and a turned part; the latent is the
    value too."""
    size, sizes = rank + turned, Sizes(layers, heads, 1, rank + turned)
    net = Maker(sizes)
    tokens, padding, positions, total = net.optimum()
    cos, sin = net.tables(positions, frequencies(turned))
    mask = net.causal(tokens, total, padding=padding)
    x, width = net.embedded(tokens), sizes.width

    def rotated(y: str) -> str:
        negative = net.op("Neg", net.cut(y, turned // 2, turned, 3))
        swapped = net.op("Concat", negative, net.cut(y, 0, turned // 2, 3), axis=-1)
        return str(net.op("Add", net.op("Mul", y, cos), net.op("Mul", swapped, sin)))

    for layer in range(layers):
        h = net.rms(x)
        q = net.split(net.linear(h, width, heads * size), heads)
        q = net.op("Concat", net.cut(q, 0, rank, 3), rotated(net.cut(q, rank, size, 3)), axis=3)
        low = net.linear(h, width, size)
        held = net.op("Unsqueeze", net.rms(net.cut(low, 0, rank, 2), rank), net.const([1]))
        shared = rotated(net.op("Unsqueeze", net.cut(low, rank, size, 2), net.const([1])))
        k = net.grown(layer, "key", net.op("Concat", held, shared, axis=3))
        y = net.attended(q, k, net.cut(k, 0, rank, 3), mask)
        y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.const([0, 0, heads * rank]))
        x = net.mlp(net.op("Add", x, net.linear(y, heads * rank, width)), net.rms)
    net.head(x, net.rms)
    past = {n: p for n, p in empty_past(sizes).items() if n.endswith("key")}
    return Decoder(net.made(), optimum_feeds, past)


OTHERS["absorbed"] = absorbed
