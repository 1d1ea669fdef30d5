"""The backends that the oracle can drive, by name. A runner takes a model and compile options, and makes streams."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import record
from reference_runner import ReferenceRunner

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.align import align
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.emit import emit
from runnel.compiler.streaming.optimise import optimise

Frames = dict[str, np.ndarray]


class Stream(Protocol):
    """One run of a compiled model. Inputs and outputs by name; whole frames along time."""

    def push(self, x: Frames) -> Frames: ...

    def flush(self) -> Frames: ...


Compiled = Callable[[], Stream]
Runner = Callable[[bytes, dict[str, Any]], Compiled]


def reference(model: bytes, options: dict[str, Any]) -> Compiled:
    """The portable form on onnxruntime, driven by the readable runner. ``step``: frames a call, at least.

    The rewrite is tested as it is at the smallest step, and with the small rewrites after it at others.
    """
    options = dict(options)
    step = options.pop("step", None)
    rate = options.pop("rate", None)
    aligned = options.pop("align", False)
    statics = options.pop("statics", {})
    graph = analyse(load(model), rates=rate if isinstance(rate, dict) else None, **options)
    if aligned:
        align(graph)
    if step is not None:
        optimise(graph)
    form = emit(graph, step)
    least = graph.shortest if graph.window is None else 0
    return lambda: ReferenceRunner(form, least, graph.remainders, statics)


def _bundle(backend: str) -> Runner:
    """A bundle on one of the board's backends, its memory poisoned; skips what that backend has no form for."""

    def run(model: bytes, options: dict[str, Any]) -> Compiled:
        from runnel.runtime.program import load as load_bundle
        from runnel.tools.build import compile_model

        asked, options = options, dict(options)
        if (step := options.pop("step", None)) is not None:
            options["hop"] = step
        statics = options.pop("statics", {})
        if "modes" in options:
            options["mode"] = options.pop("modes")
        if "window_mode" in options:
            options |= {"mode": options.pop("window_mode"), "reuse_threshold": 1e9}
        with tempfile.TemporaryDirectory(prefix="runnel-test-") as folder:
            out = Path(folder) / "model.rnl"
            compile_model(model, out, **options)
            refusal = load_bundle(out, backend="onnxruntime").manifest["native_refusal"]
            if backend == "native" and refusal is not None:
                record.saw(model, asked, backend, str(refusal))
                pytest.skip(f"no native form: {refusal}")
            program = load_bundle(out, backend=backend, poison=True)
        names = [port.name for port in program.outputs]

        class Named:
            """Outputs by name, also where there is one."""

            def __init__(self) -> None:
                self.stream = program.stream(inputs=statics)

            def push(self, x: Frames) -> Frames:
                return self._named(self.stream.push(x))

            def flush(self) -> Frames:
                return self._named(self.stream.flush())

            @staticmethod
            def _named(value: Any) -> Frames:
                return value if isinstance(value, dict) else {names[0]: value}

        return Named

    run.runs_on = backend  # type: ignore[attr-defined]
    return run


RUNNERS: dict[str, Runner] = {
    "reference": reference,
    "onnxruntime": _bundle("onnxruntime"),
    "native": _bundle("native"),
}
