"""A small program in numpy that stands in for a compiled one: y[n] = x[n] + x[n + 3], with zeros after the end."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runnel
from runnel.errors import BundleError

LOOKAHEAD = 3


@dataclass(frozen=True)
class Port:
    name: str
    shape: tuple[int | None, ...] = (1, None)
    axis: int | None = 1
    dtype: Any = "float32"


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
    latency_frames: int = LOOKAHEAD
    state_bytes: int = 4 * LOOKAHEAD
    gain: np.float32 = np.float32(1)
    inputs: tuple[Port, ...] = (Port("noisy"),)
    outputs: tuple[Port, ...] = (Port("clean"),)
    manifest: dict[str, Any] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    def stream(self, **options: Any) -> Stream:
        self.options.append(options)
        self.streams.append(Stream(self))
        return self.streams[-1]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program that runnel.load gives for any file that exists."""
    fake = Program()

    def load(path: str | Path, backend: str = "native") -> Program:
        if not Path(path).exists():
            raise BundleError(f"'{path}' cannot be read: No such file or directory.")
        return fake

    monkeypatch.setitem(vars(runnel), "load", load)
    return fake


@pytest.fixture
def bundle(tmp_path: Path, program: Program) -> Path:
    """A file with golden examples of the stand-in."""
    x = np.random.default_rng(0).standard_normal((1, 2000)).astype(np.float32)
    path = tmp_path / "m.rnl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in (("input_0", x), ("output_0", offline(x))):
            buffer = io.BytesIO()
            np.save(buffer, values)
            archive.writestr(f"golden/{name}.npy", buffer.getvalue())
    return path
