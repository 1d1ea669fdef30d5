"""Lets the tests here import their helpers by name, and makes the bundle that several of them page."""

import sys
from pathlib import Path

import numpy as np
import pytest

import runnel

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights lie in many small segments."""
    from paged_model import compiled

    return compiled(tmp_path_factory.mktemp("paged") / "m.rnl")


@pytest.fixture(scope="session")
def least(bundle: Path) -> int:
    """The smallest budget that it runs with."""
    facts = runnel.load(bundle, ram=1 << 30).paging
    assert facts is not None
    return facts.least


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 300, (1, 37))
