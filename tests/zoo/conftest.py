"""Models and recordings made by others, found through RUNNEL_ZOO or in ../shared/zoo; the end says what ran where."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import runnel
from runnel.runtime.program import Program

ROOT = Path(__file__).resolve().parents[2]
RAN: defaultdict[str, set[str]] = defaultdict(set)  # bundle → backends, for the last lines of the report
BACKENDS = ("onnxruntime", "native")


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of the zoo."""
    folder = Path(os.environ.get("RUNNEL_ZOO") or ROOT.parent / "shared" / "zoo")
    if not folder.is_dir():
        pytest.skip(f"there is no zoo in '{folder}'; name its folder in RUNNEL_ZOO")
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a model into a bundle of that name, once."""
    folder = tmp_path_factory.mktemp("bundles")

    def get(name: str, model: Any, **options: Any) -> Path:
        path = folder / f"{name}.rnl"
        if not path.exists():
            runnel.compile(model, path, **options)
        return path

    return get


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture
def load(backend: str) -> Callable[..., Program]:
    """Opens a bundle on the backend; one without kernels skips the test, or runs on onnxruntime with ``fall_back``."""

    def open_bundle(path: Path, fall_back: bool = False) -> Program:
        reference = runnel.load(path, backend="onnxruntime")
        has = backend in reference.manifest["backends"]
        if not has and not fall_back:
            pytest.skip(f"{path.stem} has no form for {backend}: {reference.manifest['native_refusal']}")
        chosen = backend if has else "onnxruntime"
        RAN[path.stem].add(chosen)
        return reference if chosen == "onnxruntime" else runnel.load(path, backend=chosen)

    return open_bundle


@pytest.fixture(scope="session")
def stepped() -> Callable[..., dict[str, np.ndarray]]:
    """A model with its own states called frame by frame on onnxruntime: the reference."""

    def run(model: Path, frames: dict[str, np.ndarray], states: dict[str, str], **fixed: np.ndarray) -> Any:
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        shapes = {i.name: [n if isinstance(n, int) else 1 for n in i.shape] for i in session.get_inputs()}
        carried = {name: np.zeros(shapes[name], np.float32) for name in states.values()}
        names = [o.name for o in session.get_outputs()]
        rows = []
        for n in range(len(next(iter(frames.values())))):
            feeds = {name: values[n] for name, values in frames.items()} | carried | fixed
            values = dict(zip(names, session.run(None, feeds)))
            carried = {into: values[out] for out, into in states.items()}
            rows.append(values)
        return {name: np.stack([row[name] for row in rows]) for name in names}

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, backends in sorted(RAN.items()):
        terminalreporter.write_line(f"zoo: {name} ran on {', '.join(sorted(backends))}")
