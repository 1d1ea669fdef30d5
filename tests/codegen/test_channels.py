"""Convolutions and pools over images whose channels lie last, against onnxruntime with time as one more axis."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from kernel_harness import ROWS, Case, Runner, case, random_frames, value
from test_spatial import add_time, reference

from runnel.compiler.codegen.images import Tile, cut
from runnel.compiler.codegen.target import Target
from runnel.compiler.codegen.tiles import register_tile
from runnel.compiler.codegen.window import windows
from runnel.compiler.lowering.frame import FrameNode

# channels in and out, taps, input size, kernel, strides, pads, dilations, groups
CONVS = [
    (3, 16, 1, (9, 40), (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), 1),
    (8, 24, 2, (6, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (16, 80, 1, (5, 41), (3, 3), (1, 1), (5, 5, 5, 5), (5, 5), 1),
    (20, 6, 1, (4, 5), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (32, 64, 1, (3, 3), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (16, 12, 1, (7, 30), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    (5, 16, 1, (3, 4, 9), (2, 3, 3), (1, 1, 2), (0, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    (4, 8, 1, (2, 3), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 1),
    (32, 32, 1, (6, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 32),
    (20, 20, 3, (9, 34), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 20),
    (24, 24, 1, (9, 35), (3, 5), (2, 2), (1, 2, 1, 2), (1, 1), 24),
    (7, 7, 1, (5, 12), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 7),
    (16, 16, 1, (3, 40), (1, 11), (1, 1), (0, 5, 0, 5), (1, 1), 16),
    (1, 20, 1, (640,), (256,), (128,), (0, 0), (1,), 1),
    (64, 64, 3, (5,), (3,), (1,), (1, 1), (1,), 64),
    (40, 64, 1, (5, 19), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    (24, 40, 2, (6, 7), (3, 2), (2, 2), (1, 0, 1, 0), (1, 2), 4),
    (12, 18, 1, (4, 5), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 3),
]
POOLS = [
    (20, 1, (7, 19), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    (16, 2, (6, 6), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    (5, 1, (3, 3), (3, 3), (3, 3), (0, 0, 0, 0), (1, 1)),
    (33, 1, (4, 12), (2, 3), (1, 1), (1, 2, 0, 0), (1, 1)),
]


def moved(frames: np.ndarray) -> np.ndarray:
    """(frames, 1, C, *S) with the channels last."""
    return np.ascontiguousarray(np.moveaxis(frames, 2, -1))


def conv_case(index: int, spec: tuple, form: str, step: int) -> tuple[Case, np.ndarray]:
    cin, cout, taps, size, kernel, stride, pads, dilation, groups = spec
    rng = np.random.default_rng(index)
    x = value("x", (1, *size, cin) if form == "both" else (1, cin, *size))
    w = rng.standard_normal((cout, cin // groups, taps, *kernel)).astype(np.float32)
    bias = rng.standard_normal(cout).astype(np.float32)
    frames = random_frames(rng, value("plain", (1, cin, *size)), (ROWS - 1) * step + taps)
    attrs = {"strides": [step, *stride], "dilations": [1, *dilation], "pads": add_time(pads), "group": groups}
    expected = moved(np.moveaxis(reference("Conv", np.moveaxis(frames[:, 0], 0, 1)[None], [w, bias], attrs), 2, 0))
    y = value("y", expected.shape[1:])
    residual, z, out = value("r", y.shape), value("z", y.shape), value("o", y.shape)
    extra, scale = random_frames(rng, residual, ROWS), rng.standard_normal(cout).astype(np.float32)
    own = {"strides": stride, "dilations": dilation, "pads": pads, "group": groups, "channels_last": form}
    nodes = [
        FrameNode("conv", (x, w, bias), y, own),
        FrameNode("mul", (y, scale), z),
        FrameNode("add", (z, residual), out),
    ]
    given = moved(frames) if form == "both" else frames
    built = case(f"conv{index}", nodes, {x: given, residual: extra}, {x: (taps, index % 2 == 0, step)})
    return built, expected * scale + extra


def pool_case(index: int, op: str, spec: tuple) -> tuple[Case, np.ndarray]:
    channels, taps, size, kernel, stride, pads, dilation = spec
    rng, counted = np.random.default_rng(index), index % 2
    x = value("x", (1, *size, channels))
    frames = random_frames(rng, value("plain", (1, channels, *size)), ROWS - 1 + taps)
    attrs = {"kernel_shape": [taps, *kernel], "strides": [1, *stride], "pads": add_time(pads)}
    attrs |= {"count_include_pad": counted} if op == "AveragePool" else {}
    expected = moved(np.moveaxis(reference(op, np.moveaxis(frames[:, 0], 0, 1)[None], [], attrs), 2, 0))
    y, kind = value("y", expected.shape[1:]), {"AveragePool": "avg_pool", "MaxPool": "max_pool"}[op]
    own = {"kernel": kernel, "strides": stride, "pads": pads, "dilations": dilation, "count_include_pad": counted}
    node = FrameNode(kind, (x,), y, own | {"channels_last": "both"})
    return case(f"{kind}{index}", [node], {x: moved(frames)}, {x: (taps, True, 1)}), expected


@cache
def built() -> tuple[Runner, list[tuple[Case, np.ndarray]]]:
    cases = [conv_case(i, spec, "both", 1 + i % 2) for i, spec in enumerate(CONVS)]
    cases += [conv_case(i, spec, "output", 1) for i, spec in enumerate(CONVS) if spec[-1] < spec[0] or spec[-1] == 1]
    for i, spec in enumerate(POOLS):
        cases += [pool_case(i, "MaxPool", spec), pool_case(i, "AveragePool", spec)]
    return Runner([c for c, _ in cases]), cases


@pytest.mark.parametrize("index", range(len(CONVS) + sum(c[-1] < c[0] or c[-1] == 1 for c in CONVS) + 2 * len(POOLS)))
def test_matches_onnxruntime(index: int) -> None:
    runner, cases = built()
    c, expected = cases[index]
    one, many = runner.run(c)
    assert one.tobytes() == many.tobytes(), f"{c.name}: rows differ"
    assert np.abs(one - expected).max() <= 2e-6 * max(np.abs(expected).max(), 1), c.name


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 40, 161])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_tiles_cover_every_position_once(size: int, kernel: int, most: int) -> None:
    for stride, dilation, pad in ((1, 1, kernel // 2), (2, 1, 0), (1, 3, kernel), (3, 2, 1)):
        out = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        if out < 1:
            continue
        axis = windows(size, out, kernel, stride, dilation, pad)
        seen: list[int] = []
        for tile in cut(axis, most):
            assert 1 <= tile.size <= most
            for turn in range(tile.repeat):
                positions = [tile.first + turn * tile.size + p for p in range(tile.size)]
                seen += positions
                for n in range(kernel):
                    inside = [p for p, q in enumerate(positions) if 0 <= q * stride - pad + n * dilation < size]
                    assert inside == list(range(tile.size) if tile.inside is None else tile.inside[n])
        assert sorted(seen) == list(range(out))
    assert Tile(0, 1).repeat == 1


@pytest.mark.parametrize("target", [Target("x86_64-linux-gnu", "x86-64-v4", (), 64), Target("aarch64-linux-gnu", "")])
@pytest.mark.parametrize(("vectors", "positions"), [(1, 1), (1, 160), (2, 9), (4, 36), (16, 5), (64, 3)])
def test_tiles_fit_the_registers(target: Target, vectors: int, positions: int) -> None:
    """Sums, the weights of a step and one broadcast element, with none on the stack."""
    most, wide = register_tile(target, target.lanes, vectors, positions)
    assert most * wide + wide + 1 <= target.registers
    assert 1 <= wide <= vectors
