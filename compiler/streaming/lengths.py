"""Which input lengths a model takes, as joins and folds of frames say."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.registry import Refusal

if TYPE_CHECKING:
    from runnel.compiler.streaming.analysis import Analysis

MOST_REMAINDERS = 4096


def same_length(a: Analysis, x: Count, y: Count) -> bool:
    """Whether two lengths can be equal; inputs for which they are not are not taken.

    These are some of the shortest, and some remainders, as where a skip connection meets what was halved and
    doubled again. False where no long input has them equal.
    """
    apart = x - y
    before, taken = a.remainders
    period = lcm(apart.period, before)
    if apart.gain or period > MOST_REMAINDERS:
        return False
    settled = -(-max(apart.start, a.shortest) // period) * period
    equal = np.array([apart(settled + r) == 0 and r % before in taken for r in range(period)])
    if not equal.any():
        return False
    if not equal[np.isin(np.arange(period) % before, taken)].all():
        a.remainders = period, tuple(int(r) for r in np.nonzero(equal)[0])
    frames = np.arange(a.shortest, settled)
    repeated = np.where(frames < apart.start, frames, apart.start + (frames - apart.start) % apart.period)
    differ = frames[(apart.values[repeated] != 0) & equal[frames % period]]
    if len(differ):
        a.shortest = int(differ[-1]) + 1
    return True


def divides(a: Analysis, length: Count, count: int) -> None:
    """State that a layer takes only inputs for which ``length`` is a multiple of ``count``."""
    rest = length - (length // count) * count
    before, taken = a.remainders
    period = lcm(rest.period, before)
    if period > MOST_REMAINDERS:
        raise Refusal(f"takes lengths by a pattern of {period} frames", "pad the input to a multiple of its strides")
    a.shortest = max(a.shortest, rest.start)
    first = -(-a.shortest // period) * period
    kept = tuple(r for r in range(period) if rest(first + r) == 0 and r % before in taken)
    if not kept:
        raise Refusal("takes no length that the layers before it take", "check the model's shapes")
    a.remainders = period, kept


def not_negative(a: Analysis, size: Count) -> None:
    """State that a layer takes only inputs for which ``size``, which grows with them, is at least zero."""
    if size.gain <= 0 and size.later(a.shortest).minimum < 0:
        raise Refusal(f"makes a part of {size} frames for T input frames", "give every part a size of zero or more")
    if size.minimum < 0:
        last = size.start + size.period * (1 - size.minimum // max(size.gain, 1))
        frames = np.arange(last)
        a.shortest = max([a.shortest, *(int(t) + 1 for t in frames if size(int(t)) < 0)])
