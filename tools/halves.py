"""How a model of float16 tensors, computed in float32, compares with onnxruntime's own run of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.tools.codes import run_exported
from runnel.tools.prove import Case
from runnel.tools.replay import deviation

if TYPE_CHECKING:
    from runnel.tools.rewritten import Rewritten

ROUNDING = 2.0**-11
"""Of a float16, relative."""


def half_record(rewritten: Rewritten, cases: Sequence[Case]) -> dict[str, Any]:
    """What a proof says of it under "half", nothing for other models. deviation: the largest of the cases, as in a
    proof; None where onnxruntime does not run the model as it was given (decoders with a past take other inputs)."""
    if rewritten.half is None:
        return {}
    try:
        outputs = [run_exported(rewritten, rewritten.half, case.inputs) for case in cases]
    except Exception:  # onnxruntime's exceptions share no base class of their own
        return {"half": {"deviation": None}}
    apart = (deviation({k: o[k] for k in c.outputs}, c.outputs) for o, c in zip(outputs, cases, strict=True))
    return {"half": {"deviation": max(apart)}}


def rounded_states(rewritten: Rewritten, record: dict[str, Any]) -> tuple[int, float]:
    """How many states of its own the model rounds to float16 at every step, and what that costs at most (of the range):
    a last bit decides which way one is rounded, and what comes of it is carried on."""
    count = sum(first.dtype == np.float16 for first in rewritten.initial.values())
    if not count:
        return 0, 0.0
    return count, max(record.get("half", {}).get("deviation") or 0.0, ROUNDING)
