"""The binary for ARM under emulation, on bundles compiled for it."""

from __future__ import annotations

import subprocess

import pytest
from small_models import compiled


def verified(command, path):
    done = subprocess.run([*command, "verify", path], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified: " in done.stdout


@pytest.mark.parametrize("name", ["denoiser", "gru", "int8", "windowed", "two-rates"])
def test_bundles_for_64_bit_arm_hold_their_golden_outputs(arm_binary, emulators, tmp_path, name):
    verified([emulators["aarch64"], arm_binary], compiled(tmp_path, name, "aarch64"))


@pytest.mark.parametrize("name", ["denoiser", "gru", "int8"])
def test_bundles_for_32_bit_arm_hold_their_golden_outputs(arm32_binary, emulators, tmp_path, name):
    verified([emulators["arm"], arm32_binary], compiled(tmp_path, name, "armv7"))


def test_each_machine_refuses_the_others_bundles(binary, arm_binary, emulators, tmp_path):
    for name, target in (("host", "host"), ("arm", "aarch64")):
        (tmp_path / name).mkdir()
        compiled(tmp_path / name, "gru", target)
    for command, name in (([emulators["aarch64"], arm_binary], "host"), ([binary], "arm")):
        done = subprocess.run(
            [*command, "verify", tmp_path / name / "gru.rnl"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "compile the model for this machine" in done.stderr


def test_a_processor_without_a_feature_is_told(arm_binary, emulators, tmp_path):
    path = compiled(tmp_path, "int8", "rpi5")
    command = [emulators["aarch64"], "-cpu", "cortex-a53", arm_binary, "verify", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert "needs a processor with" in done.stderr and "dotprod" in done.stderr
    verified([emulators["aarch64"], "-cpu", "cortex-a76", arm_binary], path)
