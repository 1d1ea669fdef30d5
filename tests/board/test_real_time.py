"""A push in locked memory asks nothing of the system and touches no new page: run under a filter of system calls."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from small_models import MODELS, compiled

from runnel.runtime import build_core

HERE = Path(__file__).resolve().parent
NO_FILTER, NO_LOCK = 77, 78


@pytest.fixture(scope="module")
def quiet_push(tmp_path_factory):
    out = tmp_path_factory.mktemp("quiet") / "quiet_push"
    flags = ["-std=c++17", "-O2", "-fno-exceptions", "-fno-rtti", f"-I{build_core.CORE / 'include'}"]
    files = [HERE / "quiet_push.cc", *build_core.sources()]
    command = [*build_core.find_compiler(), *flags, *map(str, files), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def call(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode in (NO_FILTER, NO_LOCK):
        pytest.skip("this system lets no memory be locked, or no system calls be filtered")
    return done


@pytest.mark.parametrize("name", MODELS)
def test_a_push_makes_no_system_call_and_no_page_fault(quiet_push, tmp_path, name):
    done = call(quiet_push, compiled(tmp_path, name))
    assert done.returncode == 0, f"a push made a system call or failed: {done.returncode} {done.stderr}"
    assert done.stdout == "0\n"


def test_a_system_call_would_be_seen(quiet_push, tmp_path):
    assert call(quiet_push, compiled(tmp_path, "gru"), "loud").returncode == -signal.SIGSYS
