"""The elementary functions: error in units of the last place against float64, and the special values.

``BOUNDS`` holds what was measured, rounded up: on every 997th float32 bit pattern, about 4.3 million points, and for
``EVERYWHERE`` on every number of the interval there, which with the argument beside it is a proof for all 2^32 and
this processor's vector code (RUNNEL_MATH=all repeats it).
"""

from __future__ import annotations

import math
import os
from functools import cache
from typing import Any

import numpy as np
import pytest
from kernel_harness import Runner, aligned, case, value

from runnel.compiler.codegen import Target
from runnel.compiler.lowering.frame import FrameNode

BLOCK = 4096
_erf = np.vectorize(math.erf, otypes=[np.float64])
FUNCTIONS: dict[str, Any] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": lambda x: np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))),
    "erf": _erf,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "pow": np.power,
    **{name: getattr(np, name) for name in ("sin", "cos", "tan", "sinh", "cosh")},
    **{name: getattr(np, "arc" + name[1:]) for name in ("asin", "acos", "atan")},
    "fmod": np.fmod,
}
BOUNDS = {"exp": 1.05, "log": 0.75, "tanh": 1.34, "sigmoid": 2.41, "erf": 0.9, "softplus": 1.82, "pow": 0.51}
BOUNDS |= dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "fmod"), 0.501)
EVERYWHERE = {"exp": (2.0**-26, 128.0), "tanh": (2.0**-12, 16.0), "sigmoid": (2.0**-26, 128.0)}
"""Magnitudes between which every number of both signs is tried. Below, exp is 1 + x, sigmoid 1/2 + x/4 and tanh
x - x^3/3 to within 2^-24 of themselves, and the kernels' sums are the same but for one rounding each; above, exp and
sigmoid have clamped x to -104.5 or 89 and tanh is 1 - 2/(e^32 + 1), so the result is that of the interval's end."""
PART = 1 << 22
TURNS = ("sin", "cos", "tan")


@cache
def runner() -> Runner:
    cases = []
    for op in FUNCTIONS:
        x, p, y = value("x", (BLOCK,)), value("p", (BLOCK,)), value("y", (BLOCK,))
        zeros = np.zeros((4, BLOCK), np.float32)
        inputs = (x, p) if op in ("pow", "fmod") else (x,)
        cases.append(case(op, [FrameNode(op, inputs, y)], dict.fromkeys(inputs, zeros)))
    return Runner(cases)


def call(op: str, *operands: np.ndarray) -> np.ndarray:
    """The kernel's results for float32 operands of any length."""
    r = runner()
    kernel = next(c for c in r.cases if c.name == op).kernel
    assert kernel is not None
    entry = r.entries[kernel.variants[1]]
    size = operands[0].size
    memory, out, result = [aligned(BLOCK, "float32") for _ in operands], aligned(BLOCK, "float32"), []
    for start in range(0, size, BLOCK):
        n = min(BLOCK, size - start)
        for m, operand in zip(memory, operands):
            m[:n] = operand[start : start + n]
        entry(*(m.ctypes.data for m in memory), out.ctypes.data)
        result.append(out[:n].copy())
    return np.concatenate(result)


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The error in units of the last place of the exact value."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.abs(rounded)).astype(np.float64)
        error = np.abs(got.astype(np.float64) - exact) / unit
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    return np.where(same, 0, error)


@pytest.mark.parametrize("op", [op for op in FUNCTIONS if op not in ("pow", "fmod")])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_accuracy(op: str) -> None:
    x = np.arange(0, 2**32, 997, dtype=np.uint64).astype(np.uint32).view(np.float32)
    if op == "erf":
        x = x[np.isnan(x) | (np.abs(x) < 10)][::8]
    if op in TURNS:
        far = np.abs(x) >= 2.0**50
        assert np.isnan(call(op, x[far])).all()
        x = x[~far]
    error = ulps(call(op, x), FUNCTIONS[op](x.astype(np.float64)))
    worst = int(np.nanargmax(np.where(np.isnan(error), np.inf, error)))
    assert error[worst] <= BOUNDS[op], f"{op}({x[worst]}) is {error[worst]} ulp off"


@pytest.mark.parametrize("op", EVERYWHERE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.skipif(os.environ.get("RUNNEL_MATH") != "all", reason="every number takes minutes: RUNNEL_MATH=all")
def test_accuracy_everywhere(op: str) -> None:
    low, high = (int(np.float32(v).view(np.uint32)) for v in EVERYWHERE[op])
    worst = 0.0
    for sign in (0, 1 << 31):
        for first in range(low, high, PART):
            x = np.arange(sign + first, sign + min(first + PART, high), dtype=np.uint32).view(np.float32)
            error = ulps(call(op, x), FUNCTIONS[op](x.astype(np.float64)))
            assert not np.isnan(error).any(), f"{op} is NaN where it should not be, from {x[0]} on"
            worst = max(worst, float(error.max()))
    edges = np.array([0, EVERYWHERE[op][0], EVERYWHERE[op][1], np.inf, 3e38, 1e-45, 1e-30], np.float32)
    edges = np.concatenate([edges, -edges])
    worst = max(worst, float(ulps(call(op, edges), FUNCTIONS[op](edges.astype(np.float64))).max()))
    print(f"{op}: {worst:.4f} units in the last place at most")
    assert worst <= BOUNDS[op]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_pow_accuracy() -> None:
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-80, 80, 1_000_000)).astype(np.float32)
    y = (rng.uniform(-1, 1, x.size) * 88 / np.maximum(np.abs(np.log(x)), 1e-3)).astype(np.float32)
    error = ulps(call("pow", x, y), np.power(x.astype(np.float64), y.astype(np.float64)))
    assert error.max() <= BOUNDS["pow"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_pow_special_values() -> None:
    values = np.array([0.0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, np.inf, -np.inf, np.nan, 1e-40, -7.0], np.float32)
    x, y = (a.reshape(-1).astype(np.float32) for a in np.meshgrid(values, values))
    got, exact = call("pow", x, y), np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    wrong = ~((got == exact) & (np.signbit(got) == np.signbit(exact)) | np.isnan(got) & np.isnan(exact))
    wrong &= ulps(got, exact.astype(np.float64)) > 1
    assert not wrong.any(), [(a, c, d, e) for a, c, d, e in zip(x[wrong], y[wrong], got[wrong], exact[wrong])]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_remainders() -> None:
    rng = np.random.default_rng(0)
    x = (np.exp(rng.uniform(-20, 20, 200_000)) * rng.choice([-1, 1], 200_000)).astype(np.float32)
    y = (np.exp(rng.uniform(-8, 8, x.size)) * rng.choice([-1, 1], x.size)).astype(np.float32)
    y[:1000] = x[:1000] / rng.integers(1, 9, 1000)
    x[:9], y[:9] = [0, 1, np.inf, np.nan, 3, -3, 2, -0.0, 6], [1, 0, 1, 1, np.inf, -np.inf, np.nan, 2, -3]
    got, exact = call("fmod", x, y), np.fmod(x, y)
    np.testing.assert_array_equal(got, exact)
    assert (np.signbit(got) == np.signbit(exact))[~np.isnan(exact)].all()


def test_exp_is_vector_code() -> None:
    target = Target.host()
    if target.arch != "x86_64":
        pytest.skip("reads x86 assembly")
    text = str(runner().module.lowered().inspect_source("asm"))
    register = "zmm" if target.vector_bytes == 64 else "ymm"
    kernel = next(c for c in runner().cases if c.name == "exp").kernel
    assert kernel is not None
    body = text.split(f"\n{kernel.variants[1]}:")[1].split(".cfi_endproc")[0]
    lines = [line for line in body.splitlines() if "vfmadd" in line or "vfnmadd" in line]
    assert len(lines) >= 7
    assert all(register in line for line in lines)
