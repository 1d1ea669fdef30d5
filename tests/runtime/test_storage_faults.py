"""Storage that fails, is slow, gives less than asked for or has no room: an error that says so, or the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from faulty_storage import FAULTS
from test_core import HERE
from test_paging import WAYS
from test_units import INNER, SIZE, layers, least_of

import runnel
from runnel.runtime import build_core

SAID = {
    "error": "could not be read: ",
    "error of a row": "could not be read: ",
    "slow": "storage takes longer than it may",
    "slow row": "storage takes longer than it may",
}


@pytest.fixture(scope="module", params=["segments", "experts"])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every fault, in a process of its own."""
    folder = tmp_path_factory.mktemp("faults")
    library = folder / "faults.so"
    if request.param == "experts":
        path, row = folder / "m.rnl", 2 * INNER * SIZE * 4
        runnel.compile(layers(), path, backend="native", hop=5)
        least = least_of(path) + row
    else:
        path, least, row = request.getfixturevalue("bundle"), request.getfixturevalue("least"), 4096
    command = [*build_core.find_compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", HERE / "storage_faults.cc", "-o"]
    subprocess.run([*map(str, command), str(library)], check=True)
    done = subprocess.run(
        [sys.executable, HERE / "faulty_storage.py", path, str(least), str(row), *WAYS],
        capture_output=True, text=True, check=False, timeout=200, env={**os.environ, "LD_PRELOAD": str(library)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_or_does_no_harm(played: dict[str, Any], way: str, fault: str) -> None:
    found, expected = played["found"][way][fault], played["expected"]
    assert found["seen"] > 0 or (fault == "full queue" and way != "io_uring")
    if fault in SAID:
        assert SAID[fault] in found["said"]
        assert "reset the stream" in found["said"]
    else:
        assert found["said"] is None
        assert found["bits"] == expected
    assert found["after"] == expected
    patient = not fault.startswith("slow") or fault.endswith("without patience")
    assert (found["late"] == 0) == patient
    told = [w for w in found["warned"] if w.startswith("storage is slow: 'the model' waited longer than 0.25 s")]
    assert len(told) == len(found["warned"]) == fault.endswith("goes on")
