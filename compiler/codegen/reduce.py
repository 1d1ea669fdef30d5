"""Reductions and softmax, each element in one fixed order."""

from __future__ import annotations

from runnel.compiler.codegen.builder import Builder, Expr, lanes_of, shuffle


def tree_sum(b: Builder, value: Expr) -> Expr:
    """The sum of all lanes: halves added to halves."""
    lanes = lanes_of(value)
    while lanes > 1:
        value = b.let(value)
        lanes //= 2
        low, high = shuffle(value, range(lanes)), shuffle(value, range(lanes, 2 * lanes))
        value = low + high
    return b.let(value)
