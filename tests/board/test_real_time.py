"""A push in locked memory asks nothing of the system and touches no new page: run under a filter of system calls."""

from __future__ import annotations

import os
import signal
import subprocess
import time
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


def test_priority_and_core_are_those_asked_for(binary, tmp_path):
    words = ["--in", "raw:-", "--rate", "100", "--realtime", "--priority", "7", "--core", "0"]
    line = [binary, "run", compiled(tmp_path, "gru"), *words]
    live = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert live.stdin is not None
    live.stdin.write(bytes(4 * 6 * 8))
    live.stdin.flush()
    deadline = time.monotonic() + 20
    while live.poll() is None and time.monotonic() < deadline and os.sched_getscheduler(live.pid) != os.SCHED_FIFO:
        time.sleep(0.02)
    if live.poll() is None:
        assert os.sched_getparam(live.pid).sched_priority == 7
        assert os.sched_getaffinity(live.pid) == {0}
    _, said = live.communicate(timeout=20)
    if b"is not allowed" in said or b"cannot be locked" in said or b"cannot be used" in said:
        pytest.skip("this system gives no priority, core or locked memory")
    assert live.returncode == 0, said


def test_a_system_call_would_be_seen(quiet_push, tmp_path):
    assert call(quiet_push, compiled(tmp_path, "gru"), "loud").returncode == -signal.SIGSYS
