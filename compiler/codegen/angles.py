"""Sines, arcs and remainders as straight-line vector code: float64 inside, so that float32 results are rounded once.

Angles are reduced by multiples of pi/2 in two parts, exact to float32 for |x| < 2**50; beyond, where float32 angles are
millions of turns apart, the result is NaN. NaN in gives NaN out.
"""

from __future__ import annotations

import math

from tvm import tirx

from runnel.compiler.codegen import wide
from runnel.compiler.codegen.builder import Builder, Expr, constant, lanes_of, vector_type
from runnel.compiler.codegen.math import _exp_float64, _polynomial, like

_HALF_PI_LOW = 6.123233995736766e-17  # pi/2 - float64(pi/2)
_SIN = [(-1.0) ** k / math.factorial(2 * k + 3) for k in range(6)]
_COS = [(-1.0) ** k / math.factorial(2 * k) for k in range(8)]
_ATAN = [(-1.0) ** k / (2 * k + 1) for k in range(9)]


def _wide(x: Expr) -> Expr:
    return tirx.Cast(vector_type("float64", lanes_of(x)), x)


def _narrow(b: Builder, x: Expr) -> Expr:
    return b.let(tirx.Cast(vector_type("float32", lanes_of(x)), x))


def _turned(b: Builder, x: Expr, quarters: int) -> Expr:
    """sin(x + quarters · pi/2) in float64."""
    lanes = lanes_of(x)
    w = b.let(_wide(x))
    small = b.let(tirx.Select(b.intrinsic("llvm.fabs", w) < like(w, 2.0**50), w, like(w, math.nan)))
    n = b.let(b.intrinsic("llvm.roundeven", small * like(w, 2 / math.pi)))
    r = b.let(b.fma(n, like(w, -math.pi / 2), small))
    r = b.let(b.fma(n, like(w, -_HALF_PI_LOW), r))
    square = b.let(r * r)
    sine = b.let(b.fma(_polynomial(b, square, _SIN) * square, r * like(w, -1.0), r))
    cosine = _polynomial(b, square, _COS)
    known = tirx.Select(n >= like(w, -(2.0**60)), n, like(w, 0.0))
    turn = b.let(wide.cast(b, known, "int64") + constant(quarters, "int64", lanes))
    odd = tirx.NE(turn & constant(1, "int64", lanes), constant(0, "int64", lanes))
    below = tirx.NE(turn & constant(2, "int64", lanes), constant(0, "int64", lanes))
    value = b.let(tirx.Select(odd, cosine, sine))
    return b.let(tirx.Select(below, value * like(w, -1.0), value))


def sin(b: Builder, x: Expr) -> Expr:
    """sin x"""
    return _narrow(b, _turned(b, x, 0))


def cos(b: Builder, x: Expr) -> Expr:
    """cos x"""
    return _narrow(b, _turned(b, x, 1))


def tan(b: Builder, x: Expr) -> Expr:
    """tan x"""
    return _narrow(b, _turned(b, x, 0) / _turned(b, x, 1))


def _arc(b: Builder, x: Expr) -> Expr:
    """atan of float64: a reciprocal above 1, the angle halved twice, the series."""
    a = b.let(b.intrinsic("llvm.fabs", x))
    one = like(x, 1.0)
    above = b.let(a > one)
    t = b.let(tirx.Select(above, one / a, a))
    for _ in range(2):
        t = b.let(t / (one + b.intrinsic("llvm.sqrt", b.fma(t, t, one))))
    angle = b.let(_polynomial(b, b.let(t * t), _ATAN) * t * like(x, 4.0))
    angle = b.let(tirx.Select(above, like(x, math.pi / 2) - angle, angle))
    return b.let(b.intrinsic("llvm.copysign", angle, x))


def atan(b: Builder, x: Expr) -> Expr:
    """atan x"""
    return _narrow(b, _arc(b, b.let(_wide(x))))


def _arc_sine(b: Builder, x: Expr) -> Expr:
    w = b.let(_wide(x))
    one = like(w, 1.0)
    return _arc(b, b.let(w / b.intrinsic("llvm.sqrt", b.let((one - w) * (one + w)))))


def asin(b: Builder, x: Expr) -> Expr:
    """asin x, NaN outside [-1, 1]"""
    return _narrow(b, _arc_sine(b, x))


def acos(b: Builder, x: Expr) -> Expr:
    """acos x, NaN outside [-1, 1]"""
    arc = _arc_sine(b, x)
    return _narrow(b, like(arc, math.pi / 2) - arc)


def sinh(b: Builder, x: Expr) -> Expr:
    """sinh x: its series near 0, where the exponentials cancel."""
    w = b.let(_wide(x))
    large = (_exp_float64(b, w) - _exp_float64(b, b.let(w * like(w, -1.0)))) * like(w, 0.5)
    square = b.let(w * w)
    small = b.let(b.fma(_polynomial(b, square, [1 / 6, 1 / 120]) * square, w, w))
    return _narrow(b, tirx.Select(b.intrinsic("llvm.fabs", w) < like(w, 0.01), small, large))


def cosh(b: Builder, x: Expr) -> Expr:
    """cosh x"""
    w = b.let(_wide(x))
    return _narrow(b, (_exp_float64(b, w) + _exp_float64(b, b.let(w * like(w, -1.0)))) * like(w, 0.5))


def remainder(b: Builder, x: Expr, y: Expr) -> Expr:
    """C's fmod: x - y·trunc(x / y), exact; NaN where the quotient passes 2**53."""
    v, w = b.let(_wide(x)), b.let(_wide(y))
    n = b.let(b.intrinsic("llvm.trunc", b.let(v / w)))
    r = b.let(b.fma(b.let(n * like(w, -1.0)), w, v))
    size = b.let(b.intrinsic("llvm.copysign", w, v))
    over = tirx.Or(tirx.And(v >= like(v, 0.0), r < like(v, 0.0)), tirx.And(v < like(v, 0.0), r > like(v, 0.0)))
    r = b.let(tirx.Select(over, r + size, r))
    known = b.intrinsic("llvm.fabs", n) < like(w, 2.0**53)
    endless = tirx.And(
        b.intrinsic("llvm.fabs", w) >= like(w, math.inf), b.intrinsic("llvm.fabs", v) < like(w, math.inf)
    )
    r = b.let(tirx.Select(known, r, like(w, math.nan)))
    r = b.let(tirx.Select(endless, v, r))
    return _narrow(b, b.intrinsic("llvm.copysign", r, v))
