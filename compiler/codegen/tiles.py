"""How much of a result is held in registers at a time, by rule from shape and target."""

from __future__ import annotations

from runnel.compiler.codegen.target import Target

_MOST_VECTORS = 4
_FEWEST_ROWS, _MOST_ROWS = 2, 16
_PAIRS_ASIDE = 6  # registers for the codes of pairs of rows
_CHAINS = 8
"""Sums that must be under way to hide how long one takes."""


def pieces(first: int, count: int, most: int) -> list[tuple[int, int]]:
    """(first, size) of pieces of at most ``most`` that make up ``count``, as equal as can be, the larger ones first."""
    number = -(-count // most)
    found = []
    for i in range(number):
        size = count // number + (i < count % number)
        found.append((first, size))
        first += size
    return found


def runs(first: int, count: int, most: int) -> list[tuple[int, int, int]]:
    """The same as (first, size, how many of that size follow each other)."""
    cut = pieces(first, count, most)
    sizes = sorted({size for _, size in cut}, reverse=True)
    return [(next(at for at, s in cut if s == size), size, sum(s == size for _, s in cut)) for size in sizes]


def register_tile(target: Target, lanes: int, vectors: int, rows: int) -> tuple[int, int]:
    """(rows, vectors) of a tile of sums, for a result of ``rows`` by ``vectors``: the cheapest that leaves registers
    for the weights of one step and what it takes of the input.
    """
    aside = 4 if target.arch == "aarch64" else 1  # Arm multiplies by elements that lie in a register
    best: tuple[float, int, int] | None = None
    for v in range(1, min(vectors, _MOST_VECTORS) + 1):
        spare = target.registers * (target.vector_bytes // 4) // lanes - v - aside
        most = max(1, min(spare // v, _MOST_ROWS))
        widths = [v] * (vectors // v) + ([vectors % v] if vectors % v else [])
        # Of multiply-adds, loads and the wait for the sum before, what takes longest.
        cost = sum(max(n * w, n + w, _CHAINS) for _, n in pieces(0, rows, most) for w in widths)
        if best is None or cost < best[0]:
            best = cost, most, v
    assert best is not None
    return best[1], best[2]


def block_tile(target: Target, vectors: int, rows: int) -> tuple[int, int]:
    """The same where a register holds sums of two rows by half a vector, as Arm's i8mm makes them."""
    best: tuple[float, int, int] | None = None
    for v in range(1, min(vectors, _MOST_VECTORS // 2) + 1):
        pairs = (target.registers - 2 * v - _PAIRS_ASIDE) // (2 * v)
        widths = [v] * (vectors // v) + ([vectors % v] if vectors % v else [])
        cost = sum(max(2 * n * w, 2 * (n + w), _CHAINS) for _, n in pieces(0, -(-rows // 2), pairs) for w in widths)
        if best is None or cost < best[0]:
            best = cost, 2 * pairs, v
    assert best is not None
    return best[1], best[2]


def rows_of_call(frames: int) -> tuple[int, ...]:
    """How many of a step's ``frames`` one call makes: all, or as many as leave the fewest over; () for one by one."""
    if frames < _FEWEST_ROWS:
        return ()
    if frames <= _MOST_ROWS:
        return (frames,)
    return (min(range(_MOST_ROWS // 2, _MOST_ROWS + 1), key=lambda rows: (frames % rows, -rows)),)
