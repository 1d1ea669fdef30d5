"""Damaged sound and arrays never crash the binary, nor do bundles: under the address and undefined sanitizers."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from small_models import MODELS, compiled

from runnel.runtime import build_board, build_core
from runnel.runtime.io.wav import write_wav

ROUNDS = 150
ODD = b"\x00\x01\x7f\x80\xff9('-"


@pytest.fixture(scope="module")
def checked_binary(tmp_path_factory):
    out = tmp_path_factory.mktemp("checked") / "runnel-run"
    flags = ["-std=c++17", "-O1", "-g", "-fno-exceptions", "-fno-rtti"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [*build_core.find_compiler(), *flags, f"-I{build_core.CORE / 'include'}"]
    sources = map(str, build_board.sources())
    done = subprocess.run([*command, *sources, "-o", str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the compiler lacks what this test needs: {done.stderr[-300:]}")
    return out


def damaged(data, rng):
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        spot = int(rng.integers(min(len(changed), 128)))
        changed[spot] = int(rng.choice(list(ODD))) if rng.random() < 0.5 else int(rng.integers(256))
    return bytes(changed[: int(rng.integers(len(changed)))]) if rng.random() < 0.2 else bytes(changed)


@pytest.mark.parametrize("name", MODELS)
def test_bundles_are_verified_without_a_finding(checked_binary, tmp_path, name):
    command = [checked_binary, "verify", compiled(tmp_path, name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["wav", "npy"])
def test_damaged_files_are_read_or_refused(checked_binary, tmp_path, kind):
    path = compiled(tmp_path, "denoiser")
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((1, 300)) * 0.1).astype(np.float32)
    good = tmp_path / f"x.{kind}"
    if kind == "wav":
        write_wav(good, x, 16000)
    else:
        np.save(good, x)
    data, refused = good.read_bytes(), 0
    for _ in range(ROUNDS):
        good.write_bytes(damaged(data, rng))
        words = ["run", path, "--in", good, "--out", tmp_path / "y.npy", "--rate", "16000"]
        done = subprocess.run(
            [checked_binary, *words],
            capture_output=True,
            text=True,
            check=False,
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )
        assert done.returncode in (0, 2), done.stderr
        refused += done.returncode == 2
    assert 0 < refused < ROUNDS
