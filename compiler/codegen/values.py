"""Values of TIR: their types, constants, and vectors made of scalars."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from tvm import tirx

Expr = Any  # TVM's expressions overload the arithmetic operators; Python ints stand for int32 constants
Buffer = Any

# Kernels have millions of nodes; what is the same in many of them is made once.
_one = lru_cache(maxsize=None)(lambda dtype: tirx.IntImm(dtype, 1))
_int32 = lru_cache(maxsize=1 << 16)(lambda value: tirx.IntImm("int32", value))


def int32(value: Expr) -> Expr:
    """``value`` as an int32 expression."""
    return _int32(int(value)) if isinstance(value, int) else value


@cache
def _parts(name: str) -> tuple[str, int]:
    dtype, _, lanes = name.partition("x")
    return dtype, int(lanes or 1)


def dtype_of(value: Expr) -> str:
    """The element type, without the number of lanes."""
    return _parts(value.ty.dtype)[0]


def lanes_of(value: Expr) -> int:
    """The number of lanes of a value, 1 for a scalar."""
    return _parts(value.ty.dtype)[1]


@lru_cache(maxsize=1 << 12)
def _from(position: int, lanes: int) -> Expr:
    return tirx.Ramp(_int32(position), _int32(1), lanes) if lanes > 1 else _int32(position)


def consecutive(position: Expr, lanes: int) -> Expr:
    """The index of ``lanes`` elements from ``position`` on."""
    if isinstance(position, int):
        return _from(int(position), lanes)
    return tirx.Ramp(position, _one(dtype_of(position)), lanes) if lanes > 1 else position


def vector_type(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def splat(value: Expr, lanes: int) -> Expr:
    """``value`` in every lane; a vector stays as it is."""
    return tirx.Broadcast(value, lanes) if lanes > 1 and lanes_of(value) == 1 else value


def constant(value: float | int | bool, dtype: str, lanes: int = 1) -> Expr:
    """A constant of an element type, in every lane."""
    if dtype.startswith("float"):
        return splat(tirx.FloatImm(dtype, float(value)), lanes)
    return splat(tirx.IntImm(dtype, int(value)), lanes)


def shuffle(value: Expr, indices: Sequence[int]) -> Expr:
    """The lanes of ``value`` named by ``indices``."""
    return tirx.Shuffle([value], list(indices))
