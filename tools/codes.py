"""How the codes of a quantised model compare: between backends, and with onnxruntime's runs of the exported graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort

from runnel.compiler.streaming.islands import float_islands
from runnel.tools.prove import Arrays, Case, Offline, stepwise
from runnel.tools.replay import LARGEST_CODE

if TYPE_CHECKING:
    from runnel.tools.rewritten import Rewritten


def apart(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of 8-bit codes that differ, and by how many codes at most; float results in 255ths of their range."""
    differ = total = 0
    most = 0.0
    for name, right in expected.items():
        if not right.size or right.dtype.kind == "b" or (right.dtype.kind != "f" and right.dtype.itemsize > 1):
            continue
        difference = np.abs(got[name].astype(np.float64) - right)
        if right.dtype.kind == "f":
            difference *= LARGEST_CODE / max(float(np.abs(right).max()), 1e-6)
        differ += int((difference > (1e-2 if right.dtype.kind == "f" else 0)).sum())
        total += right.size
        most = max(most, float(difference.max()))
    return {"differ": differ / max(total, 1), "most": round(most, 3)}


def as_exported(rewritten: Rewritten, cases: Sequence[Case]) -> dict[str, Any]:
    """How far the integer form is from the exported graph, whose sums are float32, and from that graph after
    onnxruntime's own rewrites; None where it does not run."""
    record: dict[str, Any] = {}
    assert rewritten.exported is not None
    longest = max(cases, key=lambda c: c.frames)
    for name, optimised in (("exported", False), ("optimised", True)):
        try:
            outputs = run_exported(rewritten, rewritten.exported, longest.inputs, optimised)
            record[name] = apart(longest.outputs, {k: outputs[k] for k in longest.outputs})
        except Exception:  # a graph that onnxruntime's own rewrites break
            record[name] = None
    return record


def run_exported(rewritten: Rewritten, model: onnx.ModelProto, inputs: Arrays, optimised: bool = False) -> Arrays:
    """What a model as it was given makes of a recording. Raises what onnxruntime raises."""
    graph = rewritten.graph
    if rewritten.states:
        return stepwise(model, rewritten.states, rewritten.initial, inputs)
    run = Offline(model, {s.name: s.axis for s in graph.inputs}, graph.window, rewritten.fixed)
    if optimised:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        run.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return run.run(inputs)


def codes_record(rewritten: Rewritten, cases: Sequence[Case]) -> dict[str, Any] | None:
    """What the proof says of a quantised model before it runs; None for others.

    islands: nodes computed in float32 between codes, whose codes may be one apart. as exported, optimised: see
    ``as_exported``.
    """
    islands = float_islands(rewritten.graph)
    if rewritten.exported is None and not islands:
        return None
    return {"islands": islands, **(as_exported(rewritten, cases) if rewritten.exported is not None else {})}
