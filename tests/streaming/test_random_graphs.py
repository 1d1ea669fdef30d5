"""Random models from every rule: the stream is exact, or the model is refused. RUNNEL_GRAPHS=N runs N of them.

Without it as many run as the budget says. A failure is shrunk, and the recipe printed: keep it in KEPT.
"""

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

GRAPHS = int(os.environ.get("RUNNEL_GRAPHS", "0"))
RUNNERS = os.environ.get("RUNNEL_RUNNERS", "reference,native").split(",")
FIRST = int(os.environ.get("RUNNEL_GRAPHS_FIRST", "0"))
BUDGETS = {"reference": (2000, 1000, 120.0), "native": (150, 100, 60.0), "onnxruntime": (150, 100, 60.0)}
"""Graphs, and how few of them and how many seconds are enough on a slow machine."""
TOLERANCE = 1e-4
"""Ten times the oracle's: chained recurrences carry rounding on; what is wrong is off by far more."""

KEPT: dict[str, Recipe] = {
    "a_multiple_less_one_has_a_clock": [("multiple", 0, {"of": 2}), ("cut", 0, {"first": 0, "last": 1})],
    "a_multiple_of_a_maximum_has_a_clock": [
        ("pool", 0, {"k": 2, "s": 1, "left": 0, "right": 0}),
        ("pool", 0, {"k": 2, "s": 1, "left": 1, "right": 1}),
        ("multiple", 0, {"of": 2}),
    ],
    "no_frame_and_padding": [
        ("cut", 0, {"first": 0, "last": 1}),
        ("conv", 0, {"k": 1, "d": 1, "s": 1, "left": 0, "right": 1}),
    ],
    "cut_then_look_ahead": [
        ("cut", 0, {"first": 0, "last": 4}),
        ("conv", 0, {"k": 5, "d": 1, "s": 1, "left": 2, "right": 2}),
        ("rnn", 0, {"op": "GRU", "initial": 1, "last": 1}),
    ],
    "cut_then_tail": [("cut", 0, {"first": 0, "last": 3}), ("tail", 0, {"start": 2, "stop": 1})],
    "a_crop_and_what_it_crops_end_differently": [
        ("pad", 0, {"left": 0, "right": 1, "mode": "reflect"}),
        ("cut", 0, {"first": 0, "last": 1}),
        ("conv", 0, {"k": 1, "d": 1, "s": 1, "left": 0, "right": 1}),
        ("rnn", 0, {"op": "GRU", "initial": 0, "last": 1}),
        ("conv", 3, {"k": 1, "d": 1, "s": 1, "left": 0, "right": 1}),
    ],
    "onnxruntime_would_fuse_pad_and_pool": [
        ("pad", 0, {"left": 0, "right": 1, "mode": "constant", "value": 0.0}),
        ("pool", 0, {"k": 1, "s": 1, "left": 0, "right": 0}),
        ("bins", 0, {}),
    ],
    "stride_beyond_a_transposed_kernel": [("up", 0, {"k": 1, "d": 1, "s": 3, "left": 0, "right": 0, "extra": 2})],
}


def verdict(recipe: Recipe, seed: int, runner: str, every_length: bool = False) -> str:
    """One of: exact; refused and why; unusable, as no length runs offline; no form for the backend; wrong and how."""
    try:
        model = Builder(recipe, seed).model()
    except Exception as error:  # onnx and onnxruntime raise many types for a model that no length fits
        return f"unusable: {type(error).__name__}"
    rng = np.random.default_rng(seed)
    lengths = list(range(1, 28)) if every_length else sorted({1, 2, *(int(v) for v in rng.integers(1, 40, 5))})
    steps = (None, int(rng.integers(2, 14)))
    try:
        proof = oracle.check(
            model, lengths=lengths, steps=steps, seed=seed, at_least=0, tolerance=TOLERANCE,
            runner=runners.RUNNERS[runner],
        )  # fmt: skip
    except pytest.skip.Exception as skipped:
        return f"no form: {skipped}"
    except Refused as refused:
        return "refused: " + refused.reasons[0].reason
    except InputError as error:
        return f"unusable: {error}"
    except Exception as error:  # whatever happens is a failure to shrink
        return f"wrong: {type(error).__name__}: {str(error)[:300]}"
    return "exact" if proof.runs else "unusable: no length"


def shrunk(recipe: Recipe, seed: int, runner: str) -> tuple[Recipe, str]:
    """The smallest recipe found that still goes wrong."""
    found = verdict(recipe, seed, runner)
    progress = True
    while progress:
        progress = False
        for candidate in simpler(recipe):
            got = verdict(candidate, seed, runner, every_length=True)
            if got.startswith("wrong"):
                recipe, found, progress = candidate, got, True
                break
    return recipe, found


@pytest.mark.parametrize("runner", RUNNERS)
def test_exact_or_refused(runner: str) -> None:
    seen: Counter[str] = Counter()
    most, least, seconds = BUDGETS[runner]
    stop = time.monotonic() + seconds
    for seed in range(FIRST, FIRST + (GRAPHS or most)):
        if not GRAPHS and seed >= FIRST + least and time.monotonic() > stop:
            break
        recipe = random_recipe(np.random.default_rng(seed))
        result = verdict(recipe, seed, runner)
        if result.startswith("wrong"):
            small, found = shrunk(recipe, seed, runner)
            raise AssertionError(f"graph {seed}: {result}\nshrunk to {small}\n{found}")
        seen[result.split(":")[0]] += 1
    print(f"{sum(seen.values())} random graphs on {runner}: {dict(seen)}")
    assert seen["exact"] + seen["no form"] > 0.85 * sum(seen.values()), seen


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("runner", RUNNERS)
def test_kept(runner: str, name: str) -> None:
    for seed in (0, 1):
        assert verdict(KEPT[name], seed, runner, every_length=True).startswith(("exact", "no form"))
