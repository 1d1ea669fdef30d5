"""Functions of time against plain Python functions, and their clock programs against both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.compiler.streaming.clocks import ClockProgram, NoClock, evaluate
from runnel.compiler.streaming.count import Count, CountTooLong

Function = Callable[[int], int]
MANY = settings(max_examples=150, deadline=None, derandomize=True)
SPAN = 150


def pairs(signed: bool) -> st.SearchStrategy[tuple[Count, Function]]:
    """A count and the function it stands for."""
    leaves = st.one_of(
        st.just((Count.time(), lambda t: t)),
        st.integers(0, 12).map(lambda c: (Count.const(c), lambda t, c=c: c)),
    )

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        def affine(p: tuple[Count, Function], mul: int, add: int, div: int) -> tuple[Count, Function]:
            count, f = p
            return count.affine(mul, add, div), lambda t: max(0, (f(t) * mul + add) // div)

        def later(p: tuple[Count, Function], ticks: int) -> tuple[Count, Function]:
            count, f = p
            return count.later(ticks), lambda t: f(t + ticks)

        def joined(p: tuple[Count, Function], q: tuple[Count, Function], how: str) -> tuple[Count, Function]:
            (a, f), (b, g) = p, q
            return {
                "min": (a.minimum_with(b), lambda t: min(f(t), g(t))),
                "max": (a.maximum_with(b), lambda t: max(f(t), g(t))),
                "add": (a + b, lambda t: f(t) + g(t)),
                "sub": (a - b, lambda t: f(t) - g(t)),
            }[how]

        small = st.integers(-9, 9)
        ops = ["min", "max", "add", "sub"] if signed else ["min", "max", "add"]
        grown = [
            st.builds(affine, inner, st.integers(1, 4), small, st.integers(1, 5)),
            st.builds(later, inner, st.integers(0, 6)),
            st.builds(joined, inner, inner, st.sampled_from(ops)),
        ]
        if signed:
            grown += [
                inner.map(lambda p: (-p[0], lambda t, f=p[1]: -f(t))),
                st.builds(lambda p, k: (p[0] % k, lambda t: p[1](t) % k), inner, st.integers(1, 6)),
                st.builds(lambda p, k: (p[0] // k, lambda t: p[1](t) // k), inner, st.sampled_from([-3, -1, 2, 5])),
                st.builds(lambda p, k: (p[0] * k, lambda t: p[1](t) * k), inner, small),
            ]
        return st.one_of(*grown)

    return st.recursive(leaves, grow, max_leaves=4)


@MANY
@given(pairs(signed=True))
def test_values(pair: tuple[Count, Function]) -> None:
    count, f = pair
    wanted = [f(t) for t in range(SPAN)]
    assert [count(t) for t in range(SPAN)] == wanted
    assert count.table(SPAN).tolist() == wanted
    assert count.minimum <= min(wanted)
    far = 10**6 + 7
    assert count(far) == f(far)
    assert count.is_monotone == all(b >= a for a, b in zip(wanted, wanted[1:])) or len(count.values) > SPAN


@MANY
@given(pairs(signed=False), st.integers(0, 40))
def test_first(pair: tuple[Count, Function], n: int) -> None:
    count, f = pair
    if not count.is_monotone:
        return
    hits = [t for t in range(2000) if f(t) > n]
    if hits:
        assert count.first(n) == hits[0]
    elif count.gain <= 0:
        with pytest.raises(ValueError):
            count.first(n)


@MANY
@given(pairs(signed=True), pairs(signed=True))
def test_equality_is_equality_of_functions(a: tuple[Count, Function], b: tuple[Count, Function]) -> None:
    n = len(a[0].values) + len(b[0].values) + a[0].period * b[0].period + 1
    if n > 20000:
        return
    same = (a[0].table(n) == b[0].table(n)).all() and a[0].rate == b[0].rate
    assert (a[0] == b[0]) == bool(same)
    if same:
        assert hash(a[0]) == hash(b[0])


@MANY
@given(pairs(signed=True))
def test_largest(pair: tuple[Count, Function]) -> None:
    count, f = pair
    if count.gain > 0:
        assert count.largest() is None
    elif count.gain == 0:
        assert count.largest() == max(f(t) for t in range(len(count.values) + count.period))


@MANY
@given(pairs(signed=False))
def test_clock_program(pair: tuple[Count, Function]) -> None:
    """Every count that never falls has clocks, which agree with it up to the largest time the plan allows."""
    count, f = pair
    if not count.is_monotone:
        return
    program = ClockProgram()
    index = program.add(count)
    for t in [*range(SPAN), 10**6 + 3, 1 << 44]:
        assert evaluate(program.words, t)[index] == count(t)
    for op, a, b, mul, div, _ in program.words:
        assert 0 <= op <= 4
        assert 0 <= mul <= 1 << 31
        assert 1 <= div <= 1 << 31
        assert a <= index
        assert b <= index


@MANY
@given(pairs(signed=True))
def test_clocks_never_pass_below_zero(pair: tuple[Count, Function]) -> None:
    count, f = pair
    program = ClockProgram()
    try:
        index = program.add(count)
    except NoClock:
        assert not count.affine(1, 0).is_monotone
        return
    assert [evaluate(program.words, t)[index] for t in range(SPAN)] == [max(0, f(t)) for t in range(SPAN)]


def test_equal_counts_share_a_clock() -> None:
    program = ClockProgram()
    t = Count.time()
    assert program.add((t + 5) // 2) == program.add((t + 3) // 2 + 1)
    assert program.add(t) == 0
    assert len(program.words) == 2


def test_counts_print_as_formulas() -> None:
    t = Count.time()
    texts = {str(t): "T", str(t.affine(1, -1)): "T-1", str(t.affine(1, 3, 2)): "floor((T+3)/2)", str(2 * t + 1): "2T+1"}
    assert all(made == wanted for made, wanted in texts.items()), texts
    assert str(Count.const(7)) == "7"


def test_products_and_quotients_of_lengths_are_no_lengths() -> None:
    t = Count.time()
    with pytest.raises(TypeError):
        t * t
    with pytest.raises(TypeError):
        t // t


def test_a_period_beyond_the_limit_says_so() -> None:
    t = Count.time()
    slow, other = t.affine(1, 0, 4099), t.affine(1, 0, 4093)
    with pytest.raises(CountTooLong, match="the limit is"):
        slow.minimum_with(other)


def test_real_rates_are_quick() -> None:
    """An STFT of 512 by 256 at 16 kHz, down by 16, and back up: tables stay small."""
    t = Count.time()
    frames = (t + 512).affine(1, -512 + 256, 256)
    down = frames.affine(1, 1, 2).affine(1, 1, 2)
    up = down.affine(4, 0).affine(256, 256)
    assert up.period == 1024
    assert len(np.asarray(up.values)) < 1 << 14
