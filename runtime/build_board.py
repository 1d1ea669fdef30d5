"""Compiles ``runnel-run``, the static binary for boards without Python, for this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runnel.runtime import build_core

BOARD = build_core.CORE.parent / "board"
SIGN, AGENT = BOARD.parent / "sign", BOARD.parent / "agent"
OF_THE_CORE = ("cpu", "crc32c", "files", "json", "platform", "sha256", "zipfile")  # what the agent uses
FLAGS = (*(f for f in build_core.FLAGS if f != "-fPIC"), "-D_FILE_OFFSET_BITS=64", "-ffunction-sections",
         "-fdata-sections", "-static", "-Wl,--gc-sections", "-s")  # fmt: skip


def sources() -> list[Path]:
    """The translation units of the binary: its own and the core's."""
    return [*sorted(BOARD.glob("*.cc")), *sorted(SIGN.glob("*.cc")), *build_core.sources()]


def agent_sources() -> list[Path]:
    """The translation units of ``runnel-agent``, which keeps the versions of a model on a board."""
    core = [build_core.CORE / f"{name}.cc" for name in OF_THE_CORE]
    return [*sorted(AGENT.glob("*.cc")), *sorted(SIGN.glob("*.cc")), *core]


def build(out: str | os.PathLike[str], compiler: list[str] | None = None, files: Sequence[Path] | None = None) -> None:
    """Compiles ``runnel-run`` to ``out``, replacing it at once or not at all. Raises NoCompiler.

    files: of another program. compiler: the command of a C++ compiler; without it the one of the core.
    """
    command = compiler if compiler is not None else build_core.find_compiler()
    place = Path(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, f"-I{build_core.CORE / 'include'}"]
    if "ziglang" in command:  # would otherwise tune for this very machine and check for undefined behaviour
        flags += ["-fno-sanitize=undefined", "-mcpu=baseline"]
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        made = Path(folder) / place.name
        line = [*command, *flags, *map(str, files or sources()), "-o", str(made)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")[-2000:]
            raise build_core.NoCompiler(f"the compiler '{shlex.join(command)}' does not compile {place.name}:\n{said}")
        os.replace(made, place)


def find_emulator(arch: str) -> str | None:
    """The program that runs binaries of another processor, such as qemu-aarch64; None where there is none."""
    return shutil.which(f"qemu-{arch}") or shutil.which(f"qemu-{arch}-static")


if __name__ == "__main__":
    build(sys.argv[1] if len(sys.argv) > 1 else "runnel-run")
