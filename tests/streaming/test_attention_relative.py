"""Relative positions as Transformer-XL computes them: a product with a table, shifted by one frame a row."""

from __future__ import annotations

import numpy as np
import pytest
from masks import MASKS, Heads, masked, split
from nets import Net
from oracle import Check
from test_attention import HEADS

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused


def table(net: Net, x: str, size: int, centre: int = 400) -> str:
    """[2T - 1, size]: rows for distances T - 1 … 1 - T, cut from a long constant table."""
    angles = np.arange(centre, -centre - 1, -1)[:, None] * 30.0 ** -(np.arange(size // 2) / (size // 2))
    rows = net.const(np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32))
    length = net.length(x, 1)
    first = net.op("Sub", net.const([centre + 1]), length)
    return net.op("Slice", rows, first, net.op("Add", net.const([centre]), length), net.const([0]))


def shifted(net: Net, product: str, heads: int) -> str:
    """[1, heads, T, 2T - 1] → [1, heads, T, T]: pad a column, read the rows one element later each."""
    shape = net.op("Shape", product)
    rows, columns = (net.op("Slice", shape, net.const([n]), net.const([n + 1])) for n in (2, 3))
    padded = net.op("Pad", product, net.const([0, 0, 0, 1, 0, 0, 0, 0]))
    lead = net.const([1, heads])
    turned = net.op("Reshape", padded, net.op("Concat", lead, net.const([-1]), rows, axis=0))
    turned = net.op("Slice", turned, net.const([1]), net.const([1 << 40]), net.const([2]))
    back = net.op("Reshape", turned, net.op("Concat", lead, rows, columns, axis=0))
    return net.op("Slice", back, net.const([0]), rows, net.const([3]))


def transformer_xl(kind: str, heads: Heads = HEADS) -> bytes:
    net, x = heads.net()
    n, size = heads.queries, heads.size
    q, k, v = (split(net, net.op("MatMul", x, net.weight(heads.width, heads.width)), n, size) for _ in range(3))
    u, w = (net.weight(n, 1, size) for _ in range(2))
    rows = net.op("MatMul", table(net, x, heads.width), net.weight(heads.width, heads.width))
    rows = net.op("Transpose", net.op("Reshape", rows, net.const([-1, n, size])), perm=[1, 2, 0])
    content = net.op("MatMul", net.op("Add", q, u), net.op("Transpose", k, perm=[0, 1, 3, 2]))
    position = shifted(net, net.op("MatMul", net.op("Add", q, w), rows), n)
    scores = net.op("Div", net.op("Add", content, position), net.const(np.float32(size**0.5)))
    y = net.op("MatMul", net.op("Softmax", masked(net, scores, *MASKS[kind](net, x)), axis=-1), v)
    return net.model(net.op("Transpose", y, perm=[0, 2, 1, 3]))


@pytest.mark.parametrize("kind", ["window", "sliding", "chunked_left", "causal_less"])
def test_shifted_rows(check: Check, kind: str) -> None:
    check(transformer_xl(kind), at_least=12, max_frames=150)


def test_two_products_of_data_are_refused() -> None:
    net, x = HEADS.net()
    a, b, c, d, v = (net.op("MatMul", x, net.weight(8, 8)) for _ in range(5))
    both = (net.op("MatMul", p, net.op("Transpose", r, perm=[0, 2, 1])) for p, r in ((a, b), (c, d)))
    scores = masked(net, net.op("Add", *both), *MASKS["sliding"](net, x))
    with pytest.raises(Refused, match="every frame with every frame"):
        analyse(load(net.model(net.op("MatMul", net.op("Softmax", scores, axis=-1), v))))
