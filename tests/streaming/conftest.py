"""Puts the helpers of this folder (oracle, nets, runners) on the path, and offers every runner as a parameter."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import onnxruntime
import oracle
import record
import runners

# What onnxruntime 1.23, the last for Python 3.10, does otherwise: it reflects more frames than there are, lacks kernels
# for small integers, and normalises over fewer elements than it was given a scale for.
DIFFERENT_THERE = (
    "test_shortest_is_the_least_length_that_runs",
    "test_reflect_at_the_start_comes_in_a_burst",
    "test_layer_normalization_over_time_is_refused",
    "test_max_pool_of_integers",
    "test_kept[a_crop_and_what_it_crops_end_differently]",
    "test_pad_mirrored",
    "test_rms_normalization",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what an old onnxruntime cannot judge."""
    for item in items:
        if record.OLD_ONNXRUNTIME and item.name.startswith(DIFFERENT_THERE) and "streaming" in item.path.parts:
            item.add_marker(
                pytest.mark.skip(reason=f"onnxruntime {onnxruntime.__version__} gives another reference here")
            )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``check`` runs once for each runner in RUNNEL_RUNNERS (a comma list; by default "reference,native").

    A native bundle is proved on the onnxruntime backend too before it is written.
    """
    if "check" in metafunc.fixturenames:
        names = os.environ.get("RUNNEL_RUNNERS", "reference,native").split(",")
        metafunc.parametrize("check", names, indirect=True)


@pytest.fixture
def check(request: pytest.FixtureRequest) -> oracle.Check:
    """The oracle with one runner."""
    return partial(oracle.check, runner=runners.RUNNERS[request.param])
