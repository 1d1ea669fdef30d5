"""Decoders beside an encoder, with branches for the first call, with coded weights, with states that are no past."""

from __future__ import annotations

import numpy as np
import onnx
from decoders import SIZES, VOCABULARY, Decoder, Feeds, Maker, Sizes, empty_past, frequencies, optimum_feeds
from onnx import helper

BLOCK = 16
HEARD = 14


class Coded(Maker):
    """Products by codes with a scale for each block of inputs: MatMulNBits, or DequantizeLinear of int4."""

    how = "MatMulNBits"

    def linear(self, x: str, cin: int, cout: int) -> str:
        weight = self.rng.standard_normal((cin, cout)) * cin**-0.5
        blocks = weight.reshape(cin // BLOCK, BLOCK, cout)
        scales = (np.abs(blocks).max(1) / 7).astype(np.float32)
        codes = np.clip(np.rint(blocks / scales[:, None]), -8, 7).astype(np.int8).reshape(cin, cout)
        if self.how == "MatMulNBits":
            high = (codes.T + 8).astype(np.uint8).reshape(cout, cin // BLOCK, BLOCK)
            packed = self.const(high[..., ::2] | high[..., 1::2] << 4, "uint8")
            scale = self.const(scales.T.reshape(-1))
            return str(self.ms("MatMulNBits", x, packed, scale, K=cin, N=cout, bits=4, block_size=BLOCK))
        name = self.name("codes")
        low = codes.reshape(-1).astype(np.uint8) & 15
        self.initializers.append(
            helper.make_tensor(
                name, onnx.TensorProto.INT4, codes.shape, (low[::2] | low[1::2] << 4).tobytes(), raw=True
            )
        )
        real = self.op("DequantizeLinear", name, self.const(scales), axis=0, block_size=BLOCK)
        return str(self.op("MatMul", x, real))


def coded(how: str, sizes: Sizes = Sizes(size=16, width=32)) -> Decoder:  # noqa: B008
    """Optimum's form with coded weights; a table of tokens of codes beside MatMulNBits."""
    net = Coded(sizes, opset=21)
    net.how = how
    tokens, padding, positions, total = net.optimum()
    cos, sin = net.tables(positions, frequencies(sizes.size))
    mask = net.causal(tokens, total, padding=padding)
    if how == "MatMulNBits":
        codes = net.const(net.rng.integers(0, 256, (VOCABULARY, sizes.width // 2)), "uint8")
        scales = net.const(0.1 + 0.1 * net.rng.random((VOCABULARY, sizes.width // BLOCK)))
        x = net.ms("GatherBlockQuantized", codes, tokens, scales, bits=4, block_size=BLOCK, quantize_axis=1)
    else:
        x = net.embedded(tokens)
    for layer in range(sizes.layers):
        x = layer_of(net, layer, x, cos, sin, mask)
    net.head(x, net.rms)
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))


def layer_of(net: Maker, layer: int, x: str, cos: str, sin: str, mask: str, past: bool = True) -> str:
    """One layer in plain ops, with a past or without."""
    s = net.sizes
    q, k, v = net.projections(net.rms(x))
    q, k, v = net.split(q, s.heads), net.split(k, s.kv_heads), net.split(v, s.kv_heads)
    q, k = net.half_turned(q, cos, sin), net.half_turned(k, cos, sin)
    if past:
        k, v = net.grown(layer, "key", k), net.grown(layer, "value", v)
    else:
        k, v = net.named(k, f"present.{layer}.key"), net.named(v, f"present.{layer}.value")
    return net.mlp(net.op("Add", x, net.joined(net.attended(q, net.repeated(k), net.repeated(v), mask))), net.rms)


def merged(sizes: Sizes = SIZES) -> Decoder:
    """Optimum's merged form: an If takes the branch with a past or the one without."""
    bodies = []
    for past in (True, False):
        net = Maker(sizes)
        tokens, padding, positions, total = net.optimum()
        cos, sin = net.tables(positions, frequencies(sizes.size))
        mask = net.causal(tokens, total, padding=padding)
        x = net.embedded(tokens)
        for layer in range(sizes.layers):
            x = layer_of(net, layer, x, cos, sin, mask, past)
        net.head(x, net.rms)
        prefix = "with_past/" if past else "first/"
        inputs = {i.name for i in net.inputs}
        for node in net.nodes:
            node.input[:] = [i if i in inputs or not i else prefix + i for i in node.input]
            node.output[:] = [prefix + o for o in node.output]
        for tensor in net.initializers:
            tensor.name = prefix + tensor.name
        outputs = [helper.make_empty_tensor_value_info(prefix + o) for o in net.outputs]
        bodies.append(helper.make_graph(net.nodes, prefix[:-1], [], outputs, net.initializers))
        if past:
            outer = net
    outer.nodes = []
    outer.initializers = []
    branch = outer.input([1], "use_cache_branch", "bool")
    outer.nodes.append(helper.make_node("If", [branch], outer.outputs, then_branch=bodies[0], else_branch=bodies[1]))

    def feeds(start: int, now: np.ndarray) -> Feeds:
        return optimum_feeds(start, now) | {"use_cache_branch": np.array([start > 0])}

    return Decoder(outer.made(), feeds, empty_past(sizes))


def several_axes(sizes: Sizes = Sizes(size=16)) -> Decoder:  # noqa: B008
    """Qwen2-VL's form: a position of three axes for each token, each turning its own pairs."""
    net = Maker(sizes)
    tokens = net.input(["batch_size", "sequence_length"], "input_ids", "int64")
    padding = net.input(["batch_size", "total_sequence_length"], "attention_mask", "int64")
    positions = net.input([3, "batch_size", "sequence_length"], "position_ids", "int64")
    mask = net.causal(tokens, net.dim(padding, 1), padding=padding)
    place = net.op("Cast", net.op("Unsqueeze", positions, net.const([2])), to=1)
    angles = net.op("MatMul", net.const(frequencies(sizes.size)[None, None, :, None]), place)
    angles = net.op("Transpose", angles, perm=[0, 1, 3, 2])
    parts = net.op("Split", angles, net.const([2, 3, 3]), outputs=3, axis=3)
    ours = [net.op("Gather", part, net.const(axis), axis=0) for axis, part in enumerate(parts)]
    joined = net.op("Concat", *ours, axis=-1)
    both = net.op("Concat", joined, joined, axis=-1)
    cos, sin = (net.op("Unsqueeze", net.op(f, both), net.const([1])) for f in ("Cos", "Sin"))
    x = net.embedded(tokens)
    for layer in range(sizes.layers):
        x = layer_of(net, layer, x, cos, sin, mask)
    net.head(x, net.rms)

    def feeds(start: int, now: np.ndarray) -> Feeds:
        plain = optimum_feeds(start, now)
        return plain | {"position_ids": np.broadcast_to(plain["position_ids"], (3, *now.shape)).copy()}

    return Decoder(net.made(), feeds, empty_past(sizes))


def beside_an_encoder(sizes: Sizes = Sizes(kv_heads=4), held: bool = False) -> Decoder:  # noqa: B008
    """Whisper's form: attention to its own past, then to what an encoder heard. held: keys and values of the second are
    inputs themselves, as after the first call."""
    net = Maker(sizes)
    tokens = net.input(["batch_size", "sequence_length"], "input_ids", "int64")
    statics: Feeds = {}
    rng = np.random.default_rng(9)
    heard = ""
    if not held:
        heard = net.input(["batch_size", HEARD, sizes.width], "encoder_hidden_states")
        statics[heard] = rng.standard_normal((1, HEARD, sizes.width)).astype(np.float32)
        there = net.input(["batch_size", HEARD], "encoder_attention_mask", "int64")
    _hearing(net, tokens, heard, held, True)
    if held:
        shape = (1, sizes.heads, HEARD, sizes.size)
        names = [i.name for i in net.inputs if "encoder" in i.name]
        statics |= {n: rng.standard_normal(shape).astype(np.float32) for n in names if n != heard}

    def feeds(start: int, now: np.ndarray) -> Feeds:
        return {"input_ids": now} | ({} if held else {there: np.ones((1, HEARD), np.int64)})

    return Decoder(net.made(), feeds, _own_past(sizes), statics)


def _hearing(net: Maker, tokens: str, heard: str, held: bool, past: bool) -> None:
    """Layers of attention to the past (where there is one) and to what was heard, up to the logits."""
    sizes = net.sizes
    x, table = net.embedded(tokens), net.weight(48, sizes.width, scale=0.5)
    first = net.past(0, "decoder.key") if past else ""
    start = net.dim(first, 2) if past else net.const(0)
    total = net.op("Add", start, net.dim(tokens, 1))
    positions = net.op("Unsqueeze", net.op("Range", start, total, net.const(1)), net.const([0]))
    x = net.op("Add", x, net.op("Gather", table, positions, axis=0))
    mask, across = net.causal(tokens, total), None
    if heard and any(i.name == "encoder_attention_mask" for i in net.inputs):
        absent = net.op("Equal", net.op("Unsqueeze", "encoder_attention_mask", net.const([1, 2])), net.const(0))
        across = net.op("Where", absent, net.const(-1e30), net.const(0.0))
    for layer in range(sizes.layers):
        q, k, v = (net.split(y, sizes.heads) for y in net.projections(net.rms(x)))
        if past:
            k = net.op("Concat", first if layer == 0 else net.past(layer, "decoder.key"), k, axis=2)
            v = net.op("Concat", net.past(layer, "decoder.value"), v, axis=2)
        k, v = net.named(k, f"present.{layer}.decoder.key"), net.named(v, f"present.{layer}.decoder.value")
        x = net.op("Add", x, net.joined(net.attended(q, k, v, mask)))
        q = net.split(net.linear(net.rms(x), sizes.width, sizes.heads * sizes.size), sizes.heads)
        made = [net.weight(sizes.width, sizes.heads * sizes.size, scale=sizes.width**-0.5) for _ in range(2)]
        if held:
            shape = ["batch_size", sizes.heads, HEARD, sizes.size]
            k, v = (net.input(shape, f"past_key_values.{layer}.encoder.{what}") for what in ("key", "value"))  # type: ignore[arg-type]
        else:
            k, v = (net.split(net.op("MatMul", heard, w), sizes.heads) for w in made)
        x = net.mlp(net.op("Add", x, net.joined(net.attended(q, k, v, across))), net.rms)
        if heard:
            k, v = (net.named(y, f"present.{layer}.encoder.{n}") for y, n in ((k, "key"), (v, "value")))
    net.head(x, net.rms)


def _own_past(sizes: Sizes) -> dict[str, tuple[str, np.ndarray]]:
    return {
        n.replace(f".{what}", f".decoder.{what}"): (out.replace(f".{what}", f".decoder.{what}"), value)
        for n, (out, value) in empty_past(sizes).items() for what in ("key", "value") if n.endswith(what)
    }  # fmt: skip


def merged_beside_an_encoder(sizes: Sizes = Sizes(kv_heads=4)) -> Decoder:  # noqa: B008
    """Optimum's merged Whisper: the first call makes keys and values of what was heard, later calls are given them."""
    bodies = []
    for past in (True, False):
        net = Maker(sizes)
        tokens = net.input(["batch_size", "sequence_length"], "input_ids", "int64")
        _hearing(net, tokens, "" if past else "encoder_hidden_states", past, past)
        if past:
            outer = net
            kept = [f"past_key_values.{n}.encoder.{w}" for n in range(sizes.layers) for w in ("key", "value")]
            for name in kept:
                net.named(name, name.replace("past_key_values", "present"))
        prefix = "with_past/" if past else "first/"
        inputs = {i.name for i in net.inputs} | {"encoder_hidden_states"}
        for node in net.nodes:
            node.input[:] = [i if i in inputs or not i else prefix + i for i in node.input]
            node.output[:] = [prefix + o for o in node.output]
        for tensor in net.initializers:
            tensor.name = prefix + tensor.name
        order = outer.outputs
        outputs = [helper.make_empty_tensor_value_info(prefix + o) for o in order]
        bodies.append(helper.make_graph(net.nodes, prefix[:-1], [], outputs, net.initializers))
    outer.nodes, outer.initializers = [], []
    heard = outer.input(["batch_size", HEARD, sizes.width], "encoder_hidden_states")
    for port in outer.inputs:
        if ".encoder." in port.name:
            port.type.tensor_type.shape.dim[2].dim_param = "encoder_sequence_length"
    branch = outer.input([1], "use_cache_branch", "bool")
    outer.nodes.append(helper.make_node("If", [branch], outer.outputs, then_branch=bodies[0], else_branch=bodies[1]))
    statics = {heard: np.random.default_rng(9).standard_normal((1, HEARD, sizes.width)).astype(np.float32)}

    def feeds(start: int, now: np.ndarray) -> Feeds:
        return {"input_ids": now, "use_cache_branch": np.array([start > 0])}

    empty = np.zeros((1, sizes.heads, 1, sizes.size), np.float32)
    carried = {n: (n.replace("past_key_values", "present"), empty) for n in kept}
    return Decoder(outer.made(), feeds, _own_past(sizes) | carried, statics)


def hybrid(sizes: Sizes = SIZES) -> Decoder:
    """LFM2's form: gated short convolutions whose last frames are a state, in turn with attention."""
    net = Maker(sizes)
    tokens, padding, positions, total = net.optimum()
    cos, sin = net.tables(positions, frequencies(sizes.size))
    mask = net.causal(tokens, total, padding=padding)
    x, width, taps = net.embedded(tokens), sizes.width, 3
    past = empty_past(sizes)
    for layer in range(sizes.layers):
        gates = net.op("Transpose", net.linear(net.rms(x), width, 3 * width), perm=[0, 2, 1])
        b, c, y = net.op("Split", gates, net.const([width] * 3), outputs=3, axis=1)
        state = net.input(["batch_size", width, taps], f"past_conv.{layer}")
        y = net.op("Concat", state, net.op("Mul", b, y), axis=2)
        net.named(net.cut(y, -taps, 1 << 40, 2), f"present_conv.{layer}")
        past[state] = (f"present_conv.{layer}", np.zeros((1, width, taps), np.float32))
        y = net.op("Conv", net.cut(y, 1, 1 << 40, 2), net.weight(width, 1, taps, scale=0.6), group=width)
        x = net.op("Add", x, net.linear(net.op("Transpose", net.op("Mul", c, y), perm=[0, 2, 1]), width, width))
        x = layer_of(net, layer, x, cos, sin, mask)
    net.head(x, net.rms)
    return Decoder(net.made(), optimum_feeds, past)


MORE = {
    "coded_products": lambda: coded("MatMulNBits"),
    "coded_blocks": lambda: coded("DequantizeLinear"),
    "merged": merged,
    "several_axes": several_axes,
    "beside_an_encoder": beside_an_encoder,
    "beside_a_held_encoder": lambda: beside_an_encoder(held=True),
    "merged_beside_an_encoder": merged_beside_an_encoder,
    "hybrid": hybrid,
}


def ranking_heads(one_output: bool = False, sizes: Sizes = SIZES) -> Decoder:
    """Locret's form: a small head a layer says of each token and KV head what it is worth, as outputs of the model."""
    net = Maker(sizes)
    tokens, padding, positions, total = net.optimum()
    cos, sin = net.tables(positions, frequencies(sizes.size))
    mask = net.causal(tokens, total, padding=padding)
    x, ranks = net.embedded(tokens), []
    for layer in range(sizes.layers):
        hidden = x
        x = layer_of(net, layer, x, cos, sin, mask)
        ranks.append(net.op("Sigmoid", net.linear(hidden, sizes.width, sizes.kv_heads)))
    if one_output:
        net.named(net.op("Transpose", net.op("Concat", *ranks, axis=2), perm=[0, 2, 1]), "worth")
    else:
        for layer, y in enumerate(ranks):
            net.named(y, f"worth.{layer}")
    net.head(x, net.rms)
    net.ranks = {n: 3 for n in net.outputs if n.startswith("worth")}
    return Decoder(net.made(), optimum_feeds, empty_past(sizes))
