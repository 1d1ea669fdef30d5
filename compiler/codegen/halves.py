"""float16 in memory: made float32 when it is loaded, and rounded half to even when it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from runnel.compiler.codegen.values import Expr, constant, lanes_of, shuffle, vector_type

if TYPE_CHECKING:
    from runnel.compiler.codegen.builder import Builder

_SHIFT = 13  # bits that a float32's fraction has beyond a float16's
_BIAS = 112 << 23  # between the exponents of the two
_LEAST, _INFINITE = 113 << 23, 143 << 23  # float32 bits: the least normal float16; what has no float16


def single(b: Builder, bits: Expr) -> Expr:
    """The float32 of a float16, whose bits are uint16."""
    lanes = lanes_of(bits)
    real = vector_type("float32", lanes)
    if b.arm and lanes % 4 == 0:  # LLVM would convert them one by one
        words = tirx.reinterpret(vector_type("int16", lanes), bits)
        return _by_fours(words, "llvm.arm.neon.vcvthf2fp", "float32")
    if b.halves:
        return tirx.Cast(real, tirx.reinterpret(vector_type("float16", lanes), bits))
    wide = b.let(tirx.Cast(vector_type("int32", lanes), bits))

    def word(value: int) -> Expr:
        return constant(value, "int32", lanes)

    size = b.let(wide & word(0x7FFF))
    scaled = b.let(size << word(_SHIFT))
    small = tirx.reinterpret(real, scaled + word(_LEAST)) - tirx.reinterpret(real, word(_LEAST))
    usual = tirx.Select(size >= word(0x7C00), scaled + word(2 * _BIAS), scaled + word(_BIAS))
    found = b.let(tirx.Select(size < word(0x400), b.let(tirx.reinterpret(vector_type("int32", lanes), small)), usual))
    return tirx.reinterpret(real, found | ((wide & word(0x8000)) << word(16)))


def half(b: Builder, value: Expr) -> Expr:
    """The bits (uint16) of the float16 that is nearest to a float32."""
    lanes = lanes_of(value)
    kind = vector_type("uint16", lanes)
    if b.arm and lanes % 4 == 0:
        return tirx.reinterpret(kind, _by_fours(value, "llvm.arm.neon.vcvtfp2hf", "int16"))
    if b.halves:
        return tirx.reinterpret(kind, tirx.Cast(vector_type("float16", lanes), value))
    whole = vector_type("int32", lanes)

    def word(number: int) -> Expr:
        return constant(number, "int32", lanes)

    bits = b.let(tirx.reinterpret(whole, value))
    size = b.let(bits & word(0x7FFFFFFF))
    odd = (size >> word(_SHIFT)) & word(1)
    usual = (size + (word((1 << (_SHIFT - 1)) - 1 - _BIAS) + odd)) >> word(_SHIFT)
    # Added to a half, what is small lies with its last bit where a float16's is, and the sum is rounded to it.
    about = b.let(tirx.reinterpret(vector_type("float32", lanes), size) + constant(0.5, "float32", lanes))
    small = tirx.reinterpret(whole, about) - tirx.reinterpret(whole, constant(0.5, "float32", lanes))
    special = tirx.Select(size > word(255 << 23), word(0x7E00), word(0x7C00))
    found = tirx.Select(size < word(_LEAST), small, tirx.Select(size >= word(_INFINITE), special, usual))
    sign = (bits >> word(16)) & word(0x8000)
    return tirx.Cast(kind, b.let(found) | sign)


def _by_fours(value: Expr, name: str, to: str) -> Expr:
    """A vector converted four lanes at a time."""
    lanes = lanes_of(value)
    parts = [shuffle(value, range(i, i + 4)) if lanes > 4 else value for i in range(0, lanes, 4)]
    made = [tirx.call_llvm_pure_intrin(vector_type(to, 4), name, part) for part in parts]
    return tirx.Shuffle(made, list(range(lanes))) if lanes > 4 else made[0]
