"""Where the output of a group is cut because something else is read from there on."""

from __future__ import annotations

import numpy as np
from kernel_harness import value

from runnel.compiler.codegen.boxes import boxes
from runnel.compiler.codegen.elementwise import POINTWISE
from runnel.compiler.lowering.frame import FrameNode, Group


def cut(*nodes: FrameNode) -> list[list[int]]:
    """Where each axis of the last node's output is cut."""
    parts = boxes(Group(nodes, {}, (), 0), POINTWISE)
    return [sorted({at for part in parts for at in part[axis]}) for axis in range(len(parts[0]))]


def test_a_concatenation_behind_other_ops_is_cut() -> None:
    a, b = value("a", (1, 257)), value("b", (1, 257))
    joined, flat, scaled = value("joined", (1, 514)), value("flat", (514,)), value("scaled", (514,))
    nodes = [
        FrameNode("concat", (a, b), joined, {"axis": 1}),
        FrameNode("reshape", (joined,), flat, {"shape": (514,)}),
        FrameNode("mul", (flat, np.ones(514, np.float32)), scaled),
    ]
    assert cut(*nodes) == [[0, 257, 514]]


def test_neighbours_that_reach_into_a_padding_are_cut_off() -> None:
    """Three neighbours of each of 33 places, as an unfolding takes them."""
    x, padded, out = value("x", (8, 33)), value("padded", (8, 35)), value("out", (8, 3, 33))
    table = np.arange(3)[:, None] + np.arange(33)
    nodes = [
        FrameNode("pad", (x,), padded, {"pads": [0, 1, 0, 1], "value": 0.0}),
        FrameNode("gather", (padded, table), out, {"axis": 1}),
    ]
    assert cut(*nodes) == [[0, 8], [0, 3], [0, 1, 32, 33]]


def test_cuts_move_with_what_moves_elements() -> None:
    a, b, joined = value("a", (4, 10)), value("b", (4, 6)), value("joined", (4, 16))
    turned, part = value("turned", (16, 4)), value("part", (7, 4))
    nodes = [
        FrameNode("concat", (a, b), joined, {"axis": 1}),
        FrameNode("transpose", (joined,), turned, {"perm": [1, 0]}),
        FrameNode("slice", (turned,), part, {"starts": [2, 0], "ends": [16, 4], "steps": [2, 1]}),
    ]
    assert cut(*nodes) == [[0, 4, 7], [0, 4]]
