"""Threads that share a program of real kernels, under the thread sanitizer; all give the same bits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from small_models import compiled

from runnel.runtime import build_core

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"


@pytest.fixture(scope="module")
def share_program(tmp_path_factory):
    out = tmp_path_factory.mktemp("threads") / "share_program"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{build_core.CORE / 'include'}"]
    files = [RUNTIME / "share_program.cc", *build_core.sources()]
    command = [*build_core.find_compiler(), *flags, *map(str, files), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the compiler lacks what this test needs: {done.stderr[-300:]}")
    return out


@pytest.mark.parametrize("name", ["denoiser", "gru", "int8"])
def test_many_threads_step_one_program(share_program, tmp_path, name):
    done = subprocess.run(
        [share_program, compiled(tmp_path, name)], capture_output=True, text=True, check=False, timeout=120
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run under this kernel")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["8"]
