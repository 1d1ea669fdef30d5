"""Compiles the C++ core into a shared library. Imports nothing of runnel, so that an installer can run it first."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CORE = Path(__file__).resolve().parent / "core"
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-pthread",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
)


class NoCompiler(RuntimeError):
    """There is no C++ compiler, or it fails on the core."""


def find_compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, then c++, g++ or clang++, then the ziglang package. Raises NoCompiler."""
    if named := os.environ.get("CXX"):
        command = shlex.split(named)
        if shutil.which(command[0]):
            return command
        raise NoCompiler(f"CXX names '{named}', which is not a program on this machine; unset CXX or correct it")
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise NoCompiler(
        "no C++ compiler was found (looked for $CXX, c++, g++, clang++ and the ziglang package); "
        "install one, for example with: pip install ziglang"
    )


def sources() -> list[Path]:
    """The core's translation units."""
    return sorted(CORE.glob("*.cc"))


def build(out: Path, compiler: list[str] | None = None) -> None:
    """Compiles the core to the shared library ``out``, replacing it at once or not at all. Raises NoCompiler."""
    command = compiler if compiler is not None else find_compiler()
    zig = "ziglang" in command
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, "-shared", f"-I{CORE / 'include'}"]
    if platform.system() == "Linux":
        flags += ["-Wl,--as-needed", "-Wl,-z,defs"]
    if zig:  # would otherwise tune for this very machine and check for undefined behaviour
        flags += ["-fno-sanitize=undefined", "-mcpu=baseline"]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / out.name
        done = subprocess.run(
            [*command, *flags, *map(str, sources()), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")[-2000:]
            raise NoCompiler(f"the C++ compiler '{shlex.join(command)}' does not compile the core:\n{said}")
        os.replace(made, out)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else CORE.parent / "_lib" / "librunnel.so")
