"""Kernels of a bundle by where they lie in its image, and what a step's instructions in each of them do."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

import numpy as np

from runnel.runtime.bundle import Bundle
from runnel.runtime.processor import processor
from runnel.tools.lanes import counts
from runnel.tools.lanes.kinds import SCALAR, VECTOR, kind_of

HEADER, CLOCK, BUFFER, KERNEL = 16, 6, 12, 3  # words of a plan (docs/plan.md)
CALL, REPEAT, SKIP_IF = 1, 2, 4
MOST_WARM = 64  # steps
STEPS = 2


@dataclass(frozen=True)
class Work:
    """A kernel's instructions in a step: of all kinds, on one element, on vectors. share: of all kernels' instructions.
    scalars: (offset in the image, times, instruction) of those on one element, the commonest first."""

    ops: str
    output: str
    all: float
    scalar: float
    vector: float
    share: float
    scalars: tuple[tuple[int, float, str], ...]

    @property
    def scalar_share(self) -> float:
        """Of the kernel's instructions that handle elements, those that handle one."""
        return self.scalar / max(self.scalar + self.vector, 1e-9)


def entries(bundle: Bundle) -> dict[int, list[tuple[str, str]]]:
    """(ops, output) of the instructions of the plan that call the kernel, by its offset in the image."""
    words = np.frombuffer(bundle.read("plan"), np.int64).tolist()
    clocks, buffers, kernels, code = words[3], words[4], words[5], words[6]
    table = HEADER + clocks * CLOCK + buffers * BUFFER
    offsets = [words[table + KERNEL * i] for i in range(kernels)]
    found: dict[int, list[tuple[str, str]]] = {}
    described = iter(bundle.manifest["kernels"])
    at = len(words) - code
    while at < len(words):
        op, size = words[at], words[at + 1]
        if op not in (REPEAT, SKIP_IF):
            row = next(described, None)
            if row is None:
                break  # the second entry point repeats what the first has
            if op == CALL:
                for number in (words[at + 4], words[at + 5], words[at + 7]):
                    if number >= 0:
                        found.setdefault(offsets[number], []).append((row["ops"], row["output"]))
        at += size
    return found


def work(bundle: Bundle, steps: int = STEPS) -> tuple[list[Work], float]:
    """What a step takes in each kernel, the longest first, and outside of kernels, in instructions.

    Bundles for this machine take its trap flag, those for others an emulator. Raises InputError, BundleError.
    """
    manifest = bundle.manifest
    target, hop = manifest["target"], int(manifest["hop"])
    reach = -(-int(manifest["macs"]["receptive_field"]) // hop)
    native = target["arch"] == processor()[0] and any("avx512" in f for f in target["features"])
    count = counts.stepped if native else counts.emulated
    warm = min(max(reach, 1), MOST_WARM) * hop
    found, outside = count(bundle, warm, steps * hop)
    named = entries(bundle)
    starts = sorted(named)
    totals: dict[int, Counter[str]] = {}
    scalars: dict[int, list[tuple[int, float, str]]] = {}
    for place, (times, text) in found.items():
        start = starts[max(bisect_right(starts, place) - 1, 0)]
        kind = kind_of(target["arch"], text)
        counter = totals.setdefault(start, Counter())
        counter["all"] += times
        counter[kind] += times
        if kind == SCALAR:
            scalars.setdefault(start, []).append((place, times / steps, text))
    everything = sum(counter["all"] for counter in totals.values())
    rows = []
    for start, counter in totals.items():
        ops = sorted({ops for ops, _ in named[start]})
        commonest = tuple(sorted(scalars.get(start, []), key=lambda row: -row[1]))
        outputs = [output for _, output in named[start]]
        more = f" and {len(outputs) - 1} more" if len(outputs) > 1 else ""
        one, many, share = counter[SCALAR] / steps, counter[VECTOR] / steps, counter["all"] / max(everything, 1)
        rows.append(Work(" | ".join(ops), outputs[0] + more, counter["all"] / steps, one, many, share, commonest))
    return sorted(rows, key=lambda row: -row.all), outside / steps
