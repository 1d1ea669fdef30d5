"""Element-wise and data-moving groups against numpy."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from kernel_harness import ROWS, Case, Runner, case, random_frames, value

from runnel.compiler.codegen import KernelModule, Target, Unsupported
from runnel.compiler.lowering.frame import FrameNode

SIZES = (1, 3, 15, 16, 17, 257)
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


UNARY: dict[str, tuple[Any, dict[str, Any]]] = {
    "relu": (lambda x: np.maximum(x, 0), {}),
    "sigmoid": (_sigmoid, {}),
    "tanh": (np.tanh, {}),
    "exp": (np.exp, {}),
    "log": (lambda x: np.log(np.abs(x)), {}),
    "sqrt": (lambda x: np.sqrt(np.abs(x)), {}),
    "neg": (np.negative, {}),
    "abs": (np.abs, {}),
    "reciprocal": (lambda x: 1 / x, {}),
    "erf": (_erf, {}),
    "floor": (np.floor, {}),
    "ceil": (np.ceil, {}),
    "round": (np.round, {}),
    "sign": (np.sign, {}),
    "softplus": (lambda x: np.logaddexp(x, 0), {}),
    "softsign": (lambda x: x / (1 + np.abs(x)), {}),
    "gelu": (lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))), {}),
    "leaky_relu": (lambda x: np.where(x < 0, 0.1 * x, x), {"alpha": 0.1}),
    "elu": (lambda x: np.where(x < 0, 0.7 * np.expm1(x), x), {"alpha": 0.7}),
    "selu": (lambda x: 1.1 * np.where(x < 0, 1.6 * np.expm1(x), x), {"alpha": 1.6, "gamma": 1.1}),
    "hard_sigmoid": (lambda x: np.clip(0.2 * x + 0.4, 0, 1), {"alpha": 0.2, "beta": 0.4}),
    "hard_swish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), {}),
    "clip": (lambda x: np.clip(x, -0.5, 0.7), {"min": -0.5, "max": 0.7}),
    "identity": (lambda x: x, {}),
    "is_nan": (np.isnan, {}),
    "is_inf": (np.isinf, {}),
}
BINARY: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
    "pow": lambda a, c: np.power(np.abs(a), c),
    "equal": np.equal,
    "greater": np.greater,
    "less": np.less,
    "greater_equal": np.greater_equal,
    "less_equal": np.less_equal,
    "prelu": lambda a, c: np.where(a < 0, a * c, a),
}
BROADCASTS = [
    ((1, 5, 17), (5, 1)),
    ((1, 5, 17), (17,)),
    ((3, 1, 4), (1, 20, 1)),
    ((1, 64, 1), (64, 1)),
    ((2, 3), ()),
    ((1, 1), (3, 16)),
]
MOVES: list[tuple[str, tuple[int, ...], dict[str, Any], Any]] = [
    ("transpose", (1, 5, 18), {"perm": [0, 2, 1]}, lambda x: x.transpose(0, 2, 1)),
    ("transpose", (2, 3, 4, 5), {"perm": [3, 1, 0, 2]}, lambda x: x.transpose(3, 1, 0, 2)),
    ("transpose", (3, 40), {"perm": [1, 0]}, lambda x: x.T),
    ("transpose", (5, 2, 33), {"perm": [1, 2, 0]}, lambda x: x.transpose(1, 2, 0)),
    ("reshape", (3, 20), {"shape": [4, 15]}, lambda x: x.reshape(4, 15)),
    ("slice", (1, 40), {"starts": [0, 3], "ends": [1, 37], "steps": [1, 2]}, lambda x: x[:, 3:37:2]),
    ("slice", (4, 17), {"starts": [1, -1], "ends": [3, -18], "steps": [1, -1]}, lambda x: x[1:3, ::-1]),
    ("pad", (1, 20), {"pads": [0, 3, 0, 4], "value": 1.5}, lambda x: np.pad(x, ((0, 0), (3, 4)), constant_values=1.5)),
    ("pad", (3, 17), {"pads": [1, -2, 0, 3], "value": 0.0}, lambda x: np.pad(x[:, 2:], ((1, 0), (0, 3)))),
    ("expand", (5, 1), {"shape": [2, 5, 17]}, lambda x: np.broadcast_to(x, (2, 5, 17))),
]


def unary_cases(rng: np.random.Generator) -> list[tuple[Case, np.ndarray]]:
    found = []
    for i, (op, (f, attrs)) in enumerate(UNARY.items()):
        for n in (SIZES[i % 6], SIZES[(i + 1) % 6], SIZES[(i + 3) % 6]):
            x, y = value("x", (1, n)), value("y", (1, n), "bool" if op.startswith("is_") else "float32")
            frames = random_frames(rng, x, ROWS) * 3
            if op.startswith("is_"):
                frames[rng.random(frames.shape) < 0.5] = np.nan
                frames[rng.random(frames.shape) < 0.3] = rng.choice([-np.inf, np.inf])
            frames = np.abs(frames) if op in ("log", "sqrt") else frames
            found.append((case(f"{op}{n}", [FrameNode(op, (x,), y, attrs)], {x: frames}), f(frames.astype(np.float64))))
    return found


def binary_cases(rng: np.random.Generator) -> list[tuple[Case, np.ndarray]]:
    found = []
    for i, (op, f) in enumerate(BINARY.items()):
        for j, (left, right) in enumerate([((1, SIZES[i % 6]),) * 2, BROADCASTS[i % 6], BROADCASTS[(i + 1) % 6]]):
            a, c = value("a", left), value("c", right)
            fa, fc = random_frames(rng, a, ROWS), random_frames(rng, c, ROWS)
            fa = np.abs(fa) if op == "pow" else fa
            fa = np.round(fa) if op == "equal" else fa
            fc = np.round(fc) if op == "equal" else fc
            fixed = j == 1 and bool(right)
            pairs = [(p, fc[0] if fixed else q) for p, q in zip(fa, fc)]
            expected = np.stack([f(p.astype(np.float64), q.astype(np.float64)) for p, q in pairs])
            y = value("y", expected.shape[1:], "bool" if expected.dtype == np.bool_ else "float32")
            node = FrameNode(op, (a, fc[0] if fixed else c), y)
            found.append((case(f"{op}{left}{right}", [node], {a: fa} if fixed else {a: fa, c: fc}), expected))
    return found


def moving_cases(rng: np.random.Generator) -> list[tuple[Case, np.ndarray]]:
    found = []
    for op, shape, attrs, f in MOVES:
        x = value("x", shape)
        frames = random_frames(rng, x, ROWS)
        expected = np.stack([f(frame) for frame in frames])
        y, z = value("y", expected.shape[1:]), value("z", expected.shape[1:])
        nodes = [FrameNode(op, (x,), y, attrs), FrameNode("relu", (y,), z)]
        found.append((case(f"{op}{shape}", nodes, {x: frames}), np.maximum(expected, 0)))
    windows = np.arange(3)[:, None] + np.arange(0, 34, 2)
    tables: list[tuple[tuple[int, ...], Any, int]] = [
        ((4, 36), windows, 1),
        ((36,), windows.T, 0),
        ((36,), -1 - windows, 0),
    ]
    tables += [((3, 20), [2, 0, 1, 1], 0), ((3, 20), [5, 19, -20], 1), ((9,), [1, 3, 5], 0), ((9, 4), 7, 0)]
    for shape, indices, axis in tables:
        x, index = value("x", shape), np.array(indices)
        frames = random_frames(rng, x, ROWS)
        expected = np.stack([np.take(frame, index, axis) for frame in frames])
        y = value("y", expected.shape[1:])
        found.append(
            (case(f"gather{shape}", [FrameNode("gather", (x, index), y, {"axis": axis})], {x: frames}), expected)
        )
    for shapes, axis in [
        ([(1, 5), (1, 16), (1, 1)], 1),
        ([(2, 17), (3, 17)], 0),
        ([(2, 3, 4), (2, 5, 4)], 1),
        ([(37, 2), (37, 2)], 1),
    ]:
        values = [value(f"x{i}", s) for i, s in enumerate(shapes)]
        frames = {v: random_frames(rng, v, ROWS) for v in values}
        constant = rng.standard_normal(shapes[0]).astype(np.float32)
        rows = [np.concatenate([*(frames[v][r] for v in values), constant], axis) for r in range(ROWS)]
        expected = np.tanh(np.stack(rows).astype(np.float64))
        y, z = value("y", expected.shape[1:]), value("z", expected.shape[1:])
        nodes = [FrameNode("concat", (*values, constant), y, {"axis": axis}), FrameNode("tanh", (y,), z)]
        found.append((case(f"concat{shapes}", nodes, frames), expected))
    return found


def chain_cases(rng: np.random.Generator) -> list[tuple[Case, np.ndarray]]:
    """Moves under moves, and a concatenation that is not the last node."""
    x, y = value("x", (4, 9)), value("y", (4, 9))
    padded, joined = value("p", (4, 12)), value("j", (4, 21))
    turned, out = value("t", (21, 4)), value("o", (84,))
    nodes = [
        FrameNode("pad", (x,), padded, {"pads": [0, 2, 0, 1], "value": -1.0}),
        FrameNode("concat", (padded, y), joined, {"axis": 1}),
        FrameNode("transpose", (joined,), turned, {"perm": [1, 0]}),
        FrameNode("reshape", (turned,), out, {"shape": [84]}),
    ]
    fx, fy = random_frames(rng, x, ROWS), random_frames(rng, y, ROWS)
    both = np.concatenate([np.pad(fx, ((0, 0), (0, 0), (2, 1)), constant_values=-1), fy], 2)
    return [(case("chain", nodes, {x: fx, y: fy}), both.transpose(0, 2, 1).reshape(ROWS, 84))]


def cell_cases(rng: np.random.Generator) -> list[tuple[Case, np.ndarray]]:
    found = []
    for n in (3, 16, 17, 64):
        gx, gh, h, y = value("gx", (1, 3 * n)), value("gh", (3 * n,)), value("h", (1, n)), value("y", (1, n))
        f = {v: random_frames(rng, v, ROWS) for v in (gx, gh, h)}
        zx, rx, nx = np.split(f[gx].astype(np.float64), 3, -1)
        zh, rh, nh = np.split(f[gh].astype(np.float64)[:, None], 3, -1)
        z = _sigmoid(zx + zh)
        expected = (1 - z) * np.tanh(nx + _sigmoid(rx + rh) * nh) + z * f[h]
        found.append((case(f"gru{n}", [FrameNode("gru_cell", (gx, gh, h), y)], f), expected))
        g, c, y1, y2 = value("g", (1, 4 * n)), value("c", (1, n)), value("y1", (1, n)), value("y2", (1, n))
        f = {v: random_frames(rng, v, ROWS) for v in (g, c)}
        i, o, k, t = np.split(f[g].astype(np.float64), 4, -1)
        expected = _sigmoid(k) * f[c] + _sigmoid(i) * np.tanh(t)
        found.append((case(f"lstm_c{n}", [FrameNode("lstm_c", (g, c), y1)], f), expected))
        expected = _sigmoid(o) * np.tanh(f[c].astype(np.float64))
        found.append((case(f"lstm_h{n}", [FrameNode("lstm_h", (g, c), y2)], f), expected))
    return found


def typed_cases(rng: np.random.Generator) -> list[tuple[Case, np.ndarray]]:
    found = []
    for n in (3, 17, 64):
        a, c, x = value("a", (n,), "int64"), value("c", (n,), "int64"), value("x", (n,))
        y, z = value("y", (n,), "bool"), value("z", (n,))
        f = {v: random_frames(rng, v, ROWS) for v in (a, c, x)}
        nodes = [FrameNode("less", (a, c), y), FrameNode("where", (y, x, np.float32(2.5).reshape(1)), z)]
        found.append((case(f"where{n}", nodes, f), np.where(f[a] < f[c], f[x], 2.5)))
        s, t = value("s", (n,), "int64"), value("t", (n,))
        nodes = [FrameNode("add", (a, c), s), FrameNode("cast", (s,), t, {"to": "float32"})]
        found.append((case(f"cast{n}", nodes, {v: f[v] for v in (a, c)}), (f[a] + f[c]).astype(np.float32)))
        p, q, r, u = (value(k, (n,), "bool") for k in "pqru")
        g = {v: random_frames(rng, v, ROWS) for v in (p, q)}
        for op, logic in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
            nodes = [FrameNode(op, (p, q), r), FrameNode("not", (r,), u)]
            found.append((case(f"{op}{n}", nodes, g), ~logic(g[p], g[q])))
        i = value("i", (n,), "int64")
        nodes = [FrameNode("cast", (x,), i, {"to": "int64"})]
        found.append((case(f"truncate{n}", nodes, {x: f[x] * 5}), (f[x] * 5).astype(np.int64)))
        for e in (2.0, 3.0, 0.5, -0.5, -1.0):
            w = value("w", (n,))
            node = FrameNode("pow", (x, np.array([e], np.float32)), w)
            found.append((case(f"pow{e}", [node], {x: np.abs(f[x])}), np.abs(f[x]).astype(np.float64) ** e))
    return found


@cache
def built() -> tuple[Runner, list[tuple[Case, np.ndarray]]]:
    rng = np.random.default_rng(2)
    makers = (unary_cases, binary_cases, moving_cases, chain_cases, cell_cases, typed_cases)
    cases = [c for make in makers for c in make(rng)]
    return Runner([c for c, _ in cases]), cases


def test_matches_numpy() -> None:
    runner, cases = built()
    failures = []
    for c, expected in cases:
        one, many = runner.run(c)
        if one.tobytes() != many.tobytes():
            failures.append(f"{c.name}: rows differ")
        elif one.shape != expected.shape:
            failures.append(f"{c.name}: shape {one.shape}, not {expected.shape}")
        elif one.dtype == np.bool_ or one.dtype.kind == "i":
            failures += [f"{c.name}: values differ"] if not np.array_equal(one, expected) else []
        elif not np.allclose(one, expected, rtol=1e-6, atol=1e-6):
            failures.append(f"{c.name}: {np.abs(one - expected).max()}")
    assert not failures


def test_a_shared_kernel_is_compiled_once() -> None:
    module = KernelModule(Target.host())
    names = []
    for seed in (0, 1):
        x, y = value("x", (1, 32)), value("y", (1, 32))
        w = np.random.default_rng(seed).standard_normal((1, 32)).astype(np.float32)
        c = case("mul", [FrameNode("mul", (x, w), y)], {x: np.zeros((ROWS, 1, 32), np.float32)})
        names.append(module.add(c.group).variants)
    assert names[0] == names[1]


def test_unknown_op_is_refused_by_name() -> None:
    x, y = value("x", (1, 4)), value("y", (1, 4))
    c = case("cumsum", [FrameNode("cumsum", (x,), y)], {x: np.zeros((ROWS, 1, 4), np.float32)})
    with pytest.raises(Unsupported, match="cumsum"):
        KernelModule(Target.host()).add(c.group)


def test_moving_an_anchors_result_is_refused() -> None:
    x, y, z = value("x", (3, 5)), value("y", (3, 5)), value("z", (5, 3))
    nodes = [FrameNode("softmax", (x,), y), FrameNode("transpose", (y,), z, {"perm": [1, 0]})]
    c = case("softmax", nodes, {x: np.zeros((ROWS, 3, 5), np.float32)})
    with pytest.raises(Unsupported, match="elsewhere"):
        KernelModule(Target.host()).add(c.group)
