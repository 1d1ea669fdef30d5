"""Random models over random windows and hops: exact, or the model is refused. RUNNEL_WINDOWS=N runs N of them."""

from __future__ import annotations

import os
import time
from collections import Counter

import numpy as np
import oracle
import pytest
import runners
from recipes import Builder, Recipe, random_recipe, simpler

from runnel.errors import InputError, Refused

GRAPHS = int(os.environ.get("RUNNEL_WINDOWS", "0"))
RUNNER = os.environ.get("RUNNEL_RUNNERS", "reference").split(",")[0]
SECONDS, AT_LEAST = 15.0, 40
TOLERANCE = 1e-4
"""Ten times the oracle's: chained recurrences carry rounding on; what is wrong is off by far more."""


def verdict(recipe: Recipe, seed: int, window: int, hop: int) -> str:
    """exact; refused and why; unusable: the model takes no such window; no form for the backend; wrong and how."""
    try:
        model = Builder(recipe, seed).model()
        if oracle.Offline(model)(oracle.Source(model, seed, None, window, 1.0)(window)) is None:
            return "unusable: no such window"
    except Exception as error:  # onnx and onnxruntime raise many types for a model that no length fits
        return f"unusable: {type(error).__name__}"
    try:
        oracle.check(
            model, window=window, hop=hop, seed=seed, tolerance=TOLERANCE, at_least=0, runner=runners.RUNNERS[RUNNER]
        )
    except pytest.skip.Exception as skipped:
        return f"no form: {skipped}"
    except Refused as refused:
        return "refused: " + refused.reasons[0].reason
    except InputError as error:
        return f"unusable: {error}"
    except Exception as error:  # whatever happens is a failure to shrink
        return f"wrong: {type(error).__name__}: {str(error)[:300]}"
    return "exact"


def shrunk(recipe: Recipe, seed: int, window: int, hop: int) -> tuple[Recipe, str]:
    """The smallest recipe found that still goes wrong."""
    found, progress = verdict(recipe, seed, window, hop), True
    while progress:
        progress = False
        for candidate in simpler(recipe):
            got = verdict(candidate, seed, window, hop)
            if got.startswith("wrong"):
                recipe, found, progress = candidate, got, True
                break
    return recipe, found


def test_every_window_is_exact_or_refused() -> None:
    seen: Counter[str] = Counter()
    stop, seed = time.monotonic() + SECONDS, 0
    while seed < GRAPHS if GRAPHS else seed < AT_LEAST or time.monotonic() < stop:
        rng = np.random.default_rng([seed, 7])
        recipe, window, hop = random_recipe(rng), int(rng.integers(12, 70)), int(rng.integers(1, 12))
        result = verdict(recipe, seed, window, hop)
        if result.startswith("wrong"):
            small, found = shrunk(recipe, seed, window, hop)
            raise AssertionError(f"graph {seed}: {result}\nshrunk to {small}, {window}, {hop}\n{found}")
        seen[result.split(":")[0]] += 1
        seed += 1
    usable = seed - seen["unusable"]
    assert seen["exact"] >= 0.9 * (usable - seen["no form"]), seen
