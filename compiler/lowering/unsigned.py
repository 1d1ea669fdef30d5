"""Codes of int8 kept as uint8, for processors that multiply unsigned codes by signed weights.

A code and its zero point are both 128 higher, so that products of their difference are the same. Only what is quantised
here and read by convolutions and products alone is kept so.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.lower import Lowering
from runnel.compiler.lowering.signals import Signal, Step

_MOVES = frozenset({"transpose", "reshape", "slice"})
_TURN = 128


def make_unsigned(low: Lowering) -> None:
    """Rewrite the steps of a lowering in place."""
    readers: dict[Signal, list[Step]] = {}
    other = {view.signal for view, _ in low.outputs.values()} | {signal for _, signal in low.feedback}
    for step in low.steps:
        if not isinstance(step, Step):
            other |= {read.signal for read in getattr(step, "reads", [getattr(step, "read", None)]) if read is not None}
            other.add(step.output)
            continue
        for read in step.reads:
            readers.setdefault(read.signal, []).append(step)
    turned: set[Signal] = set()
    for step in low.steps:
        if isinstance(step, Step) and step.node.op == "quantize" and step.node.attrs["to"] == "int8":
            found: set[Signal] = set()
            if _only_multiplied(step.output, readers, found) and not found & other:
                turned |= found
    for signal in turned:
        signal.dtype = "uint8"
        signal.fill = None if signal.fill is None else signal.fill + _TURN
    low.steps = [_turned(step, turned) if isinstance(step, Step) else step for step in low.steps]


def _only_multiplied(signal: Signal, readers: dict[Signal, list[Step]], found: set[Signal]) -> bool:
    """Whether a signal, and what moves it, is read by sums of codes alone; ``found`` are these signals."""
    found.add(signal)
    if signal.initial is not None or not readers.get(signal):
        return False
    for step in readers[signal]:
        node = step.node
        w = node.inputs[1] if len(node.inputs) > 1 else None
        first = node.inputs[0]
        if node.op in ("conv", "matmul") and isinstance(w, np.ndarray) and w.dtype.kind == "i":
            if sum(read.signal is signal for read in step.reads) != 1 or step.reads[0].value is not first:
                return False
        elif node.op not in _MOVES or not _only_multiplied(step.output, readers, found):
            return False
    return True


def _turned(step: Step, turned: set[Signal]) -> Step:
    """A step as it is once these signals are uint8."""
    node, attrs, output = step.node, dict(step.node.attrs), step.node.output
    values: dict[int, FrameValue] = {}
    for read in step.reads:
        if read.signal in turned:
            before, read.value = read.value, replace(read.value, dtype="uint8")
            values[id(before)] = read.value
            if node.op in ("conv", "matmul"):
                attrs["zero_point"] = int(attrs.get("zero_point", 0)) + _TURN
    if step.output in turned:
        output = replace(output, dtype="uint8")
        if node.op == "quantize":
            attrs |= {"zero": int(attrs["zero"]) + _TURN, "to": "uint8"}
    if not values and output is node.output:
        return step
    inputs = tuple(values.get(id(x), x) for x in node.inputs)
    return replace(step, node=FrameNode(node.op, inputs, output, attrs))
