"""The next token from logits: greedy, or drawn after temperature, top-k, top-p, min-p and a repetition penalty."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runnel.errors import InputError

MOST_RECENT = 1 << 16  # tokens that a repetition penalty looks back at


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 is greedy. top_k: 0 keeps all. top_p: the fewest tokens that hold this probability. min_p: tokens
    at least this likely, of the likeliest. repetition: logits of the last ``last`` tokens are divided by it (multiplied
    where negative), as CTRL does (Keskar et al., 2019). seed: None draws differently each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    last: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < np.inf, "0 or more"),
            "top-k": (self.top_k >= 0, "0 or more"),
            "top-p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min-p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition penalty": (0 < self.repetition < np.inf, "above 0"),
            "last": (0 <= self.last <= MOST_RECENT, f"0 to {MOST_RECENT}"),
            "seed": (self.seed is None or self.seed >= 0, "0 or more"),
        }
        for what, (fits, needed) in checks.items():
            if not fits:
                raise InputError(f"the {what} makes no sense; give {needed}.")


class Sampler:
    """Draws tokens for one text; equal seeds and logits give equal tokens."""

    def __init__(self, options: Sampling) -> None:
        self.options = options
        self._random = np.random.default_rng(options.seed)
        self._recent: deque[int] = deque(maxlen=max(options.last, 1))

    def saw(self, token: int) -> None:
        """Counts a token of the prompt among the recent ones."""
        self._recent.append(token)

    def next(self, logits: NDArray[np.floating]) -> int:
        """A token from logits (vocabulary,), which also becomes a recent one."""
        o, scores = self.options, np.array(logits, np.float64)
        if o.repetition != 1.0 and self._recent:
            seen = np.fromiter(set(self._recent), np.int64)
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / o.repetition, scores[seen] * o.repetition)
        token = int(np.argmax(scores)) if o.temperature == 0 else self._draw(scores / o.temperature)
        self._recent.append(token)
        return token

    def _draw(self, scores: NDArray[np.float64]) -> int:
        o = self.options
        order = np.argsort(-scores, kind="stable")
        if o.top_k:
            order = order[: o.top_k]
        chances = np.exp(scores[order] - scores[order[0]])
        chances /= chances.sum()
        kept = chances >= o.min_p * chances[0]
        if o.top_p < 1:
            kept &= np.cumsum(chances) - chances < o.top_p
        order, chances = order[kept], chances[kept]
        return int(self._random.choice(order, p=chances / chances.sum()))
