"""Lists of active neurons."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import ROWS, Runner, case, value

from runnel.compiler.lowering.frame import FrameNode

NEURONS, MOST = 50, 16


def scores(kind: str) -> np.ndarray:
    """(rows, neurons), some of them active."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((ROWS, NEURONS)).astype(np.float32)
    if kind == "none":
        return -np.abs(x)
    if kind == "all":
        return np.abs(x) + 1e-30
    x[:, ::7], x[:, 3::9] = 0.0, -0.0
    if kind == "odd":
        x[:, 5], x[:, 6], x[:, 8] = np.nan, np.inf, -np.inf
    return x


@pytest.mark.parametrize("kind", ["none", "all", "some", "odd"])
def test_lists_hold_what_is_not_zero_or_less(kind: str) -> None:
    """NaN is neither, and so it reaches the output, as it does in the dense layer."""
    data = scores(kind)
    x, found = value("x", (NEURONS,)), value("found", (1 + NEURONS,), "int32")
    made = case("active", [FrameNode("active", (x,), found)], {x: data})
    for rows in Runner([made]).run(made):
        for row, given in zip(rows, data, strict=True):
            expected = np.flatnonzero(~(given <= 0))
            assert row[0] == len(expected)
            assert row[1 : 1 + row[0]].tolist() == expected.tolist()


@pytest.mark.parametrize("first", [0, MOST, 3 * MOST])
def test_parts_of_lists(first: int) -> None:
    lists = np.full((ROWS, 1 + NEURONS), -1, np.int32)
    for row, count in zip(lists, (0, first, first + 1, NEURONS), strict=True):
        row[0], row[1 : 1 + count] = count, np.arange(count) * 2
    found, part = value("found", (1 + NEURONS,), "int32"), value("part", (1 + MOST,), "int32")
    made = case("part", [FrameNode("active_part", (found,), part, {"first": first})], {found: lists})
    for rows in Runner([made]).run(made):
        for row, given in zip(rows, lists, strict=True):
            expected = given[1 : 1 + given[0]][first : first + MOST]
            assert row[0] == len(expected)
            assert row[1 : 1 + row[0]].tolist() == expected.tolist()
