"""Decoders that are not taken: one reason, which names the node or input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from decoders import LOWEST, SIZES, Maker, Sizes, frequencies
from families import biased
from onnx import helper
from others import layer_of

from models import FAMILIES, grouped_query, primitive
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import InputError, Refused


def analysed(model: bytes) -> None:
    analyse(load(model), kv="window=20")


def changed(model: bytes, change: Callable[[onnx.GraphProto], None]) -> bytes:
    proto = onnx.load_from_string(model)
    change(proto.graph)
    return bytes(proto.SerializeToString())


def lone(bend: Callable[[Maker, str, str], tuple[str, str]]) -> bytes:
    """A decoder without a past whose cosines and sines, or mask, are bent: (net, positions, length) → (cos, mask)."""
    net = Maker(SIZES)
    tokens = net.input(["batch", "T"], "tokens", "int64")
    length = net.dim(tokens, 1)
    positions = net.op("Unsqueeze", net.op("Range", net.const(0), length, net.const(1)), net.const([0]))
    cos, sin = net.tables(positions, frequencies(SIZES.size))
    factor, mask = bend(net, positions, length)
    cos, sin = (net.op("Mul", t, factor) if factor else t for t in (cos, sin))
    x = layer_of(net, 0, net.embedded(tokens), cos, sin, mask or net.causal(tokens, length), past=False)
    net.outputs = []
    net.head(x, net.rms)
    return net.made()


def by_length(threshold: int) -> bytes:
    """Positions that are stretched in texts longer than so many tokens (dynamic NTK, LongRoPE)."""
    net = Maker(SIZES)
    tokens = net.input(["batch", "T"], "tokens", "int64")
    length = net.dim(tokens, 1)
    places = net.op("Cast", net.op("Range", net.const(0), length, net.const(1)), to=1)
    stretch = net.op("Where", net.op("Greater", length, net.const(threshold)), net.const(0.5), net.const(1.0))
    angles = net.op("MatMul", net.op("Unsqueeze", places, net.const([1])), net.const(frequencies(SIZES.size)[None]))
    angles = net.op("Mul", angles, stretch)
    both = net.op("Unsqueeze", net.op("Concat", angles, angles, axis=-1), net.const([0, 1]))
    cos, sin = (net.op(f, both) for f in ("Cos", "Sin"))
    x = layer_of(net, 0, net.embedded(tokens), cos, sin, net.causal(tokens, length), past=False)
    net.outputs = []
    net.head(x, net.rms)
    return net.made()


def test_positions_stretched_in_longer_texts() -> None:
    """Within what was seen they are refused; a stream ends where they would change."""
    with pytest.raises(Refused, match="positions do something else than to turn"):
        analysed(by_length(30))
    graph = analyse(load(by_length(8192)), kv="window=20")
    assert graph.max_frames == 8192 and "otherwise beyond 8192 tokens" in graph.max_frames_reason


def test_factors_that_change_with_the_position() -> None:
    def bend(net: Maker, positions: str, length: str) -> tuple[str, str]:
        place = net.op("Cast", net.op("Unsqueeze", positions, net.const([0, 3])), to=1)
        return str(net.op("Add", net.const(1.0), net.op("Mul", place, net.const(0.01)))), ""

    with pytest.raises(Refused, match=r"'node_MatMul_\d+': its queries .* positions do something else than to turn"):
        analysed(lone(bend))


def test_a_mask_that_sees_what_comes() -> None:
    def bend(net: Maker, positions: str, length: str) -> tuple[str, str]:
        i = net.op("Transpose", positions, perm=[1, 0])
        ahead = net.op("Greater", positions, net.op("Add", i, net.const(2)))
        return "", str(net.op("Where", ahead, net.const(LOWEST), net.const(0.0)))

    with pytest.raises(Refused, match="lets tokens see what comes after them"):
        analysed(lone(bend))


def test_a_mask_of_chunks() -> None:
    def bend(net: Maker, positions: str, length: str) -> tuple[str, str]:
        i = net.op("Transpose", positions, perm=[1, 0])
        chunks = [net.op("Div", y, net.const(4)) for y in (positions, i)]
        hidden = net.op("Or", net.op("Greater", positions, i), net.op("Less", *chunks))
        return "", str(net.op("Where", hidden, net.const(LOWEST), net.const(0.0)))

    with pytest.raises(Refused, match="sees in chunks"):
        analysed(lone(bend))


def test_codes_kept_by_the_op_itself() -> None:
    def quantised(graph: onnx.GraphProto) -> None:
        node = next(n for n in graph.node if n.op_type == "GroupQueryAttention")
        node.attribute.extend(helper.make_attribute(n, "PER_TENSOR") for n in ("k_quant_type", "v_quant_type"))

    with pytest.raises((Refused, InputError), match="GroupQueryAttention"):
        analysed(changed(grouped_query().model, quantised))


def test_products_given_out() -> None:
    def named(graph: onnx.GraphProto) -> None:
        node = next(n for n in graph.node if n.op_type == "Attention")
        node.output.append("qk")
        graph.output.append(helper.make_tensor_value_info("qk", onnx.TensorProto.FLOAT, list("abcd")))

    with pytest.raises(Refused, match="Attention 'node_Attention_"):
        analysed(changed(FAMILIES["standard_heads"]().model, named))


def test_an_input_that_no_decoder_has() -> None:
    def added(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("temperature", onnx.TensorProto.FLOAT, [1]))

    with pytest.raises(InputError, match=r"input 'temperature' \[1\] is none that a decoder is known to have"):
        analysed(changed(primitive().model, added))


def test_a_past_that_is_continued_by_something_else() -> None:
    def swapped(graph: onnx.GraphProto) -> None:
        one, other = (next(o for o in graph.output if o.name == f"present.0.{w}") for w in ("key", "value"))
        one.name, other.name = other.name, one.name
        for node in graph.node:
            names = {"present.0.key": "present.0.value", "present.0.value": "present.0.key"}
            for side in (node.input, node.output):
                side[:] = [names.get(n, n) for n in side]

    with pytest.raises(InputError, match="gives another 'logits' than over the whole sequence"):
        analysed(changed(primitive().model, swapped))


def test_a_bias_that_never_settles() -> None:
    def rooted(graph: onnx.GraphProto) -> None:
        """Slopes over the square root of the distance."""
        node = next(n for n in graph.node if n.op_type == "Cast" and n.input[0].startswith("Sub"))
        made = [
            helper.make_node("Neg", [node.output[0]], ["away"]), helper.make_node("Relu", ["away"], ["far"]),
            helper.make_node("Sqrt", ["far"], ["root"]),
        ]  # fmt: skip
        at = list(graph.node).index(node)
        later = list(graph.node)[at + 1 :]
        for reader in later:
            reader.input[:] = ["root" if i == node.output[0] else i for i in reader.input]
        kept = [*list(graph.node)[: at + 1], *made, *later]
        del graph.node[:]
        graph.node.extend(kept)

    with pytest.raises(Refused, match="goes on changing with the distance"):
        analysed(changed(biased("distances").model, rooted))


def test_no_input_of_tokens() -> None:
    net = Maker(Sizes())
    x = net.input([1, "T", 24], "features")
    net.named(net.linear(x, 24, 8), "logits")
    with pytest.raises(InputError, match="none of the inputs 'features' is known as the tokens"):
        analysed(net.made())
    assert np.isfinite(LOWEST)
