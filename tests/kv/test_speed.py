"""An attention step over a cache beside onnxruntime's own, in turns; the whole table is tools/compare_attention."""

from __future__ import annotations

import pytest

from runnel.runtime import native
from runnel.tools import compare_prefill
from runnel.tools.compare_attention import Shape, compare

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")


@pytest.mark.parametrize("storage", ["", ",keys=int8,values=int8"])
def test_a_step_takes_less_than_onnxruntimes(storage: str) -> None:
    row = compare(Shape(16, 4, 64, 256), f"window=256{storage}", rounds=25)
    assert row.deviation < (0.02 if storage else 1e-5)
    assert row.ratio < 0.8


def test_a_prompt_takes_no_longer_than_onnxruntimes() -> None:
    """Least times of both, in turns; heads without company, which gain most from tokens that attend together."""
    row = compare_prefill.compare(Shape(16, 16, 64, 256), rounds=9)
    assert row.deviation < 1e-5
    assert row.own < row.peer
