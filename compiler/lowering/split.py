"""Large products are cut over their outputs, so that no call needs more than a segment of the weights at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import numpy as np

from runnel.compiler.lowering.frame import LANES, FrameNode, FrameValue, round_up
from runnel.compiler.lowering.signals import Cached, Choose, Copy, Fetch, Read, Step, Table

SEGMENT_BYTES = 1 << 20  # the most bytes of a segment of the weights
PART_BYTES = 1 << 19  # of one of many weights, where products can be cut so: buffers take memory of what is pinned
SEGMENTS = 32  # that a program has at least, if it has more weights than stay in a processor's cache
CACHED = 1 << 23  # bytes of weights up to which cutting products costs more than it is good for
PANEL = 4 * LANES  # outputs that a part has a multiple of, so that its kernel works on whole panels
AXES = {"matmul": (-1, -1), "conv": (0, 1), "matmul_blocks": (-1, -1)}  # op -> where outputs lie: weights, frame


AnyStep: TypeAlias = "Step | Cached | Choose | Copy | Fetch"


def segment_bytes(steps: list[AnyStep]) -> int:
    """The most bytes of a segment of these steps' weights: smaller ones for fewer weights, so that a few of them are a
    small part of all."""
    total = int(sum(_bytes(step.node) for step in steps if isinstance(step, Step) and step.chosen is None))
    if total + _neurons(steps) <= CACHED:
        return SEGMENT_BYTES
    most = min(round_up(total // SEGMENTS, 1 << 16), SEGMENT_BYTES)
    uncut = [s.node for s in steps if isinstance(s, Step) and s.chosen is None and not _each(s, PART_BYTES)]
    whole = [int(size) for node in uncut for size in _sizes(node) if PART_BYTES < size <= most]
    return min(most, round_up(max([PART_BYTES, *whole]), 1 << 16))


def _neurons(steps: list[AnyStep]) -> int:
    """Bytes of the weights that lie in tables of neurons."""
    tables = {step.table for step in steps if isinstance(step, Choose)}
    return sum(table.rows.nbytes for table in tables if table.rows is not None)


def weight_bytes(steps: list[AnyStep]) -> dict[str, int]:
    """Bytes of weights: ``streamed``, what every step reads, ``tables``, of which it reads rows, ``experts``, of which
    it reads those that are chosen, ``chosen``, what that makes, and ``neurons``, of which it reads active ones."""
    parts = {(s.chosen.table, s.chosen.part): s for s in steps if isinstance(s, Step) and s.chosen is not None}
    return {
        "streamed": int(sum(_bytes(step.node) for step in steps if isinstance(step, Step) and step.chosen is None)),
        "experts": int(sum(_bytes(step.node) * table.units for (table, _), step in parts.items())),
        "chosen": int(sum(_bytes(step.node) * _used(table) for (table, _), step in parts.items())),
        "neurons": _neurons(steps),
        "tables": sum(step.table.nbytes for step in steps if isinstance(step, Fetch)),
    }


def _used(table: Table) -> float:
    """Units that a frame chooses."""
    return table.misses[0] / 256 if table.misses else table.most


def split_large(steps: list[AnyStep], most: int) -> list[AnyStep]:
    """The steps, those with more than ``most`` bytes of weights as several that each make a part of the frame."""
    found: list[AnyStep] = []
    for step in steps:
        found += _parts(step, most) if isinstance(step, Step) else [step]
    return found


def _parts(step: Step, most: int) -> list[Step]:
    each = _each(step, most)
    if not each:
        return [step]
    node = step.node
    axis, _ = AXES[node.op]
    weight = node.inputs[1]
    assert isinstance(weight, np.ndarray)
    outputs = weight.shape[axis]
    inside = int(np.prod(node.output.shape, dtype=np.int64)) // outputs
    return [_part(step, first, min(first + each, outputs), inside) for first in range(0, outputs, each)]


def _each(step: Step, most: int) -> int:
    """The outputs of each part of a step, so that it has at most ``most`` bytes of weights; 0 where it stays whole."""
    node = step.node
    if node.op not in AXES or step.chosen is not None or step.output.unit != 1 or node.attrs.get("group", 1) != 1:
        return 0
    weight = node.inputs[1]
    if not isinstance(weight, np.ndarray) or weight.ndim < 2 or not isinstance(node.inputs[0], FrameValue):
        return 0
    axis, out_axis = AXES[node.op]
    outputs = weight.shape[axis]
    before = node.output.shape[: out_axis % len(node.output.shape)]
    if int(np.prod(before, dtype=np.int64)) != 1:  # parts would not lie in one piece
        return 0
    each = int(most / _bytes(node) * outputs) // PANEL * PANEL
    if each >= outputs or each == 0:
        return 0
    return round_up(-(-outputs // -(-outputs // each)), PANEL)


def _sizes(node: FrameNode) -> list[float]:
    """Bytes of each of the node's constants in memory."""
    return [
        x.size * (node.attrs["bits"] / 8 if i == 1 and "bits" in node.attrs else x.itemsize)
        for i, x in enumerate(node.inputs)
        if isinstance(x, np.ndarray)
    ]


def _bytes(node: FrameNode) -> float:
    return sum(_sizes(node))


def _part(step: Step, first: int, last: int, inside: int) -> Step:
    """The step that makes outputs first … last - 1, ``inside`` elements each."""
    node = step.node
    axis, out_axis = AXES[node.op]
    reads = step.reads if first == 0 else [_again(read) for read in step.reads]
    values = {old.value: new.value for old, new in zip(step.reads, reads, strict=True)}
    weight = node.inputs[1]
    assert isinstance(weight, np.ndarray)
    outputs = weight.shape[axis]
    inputs: list[FrameValue | np.ndarray | None] = []
    for i, x in enumerate(node.inputs):
        if isinstance(x, FrameValue):
            inputs.append(values[x])
        elif x is None or x.size == 1:
            inputs.append(x)
        else:
            along = axis if i == 1 else -1
            assert x.shape[along] == outputs
            inputs.append(np.ascontiguousarray(np.take(x, range(first, last), along)))
    shape = list(node.output.shape)
    shape[out_axis] = last - first
    output = FrameValue(f"{node.output.name}[{first}:{last}]", tuple(shape), node.output.dtype)
    return replace(step, node=replace(node, inputs=tuple(inputs), output=output), reads=reads, place=first * inside)


def _again(read: Read) -> Read:
    """The same frames read once more."""
    value = FrameValue(read.value.name, read.value.shape, read.value.dtype)
    found = replace(read, value=value)
    read.signal.reads.append(found)
    return found
