"""Schedules of products: how much of a result is held in registers, by rule or as a log of measurements says.

A schedule changes where sums are kept while they grow, never their order, so every schedule gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runnel.compiler.codegen.target import Target
from runnel.compiler.codegen.tiles import block_tile, register_tile

UNROLL = 4
_UNROLLS = (2, 4, 8)
_MOST_VECTORS = 4
_MOST_ROWS = 16


@dataclass(frozen=True)
class Problem:
    """What products that are alike have in common.

    form: "rows" (GEMV and thin GEMM), "image" (convolutions whose channels lie last), "codes" (the same of integers) or
    "blocks" (both of integers, two rows by two outputs at once).
    kind: of the sums. rows, vectors: of the result, where a vector has ``lanes`` elements. depth: products of one sum,
    rounded up to a power of two.
    """

    form: str
    kind: str
    rows: int
    vectors: int
    lanes: int
    depth: int


@dataclass(frozen=True)
class Schedule:
    """rows, vectors: the most of a result that registers hold at a time. unroll: products written out in a row."""

    rows: int
    vectors: int
    unroll: int = UNROLL


def fixed(target: Target, problem: Problem) -> Schedule:
    """The schedule by rule."""
    if problem.form == "blocks":
        return Schedule(*block_tile(target, problem.vectors, problem.rows))
    return Schedule(*register_tile(target, problem.lanes, problem.vectors, problem.rows))


def candidates(target: Target, problem: Problem) -> list[Schedule]:
    """Schedules whose sums, weights and one element of the input fit into registers; that by rule comes first."""
    first = fixed(target, problem)
    registers = target.registers * target.lanes // problem.lanes
    unrolls = _UNROLLS if problem.form == "rows" and problem.kind == "float32" else (UNROLL,)
    found = [
        Schedule(rows, vectors, unroll)
        for vectors in range(1, min(problem.vectors, _MOST_VECTORS) + 1)
        for rows in range(1, min(problem.rows, _MOST_ROWS) + 1)
        for unroll in unrolls
        if rows * vectors + vectors + 1 <= registers
    ]
    near = sorted(found, key=lambda s: abs(s.rows * s.vectors - first.rows * first.vectors))
    return [first, *(s for s in near if s != first)]


class Tuning:
    """Measured schedules, and which problems were met."""

    def __init__(self, known: Mapping[Problem, Schedule] | None = None) -> None:
        self.known = dict(known or {})
        self.met: dict[Problem, Schedule] = {}

    def schedule(
        self, target: Target, form: str, kind: str, rows: int, vectors: int, lanes: int, depth: int
    ) -> Schedule:
        """The schedule of a product; ``depth`` need not be a power of two."""
        problem = Problem(form, kind, rows, vectors, lanes, 1 << max(depth - 1, 0).bit_length())
        chosen = self.known.get(problem) or fixed(target, problem)
        self.met[problem] = chosen
        return chosen

    @property
    def used(self) -> int:
        """How many of the problems that were met have a measured schedule."""
        return sum(problem in self.known for problem in self.met)
