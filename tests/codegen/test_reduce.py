"""Reductions and softmax against numpy in float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from kernel_harness import ROWS, Case, Runner, case, random_frames, value

from runnel.compiler.lowering.frame import FrameNode

REDUCTIONS = {
    "reduce_sum": np.sum,
    "reduce_mean": np.mean,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_l2": lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis, keepdims=keepdims)),
}
SHAPES = [
    ((1, 257), (1,)),
    ((1, 17), (-1,)),
    ((1, 3), (1,)),
    ((4, 15, 1), (1,)),
    ((5, 33), (0,)),
    ((3, 4, 20), (0, 2)),
    ((3, 4, 20), (1,)),
    ((2, 5, 7), (1, 2)),
    ((16, 16), (0, 1)),
    ((1, 1), (0, 1)),
    ((6, 2, 18), (0, 1)),
]
SOFTMAX = [((1, 257), -1), ((3, 17), 1), ((1, 4, 20), 1), ((2, 3, 16), 0), ((5,), 0), ((2, 40, 1), 1), ((1, 1), 1)]


def reduction_case(
    op: str, shape: tuple[int, ...], axes: tuple[int, ...], rng: np.random.Generator
) -> tuple[Case, np.ndarray]:
    x, u = value("x", shape), value("u", shape)
    frames = random_frames(rng, x, ROWS)
    positive = tuple(a % len(shape) for a in axes)
    keep = bool(rng.integers(2))
    f64 = np.abs(frames.astype(np.float64) - 0.5)
    expected = np.stack([REDUCTIONS[op](f, axis=positive, keepdims=keep) for f in f64])
    y, z, shifted = value("y", expected.shape[1:]), value("z", expected.shape[1:]), value("s", shape)
    nodes = [
        FrameNode("sub", (x, np.array([0.5], np.float32)), shifted),
        FrameNode("abs", (shifted,), u),
        FrameNode(op, (u,), y, {"axes": list(axes), "keepdims": int(keep)}),
        FrameNode("sqrt", (y,), z),
    ]
    return case(f"{op}{shape}{axes}", nodes, {x: frames}), np.sqrt(expected)


def softmax_case(op: str, shape: tuple[int, ...], axis: int, rng: np.random.Generator) -> tuple[Case, np.ndarray]:
    x, y, m, z = value("x", shape), value("y", shape), value("m", shape), value("z", shape)
    frames, factor = random_frames(rng, x, ROWS) * 4, random_frames(rng, m, ROWS)
    f64 = frames.astype(np.float64)
    along = axis % len(shape) + 1
    e = np.exp(f64 - f64.max(along, keepdims=True))
    p = e / e.sum(along, keepdims=True)
    nodes = [FrameNode(op, (x,), y, {"axis": axis}), FrameNode("mul", (y, m), z)]
    return case(f"{op}{shape}{axis}", nodes, {x: frames, m: factor}), (np.log(p) if op == "log_softmax" else p) * factor


@cache
def built() -> tuple[Runner, list[tuple[Case, np.ndarray]]]:
    rng = np.random.default_rng(3)
    ops = list(REDUCTIONS)
    cases = [reduction_case(ops[i % 6], *spec, rng) for i, spec in enumerate(SHAPES + SHAPES[::-1] + SHAPES)]
    cases += [softmax_case("softmax", *spec, rng) for spec in SOFTMAX]
    cases += [softmax_case("log_softmax", *spec, rng) for spec in SOFTMAX[:4]]
    return Runner([c for c, _ in cases]), cases


@pytest.mark.parametrize("index", range(3 * len(SHAPES) + len(SOFTMAX) + 4))
def test_matches_float64(index: int) -> None:
    runner, cases = built()
    c, expected = cases[index]
    one, many = runner.run(c)
    assert one.tobytes() == many.tobytes(), f"{c.name}: rows differ"
    assert one.shape == expected.shape
    assert np.allclose(one, expected, rtol=3e-6, atol=3e-6), f"{c.name}: {np.abs(one - expected).max()}"
