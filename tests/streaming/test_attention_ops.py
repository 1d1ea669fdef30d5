"""Attention as one op: ONNX's own, and those of com.microsoft."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from masks import MASKS, Heads
from nets import Net
from onnx import helper
from oracle import Check

from runnel.errors import Refused

HEADS = Heads(2, 2, 4)
MICROSOFT = "com.microsoft"


class Fused(Net):
    """A net whose ops may be of com.microsoft; shapes are inferred no further than the output's rank of 3."""

    def __init__(self, opset: int) -> None:
        super().__init__(opset=opset)

    def fused(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> str:
        names = [self.name(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], domain=MICROSOFT, **attrs))
        return names[0]

    def finished(self, y: str, rank: int = 3) -> bytes:
        port = helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, [f"d{i}" for i in range(rank)])
        graph = helper.make_graph(self.nodes, "net", self.inputs, [port], self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        ir = 11 if self.opset > 23 else 10
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=ir).SerializeToString())


def fused(opset: int = 17, heads: Heads = HEADS) -> tuple[Fused, str, list[str]]:
    """A net, its input and its three projections."""
    net = Fused(opset)
    x = net.input([1, "T", heads.width])
    sizes = (heads.queries, heads.keys, heads.keys)
    return net, x, [net.op("MatMul", x, net.weight(heads.width, n * heads.size)) for n in sizes]


def mask_of(net: Net, x: str, kind: str, additive: bool) -> str:
    how, mask = MASKS[kind](net, x)
    assert how == ("add" if additive else "where")
    return mask


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("heads", [Heads(2, 2, 4), Heads(4, 2, 3), Heads(3, 1, 5)])
def test_standard_causal(check: Check, opset: int, heads: Heads) -> None:
    net, _, parts = fused(opset, heads)
    y = net.op("Attention", *parts, is_causal=1, q_num_heads=heads.queries, kv_num_heads=heads.keys)
    check(net.finished(y), at_least=12, max_frames=300)


@pytest.mark.parametrize("kind", ["window_where", "sliding", "chunked_left", "window", "relative_table"])
def test_standard_with_a_mask(check: Check, kind: str) -> None:
    net, x, parts = fused(23)
    mask = mask_of(net, x, kind, kind in ("window", "relative_table"))
    y = net.op("Attention", *parts, mask, q_num_heads=2, kv_num_heads=2, scale=0.3)
    check(net.finished(y), at_least=12)


def test_standard_of_four_axes_with_shared_keys_and_a_mask_for_each_head(check: Check) -> None:
    net, x, _ = fused(23, Heads(2, 2, 3))
    sizes = (2, 1, 1)
    q, k, v = (net.op("MatMul", x, net.weight(6, 3 * n)) for n in sizes)
    q, k, v = (
        net.op("Transpose", net.op("Reshape", p, net.const([0, 0, n, 3])), perm=[0, 2, 1, 3])
        for p, n in zip((q, k, v), sizes)
    )
    y = net.op("Attention", q, k, v, mask_of(net, x, "relative_table", True))
    check(net.finished(y, 4), at_least=12)


def test_standard_capped(check: Check) -> None:
    net, x, parts = fused(23)
    mask = mask_of(net, x, "sliding", False)
    check(net.finished(net.op("Attention", *parts, mask, q_num_heads=2, kv_num_heads=2, softcap=0.8)), at_least=12)


def test_multi_head(check: Check) -> None:
    net, x, parts = fused()
    y = net.fused("MultiHeadAttention", *parts, num_heads=2, unidirectional=1)
    check(net.finished(y), at_least=12, max_frames=300)


def test_multi_head_with_a_bias_and_a_window(check: Check) -> None:
    net, x, parts = fused()
    mask = net.op("Unsqueeze", mask_of(net, x, "window", True), net.const([0, 1]))
    y = net.fused("MultiHeadAttention", *parts, net.weight(24), "", mask, num_heads=2, scale=0.4)
    check(net.finished(y), at_least=12)


def test_packed(check: Check) -> None:
    net, x, _ = fused()
    y = net.fused("Attention", x, net.weight(8, 24), net.weight(24), num_heads=2, unidirectional=1)
    check(net.finished(y), at_least=12, max_frames=300)


def grouped(net: Fused, x: str, parts: list[str], tables: bool = False, **attrs: Any) -> str:
    """GroupQueryAttention on a whole prompt: its lengths come from the shape of the input."""
    length = net.op("Cast", net.length(x, 1), to=6)
    last = net.op("Sub", length, net.const([1], "int32"))
    total = net.op("ReduceMax", length, keepdims=0)
    inputs = [*parts, "", "", last, total]
    if tables:
        angles = np.arange(400)[:, None] * 100.0 ** -(np.arange(8) / 8)
        inputs += [net.const(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
    return net.fused("GroupQueryAttention", *inputs, outputs=3, **attrs)


@pytest.mark.parametrize("window", [-1, 5])
@pytest.mark.parametrize("rotary", ["", "halves", "pairs"])
def test_grouped(check: Check, window: int, rotary: str) -> None:
    heads = Heads(4, 2, 16)
    net, x, parts = fused(17, heads)
    attrs = {"do_rotary": 1, "rotary_interleaved": int(rotary == "pairs")} if rotary else {}
    y = grouped(net, x, parts, bool(rotary), num_heads=4, kv_num_heads=2, local_window_size=window, **attrs)
    check(net.finished(y), at_least=12, max_frames=300)


def test_grouped_capped(check: Check) -> None:
    net, x, parts = fused(17, Heads(4, 2, 16))
    y = grouped(net, x, parts, num_heads=4, kv_num_heads=2, softcap=0.7, local_window_size=6, scale=0.9)
    check(net.finished(y), at_least=12)


def test_a_past_of_its_own_is_refused() -> None:
    net, _, parts = fused(23)
    past = net.const(np.zeros((1, 2, 3, 4), np.float32))
    names = ["y", "k", "v"]
    net.nodes.append(
        helper.make_node("Attention", [*parts, "", past, past], names, name="cached", q_num_heads=2, kv_num_heads=2)
    )
    with pytest.raises(Refused, match="past of its own"):
        oracle.check(net.finished("y"))


def test_without_a_mask_is_refused() -> None:
    net, _, parts = fused()
    with pytest.raises(Refused, match="whole future"):
        oracle.check(net.finished(net.fused("MultiHeadAttention", *parts, num_heads=2)))
