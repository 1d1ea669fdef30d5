"""Elementary functions as straight-line vector code: float32 (pow: float64 inside), no branches, no imports.

Coefficients are minimax fits made for this file. ``tests/codegen/test_math.py`` holds the measured error bounds.
NaN in gives NaN out; overflow gives inf; results below the normal range are right to a unit of the denormals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import tirx

from runnel.compiler.codegen.builder import Builder, Expr, constant, dtype_of, lanes_of, vector_type

_EXP = (0.5, 0.166665182, 0.041666206, 0.00836895406, 0.00139505998)
_LOG = (
    *(0.333333105, -0.249999866, 0.200022265, -0.16669251, 0.142186582),
    *(-0.123843484, 0.118729763, -0.117898077, 0.0691536814),
)
_TANH = (-0.333332628, 0.133308992, -0.053692963, 0.0204833057, -0.00552862464)
_ERF_SMALL = (0.128379166, -0.376126349, 0.112836942, -0.0268592704, 0.00520063424, -0.00081374374, 8.34522507e-05)
_ERF_LARGE = (
    *(0.128555119, 0.635609269, 0.105294444, -0.0227082968),
    *(0.00295167137, -5.75128979e-05, -4.39999967e-05, 4.8064785e-06),
)
_LN2_HIGH = 0.693359375  # 9 bits: n * this is exact for every exponent n
_LN2_LOW = -2.12194440e-4


def like(x: Expr, value: float, dtype: str | None = None) -> Expr:
    """A constant with the lanes of ``x``, and its type unless another is named."""
    return constant(value, dtype or dtype_of(x), lanes_of(x))


def bits(x: Expr) -> Expr:
    """float32 as int32."""
    return tirx.reinterpret(vector_type("int32", lanes_of(x)), x)


def from_bits(x: Expr) -> Expr:
    """int32 as float32."""
    return tirx.reinterpret(vector_type("float32", lanes_of(x)), x)


def is_nan(x: Expr) -> Expr:
    """True where a float is NaN. TVM's ``x != x`` is LLVM's ordered comparison, which NaN fails."""
    zero = like(x, 0.0)
    return tirx.Not(tirx.Or(x < zero, x >= zero))


def _polynomial(b: Builder, x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's rule, lowest power first in ``coefficients``."""
    result = like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = b.let(b.fma(result, x, like(x, c)))
    return result


def absolute(b: Builder, x: Expr) -> Expr:
    """|x|"""
    return b.let(b.intrinsic("llvm.fabs", x))


def copy_sign(b: Builder, x: Expr, sign: Expr) -> Expr:
    """|x| with the sign of ``sign``."""
    return b.let(b.intrinsic("llvm.copysign", x, sign))


def _power_of_two(n: Expr) -> Expr:
    """2**n for n in [-126, 127]."""
    lanes = lanes_of(n)
    return from_bits((n + constant(127, "int32", lanes)) << constant(23, "int32", lanes))


def exp(b: Builder, x: Expr) -> Expr:
    """e**x: reduction by multiples of ln 2 in two parts, a polynomial, scaling in two steps (denormals, inf)."""
    lanes = lanes_of(x)
    low, high = like(x, -104.5), like(x, 89.0)
    c = b.let(tirx.Select(x > low, x, low))
    c = b.let(tirx.Select(c < high, c, high))
    n = b.let(b.intrinsic("llvm.floor", b.fma(c, like(x, math.log2(math.e)), like(x, 0.5))))
    r = b.let(b.fma(n, like(x, -_LN2_HIGH), c))
    r = b.let(b.fma(n, like(x, -_LN2_LOW), r))
    tail = b.let(b.fma(_polynomial(b, r, _EXP), r * r, r))
    p = b.let(tail + like(x, 1.0))
    i = b.let(tirx.Cast(vector_type("int32", lanes), n))
    half = b.let(i >> constant(1, "int32", lanes))
    scaled = b.let(b.let(p * _power_of_two(half)) * _power_of_two(i - half))
    return b.let(tirx.Select(is_nan(x), x, scaled))


def log(b: Builder, x: Expr) -> Expr:
    """Natural logarithm; -inf at 0, NaN below."""
    m, e = _split(b, x)
    f = b.let(m - like(x, 1.0))
    square = b.let(f * f)
    y = b.let(b.let(_polynomial(b, f, _LOG) * f) * square)
    y = b.let(b.fma(e, like(x, _LN2_LOW), y))
    y = b.let(b.fma(square, like(x, -0.5), y))
    y = b.let(b.fma(e, like(x, _LN2_HIGH), b.let(f + y)))
    y = b.let(tirx.Select(x >= like(x, math.inf), x, y))
    y = b.let(tirx.Select(tirx.EQ(x, like(x, 0.0)), like(x, -math.inf), y))
    return b.let(tirx.Select(x >= like(x, 0.0), y, like(x, math.nan)))


def _split(b: Builder, x: Expr) -> tuple[Expr, Expr]:
    """x > 0 as m * 2**e with m in [sqrt(1/2), sqrt(2)); both float32."""
    lanes = lanes_of(x)
    tiny = b.let(x < like(x, float(np.finfo(np.float32).tiny)))
    normal = b.let(tirx.Select(tiny, x * like(x, 2.0**23), x))
    offset = int(np.float32(math.sqrt(0.5)).view(np.int32))
    shifted = b.let(bits(normal) - constant(offset, "int32", lanes))
    e = b.let(shifted >> constant(23, "int32", lanes))
    m = b.let(from_bits(bits(normal) - (e << constant(23, "int32", lanes))))
    e_float = tirx.Cast(vector_type("float32", lanes), e)
    return m, b.let(e_float - tirx.Select(tiny, like(x, 23.0), like(x, 0.0)))


def tanh(b: Builder, x: Expr) -> Expr:
    """An odd polynomial near 0, 1 - 2 / (e**2|x| + 1) beyond: no cancellation."""
    a = absolute(b, x)
    square = b.let(x * x)
    small = b.let(b.fma(b.let(_polynomial(b, square, _TANH) * square), x, x))
    large = b.let(like(x, 1.0) - like(x, 2.0) / (exp(b, b.let(a + a)) + like(x, 1.0)))
    return b.let(tirx.Select(a < like(x, 0.625), small, copy_sign(b, large, x)))


def sigmoid(b: Builder, x: Expr) -> Expr:
    """1 / (1 + e**-x), from e**-|x| so that both tails are exact."""
    e = exp(b, b.let(like(x, 0.0) - absolute(b, x)))
    return b.let(tirx.Select(x < like(x, 0.0), e, like(x, 1.0)) / b.let(e + like(x, 1.0)))


def erf(b: Builder, x: Expr) -> Expr:
    """An odd polynomial near 0, 1 - e**-t(1 + q(t)) beyond."""
    a = absolute(b, x)
    small = b.let(b.fma(_polynomial(b, b.let(x * x), _ERF_SMALL), x, x))
    t = b.let(tirx.Select(a < like(x, 4.0), a, like(x, 4.0)))
    g = b.let(b.fma(_polynomial(b, t, _ERF_LARGE), t, t))
    large = b.let(like(x, 1.0) - exp(b, b.let(like(x, 0.0) - g)))
    result = b.let(tirx.Select(a < like(x, 0.92), small, copy_sign(b, large, x)))
    return b.let(tirx.Select(is_nan(x), x, result))


def expm1(b: Builder, x: Expr) -> Expr:
    """e**x - 1 for x <= 0, as 2t / (1 - t) with t = tanh(x/2)."""
    t = tanh(b, b.let(x * like(x, 0.5)))
    return b.let((t + t) / (like(x, 1.0) - t))


def softplus(b: Builder, x: Expr) -> Expr:
    """log(1 + e**x), from e**-|x| and with what 1 + e rounds away put back."""
    one, zero = like(x, 1.0), like(x, 0.0)
    e = exp(b, b.let(zero - absolute(b, x)))
    u = b.let(e + one)
    lost = b.let((e - b.let(u - one)) / u)
    return b.let(tirx.Select(x < zero, zero, x) + b.let(log(b, u) + lost))


def power(b: Builder, x: Expr, y: Expr) -> Expr:
    """x**y as in C: |x|**y through float64 logarithm and exponential, then sign and special cases."""
    lanes = lanes_of(x)
    zero, one, inf = like(x, 0.0), like(x, 1.0), like(x, math.inf)
    a = absolute(b, x)
    m, e = _split(b, a)
    y64 = tirx.Cast(vector_type("float64", lanes), y)
    log_a = _log_float64(b, m, e)
    log_a = b.let(tirx.Select(tirx.EQ(a, zero), like(log_a, -math.inf), log_a))
    log_a = b.let(tirx.Select(a >= inf, like(log_a, math.inf), log_a))
    result = tirx.Cast(vector_type("float32", lanes), _exp_float64(b, b.let(log_a * y64)))
    half = b.let(y * like(x, 0.5))
    integer = tirx.EQ(b.intrinsic("llvm.floor", y), y)
    odd = tirx.And(integer, tirx.NE(b.intrinsic("llvm.floor", half), half))
    negative = bits(x) < constant(0, "int32", lanes)
    result = b.let(tirx.Select(tirx.And(odd, negative), zero - result, result))
    bad = tirx.And(tirx.And(x < zero, x > zero - inf), tirx.Not(integer))
    result = b.let(tirx.Select(bad, like(x, math.nan), result))
    result = b.let(tirx.Select(tirx.Or(is_nan(x), is_nan(y)), x + y, result))
    ones = tirx.And(tirx.EQ(a, one), tirx.EQ(absolute(b, y), inf))
    return b.let(tirx.Select(tirx.Or(tirx.Or(tirx.EQ(x, one), tirx.EQ(y, zero)), ones), one, result))


def _log_float64(b: Builder, m: Expr, e: Expr) -> Expr:
    """log(m * 2**e) in float64: 2 artanh((m - 1) / (m + 1)) by its series."""
    kind = vector_type("float64", lanes_of(m))
    m = b.let(tirx.Cast(kind, m))
    s = b.let((m - like(m, 1.0)) / (m + like(m, 1.0)))
    series = _polynomial(b, b.let(s * s), [2.0 / (2 * k + 1) for k in range(9)])
    return b.let(b.fma(tirx.Cast(kind, e), like(m, math.log(2.0)), b.let(series * s)))


def _exp_float64(b: Builder, x: Expr) -> Expr:
    """e**x in float64 for float32 results."""
    lanes = lanes_of(x)
    c = b.let(tirx.Select(x > like(x, -200.0), x, like(x, -200.0)))
    c = b.let(tirx.Select(c < like(x, 200.0), c, like(x, 200.0)))
    n = b.let(b.intrinsic("llvm.floor", b.fma(c, like(x, math.log2(math.e)), like(x, 0.5))))
    r = b.let(b.fma(n, like(x, -math.log(2.0)), c))
    p = _polynomial(b, r, [1.0 / math.factorial(k) for k in range(12)])
    i = tirx.Cast(vector_type("int64", lanes), tirx.Cast(vector_type("int32", lanes), n))
    scale = (i + constant(1023, "int64", lanes)) << constant(52, "int64", lanes)
    scaled = p * tirx.reinterpret(vector_type("float64", lanes), scale)
    return b.let(tirx.Select(is_nan(x), x, scaled))
