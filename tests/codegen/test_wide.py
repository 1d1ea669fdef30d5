"""What 32-bit Arm has no instruction for, run on this machine: rounding by sums, int64 to and from floats, division."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import ROWS, Runner, case, value

from runnel.compiler.codegen import Target
from runnel.compiler.lowering.frame import FrameNode

HARD = [0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, 0.49999997, -0.3, -0.7, 2.0**23 - 0.5, 2.0**23 + 1, -(2.0**30), 1e30]


@pytest.fixture(autouse=True)
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine as one that lacks them."""
    monkeypatch.setattr(Target, "rounds", False)
    monkeypatch.setattr(Target, "wide", False)


def made(op: str, attrs: dict[str, object], result: str, *frames: np.ndarray) -> np.ndarray:
    """What a kernel makes of frames of one shape."""
    xs = [value(f"x{i}", f.shape[1:], str(f.dtype)) for i, f in enumerate(frames)]
    y = value("y", frames[0].shape[1:], result)
    c = case(op, [FrameNode(op, tuple(xs), y, attrs)], dict(zip(xs, frames, strict=True)))
    one, many = Runner([c]).run(c)
    assert one.tobytes() == many.tobytes()
    return one


@pytest.mark.parametrize(("op", "expected"), [("floor", np.floor), ("ceil", np.ceil), ("round", np.rint)])
def test_rounding(op: str, expected: np.ufunc) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.float32([*HARD, np.inf, -np.inf]), np.float32(rng.standard_normal(84) * 1e4)])
    frames = np.tile(x, (ROWS, 1))
    assert made(op, {}, "float32", frames).tobytes() == expected(frames).tobytes()


@pytest.mark.parametrize("scale", [1, 1e6, 1e15])
def test_floats_to_int64_and_back(scale: float) -> None:
    rng = np.random.default_rng(1)
    x = np.float32(rng.standard_normal((ROWS, 50)) * scale)
    whole = made("cast", {"to": "int64"}, "int64", x)
    np.testing.assert_array_equal(whole, x.astype(np.int64))
    np.testing.assert_array_equal(made("cast", {"to": "float32"}, "float32", whole), whole.astype(np.float32))


@pytest.mark.parametrize("shape", [(), (50,)])
def test_division_of_int64(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    for n in (rng.integers(-(2**62), 2**62, (ROWS, *shape)), rng.integers(-20, 20, (ROWS, *shape))):
        d = rng.integers(1, 2**33, n.shape) * rng.choice([-1, 1], n.shape)
        np.testing.assert_array_equal(made("fmod", {}, "int64", n, d), np.fmod(n, d))
        np.testing.assert_array_equal(made("mod", {}, "int64", n, d), np.mod(n, d))
        np.testing.assert_array_equal(made("div", {}, "int64", n, d), (n - np.fmod(n, d)) // d)
