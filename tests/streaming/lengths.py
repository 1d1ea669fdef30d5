"""Parts of nets that follow the length of the input: its size, positions, rows of a table."""

from __future__ import annotations

from typing import Any

from nets import TIME, Net

C = 6


def frames(net: Net, **options: Any) -> tuple[str, str]:
    """An input [1, T, C] and its length as int64 ()."""
    x = net.input([1, TIME, C], **options)
    return x, length(net, x)


def length(net: Net, x: str, axis: int = 1) -> str:
    return str(net.op("Gather", net.op("Shape", x), net.const(axis), axis=0))


def positions(net: Net, size: str, dtype: str = "int64") -> str:
    if dtype != "int64":
        size = net.op("Cast", size, to=1)
    return str(net.op("Range", net.const(0, dtype), size, net.const(1, dtype)))


def column(net: Net, n: str, to: int = 1) -> str:
    """Positions as [1, T, 1] of a type."""
    return str(net.op("Unsqueeze", net.op("Cast", n, to=to), net.const([0, 2])))


def table(net: Net, rows: int = 64) -> str:
    return net.weight(1, rows, C, scale=1.0)


def first_rows(net: Net, size: str, rows: int = 64) -> str:
    """table[:, :T]"""
    end = net.op("Unsqueeze", size, net.const([0]))
    return str(net.op("Slice", table(net, rows), net.const([0]), end, net.const([1])))
