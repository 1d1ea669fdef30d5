"""Sums of a tile in registers, rows by vectors of outputs: a row each, or for Arm's i8mm two rows by two outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tvm import tirx

from runnel.compiler.codegen.builder import Buffer, Builder, Expr, constant
from runnel.compiler.codegen.dots import EIGHT, Dots


class Totals(Protocol):
    """Sums of a tile, by (row, vector)."""

    def begin(self, vector: int, start: Expr) -> None:
        """All rows of a vector begin with the same."""

    def update(self, row: int, vector: int, of: Callable[[Expr], Expr]) -> None:
        """A sum becomes ``of`` it, which adds something."""

    def multiply(self, memory: Buffer, places: Sequence[Expr], words: Mapping[int, Callable[[], Expr]]) -> None:
        """Adds the products of a word of codes of some rows. places: where each vector's weights lie."""

    def at(self, row: int, vector: int) -> Expr:
        """A sum."""


def totals(b: Builder, dots: Dots | None, kind: str, rows: int, lanes: Sequence[int]) -> Totals:
    """Sums of ``rows`` by vectors of so many ``lanes``."""
    return Blocks(b, dots, rows, len(lanes)) if dots is not None and dots.block else Rows(b, dots, kind, rows, lanes)


class Rows:
    """A vector of one row's outputs a register."""

    def __init__(self, b: Builder, dots: Dots | None, kind: str, rows: int, lanes: Sequence[int]) -> None:
        self.b, self.dots, self.lanes = b, dots, list(lanes)
        self.sums = [[b.local(kind, n) for n in lanes] for _ in range(rows)]

    def begin(self, vector: int, start: Expr) -> None:
        for row in self.sums:
            self.b.store_vector(row[vector], 0, start)

    def update(self, row: int, vector: int, of: Callable[[Expr], Expr]) -> None:
        self.b.store_vector(self.sums[row][vector], 0, of(self.at(row, vector)))

    def multiply(self, memory: Buffer, places: Sequence[Expr], words: Mapping[int, Callable[[], Expr]]) -> None:
        dots = self.dots
        assert dots is not None
        weights = [
            self.b.let(self.b.load_vector(memory, at, dots.size * n)) for at, n in zip(places, self.lanes, strict=True)
        ]
        for row, load in words.items():
            word = load()
            codes = {n: dots.codes(word, n) for n in dict.fromkeys(self.lanes)}
            for j, (n, weight) in enumerate(zip(self.lanes, weights, strict=True)):
                self.b.store_vector(self.sums[row][j], 0, dots.add(codes[n], weight, self.at(row, j)))

    def at(self, row: int, vector: int) -> Expr:
        return self.b.load_vector(self.sums[row][vector], 0, self.lanes[vector])


class Blocks:
    """Two rows by two outputs a register, four outputs a vector; eight codes of each row are multiplied at once.

    A last row without a partner has the sums over the first and the second four of every eight codes apart.
    """

    def __init__(self, b: Builder, dots: Dots, rows: int, vectors: int) -> None:
        self.b, self.dots, self.rows = b, dots, rows
        self.zero = constant(0, "int32", 4)
        self.sums = [[[b.local("int32", 4) for _ in range(2)] for _ in range(vectors)] for _ in range(-(-rows // 2))]
        for half in (half for pair in self.sums for halves in pair for half in halves):
            b.store_vector(half, 0, self.zero)

    def _alone(self, row: int) -> bool:
        return row % 2 == 0 and row + 1 == self.rows

    def begin(self, vector: int, start: Expr) -> None:
        for row in range(self.rows):
            self._add(row, vector, start)

    def update(self, row: int, vector: int, of: Callable[[Expr], Expr]) -> None:
        self._add(row, vector, self.b.let(of(self.zero)))

    def _add(self, row: int, vector: int, part: Expr) -> None:
        for i, half in enumerate(self.sums[row // 2][vector]):
            first, second, none = 2 * i, 2 * i + 1, 4
            if self._alone(row):
                order = [first, none, second, none]
            else:
                order = [first, second, none, none] if row % 2 == 0 else [none, none, first, second]
            placed = tirx.Shuffle([part, self.zero], order)
            self.b.store_vector(half, 0, self.b.load_vector(half, 0, 4) + placed)

    def multiply(self, memory: Buffer, places: Sequence[Expr], words: Mapping[int, Callable[[], Expr]]) -> None:
        b, size = self.b, 2 * EIGHT
        weights = [[b.let(b.load_vector(memory, at + i * size, size)) for i in range(2)] for at in places]
        for pair, vectors in enumerate(self.sums):
            rows = [row for row in (2 * pair, 2 * pair + 1) if row in words]
            if not rows:
                continue
            seen = {row: words[row]() for row in rows}
            kind = str(seen[rows[0]].ty).partition("x")[0]
            alone, nothing = self._alone(2 * pair), constant(0, kind, EIGHT)
            both = [seen[rows[0]]] * 2 if alone else [seen.get(2 * pair + i, nothing) for i in range(2)]
            codes = b.let(tirx.reinterpret(f"int8x{size}", tirx.Shuffle(both, list(range(size)))))
            for halves, given in zip(vectors, weights, strict=True):
                for half, weight in zip(halves, given, strict=True):
                    add = self.dots.add if alone else self.dots.add_block
                    b.store_vector(half, 0, add(codes, weight, b.load_vector(half, 0, 4)))

    def at(self, row: int, vector: int) -> Expr:
        halves = [self.b.load_vector(half, 0, 4) for half in self.sums[row // 2][vector]]
        if self._alone(row):
            return self.b.let(tirx.Shuffle(halves, [0, 2, 4, 6]) + tirx.Shuffle(halves, [1, 3, 5, 7]))
        return self.b.let(tirx.Shuffle(halves, [0, 1, 4, 5] if row % 2 == 0 else [2, 3, 6, 7]))
