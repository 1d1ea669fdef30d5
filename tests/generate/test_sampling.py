"""Drawing tokens."""

from __future__ import annotations

import numpy as np
import pytest

from runnel.errors import InputError
from runnel.tools.generate.sampling import Sampler, Sampling

LOGITS = np.log(np.float64([0.4, 0.3, 0.2, 0.06, 0.04]))


def drawn(count: int = 4000, **options: float) -> np.ndarray:
    """How often each token comes."""
    found = np.zeros(len(LOGITS))
    sampler = Sampler(Sampling(seed=1, **options))  # type: ignore[arg-type]
    for _ in range(count):
        found[sampler.next(LOGITS)] += 1
    return found / count


def test_greedy_takes_the_likeliest() -> None:
    assert Sampler(Sampling()).next(LOGITS[::-1]) == 4


def test_temperature_one_draws_by_the_chances() -> None:
    np.testing.assert_allclose(drawn(temperature=1.0), np.exp(LOGITS), atol=0.03)


def test_a_lower_temperature_sharpens() -> None:
    expected = np.exp(2 * LOGITS)
    np.testing.assert_allclose(drawn(temperature=0.5), expected / expected.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_p": 0.5}, 2),
        ({"top_p": 0.39}, 1),
        ({"min_p": 0.4}, 3),
        ({"top_k": 4, "top_p": 0.75}, 3),
    ],
)
def test_the_tail_is_cut(options: dict[str, float], kept: int) -> None:
    expected = np.exp(LOGITS) * (np.arange(5) < kept)
    np.testing.assert_allclose(drawn(temperature=1.0, **options), expected / expected.sum(), atol=0.03)


def test_repeated_tokens_are_held_back() -> None:
    sampler = Sampler(Sampling(repetition=3.0, last=2))
    logits = np.float64([3.0, 2.0, -1.0, 1.5])
    assert [sampler.next(logits) for _ in range(4)] == [0, 1, 3, 0]


def test_negative_logits_are_held_back_too() -> None:
    sampler = Sampler(Sampling(repetition=2.0))
    assert [sampler.next(np.float64([-1.0, -1.5])) for _ in range(2)] == [0, 1]


def test_equal_seeds_give_equal_tokens() -> None:
    runs = [[Sampler(Sampling(temperature=1.0, seed=s)).next(LOGITS + i) for i in range(50)] for s in (3, 3)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": 2},
     {"repetition": 0}, {"seed": -1}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="makes no sense"):
        Sampling(**options)  # type: ignore[arg-type]
