"""The backends that the oracle can drive, by name. A runner takes a model and compile options, and makes streams."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from reference_runner import ReferenceRunner

from runnel.compiler.graph.model import load
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
    graph = analyse(load(model), **options)
    if step is not None:
        optimise(graph)
    form = emit(graph, step)
    return lambda: ReferenceRunner(form, graph.shortest if graph.window is None else 0)


def _bundle(backend: str) -> Runner:
    def run(model: bytes, options: dict[str, Any]) -> Compiled:
        from runnel.runtime.program import load as load_bundle
        from runnel.tools.build import compile_model

        options = dict(options)
        step = options.pop("step", None)
        folder = tempfile.TemporaryDirectory(prefix="runnel-test-")
        source, out = Path(folder.name) / "model.onnx", Path(folder.name) / "model.rnl"
        source.write_bytes(model)
        if "window" not in options and step:
            options["hop"] = step
        info = compile_model(str(source), out=str(out), target="host", **options)
        if backend not in info.manifest["backends"]:
            pytest.skip(f"no native kernels: {info.manifest['native_refusal']}")
        program = load_bundle(str(out), backend=backend)

        class Owned:
            """Keeps the folder while the stream lives."""

            def __init__(self) -> None:
                self.folder, self.stream = folder, program.stream()

            def push(self, x: Frames) -> Frames:
                return named(self.stream.push(x))

            def flush(self) -> Frames:
                return named(self.stream.flush())

        def named(value: Any) -> Frames:
            return value if isinstance(value, dict) else {program.outputs[0].name: value}

        return Owned

    return run


RUNNERS: dict[str, Runner] = {
    "reference": reference,
    "onnxruntime": _bundle("onnxruntime"),
    "native": _bundle("native"),
}
