"""Puts the helpers of this folder (oracle, nets, runners) on the path, and offers every runner as a parameter."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import oracle
import runners


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``check`` runs once for each runner in RUNNEL_RUNNERS (a comma list; "reference" unless it says otherwise)."""
    if "check" in metafunc.fixturenames:
        names = os.environ.get("RUNNEL_RUNNERS", "reference").split(",")
        metafunc.parametrize("check", names, indirect=True)


@pytest.fixture
def check(request: pytest.FixtureRequest) -> oracle.Check:
    """The oracle with one runner."""
    return partial(oracle.check, runner=runners.RUNNERS[request.param])
