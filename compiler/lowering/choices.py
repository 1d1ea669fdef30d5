"""Branches that a frame does not take: steps that only one side of a choice by a flag reads are skipped where it takes
the other, and so are their weights (SKIP_IF in docs/plan.md)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeAlias

import numpy as np

from runnel.compiler.lowering.frame import FrameValue
from runnel.compiler.lowering.lower import Lowering
from runnel.compiler.lowering.signals import Copy, Fetch, Read, Signal, Step
from runnel.compiler.streaming.count import Count

Guards: TypeAlias = "tuple[tuple[Signal, bool], ...]"
"""Flags and what they must be for a step to run, from the outermost choice to the innermost."""

LEAST_WEIGHTS = 1 << 14
"""Bytes of a branch below which it is computed always: a flag keeps steps from being fused."""


def guards(low: Lowering) -> dict[Step, Guards]:
    """Which steps lie in a branch, and under which flags."""
    makers: dict[Signal, list[int]] = {}
    readers: dict[Signal, list[tuple[int, Read]]] = {}
    for i, step in enumerate(low.steps):
        makers.setdefault(step.output, []).append(i)
        for read in [step.read] if isinstance(step, (Copy, Fetch)) else step.reads:
            readers.setdefault(read.signal, []).append((i, read))
    kept = {view.signal for view, _ in low.outputs.values()}
    sides = []
    for (flag, wanted, length), values in _sides(low).items():
        found: set[int] = set()
        behind = max(makers.get(flag, [-1]))
        while True:
            signals = {read.signal for read in values} | {r.signal for i in found for r in _step(low, i).reads}
            more: set[int] = set()
            for signal in signals:
                steps = makers.get(signal, [])
                if signal in kept or signal.initial is not None or signal.fill is not None or signal.unit != 1:
                    continue
                if all(read.same_frame and (i in found or read in values) for i, read in readers[signal]) and all(
                    i > behind and _skippable(low.steps[i], flag, length) for i in steps
                ):
                    more |= set(steps) - found
            if not more:
                break
            found |= more
        if sum(_weight_bytes(_step(low, i)) for i in found) >= LEAST_WEIGHTS:
            sides.append((found, flag, wanted))
    sides.sort(key=lambda side: -len(side[0]))  # an inner branch is a part of the outer one
    chosen: dict[Step, Guards] = {}
    for found, flag, wanted in sides:
        for i in sorted(found):
            chosen[_step(low, i)] = (*chosen.get(_step(low, i), ()), (flag, wanted))
    return chosen


def _sides(low: Lowering) -> dict[tuple[Signal, bool, Count], list[Read]]:
    """What is read only where a flag is so, by the flag, what it is, and the length of what is chosen."""
    sides: dict[tuple[Signal, bool, Count], list[Read]] = {}
    for step in low.steps:
        if not isinstance(step, Step) or step.node.op != "where" or step.loop:
            continue
        reads = {read.value: read for read in step.reads}
        flag, *values = (reads.get(x) if isinstance(x, FrameValue) else None for x in step.node.inputs)
        if flag is None or not flag.same_frame or flag.signal.elements != 1 or flag.signal.dtype != "bool":
            continue
        for value, wanted in zip(values, (True, False), strict=True):
            if value is not None and sum(r is value for r in (flag, *values)) == 1 and flag.signal.made == step.count:
                sides.setdefault((flag.signal, wanted, step.length), []).append(value)
    return sides


def _step(low: Lowering, i: int) -> Step:
    step = low.steps[i]
    assert isinstance(step, Step)
    return step


def _skippable(step: object, flag: Signal, length: Count) -> bool:
    return isinstance(step, Step) and not step.loop and step.count == flag.made and step.length == length


def _weight_bytes(step: Step) -> int:
    return sum(x.nbytes for x in step.node.inputs if isinstance(x, np.ndarray))


def skips(guarded: Sequence[Guards]) -> dict[int, list[tuple[Signal, bool, int]]]:
    """Before which of a sequence of groups which flags skip how many instructions, inner skips among them."""
    found: dict[int, list[tuple[Signal, bool, int]]] = {}
    start = 0
    for same, run in groupby(guarded):
        count = len(list(run))
        if same:
            found[start] = [(*flag, len(same) - 1 - depth + count) for depth, flag in enumerate(same)]
        start += count
    return found
