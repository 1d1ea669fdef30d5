"""Random models over inputs of two rates and a static input: exact, or refused. Recipes as in test_random_graphs."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import oracle
import pytest
import runners
from recipes import KINDS, SPAN, Builder, Recipe, Tensor, random_recipe

from runnel.errors import InputError, Refused

RATES = {"x": 50.0, "fast": 100.0}
TOLERANCE = 1e-4


class Several(Builder):
    """A recipe on the sum of two inputs, with a static input that meets what is made half way and at the end."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__([], seed)
        fast, self.emb = self.net.input([1, 2, "F"], "fast"), self.net.input([1, 4], "emb")
        h = self.net.conv(fast, 2, 3, 3, strides=[2], pads=[1, 0])
        self.tensors.append(Tensor(self.net.op("Add", h, "x"), 3, SPAN))
        for i, (kind, source, parameters) in enumerate([*recipe, ("", 0, {})]):
            if i in (len(recipe) // 2, len(recipe)):
                self.tensors.append(self.gated(self.tensors[-1], i % 2 == 0))
            if not kind:
                continue
            made = KINDS[kind](self, self.tensors[-1 - source % len(self.tensors)], **parameters)
            if made is not None and 40 < made.lengths[-1] < 3000:
                self.tensors.append(made)

    def gated(self, x: Tensor, multiplied: bool) -> Tensor:
        """Channels scaled or shifted by a layer of the static input."""
        n = self.net
        layer = n.op("Sigmoid", n.op("Gemm", self.emb, n.weight(4, x.channels), n.weight(x.channels)))
        value = n.op("Unsqueeze", layer, n.const([2]))
        return Tensor(n.op("Mul" if multiplied else "Add", x.name, value), x.channels, x.lengths)


def verdict(seed: int, runner: str) -> str:
    rng = np.random.default_rng(seed)
    try:
        model = Several(random_recipe(rng), seed).model()
    except Exception as error:  # onnx and onnxruntime raise many types for a model that no length fits
        return f"unusable: {type(error).__name__}"
    lengths = sorted({1, 2, *(int(v) for v in rng.integers(1, 40, 4))})
    statics = {"emb": rng.standard_normal((1, 4)).astype(np.float32)}
    try:
        proof = oracle.check(
            model, lengths=lengths, steps=(None, int(rng.integers(2, 9))), seed=seed, at_least=0, tolerance=TOLERANCE,
            runner=runners.RUNNERS[runner], rate=RATES, statics=statics,
        )  # fmt: skip
    except pytest.skip.Exception:
        return "no native form"
    except Refused as refused:
        return "refused: " + refused.reasons[0].reason
    except InputError as error:
        return f"unusable: {error}"
    return "exact" if proof.runs else "unusable"


@pytest.mark.parametrize(("runner", "seconds", "most"), [("reference", 8.0, 400), ("native", 8.0, 60)])
def test_several_inputs_are_exact_or_refused(runner: str, seconds: float, most: int) -> None:
    seen: Counter[str] = Counter()
    stop = time.monotonic() + seconds
    for seed in range(most):
        if time.monotonic() > stop and seed >= 8:
            break
        seen[verdict(seed, runner).split(":")[0]] += 1
    print(runner, dict(seen))
    assert seen["exact"] >= 0.4 * sum(seen.values()), seen
