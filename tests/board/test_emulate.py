"""``--on qemu`` of run, verify and bench."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from small_models import compiled

import runnel
from runnel.tools.cli import main


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(usual / "zig"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("target", ["aarch64", "host"])
def test_a_bundle_is_verified_run_and_measured(cache, arm_binary, binary, emulators, tmp_path, capfd, target):
    path = compiled(tmp_path, "conditioned", target)
    assert main(["verify", str(path), "--on", "qemu"]) == 0
    assert "verified: " in capfd.readouterr().out
    x = np.random.default_rng(1).standard_normal((1, 3, 40)).astype(np.float32)
    emb = np.ones((1, 5), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "emb.npy", emb)
    words = ["--in", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/y.npy", "--set", f"emb={tmp_path}/emb.npy"]
    assert main(["run", str(path), *words, "--on", "qemu", "--chunk", "7"]) == 0
    stream = runnel.load(path, backend="onnxruntime").stream(inputs={"emb": emb})
    expected = np.concatenate([stream.push(x), stream.flush()], 2)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
    assert main(["bench", str(path), "--on", "qemu"]) == 0
    assert "first step" in capfd.readouterr().out


def test_a_processor_that_is_not_emulated_is_told(cache, tmp_path, monkeypatch, capsys):
    path = compiled(tmp_path, "gru", "aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["verify", str(path), "--on", "qemu"]) == 2
    assert "qemu-aarch64 is not installed" in capsys.readouterr().err
