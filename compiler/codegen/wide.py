"""int64 to and from floats, and its division, for machines with and without instructions for them (32-bit Arm)."""

from __future__ import annotations

from tvm import tirx

from runnel.compiler.codegen.builder import Builder, Expr, constant, dtype_of, lanes_of, vector_type

_WORD = 2.0**32


def cast(b: Builder, x: Expr, dtype: str) -> Expr:
    """``x`` with another element type; float to integer towards zero."""
    lanes, source = lanes_of(x), dtype_of(x)
    if not b.wide and dtype == "int64" and source.startswith("float"):
        return _whole(b, x, lanes)
    if not b.wide and source == "int64" and dtype.startswith("float"):
        return _real(b, x, lanes, dtype)
    return tirx.Cast(vector_type(dtype, lanes), x)


def quotient(b: Builder, x: Expr, y: Expr) -> Expr:
    """Integers divided towards zero."""
    return tirx.truncdiv(x, y) if b.wide or dtype_of(x) != "int64" else _divided(b, x, y)[0]


def remainder(b: Builder, x: Expr, y: Expr) -> Expr:
    """What the quotient towards zero leaves."""
    power = isinstance(y, tirx.IntImm) and int(y.value) > 0 and int(y.value) & (int(y.value) - 1) == 0
    return tirx.truncmod(x, y) if b.wide or power or dtype_of(x) != "int64" else _divided(b, x, y)[1]


def _whole(b: Builder, x: Expr, lanes: int) -> Expr:
    wide = b.let(b.intrinsic("llvm.trunc", b.let(tirx.Cast(vector_type("float64", lanes), x))))
    high = b.let(b.intrinsic("llvm.floor", b.let(wide * constant(1 / _WORD, "float64", lanes))))
    low = b.let(b.fma(high, constant(-_WORD, "float64"), wide))
    kind = vector_type("int64", lanes)
    words = tirx.Cast(kind, tirx.Cast(vector_type("int32", lanes), high)) << constant(32, "int64", lanes)
    return words + tirx.Cast(kind, tirx.Cast(vector_type("uint32", lanes), low))


def _real(b: Builder, x: Expr, lanes: int, dtype: str) -> Expr:
    """Exact in float64 up to 2^53; beyond, rounded once in float64."""
    kind = vector_type("float64", lanes)
    high = b.let(tirx.Cast(kind, tirx.Cast(vector_type("int32", lanes), x >> constant(32, "int64", lanes))))
    low = b.let(tirx.Cast(kind, tirx.Cast(vector_type("uint32", lanes), x)))
    value = b.fma(high, constant(_WORD, "float64"), low)
    return value if dtype == "float64" else tirx.Cast(vector_type(dtype, lanes), value)


def _divided(b: Builder, n: Expr, d: Expr) -> tuple[Expr, Expr]:
    """Quotient and remainder of the sizes, bit by bit, then the signs."""
    lanes = max(lanes_of(n), lanes_of(d))
    kind, signed = vector_type("uint64", lanes), vector_type("int64", lanes)

    def word(value: int, dtype: str = "uint64") -> Expr:
        return constant(value, dtype, lanes)

    zero = word(0, "int64")
    bits, rest, by = (b.local("uint64", lanes) for _ in range(3))
    b.store_vector(bits, 0, tirx.Cast(kind, tirx.Select(n < zero, zero - n, n)))
    b.store_vector(rest, 0, word(0))
    b.store_vector(by, 0, tirx.Cast(kind, tirx.Select(d < zero, zero - d, d)))
    with b.loop(64, "bit"):
        top = b.load_vector(bits, 0, lanes) >> word(63)
        b.store_vector(rest, 0, (b.load_vector(rest, 0, lanes) << word(1)) + top)
        b.store_vector(bits, 0, b.load_vector(bits, 0, lanes) << word(1))
        fits = b.load_vector(rest, 0, lanes) >= b.load_vector(by, 0, lanes)
        digit = b.let(tirx.Select(fits, word(1, "int64"), zero))
        taken = tirx.Select(digit > zero, b.load_vector(by, 0, lanes), word(0))
        b.store_vector(rest, 0, b.load_vector(rest, 0, lanes) - taken)
        b.store_vector(bits, 0, b.load_vector(bits, 0, lanes) + tirx.Cast(kind, digit))
    whole, left = (tirx.Cast(signed, b.load_vector(memory, 0, lanes)) for memory in (bits, rest))
    signs = b.let(tirx.Select(n < zero, word(1, "int64"), zero) + tirx.Select(d < zero, word(1, "int64"), zero))
    return b.let(tirx.Select(tirx.EQ(signs, word(1, "int64")), zero - whole, whole)), b.let(
        tirx.Select(n < zero, zero - left, left)
    )
