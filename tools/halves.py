"""How a model of float16 tensors, computed in float32, compares with onnxruntime's own run of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runnel.tools.codes import run_exported
from runnel.tools.prove import Case
from runnel.tools.replay import deviation

if TYPE_CHECKING:
    from runnel.tools.rewritten import Rewritten


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
