"""The models that are tried on emulated ARM, and their bundles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import runnel

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("RUNNEL_ZOO") or ROOT.parent / "shared" / "zoo")
DENOISER = ROOT / "models" / "denoiser" / "denoiser.onnx"
MODELS: dict[str, tuple[Path, dict[str, Any]]] = {
    "denoiser": (DENOISER, {"rate": 16000}),
    "gtcrn": (FOLDER / "gtcrn" / "gtcrn_simple.onnx", {"rate": 62.5}),
    "fireredvad": (FOLDER / "fireredvad" / "fireredvad_stream_vad.onnx", {}),
    "sww": (FOLDER / "mlperf-tiny" / "sww_fp32.onnx", {"window": 30}),
    "kws int8": (FOLDER / "mlperf-tiny" / "kws_dscnn_int8_qdq.onnx", {}),
}


def there(path: Path) -> Path:
    """A file of the zoo; the test skips where it is not there."""
    if not path.exists():
        pytest.skip(f"there is no '{path}'; name the zoo's folder in RUNNEL_ZOO")
    return path


def bundle(name: str, target: str, folder: Path) -> Path:
    """The bundle of a model for a target, compiled once in a folder."""
    path, options = MODELS[name]
    out = folder / f"{name.replace(' ', '-')}-{target}.rnl"
    if not out.exists():
        runnel.compile(there(path), out, target=target, backend="native", **options)
    return out
