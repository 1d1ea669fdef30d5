"""The real command line in a folder of its own, and a tiny model with its bundle that most cases share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import runnel
from runnel.runtime.program import Program

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tiny_models import RATE, command, listing, tiny


@pytest.fixture
def complaint(tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must fail: exit code 2, one plain line on stderr, no file made, changed or left behind."""

    def run(*argv: str | Path, stdin: bytes = b"", lines: int = 1) -> str:
        before = listing(tmp_path)
        done = command(*argv, cwd=tmp_path, stdin=stdin)
        said = done.stderr.decode()
        assert done.returncode == 2, (done.returncode, said)
        assert said.startswith("runnel") and said.endswith("\n"), said
        assert said.count("\n") == lines, said
        assert "Traceback" not in said and "fault of runnel" not in said
        assert done.stdout == b""
        assert listing(tmp_path) == before
        return said

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx and the tiny.rnl that the command line makes of it."""
    folder = tmp_path_factory.mktemp("tiny")
    onnx.save(tiny(), folder / "tiny.onnx")
    done = command("compile", "tiny.onnx", "--rate", str(RATE), cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    assert sorted(p.name for p in folder.iterdir()) == ["tiny.onnx", "tiny.rnl"]
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to break."""
    return Path(shutil.copy(made / "tiny.rnl", tmp_path / "tiny.rnl"))


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy of the model."""
    return Path(shutil.copy(made / "tiny.onnx", tmp_path / "tiny.onnx"))


@pytest.fixture(params=["native", "onnxruntime"])
def program(request: pytest.FixtureRequest, made: Path) -> Program:
    """The bundle on each backend."""
    return runnel.load(made / "tiny.rnl", backend=str(request.param))
