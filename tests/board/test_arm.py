"""The binary for 64-bit ARM under emulation, on bundles compiled for it."""

from __future__ import annotations

import subprocess

import pytest
from small_models import compiled


@pytest.mark.parametrize("name", ["denoiser", "gru", "int8"])
def test_bundles_for_arm_hold_their_golden_outputs(arm_binary, emulator, tmp_path, name):
    path = compiled(tmp_path, name, "aarch64")
    done = subprocess.run(
        [emulator, arm_binary, "verify", path], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified: " in done.stdout


def test_each_machine_refuses_the_others_bundles(binary, arm_binary, emulator, tmp_path):
    for name, target in (("host", "host"), ("arm", "aarch64")):
        (tmp_path / name).mkdir()
        compiled(tmp_path / name, "gru", target)
    for command, name in (([emulator, arm_binary], "host"), ([binary], "arm")):
        done = subprocess.run(
            [*command, "verify", tmp_path / name / "gru.rnl"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "compile the model for this machine" in done.stderr
