"""C++ compilers for boards (ziglang from pip, the system's, or a named one), and the core built with one."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from runnel.errors import InputError
from runnel.runtime.build_core import CORE, FLAGS, sources
from runnel.targets import Target
from runnel.tools import elf_check

NAMED = "RUNNEL_CXX"
CORE_BYTES = 300 << 10  # the most of a stripped core
_GNU = {"aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf", "x86_64": "x86_64-linux-gnu"}
_ZIG_CPU = {"aarch64": "generic", "armv7": "generic+v7a+neon+vfp4", "x86_64": "x86_64"}
_GNU_CPU = {"aarch64": ["-march=armv8-a"], "armv7": ["-march=armv7-a", "-mfpu=neon-vfpv4", "-mfloat-abi=hard"],
            "x86_64": ["-march=x86-64"]}  # fmt: skip


@dataclass(frozen=True)
class Toolchain:
    """name: what a person calls it. command: the C++ compiler. flags: that make it compile for a target."""

    name: str
    command: tuple[str, ...]
    flags: tuple[str, ...]


def find(target: Target, cxx: str | None = None) -> Toolchain:
    """The C++ compiler for a target: the one named (or $RUNNEL_CXX), ziglang, or the system's. Raises InputError."""
    arch = target.arch
    if named := cxx or os.environ.get(NAMED):
        try:
            command = shlex.split(named)
        except ValueError:
            command = []
        if not command or not shutil.which(command[0]):
            raise InputError(f"the C++ compiler '{named}' is not a program on this machine; name another one.")
        return _zig(target, command) if "zig" in Path(command[0]).name or "ziglang" in command else _gnu(arch, command)
    if arch not in _GNU:
        raise InputError(f"there is no tool chain for '{arch}'; name a target such as rpi5.")
    if importlib.util.find_spec("ziglang"):
        return _zig(target, [sys.executable, "-m", "ziglang", "c++"])
    if path := shutil.which(f"{_GNU[arch]}-g++"):
        return _gnu(arch, [path])
    raise InputError(
        f"there is no C++ compiler for {target.name}; pip install ziglang, install g++-{_GNU[arch]}, or name one with "
        f"--cxx or {NAMED}."
    )


def _zig(target: Target, command: list[str]) -> Toolchain:
    triple = f"{_GNU[target.arch]}.{target.glibc}"
    flags = ("-target", triple, f"-mcpu={_ZIG_CPU[target.arch]}", "-fno-sanitize=undefined")
    return Toolchain(f"ziglang for {triple}", tuple(command), flags)


def _gnu(arch: str, command: list[str]) -> Toolchain:
    return Toolchain(shlex.join(command), tuple(command), (*_GNU_CPU[arch], "-static-libstdc++", "-static-libgcc"))


def compile_cxx(target: Target, out: Path, files: list[Path], flags: list[str], cxx: str | None = None) -> Toolchain:
    """Compile and link C++ files for a target, stripped. Raises InputError with the compiler's last words."""
    chain = find(target, cxx)
    command = [
        *chain.command, *chain.flags, *flags, "-s", "-Wl,-z,max-page-size=65536", "-Wl,-z,noexecstack",
        *map(str, files), "-o", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")[-2000:]
        raise InputError(f"{chain.name} does not compile {out.name} for {target.name}: {said}")
    return chain


def build_core(target: Target, out: Path, cxx: str | None = None) -> elf_check.Elf:
    """librunnel for a target, stripped and checked. Raises InputError."""
    flags = [*FLAGS, "-shared", f"-I{CORE / 'include'}", "-Wl,--as-needed", "-Wl,-z,defs", "-Wl,--gc-sections"]
    part = out.with_name(f".{out.name}.part")
    try:
        compile_cxx(target, part, sources(), flags, cxx)
        elf = elf_check.check(part, target)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return elf


__all__ = ["CORE_BYTES", "NAMED", "Toolchain", "build_core", "compile_cxx", "find"]
