"""Looks at the mask of an attention at every length that can tell something."""

from __future__ import annotations

import numpy as np

from runnel.compiler.streaming.attention.band import SMALL, Observer, Sight
from runnel.compiler.streaming.attention.pattern import Pattern
from runnel.compiler.streaming.attention.scores import Scores
from runnel.compiler.streaming.registry import Refusal

LONGEST = 4200
FARTHEST = 1_000_000


def look(observer: Observer, scores: Scores) -> tuple[list[Sight], int | None]:
    """The mask at every length that can tell something, and the input frames after which the model ends."""
    named = [n for n in scores.numbers() if n < 10000]
    lengths = {*SMALL, 69, 130}
    for n in named:
        lengths |= {n, n + 1, 2 * n + 3, n + 37}
    far = [n + m for n in scores.numbers("iu") if LONGEST <= n < FARTHEST for m in (0, 1, 130)]
    ticks = sorted({observer.ticks(n) for n in (*far, *(n for n in lengths if n <= LONGEST))})
    ticks = sorted({*ticks, *(t + 1 for t in ticks[:8])})
    good = [t for t in ticks if observer.look(t) is not None]
    if not good:
        raise Refusal("has a mask that could not be computed from lengths alone", "compute the mask from shapes")
    limit = None
    if later := [t for t in ticks if t > good[-1]]:
        low, high = good[-1], later[0]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if observer.look(middle) is not None else (low, middle)
        limit = low
    return [s for s in observer.known.values() if s is not None], limit


def check_zeroed(observer: Observer, pattern: Pattern) -> None:
    """Refuse weights that are changed behind the softmax, other than where they are zero anyway."""
    if pattern.weights == pattern.softmax.outputs[0]:
        return
    for frames, sight in list(observer.known.items()):
        if sight is None or sight.length > 130:
            continue
        leaves = {leaf: observer.scores.zeros(frames, leaf) for leaf in observer.scores.leaves}
        before = observer.scores.run(frames, leaves, pattern.softmax.outputs[0])
        after = observer.scores.run(frames, leaves, pattern.weights)
        if before.shape != after.shape or not np.array_equal(before, after):
            raise Refusal("changes its weights behind the softmax", "mask the scores instead of the weights")
