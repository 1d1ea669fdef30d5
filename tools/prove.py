"""The proof: what a bundle computes, against the offline model, where it runs. DESIGN 3.2 says what equal means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runnel.compiler.graph.fold import session
from runnel.errors import InternalError
from runnel.runtime.program import load
from runnel.tools.replay import Arrays, chunkings, deviation, extent, opened, play

TOLERANCE = 1e-5
LOOSEST = 1e-4
ONE_CODE = 1.001 / 255
PART_OF_ROUNDING = 0.25
MOST_OF_ROUNDING = 2.0
MOST_RUNS = 1_000_000
"""Runs of single nodes on onnxruntime, some microseconds each, that a recording may take."""


@dataclass(frozen=True)
class Case:
    """An input of the offline model and what the model makes of it. axis: of time in each input."""

    inputs: Arrays
    outputs: Arrays
    frames: int


class Offline:
    """The offline model on whole recordings.

    window: (W, H) to run it on every window and stack the results. fixed: the values of inputs that have no time.
    """

    def __init__(
        self, model: onnx.ModelProto, axes: dict[str, int], window: tuple[int, int] | None, fixed: Arrays
    ) -> None:
        self.session = session(model)
        taken = {i.name for i in self.session.get_inputs()}
        self.axes, self.window = axes, window
        self.fixed = {k: v for k, v in fixed.items() if k in taken}
        self.names = [o.name for o in self.session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """The model's outputs. Raises whatever onnxruntime raises for a length that the model does not take."""
        if self.window is None:
            return dict(zip(self.names, self.session.run(None, inputs | self.fixed), strict=True))
        width, hop = self.window
        frames = min(x.shape[self.axes[n]] for n, x in inputs.items())
        results = []
        for start in range(0, frames - width + 1, hop):
            part = {n: np.take(x, range(start, start + width), axis=self.axes[n]) for n, x in inputs.items()}
            results.append(self.session.run(None, part | self.fixed))
        return {n: np.stack([r[i] for r in results]) for i, n in enumerate(self.names)}


def stepwise(model: onnx.ModelProto, states: dict[str, str], initial: Arrays, inputs: Arrays) -> Arrays:
    """A model that brings its own states ({output: input}), called frame by frame; inputs are stacked on a leading
    axis."""
    run = session(model)
    names, taken = [o.name for o in run.get_outputs()], {i.name for i in run.get_inputs()}
    carried = dict(initial)
    results = []
    for n in range(len(next(iter(inputs.values())))):
        frame = {k: np.asarray(x[n]) for k, x in inputs.items() if k in taken}
        values = dict(zip(names, run.run(None, frame | carried), strict=True))
        carried = {inp: values[out] for out, inp in states.items()}
        results.append(values)
    return {name: np.stack([r[name] for r in results]) for name in names}


def prove(path: Path, cases: Sequence[Case], axes: dict[str, int], backends: Sequence[str],
          progress: Callable[[str, float | None], None] | None = None, against: str = "the offline model",
          own: float = 0.0, codes: dict[str, Any] | None = None, nodes: int = 1,
          latency: int = 0, rounding: float = 0.0, roundings: int = 1) -> dict[str, Any]:  # fmt: skip
    """Run every case on every backend and chunking; the proof for the manifest. Raises InternalError when one differs.

    against: whose answers the cases hold. own: how far onnxruntime was found to be from itself.
    codes: of a quantised model (tools/codes.py); where it has float islands, codes may be one apart. nodes: of the
    portable form, and latency: its frames; long recordings of deep models are cut in fewer ways, and the deepest run on
    the native backend alone, so that the proof takes seconds. rounding: what rounded activations cost the model, and
    roundings: how many products have them. A last bit decides now and then which way one is rounded, and what that
    changes decides for more of those behind it: backends may differ by a part of the cost for each, and by what two
    unlike roundings cost at most.
    """
    rng = np.random.default_rng(1)
    record: dict[str, Any] = {
        "against": against,
        "tolerance": TOLERANCE,
        "frames": [c.frames for c in cases],
        "where": "this machine",
        "error": {},
    }
    usual = {n: max(extent(c.outputs[n]) for c in cases) for n, v in cases[0].outputs.items() if v.dtype.kind == "f"}
    spared, shortest = False, min(cases, key=lambda c: c.frames)
    for backend in backends:
        deep = nodes * (shortest.frames + latency) > 4 * MOST_RUNS
        if backend == "onnxruntime" and deep and len(backends) > 1:
            spared = True
            continue
        program = load(path, backend=backend, poison=True)
        worst, differ = 0.0, [0, 0]
        for i, case in enumerate(cases):
            first: Arrays | None = None
            steps = (case.frames + latency) // (program.hop if backend == "onnxruntime" else 1)
            plans, complete = _affordable(chunkings(case.frames, program.hop, rng), steps * nodes, backend)
            spared |= not complete
            if not plans and case is shortest:
                plans = {"whole": [max(case.frames, 1)]}
            for name, plan in plans.items():
                if progress:
                    progress(f"proving {backend}", (i + 0.5) / len(cases))
                got = play(opened(program, case.inputs), case.inputs, axes, plan)
                worst = max(worst, deviation(got, case.outputs, usual))
                for output, value in case.outputs.items():
                    if got[output].shape == value.shape:
                        differ[0] += int((got[output] != value).sum())
                        differ[1] += value.size
                if first is not None and any(got[n].tobytes() != first[n].tobytes() for n in got):
                    raise InternalError(
                        f"the {backend} backend's output depends on how the input is cut ({name}); please report "
                        f"this model"
                    )
                first = first or got
        record["error"][backend] = worst
        if codes is not None:
            codes.setdefault("differ", {})[backend] = differ[0] / max(differ[1], 1)
    limit = max(TOLERANCE, min(4 * max(own, record["error"].get("onnxruntime", 0.0)), LOOSEST))
    if codes is not None:
        record["codes"] = codes
        limit = max(limit, ONE_CODE) if codes["islands"] else limit
    if np.isfinite(rounding):
        limit = max(limit, rounding * min(roundings * PART_OF_ROUNDING, MOST_OF_ROUNDING))
    record["limit"] = limit
    record["chunkings"] = ["frame by frame", "prime", "random", "whole"]
    record["not_covered"] = "other lengths, other inputs, other machines"
    if spared:
        record["not_covered"] += "; some cuts of the longest recordings, as the model is deep"
    for backend, worst in record["error"].items():
        if not worst <= limit:
            raise InternalError(
                f"the {backend} backend differs from {against} by {worst:.2g} of the output's range (limit "
                f"{limit:.2g}); "
                "no bundle was written; please report this model"
            )
    return record


def _affordable(plans: dict[str, list[int]], runs: int, backend: str) -> tuple[dict[str, list[int]], bool]:
    """The cuts of a recording that takes ``runs`` runs of a node frame by frame, and whether these are all."""
    if backend == "onnxruntime":
        if 4 * runs <= MOST_RUNS:
            return plans, True
        return ({"random": plans["random"]} if runs <= MOST_RUNS else {}), False
    if runs <= 4 * MOST_RUNS or "frame by frame" not in plans:
        return plans, True
    if runs > 16 * MOST_RUNS:
        plans = {name: plans[name] for name in ("random", "whole")}
    return plans | {"frame by frame": [1] * 64 + plans["whole"]}, False
