"""What the binary may weigh and cost: bytes on disk and in memory, the first step, page faults in real time."""

from __future__ import annotations

import json
import subprocess

import pytest
from small_models import compiled

MOST_BYTES = 1_500_000
MOST_RESIDENT = 3 << 20
FIRST_STEP = 0.020  # s, of the denoiser
TURNS = 5


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("denoiser"), "denoiser")


def bench(binary, *words):
    done = subprocess.run([binary, "bench", *words, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_binary_is_small_and_needs_no_library(binary):
    assert binary.stat().st_size <= MOST_BYTES
    data = binary.read_bytes()
    assert b"/lib64/ld-linux" not in data and b"/lib/ld-" not in data


def test_the_binary_for_arm_is_small_and_needs_no_library(arm_binary):
    data = arm_binary.read_bytes()
    assert len(data) <= MOST_BYTES
    assert data[:4] == b"\x7fELF" and data[18] == 183  # EM_AARCH64
    assert b"/lib/ld-" not in data


def test_memory_and_the_first_step(binary, denoiser):
    rows = [bench(binary, denoiser, "--seconds", "0.2", "--rate", "16000") for _ in range(TURNS)]
    print(f"first step after {min(r['first_step'] for r in rows) * 1e3:.2f} ms, resident beyond weights and state "
          f"{rows[0]['resident_beyond_bytes'] >> 10} KiB")  # fmt: skip
    assert all(row["resident_beyond_bytes"] <= MOST_RESIDENT for row in rows)
    assert min(row["first_step"] for row in rows) <= FIRST_STEP


def test_steps_in_real_time_touch_no_new_page(binary, denoiser):
    words = [denoiser, "--seconds", "1", "--rate", "16000", "--realtime", "--chunk", "160"]
    allowed = subprocess.run([binary, "bench", *words], capture_output=True, text=True, check=False)
    if "memory cannot be locked" in allowed.stderr:
        pytest.skip("this system lets no memory be locked")
    row = bench(binary, *words)
    assert row["page_faults"] == 0
    assert 95 <= row["steps"] <= 101
    assert row["rtf"] < 1
