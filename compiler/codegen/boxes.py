"""Cuts a group's output where a concatenation or a padding changes what is read, so that inside of a part nothing has
to be asked element by element."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

import numpy as np

from runnel.compiler.codegen.tables import Quotient, steps_of
from runnel.compiler.lowering.frame import FrameNode, FrameValue, Group

Box = tuple[tuple[int, int], ...]
_MOST = 64


@dataclass(frozen=True)
class _Place:
    """A coordinate of some value as a sum over the output's: first + step · (coordinate of an axis) + …"""

    first: int
    steps: tuple[tuple[int, int], ...] = ()  # (axis, step)

    def moved(self, by: int) -> _Place:
        return _Place(self.first + by, self.steps)

    def times(self, by: int) -> _Place:
        return _Place(self.first * by, tuple((axis, step * by) for axis, step in self.steps))

    def plus(self, other: _Place) -> _Place:
        return _Place(self.first + other.first, self.steps + other.steps)


def boxes(group: Group, pointwise: frozenset[str]) -> list[Box]:
    """(begin, end) of each axis for each part of the output's index space."""
    shape = group.output.shape
    cuts: list[set[int]] = [{0, n} for n in shape]
    producers = {node.output: node for node in group.nodes}
    pending = [(group.output, tuple(_Place(0, ((axis, 1),)) for axis in range(len(shape))))]
    while pending:  # those nearest to the output first: there may be too many
        value, places = pending.pop(0)
        node = producers.get(value)
        if node is None:
            continue
        more = [set(c) for c in cuts]
        for axis, at in _bounds(node):
            _cut(more, places[axis], at)
        if prod(len(c) - 1 for c in more) > _MOST:
            break
        cuts = more
        pending += _operands(node, places, pointwise)
    return list(product(*(pairwise(sorted(c)) for c in cuts)))


def turned(group: Group, pointwise: frozenset[str], box: Box, least: int) -> tuple[int, int] | None:
    """(axis along which all inputs lie side by side or stand still, the output's last axis, along which they do not)
    of a part, both at least so long; None where it is otherwise, or not known."""
    shape, producers = group.output.shape, {node.output: node for node in group.nodes}
    long = [axis for axis, (begin, end) in enumerate(box) if end - begin > 1]
    if len(long) < 2 or prod(shape[long[-1] + 1 :]) != 1:
        return None
    strides: list[dict[int, int]] = []
    pending = [(group.output, tuple(_Place(0, ((axis, 1),)) for axis in range(len(shape))))]
    while pending:
        value, places = pending.pop()
        if (node := producers.get(value)) is None:
            along = dict.fromkeys(long, 0)
            for a, place in enumerate(places):
                for axis, step in place.steps:
                    if axis in along:
                        along[axis] += step * prod(value.shape[a + 1 :])
            strides.append(along)
            continue
        before = _operands(node, places, pointwise)
        if len(before) < sum(isinstance(x, FrameValue) for x in node.inputs):
            return None
        pending += before
    last = long[-1]
    for axis in long[:-1]:
        near = all(along[axis] in (0, 1) for along in strides)
        far = any(along[last] > 4 and along[axis] == 1 for along in strides)
        if near and far and min(box[a][1] - box[a][0] for a in (axis, last)) >= least:
            return axis, last
    return None


def _bounds(node: FrameNode) -> list[tuple[int, int]]:
    """(axis, coordinate) from where on something else is read."""
    shape = node.output.shape
    if node.op == "concat":
        axis, found, at = int(node.attrs["axis"]) % len(shape), [], 0
        for operand in node.inputs:
            assert operand is not None
            at += operand.shape[axis]
            found.append((axis, at))
        return found
    if node.op == "pad":
        pads = [int(p) for p in node.attrs["pads"]]
        return [(a, at) for a, n in enumerate(shape) for at in (pads[a], n - pads[len(shape) + a])]
    if node.op == "gather" and (rule := _rule(node)) is not None:
        return [(int(node.attrs.get("axis", 0)) % len(shape), at) for at in rule.bounds]
    return []


def _rule(node: FrameNode) -> Quotient | None:
    """Of a gather that resamples."""
    table = node.inputs[1]
    if not isinstance(table, np.ndarray) or table.min() < 0 or steps_of(table) is not None:
        return None
    return Quotient.of(table)


def _cut(cuts: list[set[int]], place: _Place, at: int) -> None:
    """Along the innermost axis that the place depends on; where it depends on others too, at both ends of what they
    leave undecided."""
    steps = [(axis, step) for axis, step in place.steps if max(cuts[axis]) > 1]
    if not steps or any(step < 0 for _, step in steps):
        return
    axis, step = max(steps)
    others = sum(s * (max(cuts[a]) - 1) for a, s in steps if a != axis)
    for most in {0, others}:
        where = -(-(at - place.first - most) // step)
        if 0 < where < max(cuts[axis]):
            cuts[axis].add(where)


def _operands(
    node: FrameNode, places: tuple[_Place, ...], pointwise: frozenset[str]
) -> list[tuple[FrameValue, tuple[_Place, ...]]]:
    """The operands of which it is known where they are read."""
    if not node.inputs:
        return []
    x, shape, attrs = node.inputs[0], node.output.shape, node.attrs
    if node.op in pointwise or node.op == "expand":
        values = [v for v in node.inputs if isinstance(v, FrameValue) and len(v.shape) <= len(shape)]
        return [(v, _broadcast(v.shape, places)) for v in values if _fits(v.shape, shape)]
    if node.op == "concat":
        axis, begin, found = int(attrs["axis"]) % len(shape), 0, []
        for operand in node.inputs:
            assert operand is not None
            if isinstance(operand, FrameValue):
                found.append((operand, (*places[:axis], places[axis].moved(-begin), *places[axis + 1 :])))
            begin += operand.shape[axis]
        return found
    if not isinstance(x, FrameValue):
        return []
    rank = len(x.shape)
    if node.op == "pad":
        return [(x, tuple(p.moved(-int(n)) for p, n in zip(places, attrs["pads"], strict=False)))]
    if node.op == "slice":
        steps = [int(s) for s in attrs.get("steps", [1] * rank)]
        starts = [int(s) for s in attrs["starts"]]
        firsts = [min(max(s + n if s < 0 else s, 0), n - 1) for s, n in zip(starts, x.shape, strict=True)]
        return [(x, tuple(p.times(s).moved(f) for p, s, f in zip(places, steps, firsts, strict=True)))]
    if node.op == "transpose":
        perm = [int(p) for p in attrs["perm"]]
        return [(x, tuple(places[perm.index(a)] for a in range(rank)))]
    if node.op == "reshape" and [n for n in shape if n > 1] == [n for n in x.shape if n > 1]:
        left = iter([p for p, n in zip(places, shape, strict=True) if n > 1])
        return [(x, tuple(next(left) if n > 1 else _Place(0) for n in x.shape))]
    if node.op == "gather" and isinstance(indices := node.inputs[1], np.ndarray):
        axis = int(attrs.get("axis", 0)) % rank
        table = np.where(indices < 0, indices + x.shape[axis], indices)
        growth = steps_of(table)
        if growth is not None:
            at = _Place(int(table.reshape(-1)[0]))
            for place, step in zip(places[axis : axis + table.ndim], growth, strict=True):
                at = at.plus(place.times(step))
            return [(x, (*places[:axis], at, *places[axis + table.ndim :]))]
    return []


def _fits(shape: tuple[int, ...], output: tuple[int, ...]) -> bool:
    tail = output[len(output) - len(shape) :]
    return all(n in (1, m) for n, m in zip(shape, tail, strict=True))


def _broadcast(shape: tuple[int, ...], places: tuple[_Place, ...]) -> tuple[_Place, ...]:
    tail = places[len(places) - len(shape) :]
    return tuple(_Place(0) if n == 1 else p for n, p in zip(shape, tail, strict=True))
