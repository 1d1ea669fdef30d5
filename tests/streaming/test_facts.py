"""Facts against brute force: which frames exist and are final, seen by changing and ending the input at every frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import TIME, Net
from oracle import Frames, Offline
from recipes import Builder, Recipe, random_recipe

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.ir import StreamGraph, Tail
from runnel.errors import InputError

MOST, BEYOND = 22, 24
SAME = 1e-5


class Probe:
    """A model's outputs on every length of two inputs that agree up to any frame."""

    def __init__(self, model: bytes, axis: int = 2) -> None:
        self.offline = Offline(model)
        self.axis = axis
        self.port = load(model).inputs[0]
        rng = np.random.default_rng(5)
        self.first, self.other = (rng.standard_normal(self._shape(MOST + BEYOND)).astype(np.float32) for _ in range(2))
        self.whole = [self._run(self.first, n) for n in range(MOST + BEYOND)]

    def _shape(self, length: int) -> list[int]:
        return [length if a == self.axis else int(d or 1) for a, d in enumerate(self.port.shape)]

    def _run(self, x: np.ndarray, length: int) -> Frames | None:
        return self.offline({self.port.name: np.take(x, range(length), self.axis)})

    def length(self, name: str, axis: int, t: int) -> int | None:
        result = self.whole[t]
        return None if result is None else result[name].shape[axis]

    def final(self, name: str, axis: int, t: int) -> int:
        """How many first frames no continuation of the first t input frames can change or take away."""
        changed = np.concatenate(
            [np.take(self.first, range(t), self.axis), np.take(self.other, range(t, MOST + BEYOND), self.axis)],
            self.axis,
        )
        results = [r for n in range(t, t + BEYOND) for r in (self.whole[n], self._run(changed, n)) if r is not None]
        frames = [np.moveaxis(r[name], axis, 0) for r in results]
        n = min(len(f) for f in frames)
        scale = max(float(np.abs(f).max(initial=0)) for f in frames) or 1.0
        same = [all(np.allclose(f[i], frames[0][i], rtol=0, atol=SAME * scale) for f in frames) for i in range(n)]
        return same.index(False) if False in same else n


def facts(graph: StreamGraph, probe: Probe, tight: bool) -> int:
    """Compares; gives the number of (output, tick) pairs at which facts said fewer frames than brute force found."""
    late = 0
    for name, value in graph.outputs.items():
        if isinstance(value, Tail):
            continue
        fact = value.fact
        if fact.once:
            continue  # it has no frames, and comes when the stream ends
        for t in range(1, MOST):
            length = probe.length(name, value.axis, t)
            if t < graph.shortest:
                continue
            assert length is not None, f"the model takes {t} frames according to its facts, and does not"
            assert fact.length(t) == length, f"{name}: {fact.length(t)} frames for {t}, offline {length}"
            found = probe.final(name, value.axis, t)
            made = fact.made(t)
            assert made <= found, f"{name}: frames below {made} said to be final after {t} input frames; {found} are"
            if tight:
                assert made == found, f"{name}: {found} frames are final after {t} input frames; facts say {made}"
            late += made < found
            if made < found:
                assert fact.due(made) > t
    return late


def net() -> tuple[Net, str]:
    made = Net(3)
    return made, made.input([1, 3, TIME])


def conv(k: int, left: int, right: int, s: int = 1, d: int = 1) -> Any:
    return ("conv", 0, {"k": k, "d": d, "s": s, "left": left, "right": right})


EXACT: dict[str, Recipe] = {
    "conv": [conv(5, 2, 2)],
    "causal": [conv(5, 4, 0)],
    "valid": [conv(4, 0, 0)],
    "all_right": [conv(4, 0, 3)],
    "beyond_the_kernel": [conv(3, 6, 5)],
    "strided": [conv(4, 1, 2, s=3)],
    "dilated": [conv(3, 4, 4, d=4), conv(3, 1, 1)],
    "look_ahead_then_stride": [conv(3, 1, 1), conv(3, 1, 1, s=2), conv(3, 1, 1)],
    "chomp": [conv(4, 3, 3), ("cut", 0, {"first": 0, "last": 3})],
    "cut_the_end": [("cut", 0, {"first": 0, "last": 3})],
    "cut_the_start": [("cut", 0, {"first": 3, "last": 0})],
    "cut_then_look_ahead": [("cut", 0, {"first": 1, "last": 3}), conv(3, 1, 1)],
    "up": [("up", 0, {"k": 4, "d": 1, "s": 2, "left": 1, "right": 1})],
    "up_uncropped": [("up", 0, {"k": 5, "d": 1, "s": 2, "left": 0, "right": 0})],
    "up_with_gaps": [("up", 0, {"k": 2, "d": 1, "s": 3, "left": 0, "right": 0, "extra": 1})],
    "up_after_look_ahead": [conv(5, 2, 2), ("up", 0, {"k": 6, "d": 1, "s": 3, "left": 2, "right": 1}), conv(3, 1, 1)],
    "pad": [("pad", 0, {"left": 3, "right": 2, "mode": "constant", "value": 0.5})],
    "reflect_left": [("pad", 0, {"left": 4, "right": 0, "mode": "reflect"})],
    "reflect_right": [("pad", 0, {"left": 0, "right": 3, "mode": "reflect"})],
    "reflect": [conv(3, 1, 1), ("pad", 0, {"left": 2, "right": 2, "mode": "reflect"})],
    "edge": [("pad", 0, {"left": 2, "right": 3, "mode": "edge"})],
    "behind": [("behind", 0, {"left": 2, "right": 2, "value": 0.3}), conv(3, 1, 1)],
    "recurrence": [conv(3, 1, 1), ("rnn", 0, {"op": "GRU", "initial": 1})],
    "average": [("pool", 0, {"k": 3, "s": 2, "left": 1, "right": 1, "average": 1})],
    "branches": [conv(3, 1, 1), conv(5, 4, 0), ("join", 0, {"with_": 1, "op": "Add"})],
    "multiple": [("multiple", 0, {"of": 4}), conv(4, 0, 0, s=4)],
}


@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str) -> None:
    model = Builder(EXACT[name], 1).model()
    assert facts(analyse(load(model)), Probe(model), tight=True) == 0


def test_random_models_are_sound_and_mostly_tight() -> None:
    """Facts may be late where layers cancel, never early."""
    ticks = late = models = 0
    for seed in range(400):
        recipe = random_recipe(np.random.default_rng(seed + 10**6))
        if len(recipe) > 5:
            continue
        try:
            model = Builder(recipe, seed).model()
            graph = analyse(load(model))
        except (InputError, Exception):  # what no length fits, and what is refused, is tested elsewhere
            continue
        if graph.shortest > 15:
            continue
        late += facts(graph, Probe(model), tight=False)
        ticks += MOST * len(graph.outputs)
        models += 1
        if models == 25:
            break
    assert models == 25
    assert late < 0.25 * ticks, (late, ticks)


def test_burst_after_a_reflected_start() -> None:
    graph = analyse(load(Builder([("pad", 0, {"left": 4, "right": 0, "mode": "reflect"})], 0).model()))
    (output,) = graph.outputs.values()
    assert not isinstance(output, Tail)
    fact = output.fact
    assert [fact.made(t) for t in range(8)] == [0, 0, 0, 0, 0, 9, 10, 11]
    assert fact.hold == 8
    assert fact.due(0) == 5


def test_shortest_is_the_least_length_that_runs() -> None:
    for recipe in (
        [conv(5, 0, 0), conv(3, 0, 0, d=2)], [conv(3, 0, 0, s=2), conv(2, 0, 0)], [conv(9, 4, 4)],
        [("pad", 0, {"left": 4, "right": 6, "mode": "reflect"})],
        [("cut", 0, {"first": 3, "last": 0}), ("rnn", 0, {"op": "RNN", "initial": 0})],
    ):  # fmt: skip
        model = Builder(recipe, 0).model()
        probe = Probe(model)
        runs = [t for t in range(1, MOST) if probe.whole[t] is not None]
        assert analyse(load(model)).shortest == runs[0]
        assert runs == list(range(runs[0], MOST))
