"""The binary for boards, built once, and bundles of small models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "streaming"))  # nets.py
sys.path.append(str(Path(__file__).resolve().parent))

from runnel import targets  # noqa: E402
from runnel.errors import InputError  # noqa: E402
from runnel.runtime import build_board, build_core  # noqa: E402
from runnel.tools import toolchain  # noqa: E402


@pytest.fixture(scope="session")
def binary(tmp_path_factory):
    """runnel-run for this machine."""
    try:
        build_core.find_compiler()
    except build_core.NoCompiler as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("board") / "runnel-run"
    build_board.build(out)
    return out


def for_arm(folder, name):
    target = targets.load(name)
    try:
        toolchain.find(target, static=True)
    except InputError as error:
        pytest.skip(str(error))
    out = folder / "runnel-run"
    elf = toolchain.build_runner(target, out)
    assert not elf.needed and elf.align >= 1 << 16 and not elf.exec_stack
    return out


@pytest.fixture(scope="session")
def arm_binary(tmp_path_factory):
    """runnel-run for 64-bit ARM."""
    return for_arm(tmp_path_factory.mktemp("board"), "aarch64")


@pytest.fixture(scope="session")
def arm32_binary(tmp_path_factory):
    """runnel-run for 32-bit ARM."""
    return for_arm(tmp_path_factory.mktemp("board"), "armv7")


@pytest.fixture(scope="session")
def emulators():
    """The commands that run programs of ARM, by the processor."""
    found = {arch: build_board.find_emulator(arch) for arch in ("aarch64", "arm")}
    if not all(found.values()):
        pytest.skip("no emulator: qemu-aarch64 and qemu-arm are not installed (apt-get install qemu-user)")
    return found
