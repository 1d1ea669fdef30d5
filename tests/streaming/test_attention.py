"""Attention over time: rings of keys and values for every mask that is causal, sliding or chunked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from masks import FORMS, MASKS, Heads, attention, masked, split, within
from nets import TIME, Net
from oracle import Check

HEADS = Heads(2, 2, 4)


def model(kind: str, heads: Heads = HEADS, form: str = "matmul", **options: Any) -> bytes:
    net, x = heads.net()
    attention(net, x, heads, kind, form, **options)
    net.nodes[-1].output[0] = "y"
    return net.model("y")


@pytest.mark.parametrize("kind", MASKS)
def test_mask_that_bounds_the_past(check: Check, kind: str) -> None:
    if "causal" in kind:
        check(model(kind), at_least=12, max_frames=300)
    else:
        check(model(kind), at_least=12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["sliding", "chunked_left"])
def test_forms_of_the_product(check: Check, form: str, kind: str) -> None:
    check(model(kind, form=form), at_least=12)


@pytest.mark.parametrize("keys", [1, 2])
@pytest.mark.parametrize("kind", ["window", "causal_less", "chunked_left"])
def test_heads_that_share_keys(check: Check, keys: int, kind: str) -> None:
    check(model(kind, Heads(4, keys, 3)), at_least=12, max_frames=300)


@pytest.mark.parametrize("size", [1, 5, 16, 23, 64])
def test_sizes_of_a_head(check: Check, size: int) -> None:
    check(model("sliding", Heads(3, 3, size)), at_least=12, steps=(None, 4))


def test_long_windows(check: Check) -> None:
    """Longer than the blocks of the kernel, on streams that wrap around the ring several times."""
    net, x = HEADS.net()
    seen = within(net, x, 37, 21)
    q, k, v = (net.op("MatMul", x, net.weight(8, 8)) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    y = net.op("MatMul", net.op("Softmax", masked(net, scores, "where", seen), axis=-1), v)
    check(net.model(y), lengths=(1, 17, 58, 59, 100, 333), steps=(None, 7, 40))


def test_behind_look_ahead_and_strides_and_before_more_of_both(check: Check) -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    h = net.op("Sigmoid", net.conv(x, 3, 8, 6, strides=[2], pads=[3, 2]))
    y = attention(net, net.op("Transpose", h, perm=[0, 2, 1]), HEADS, "sliding")
    y = attention(net, y, HEADS, "chunked_left", "einsum")
    check(net.model(net.conv(net.op("Transpose", y, perm=[0, 2, 1]), 8, 2, 5, pads=[1, 3])), at_least=12)


@pytest.mark.parametrize("kind", ["sliding", "chunked", "chunked_left"])
@pytest.mark.parametrize("cut", [(0, -1), (0, -4), (3, -2)])
def test_behind_a_cut_at_the_end(check: Check, kind: str, cut: tuple[int, int]) -> None:
    """A key may lie ahead and then not exist, though its value is known."""
    net, x = HEADS.net()
    y = attention(net, net.op("Slice", x, *(net.const([n]) for n in (*cut, 1))), HEADS, kind)
    check(net.model(net.op("Tanh", y)), at_least=12)


def test_operands_that_come_at_different_times(check: Check) -> None:
    net = Net()
    x = net.input([1, 4, TIME])
    parts = [net.conv(x, 4, 4, k, pads=[k // 2, k // 2]) for k in (1, 5, 9)]
    for late in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        q, k, v = (parts[i] for i in late)
        rows = net.op("Transpose", x, perm=[0, 2, 1])
        scores = net.op("MatMul", net.op("Transpose", q, perm=[0, 2, 1]), k)
        weights = net.op("Softmax", masked(net, scores, *MASKS["sliding"](net, rows)), axis=-1)
        y = net.op("MatMul", weights, net.op("Transpose", v, perm=[0, 2, 1]))
        x = net.op("Transpose", y, perm=[0, 2, 1])
        parts = [net.conv(x, 4, 4, k, pads=[k // 2, k // 2]) for k in (1, 5, 9)]
    check(net.model(net.op("Tanh", x)), at_least=12)


def test_capped_scores(check: Check) -> None:
    net, x = HEADS.net()
    q, k, v = (net.op("MatMul", x, net.weight(8, 8)) for _ in range(3))
    scores = net.op("Div", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), net.const(np.float32(3)))
    cap = net.const(np.float32(1.5))
    scores = net.op("Mul", net.op("Tanh", net.op("Div", scores, cap)), cap)
    weights = net.op("Softmax", masked(net, scores, *MASKS["alibi_by_key"](net, x)), axis=-1)
    check(net.model(net.op("MatMul", weights, net.op("Unsqueeze", v, net.const([1])))), at_least=12)


def test_a_scale_of_its_own_for_every_head(check: Check) -> None:
    net, x = HEADS.net()
    q, k, v = (split(net, net.op("MatMul", x, net.weight(8, 8)), 2, 4) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = net.op("Mul", scores, net.const(np.array([0.3, 1.7], np.float32).reshape(2, 1, 1)))
    weights = net.op("Softmax", masked(net, scores, *MASKS["sliding"](net, x)), axis=-1)
    check(net.model(net.op("MatMul", weights, v)), at_least=12)


@pytest.mark.parametrize("time", [0, 1])
def test_over_frequency_with_time_as_the_batch(check: Check, time: int) -> None:
    """Attention between the bins of one frame needs no mask."""
    net = Net()
    x = net.input([TIME, 5, 4] if time == 0 else [1, TIME, 5, 4])
    q, k, v = (net.op("MatMul", x, net.weight(4, 4)) for _ in range(3))
    perm = [0, 2, 1] if time == 0 else [0, 1, 3, 2]
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=perm))
    check(net.model(net.op("MatMul", net.op("Softmax", scores, axis=-1), v)), at_least=12)


def test_to_a_constant(check: Check) -> None:
    net, x = HEADS.net()
    q = net.op("MatMul", x, net.weight(8, 4))
    weights = net.op("Softmax", net.op("MatMul", q, net.weight(4, 7)), axis=-1)
    check(net.model(net.op("MatMul", weights, net.weight(7, 3))), at_least=12)


def test_encoder_layer(check: Check) -> None:
    """Attention and feed-forward, each with a norm and a residual."""
    net, x = HEADS.net()
    for kind in ("sliding", "window"):
        h = net.op("LayerNormalization", x, net.weight(8), net.weight(8), axis=-1)
        x = net.op("Add", x, attention(net, h, HEADS, kind))
        h = net.op("LayerNormalization", x, net.weight(8), net.weight(8), axis=-1)
        h = net.op("Relu", net.op("Add", net.op("MatMul", h, net.weight(8, 16)), net.weight(16)))
        x = net.op("Add", x, net.op("MatMul", h, net.weight(16, 8)))
    check(net.model(x), at_least=12)


def test_conformer_block(check: Check) -> None:
    """Half feed-forward, attention, a gated depthwise convolution, half feed-forward, a norm."""
    net, x = HEADS.net()

    def norm(h: str) -> str:
        return net.op("LayerNormalization", h, net.weight(8), net.weight(8), axis=-1)

    def swish(h: str) -> str:
        return net.op("Mul", h, net.op("Sigmoid", h))

    def half(h: str) -> str:
        h = net.op("MatMul", swish(net.op("MatMul", norm(h), net.weight(8, 16))), net.weight(16, 8))
        return net.op("Mul", h, net.const(np.float32(0.5)))

    x = net.op("Add", x, half(x))
    x = net.op("Add", x, attention(net, norm(x), HEADS, "chunked_left"))
    h = net.conv(net.op("Transpose", norm(x), perm=[0, 2, 1]), 8, 16, 1)
    a, g = net.op("Split", h, outputs=2, axis=1)
    h = net.conv(net.op("Mul", a, net.op("Sigmoid", g)), 8, 8, 7, group=8, pads=[6, 0])
    h = net.op("Transpose", net.conv(swish(h), 8, 8, 1), perm=[0, 2, 1])
    x = net.op("Add", x, h)
    check(net.model(norm(net.op("Add", x, half(x)))), at_least=12)
