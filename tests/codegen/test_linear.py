"""conv without spatial axes and matmul, against float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from kernel_harness import ROWS, Case, Runner, case, random_frames, value

from runnel.compiler.lowering.frame import FrameNode

# channels in and out, taps, groups
CONVS = [
    *((64, 64, 3, 1), (3, 5, 1, 1), (17, 257, 2, 1), (16, 16, 5, 1), (257, 1, 1, 1), (64, 3, 3, 1), (1, 1, 1, 1)),
    *((1, 130, 4, 1), (100, 30, 1, 1), (15, 16, 2, 1), (48, 8, 2, 1), (40, 2, 2, 2), (20, 192, 1, 1), (7, 514, 1, 1)),
    *((48, 48, 3, 48), (15, 15, 3, 15), (257, 257, 2, 257), (32, 64, 3, 4), (12, 6, 2, 3), (8, 16, 3, 8), (1, 1, 3, 1)),
]
# rows in the frame, inputs, outputs
MATMULS = [(1, 64, 64), (7, 17, 33), (3, 128, 4), (5, 9, 16), (33, 16, 48), (2, 1, 1), (4, 257, 15), (6, 8, 130)]
# shapes of two values
PRODUCTS = [
    ((1, 4, 1, 16), (1, 4, 16, 33)),
    ((3, 5, 7), (7, 17)),
    ((1, 2, 9, 20), (1, 2, 20, 1)),
    ((6, 3), (2, 3, 16)),
    ((5,), (5, 3)),
    ((4, 40), (40,)),
]


def conv_case(spec: tuple[int, ...], contiguous: bool, step: int, rng: np.random.Generator) -> tuple[Case, np.ndarray]:
    cin, cout, taps, groups = spec
    x, y, z = value("x", (1, cin)), value("y", (1, cout)), value("z", (1, cout))
    fan = (cin // groups) * taps
    w = (rng.standard_normal((cout, cin // groups, taps)) / np.sqrt(fan)).astype(np.float32)
    bias = rng.standard_normal(cout).astype(np.float32) if cout % 2 == 0 else None
    frames = random_frames(rng, x, (ROWS - 1) * step + taps)
    expected = np.zeros((ROWS, 1, cout))
    for row in range(ROWS):
        seen = frames[row * step : row * step + taps, 0].astype(np.float64).reshape(taps, groups, -1)
        kernel = w.astype(np.float64).reshape(groups, cout // groups, -1, taps)
        expected[row, 0] = np.einsum("kgc,gock->go", seen, kernel).reshape(-1) + (0 if bias is None else bias)
    nodes = [FrameNode("conv", (x, w, bias), y, {"group": groups}), FrameNode("tanh", (y,), z)]
    c = case(f"conv{spec}{contiguous}", nodes, {x: frames}, {x: (taps, contiguous, step)})
    return c, np.tanh(expected)


def matmul_case(spec: tuple[int, ...], rng: np.random.Generator) -> tuple[Case, np.ndarray]:
    m, k, n = spec
    x, y, z, a = value("x", (1, m, k)), value("y", (1, m, n)), value("z", (1, m, n)), value("a", (m, n))
    w = (rng.standard_normal((k, n)) / np.sqrt(k)).astype(np.float32)
    bias, scale = rng.standard_normal(n).astype(np.float32), rng.standard_normal((m, 1)).astype(np.float32)
    frames, added = random_frames(rng, x, ROWS), random_frames(rng, a, ROWS)
    u = value("u", y.shape)
    nodes = [FrameNode("matmul", (x, w, bias), y), FrameNode("mul", (scale, y), u), FrameNode("add", (u, a), z)]
    expected = (frames.astype(np.float64) @ w + bias) * scale + added[:, None]
    return case(f"matmul{spec}", nodes, {x: frames, a: added}), expected


def product_case(left: tuple[int, ...], right: tuple[int, ...], rng: np.random.Generator) -> tuple[Case, np.ndarray]:
    a, c = value("a", left), value("c", right)
    fa, fc = random_frames(rng, a, ROWS), random_frames(rng, c, ROWS)
    expected = np.stack([p.astype(np.float64) @ q for p, q in zip(fa, fc)])
    y = value("y", expected.shape[1:])
    return case(f"{left} @ {right}", [FrameNode("matmul", (a, c), y)], {a: fa, c: fc}), expected


@cache
def built() -> tuple[Runner, list[tuple[Case, np.ndarray]]]:
    rng = np.random.default_rng(0)
    cases = [conv_case(spec, i % 2 == 0, 1 + i % 3 // 2, rng) for i, spec in enumerate(CONVS)]
    cases += [matmul_case(spec, rng) for spec in MATMULS]
    cases += [product_case(left, right, rng) for left, right in PRODUCTS]
    return Runner([c for c, _ in cases]), cases


@pytest.mark.parametrize("index", range(len(CONVS) + len(MATMULS) + len(PRODUCTS)))
def test_matches_float64(index: int) -> None:
    runner, cases = built()
    c, expected = cases[index]
    one, many = runner.run(c)
    assert one.tobytes() == many.tobytes(), f"{c.name}: rows differ"
    assert np.abs(one - expected).max() <= 2e-6 * max(np.abs(expected).max(), 1), c.name
