"""Named modes as words: what is understood, and one sentence for what is not."""

from __future__ import annotations

from typing import Any

import pytest

from runnel.compiler.streaming.modes import numbers, parse_modes
from runnel.errors import InputError


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, {}),
        ("norm=running", {"norm": "running"}),
        (["rnn=lookahead:32", "pool=cumulative"], {"rnn": "lookahead:32", "pool": "cumulative"}),
        ({"attention": "left:64,right:8"}, {"attention": "left:64,right:8"}),
        (["norm=running", "norm=running"], {"norm": "running"}),
    ],
)
def test_modes_are_read(given: Any, wanted: dict[str, str]) -> None:
    assert parse_modes(given) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("speed=high", "there is no mode 'speed'"),
        ("norm=still", "write norm=running"),
        ("norm", "write norm=running"),
        ("rnn=lookahead:0", "write rnn=lookahead:FRAMES"),
        ("rnn=lookahead:-1", "not understood"),
        ("attention=left:1,left:2", "not understood"),
        ("attention=left:99999999", "not understood"),
        (["rnn=lookahead:1", "rnn=lookahead:2"], "given twice"),
    ],
)
def test_what_is_no_mode_is_told(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_modes(given)


def test_numbers() -> None:
    assert numbers("left:64,right:8") == {"left": 64, "right": 8}
