"""The binary for boards, built once, and bundles of small models."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "streaming"))  # nets.py
sys.path.append(str(Path(__file__).resolve().parent))

from runnel.runtime import build_board, build_core  # noqa: E402


def built(folder: Path, triple: str | None) -> Path:
    out = folder / "runnel-run"
    if triple and not importlib.util.find_spec("ziglang"):
        pytest.skip("no cross compiler: the ziglang package is not installed")
    try:
        build_board.build(out, build_board.zig(triple) if triple else None)
    except build_core.NoCompiler as error:
        if not triple:
            try:
                build_core.find_compiler()
            except build_core.NoCompiler:
                pytest.skip(str(error))
        raise
    return out


@pytest.fixture(scope="session")
def binary(tmp_path_factory):
    """runnel-run for this machine."""
    return built(tmp_path_factory.mktemp("board"), None)


@pytest.fixture(scope="session")
def arm_binary(tmp_path_factory):
    """runnel-run for 64-bit ARM."""
    return built(tmp_path_factory.mktemp("board"), "aarch64-linux-musl")


@pytest.fixture(scope="session")
def emulator():
    """The command that runs programs of 64-bit ARM."""
    found = build_board.find_emulator("aarch64")
    if found is None:
        pytest.skip("no emulator: qemu-aarch64 is not installed (apt-get install qemu-user)")
    return found
