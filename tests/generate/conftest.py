"""A bundle of the shipped decoder, compiled once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from shipped import VERSE

import runnel


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verse") / "verse.rnl"
    runnel.compile(VERSE / "verse.onnx", path, kv="sink=4,window=64", backend="native")
    return path


@pytest.fixture
def zoo_file() -> Callable[[str], Path]:
    """Finds a file of the zoo."""
    folder = Path(os.environ.get("RUNNEL_ZOO") or Path(__file__).parents[3] / "shared" / "zoo")
    if not folder.is_dir():
        pytest.skip(f"there is no zoo in '{folder}'; name its folder in RUNNEL_ZOO")
    return lambda name: folder / name
