"""RotaryEmbedding as an op, with tables by positions, before attention and alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from masks import MASKS, masked
from oracle import Check
from test_attention_bounds import HEADS, split
from test_attention_ops import Fused

ROWS = 300


def caches(net: Fused, half: int) -> tuple[str, str]:
    """Cosines and sines, (ROWS, half)."""
    angles = np.arange(ROWS)[:, None] * 100.0 ** -(np.arange(half) / half)
    return net.const(np.cos(angles).astype(np.float32)), net.const(np.sin(angles).astype(np.float32))


def places(net: Fused, x: str, axis: int, how: str) -> str:
    """Positions (1, T), from a Range or cut from a constant."""
    if how == "range":
        length = net.op("Squeeze", net.length(x, axis), net.const([0]))
        return str(net.op("Unsqueeze", net.op("Range", net.const(0), length, net.const(1)), net.const([0])))
    return str(net.op("Slice", net.const(np.arange(ROWS)[None]), net.const([0]), net.length(x, axis), net.const([1])))


def turned(net: Fused, x: str, half: int, axis: int, how: str, **attrs: Any) -> str:
    """x with positions of one of the ways in which models give them."""
    cos, sin = caches(net, half)
    if how.startswith("microsoft"):
        given = net.const([3]) if how == "microsoft offset" else places(net, x, axis, "range")
        return net.fused("RotaryEmbedding", x, given, cos, sin, **attrs)
    if how == "rows":
        bounds = net.const([0]), net.length(x, axis), net.const([0])
        rows = [net.op("Unsqueeze", net.op("Slice", t, *bounds), net.const([0])) for t in (cos, sin)]
        return str(net.op("RotaryEmbedding", x, *rows, **attrs))
    return str(net.op("RotaryEmbedding", x, cos, sin, places(net, x, axis, how), **attrs))


WAYS = pytest.mark.parametrize("how", ["range", "table", "rows", "microsoft", "microsoft offset"])


@WAYS
@pytest.mark.parametrize("interleaved", [0, 1])
def test_heads_side_by_side(check: Check, how: str, interleaved: int) -> None:
    net = Fused(23)
    x = net.input([1, "T", 8])
    y = turned(net, net.op("Tanh", x), 2, 1, how, num_heads=2, interleaved=interleaved)
    check(net.finished(y), steps=(None, 3))


@WAYS
def test_heads_apart_and_some_features(check: Check, how: str) -> None:
    """4 of 6 features are turned."""
    net = Fused(23)
    x = net.input([1, 2, "T", 6])
    attrs = {"num_heads": 2, "rotary_embedding_dim": 4}
    check(net.finished(turned(net, x, 2, 2, how, **attrs), 4), steps=(None, 3), time_axis={"x": 2})


@pytest.mark.parametrize("kind", ["window", "causal_less"])
@pytest.mark.parametrize("how", ["range", "microsoft"])
def test_before_attention(check: Check, kind: str, how: str) -> None:
    net = Fused(23)
    x = net.input([1, "T", HEADS.width])
    q, k, v = (split(net, net.op("MatMul", x, net.weight(8, 8)), 2, 4) for _ in range(3))
    q, k = (turned(net, t, 2, 2, how, num_heads=2) for t in (q, k))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    weights = net.op("Softmax", masked(net, scores, *MASKS[kind](net, x)), axis=-1)
    check(net.finished(net.op("MatMul", weights, v), 4), at_least=8, max_frames=200)
