"""Attention over time: rings of keys and values for every mask that is causal, sliding or chunked."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
from masks import MASKS, Heads, attention
from oracle import Check

from runnel.errors import Refused

HEADS = Heads(2, 2, 4)


def model(kind: str, heads: Heads = HEADS, form: str = "matmul", **options: Any) -> bytes:
    net, x = heads.net()
    y = attention(net, x, heads, kind, form, **options)
    return net.model(y)


@pytest.mark.parametrize("kind", MASKS)
def test_mask_that_bounds_the_past(check: Check, kind: str) -> None:
    if "causal" in kind:
        check(model(kind), at_least=12, max_frames=300)
    else:
        check(model(kind), at_least=12)


def test_causal_without_a_bound_is_refused_with_both_remedies() -> None:
    with pytest.raises(Refused, match="max-frames") as refusal:
        oracle.check(model("causal_trilu"))
    assert "attention=left" in str(refusal.value)
