"""Element-wise ops: one function an op, from operands (scalars or vectors) to the result.

Operands of a binary op have one type already. Results are bound once, so that using one twice costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from runnel.compiler.codegen import angles, wide
from runnel.compiler.codegen import math as m
from runnel.compiler.codegen.builder import Builder, Expr, constant, dtype_of, lanes_of, pure, shuffle, vector_type
from runnel.compiler.codegen.errors import Unsupported

Attrs = dict[str, Any]


def cast(b: Builder, x: Expr, dtype: str) -> Expr:
    """Numpy's astype: to bool by ``!= 0``, float to integer towards zero. float16 is float32 that was rounded."""
    if dtype == "float16":
        return b.let(b.rounded(cast(b, x, "float32")))
    if dtype_of(x) == dtype:
        return x
    if dtype == "bool":
        return b.let(tirx.NE(x, m.like(x, 0)))
    if dtype_of(x) == "bool":
        return b.let(tirx.Select(x, m.like(x, 1, dtype), m.like(x, 0, dtype)))
    return b.let(wide.cast(b, x, dtype))


def is_float(x: Expr) -> bool:
    """Whether the elements are floating point."""
    return dtype_of(x).startswith("float")


def maximum(b: Builder, x: Expr, y: Expr) -> Expr:
    """max, NaN if either is."""
    keep = tirx.Or(x > y, m.is_nan(x)) if is_float(x) else x > y
    return b.let(tirx.Select(keep, x, y))


def minimum(b: Builder, x: Expr, y: Expr) -> Expr:
    """min, NaN if either is."""
    keep = tirx.Or(x < y, m.is_nan(x)) if is_float(x) else x < y
    return b.let(tirx.Select(keep, x, y))


def _positive(x: Expr, then: Expr, otherwise: Expr) -> Expr:
    return tirx.Select(x < m.like(x, 0), otherwise, then)


def _clip(b: Builder, x: Expr, a: Attrs) -> Expr:
    for key, worse in (("min", tirx.LT), ("max", tirx.GT)):
        bound = a.get(key)
        if bound is None or (is_float(x) and math.isinf(float(bound))):
            continue
        limit = m.like(x, float(bound) if is_float(x) else int(bound))
        x = b.let(tirx.Select(worse(x, limit), limit, x))
    return x


def _gelu(b: Builder, x: Expr, a: Attrs) -> Expr:
    if a.get("approximate", "none") in ("tanh", True, 1):
        cube = b.let(x * b.let(x * x))
        inner = b.let(b.fma(cube, m.like(x, 0.044715), x) * m.like(x, math.sqrt(2 / math.pi)))
        gate = m.tanh(b, inner)
    else:
        gate = m.erf(b, b.let(x * m.like(x, math.sqrt(0.5))))
    return b.let(b.let(x * m.like(x, 0.5)) * b.let(gate + m.like(x, 1.0)))


def _hard_sigmoid(b: Builder, x: Expr, alpha: float, beta: float) -> Expr:
    y = b.let(b.fma(x, m.like(x, alpha), m.like(x, beta)))
    return _clip(b, y, {"min": 0.0, "max": 1.0})


def _elu(b: Builder, x: Expr, alpha: float) -> Expr:
    below = b.let(tirx.Select(x < m.like(x, 0.0), x, m.like(x, 0.0)))
    return b.let(_positive(x, x, m.expm1(b, below) * m.like(x, alpha)))


def _sign(b: Builder, x: Expr, a: Attrs) -> Expr:
    zero = m.like(x, 0)
    above = tirx.Select(x > zero, m.like(x, 1), x * m.like(x, 0) if is_float(x) else zero)
    return b.let(tirx.Select(x < zero, m.like(x, -1), above))


def _abs(b: Builder, x: Expr, a: Attrs) -> Expr:
    return m.absolute(b, x) if is_float(x) else b.let(_positive(x, x, m.like(x, 0) - x))


def _rounding(intrinsic: str) -> Callable[[Builder, Expr, Attrs], Expr]:
    return lambda b, x, a: b.let(b.intrinsic(intrinsic, x)) if is_float(x) else x


def _selu(b: Builder, x: Expr, a: Attrs) -> Expr:
    scaled = _elu(b, x, a.get("alpha", 1.67326319217681884765625))
    return b.let(scaled * m.like(x, a.get("gamma", 1.05070102214813232421875)))


def _hard_swish(b: Builder, x: Expr, a: Attrs) -> Expr:
    return b.let(x * _hard_sigmoid(b, x, 1 / 6, 0.5))


def _quantize(b: Builder, x: Expr, a: Attrs) -> Expr:
    """x rounded half to even, plus ``zero``, within the range of the type ``to``; NaN becomes the lowest code."""
    zero, kind = int(a["zero"]), str(a["to"])
    if a.get("bounded"):
        return _narrowed(b, b.let(b.whole(x)), zero, kind, a.get("least"))
    low, high = (float(v - zero) for v in (np.iinfo(kind).min, np.iinfo(kind).max))
    x = b.let(tirx.Select(x > m.like(x, low), x, m.like(x, low)))
    x = b.let(tirx.Select(x < m.like(x, high), x, m.like(x, high)))
    code = b.let(tirx.Cast(vector_type("int32", lanes_of(x)), b.intrinsic("llvm.roundeven", x)))
    return b.let(tirx.Cast(vector_type(kind, lanes_of(x)), code + m.like(code, zero)))


def _narrowed(b: Builder, code: Expr, zero: int, kind: str, least: int | None) -> Expr:
    """An int32 plus ``zero``, within the range of the type ``kind``, and not below ``least``."""
    limits = np.iinfo(kind)
    least = None if least is None or least <= limits.min else least
    if b.saturates and lanes_of(code) % 4 == 0:
        return _saturated(b, code, zero, kind, least)
    # Else LLVM adds after it has cut to the range, and no longer sees an instruction that narrows and cuts at once.
    code = b.let(b.fence(code + m.like(code, zero))) if zero else code
    if least is not None:
        code = b.let(b.fence(tirx.Select(code < m.like(code, least), m.like(code, least), code)))
    low, high = (m.like(code, int(v)) for v in (limits.min, limits.max))
    code = tirx.Select(code < low, low, code)
    return b.let(tirx.Cast(vector_type(kind, lanes_of(code)), tirx.Select(code > high, high, code)))


def _saturated(b: Builder, code: Expr, zero: int, kind: str, least: int | None) -> Expr:
    """The same by 64-bit Arm's narrowing instructions: to 16 bits, where ``zero`` is added, then to 8."""
    lanes = lanes_of(code)
    narrow = "llvm.aarch64.neon.sqxtun" if kind == "uint8" else "llvm.aarch64.neon.sqxtn"
    halves = b.by_parts(code, 4, lambda part: pure("int16x4", "llvm.aarch64.neon.sqxtn", part))
    if lanes == 4:
        halves = tirx.Shuffle([halves, halves], list(range(8)))

    def last(part: Expr) -> Expr:
        if zero:
            part = pure("int16x8", "llvm.sadd.sat", part, constant(zero, "int16", 8))
        if least is not None:
            part = b.let(part)
            part = tirx.Select(part < constant(least, "int16", 8), constant(least, "int16", 8), part)
        return tirx.reinterpret(f"{kind}x8", pure("int8x8", narrow, b.let(part)))

    codes = b.by_parts(halves, 8, last)
    return b.let(shuffle(codes, range(4))) if lanes == 4 else codes


def _plain(function: Callable[[Builder, Expr], Expr]) -> Callable[[Builder, Expr, Attrs], Expr]:
    return lambda b, x, a: function(b, x)


def _is_inf(b: Builder, x: Expr, a: Attrs) -> Expr:
    above, below = x >= m.like(x, math.inf), x <= m.like(x, -math.inf)
    if not a.get("detect_negative", 1):
        return b.let(above)
    return b.let(tirx.Or(above, below) if a.get("detect_positive", 1) else below)


UNARY: dict[str, Callable[[Builder, Expr, Attrs], Expr]] = {
    "identity": lambda b, x, a: x,
    "relu": lambda b, x, a: b.let(_positive(x, x, m.like(x, 0))),
    "sigmoid": lambda b, x, a: m.sigmoid(b, x),
    "tanh": lambda b, x, a: m.tanh(b, x),
    "exp": lambda b, x, a: m.exp(b, x),
    "log": lambda b, x, a: m.log(b, x),
    "erf": lambda b, x, a: m.erf(b, x),
    "softplus": lambda b, x, a: m.softplus(b, x),
    "sqrt": lambda b, x, a: b.let(b.intrinsic("llvm.sqrt", x)),
    "neg": lambda b, x, a: b.let(x * m.like(x, -1)),
    "abs": _abs,
    "reciprocal": lambda b, x, a: b.let(m.like(x, 1.0) / x),
    "floor": _rounding("llvm.floor"),
    "ceil": _rounding("llvm.ceil"),
    "round": _rounding("llvm.roundeven"),
    "sign": _sign,
    "softsign": lambda b, x, a: b.let(x / (m.absolute(b, x) + m.like(x, 1.0))),
    "gelu": _gelu,
    "leaky_relu": lambda b, x, a: b.let(_positive(x, x, x * m.like(x, a.get("alpha", 0.01)))),
    "elu": lambda b, x, a: _elu(b, x, a.get("alpha", 1.0)),
    "selu": _selu,
    "hard_sigmoid": lambda b, x, a: _hard_sigmoid(b, x, a.get("alpha", 0.2), a.get("beta", 0.5)),
    "hard_swish": _hard_swish,
    "clip": _clip,
    "not": lambda b, x, a: b.let(tirx.Not(x)),
    **{name: _plain(getattr(angles, name)) for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh")},
    "is_nan": lambda b, x, a: b.let(m.is_nan(x)),
    "is_inf": _is_inf,
    "quantize": _quantize,
}

FLOAT_ONLY = frozenset({"sigmoid", "tanh", "exp", "log", "erf", "softplus", "sqrt", "reciprocal", "softsign"}) | {
    *("gelu", "elu", "selu", "hard_sigmoid", "hard_swish", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh"),
    *("is_nan", "is_inf", "quantize"),
}


def _pow(b: Builder, x: Expr, y: Expr) -> Expr:
    if not is_float(x):
        raise Unsupported("pow", f"the base is {dtype_of(x)}; only float32 and the constant exponents 1, 2 and 3")
    return m.power(b, x, y)


def _divide(b: Builder, x: Expr, y: Expr) -> Expr:
    return b.let(x / y if is_float(x) else wide.quotient(b, x, y))


def _mod(b: Builder, x: Expr, y: Expr) -> Expr:
    """The remainder with the divisor's sign."""
    if is_float(x):
        raise Unsupported("mod", "of real numbers; only fmod")
    r = b.let(wide.remainder(b, x, y))
    zero = m.like(x, 0)
    away = tirx.Or(tirx.And(r < zero, y > zero), tirx.And(r > zero, y < zero))
    return b.let(tirx.Select(away, r + y, r))


def _fmod(b: Builder, x: Expr, y: Expr) -> Expr:
    return angles.remainder(b, x, y) if is_float(x) else b.let(wide.remainder(b, x, y))


def _xor(b: Builder, x: Expr, y: Expr) -> Expr:
    return b.let(tirx.Or(tirx.And(x, tirx.Not(y)), tirx.And(tirx.Not(x), y)))


def _equal(b: Builder, x: Expr, y: Expr) -> Expr:
    return b.let(tirx.Not(_xor(b, x, y)) if dtype_of(x) == "bool" else tirx.EQ(x, y))


BINARY: dict[str, Callable[[Builder, Expr, Expr], Expr]] = {
    "add": lambda b, x, y: b.let(x + y),
    "sub": lambda b, x, y: b.let(x - y),
    "mul": lambda b, x, y: b.let(x * y),
    "div": _divide,
    "pow": _pow,
    "min": minimum,
    "max": maximum,
    "mod": _mod,
    "fmod": _fmod,
    "equal": _equal,
    "greater": lambda b, x, y: b.let(x > y),
    "less": lambda b, x, y: b.let(x < y),
    "greater_equal": lambda b, x, y: b.let(x >= y),
    "less_equal": lambda b, x, y: b.let(x <= y),
    "and": lambda b, x, y: b.let(tirx.And(x, y)),
    "or": lambda b, x, y: b.let(tirx.Or(x, y)),
    "xor": _xor,
    "prelu": lambda b, x, y: b.let(_positive(x, x, x * y)),
}


def power_by_constant(b: Builder, x: Expr, exponent: float) -> Expr | None:
    """x ** exponent where products, a root or a quotient do; else None."""
    if exponent == 1:
        return x
    if exponent == 2:
        return b.let(x * x)
    if exponent == 3:
        return b.let(b.let(x * x) * x)
    if not is_float(x):
        return None
    if exponent == 0.5:
        return b.let(b.intrinsic("llvm.sqrt", x))
    if exponent == -1:
        return b.let(constant(1.0, "float32", lanes_of(x)) / x)
    if exponent == -0.5:
        return b.let(m.like(x, 1.0) / b.intrinsic("llvm.sqrt", x))
    return None


def gru_cell(b: Builder, gx: list[Expr], gh: list[Expr], h: Expr) -> Expr:
    """One GRU step from gates in ONNX's order z r n, ``linear_before_reset=1``."""
    z = m.sigmoid(b, b.let(gx[0] + gh[0]))
    r = m.sigmoid(b, b.let(gx[1] + gh[1]))
    n = m.tanh(b, b.let(b.fma(r, gh[2], gx[2])))
    return b.let(b.fma(z, b.let(h - n), n))


def lstm_c(b: Builder, i: Expr, f: Expr, g: Expr, c: Expr) -> Expr:
    """The new cell state."""
    kept = b.let(m.sigmoid(b, f) * c)
    return b.let(b.fma(m.sigmoid(b, i), m.tanh(b, g), kept))


def lstm_h(b: Builder, o: Expr, c: Expr) -> Expr:
    """The new output from the new cell state."""
    return b.let(m.sigmoid(b, o) * m.tanh(b, c))
