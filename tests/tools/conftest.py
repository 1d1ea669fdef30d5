"""A small program in numpy that stands in for a compiled one: y[n] = x[n] + x[n + 3], with zeros after the end."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runnel
from runnel.compiler.bundle import write_bundle
from runnel.errors import BundleError
from runnel.runtime.program import Port

LOOKAHEAD = 3


def offline(x: np.ndarray) -> np.ndarray:
    """What the stand-in computes on a whole input, (1, frames)."""
    return x + np.concatenate([x, np.zeros((1, LOOKAHEAD), x.dtype)], 1)[:, LOOKAHEAD:]


class Stream:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.seen = np.zeros((1, 0), np.float32)
        self.chunks: list[int] = []

    def push(self, x: Any) -> np.ndarray:
        values = x["noisy"] if isinstance(x, dict) else x
        assert values.dtype == np.float32 and values.shape[0] == 1
        before = max(self.seen.shape[1] - LOOKAHEAD, 0)
        self.seen = np.concatenate([self.seen, values], 1)
        self.chunks.append(values.shape[1])
        return offline(self.seen)[:, before : max(self.seen.shape[1] - LOOKAHEAD, 0)] * self.program.gain

    def flush(self) -> np.ndarray:
        return offline(self.seen)[:, max(self.seen.shape[1] - LOOKAHEAD, 0) :] * self.program.gain


@dataclass
class Program:
    rate: int | None = 16000
    hop: int = 256
    max_frames: int | None = None
    latency_frames: int = LOOKAHEAD
    state_bytes: int = 4 * LOOKAHEAD
    gain: np.float32 = np.float32(1)
    inputs: tuple[Port, ...] = (Port("noisy", np.dtype("float32"), (1, None), 1),)
    outputs: tuple[Port, ...] = (Port("clean", np.dtype("float32"), (1, None), 1),)
    statics: tuple[Port, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    @property
    def timed(self) -> tuple[Port, ...]:
        return self.inputs

    def stream(self, **options: Any) -> Stream:
        self.options.append(options)
        self.streams.append(Stream(self))
        return self.streams[-1]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program that runnel.load gives for any file that exists."""
    fake = Program()

    def load(path: str | Path, backend: str = "native", runtime: object = None) -> Program:
        if not Path(path).exists():
            raise BundleError(f"'{path}' cannot be read: No such file or directory.")
        return fake

    monkeypatch.setitem(vars(runnel), "load", load)
    return fake


@pytest.fixture
def bundle(tmp_path: Path, program: Program) -> Path:
    """A file with golden examples of the stand-in."""
    x = np.random.default_rng(0).standard_normal((1, 2000)).astype(np.float32)
    arrays = {"golden/input_0.npy": x, "golden/output_0.npy": offline(x)}
    port = {"dtype": "float32", "shape": [1, None], "axis": 1}
    manifest = {
        "name": "stand-in", "target": {"name": "host", "arch": "x86_64", "os": "linux", "features": []}, "weights": {},
        "inputs": [port | {"name": "noisy"}], "outputs": [port | {"name": "clean"}], "hop": 256,
        "clock": {"rate": 16000}, "latency_frames": LOOKAHEAD, "mode": "sequence", "window": None,
        "backends": ["native"], "native_refusal": None, "onnx": None, "proof": {}, "modes": {}, "kv": None, "macs": {},
        "kernels": [], "made_by": "a test",
    }  # fmt: skip
    write_bundle(tmp_path / "m.rnl", manifest, {name: npy(values) for name, values in arrays.items()})
    return tmp_path / "m.rnl"


def npy(values: np.ndarray) -> bytes:
    """An array as the bytes of its file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
