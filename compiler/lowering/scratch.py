"""Where values of a single step lie: memory of one whose last reader has run is taken by a later one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from runnel.compiler.lowering.frame import round_up
from runnel.compiler.lowering.fuse import FusedStep
from runnel.compiler.lowering.signals import Cached, Choose, Copy, Fetch, Signal

ALIGN = 64
Group: TypeAlias = "FusedStep | Cached | Copy | Fetch | Choose"
Life: TypeAlias = "tuple[int, int]"
"""The numbers of the first and the last instruction that need a value."""


def lives(groups: Sequence[Group], inputs: Iterable[Signal], outputs: Iterable[Signal]) -> dict[Signal, Life]:
    """The life of every signal. Inputs are there before the first group, outputs are taken after the last; what is
    touched by groups that alternate frame by frame lives as long as all of these do."""
    found: dict[Signal, Life] = dict.fromkeys(inputs, (-1, -1))

    def touch(signal: Signal, first: int, last: int) -> None:
        before = found.get(signal, (first, last))
        found[signal] = min(before[0], first), max(before[1], last)

    spans: dict[int, Life] = {}
    for i, group in enumerate(groups):
        if group.loop:
            spans[group.loop] = spans.get(group.loop, (i, i))[0], i
    for i, group in enumerate(groups):
        first, last = spans.get(group.loop, (i, i))
        for signal in (group.output, *_read(group)):
            touch(signal, first, last)
    for signal in outputs:
        touch(signal, len(groups), len(groups))
    return found


def _read(group: Group) -> list[Signal]:
    reads = [group.read] if isinstance(group, (Copy, Fetch)) else group.reads
    found = [read.signal for read in reads]
    if isinstance(group, FusedStep):
        found += [step.chosen.slots for step in group.steps if step.chosen is not None]
        found += [flag for flag, _ in group.guards]
    return found


def placed(sizes: Mapping[Signal, int], lives: Mapping[Signal, Life]) -> tuple[dict[Signal, int], int]:
    """Where each signal of so many bytes begins, and the bytes of all. Each takes the smallest gap that holds it."""
    starts: dict[int, list[Signal]] = {}
    ends: dict[int, list[Signal]] = {}
    for signal in sizes:
        starts.setdefault(lives[signal][0], []).append(signal)
        ends.setdefault(lives[signal][1], []).append(signal)
    gaps: dict[int, int] = {}  # where one begins -> bytes
    places: dict[Signal, int] = {}
    total = 0
    for now in sorted(starts.keys() | ends.keys()):
        for signal in sorted(starts.get(now, ()), key=lambda s: -sizes[s]):
            need = round_up(sizes[signal], ALIGN)
            fitting = [at for at, size in gaps.items() if size >= need]
            if fitting:
                at = min(fitting, key=lambda a: (gaps[a], a))
                left = gaps.pop(at) - need
                if left:
                    gaps[at + need] = left
            else:  # at the end, on top of a gap that lies there
                at = next((a for a, size in gaps.items() if a + size == total), total)
                gaps.pop(at, None)
                total = at + need
            places[signal] = at
        for signal in ends.get(now, ()):
            _give_back(gaps, places[signal], round_up(sizes[signal], ALIGN))
    return places, total


def _give_back(gaps: dict[int, int], at: int, size: int) -> None:
    """A gap more, joined with its neighbours."""
    before = next((a for a, s in gaps.items() if a + s == at), None)
    size += gaps.pop(at + size, 0)
    if before is None:
        gaps[at] = size
    else:
        gaps[before] += size
