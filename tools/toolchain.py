"""C++ compilers for boards (ziglang from pip, the system's, or a named one), and what is built with one."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from runnel.errors import InputError
from runnel.runtime import build_board
from runnel.runtime.build_core import CORE, FLAGS, NoCompiler, sources
from runnel.targets import Target
from runnel.tools import elf_check

NAMED = "RUNNEL_CXX"
CORE_BYTES = 300 << 10  # the most of a stripped core
RUNNER_BYTES = 1_500_000  # the most of a stripped runnel-run
_GNU = {"aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf", "x86_64": "x86_64-linux-gnu"}
_MUSL = {"aarch64": "aarch64-linux-musl", "armv7": "arm-linux-musleabihf", "x86_64": "x86_64-linux-musl"}
_ZIG_CPU = {"aarch64": "generic", "armv7": "generic+v7a+neon+vfp4", "x86_64": "x86_64"}
_GNU_CPU = {"aarch64": ["-march=armv8-a"], "armv7": ["-march=armv7-a", "-mfpu=neon-vfpv4", "-mfloat-abi=hard"],
            "x86_64": ["-march=x86-64"]}  # fmt: skip


@dataclass(frozen=True)
class Toolchain:
    """name: what a person calls it. command: the C++ compiler. flags: that make it compile for a target. linker: what
    links objects without a C++ library; empty where the compiler does it at once."""

    name: str
    command: tuple[str, ...]
    flags: tuple[str, ...]
    linker: tuple[str, ...] = ()


def find(target: Target, cxx: str | None = None, static: bool = False) -> Toolchain:
    """The C++ compiler for a target: the one named (or $RUNNEL_CXX), ziglang, or the system's. Raises InputError.

    static: for a program that needs no library of the board's, with musl where the compiler brings it.
    """
    arch = target.arch
    if named := cxx or os.environ.get(NAMED):
        try:
            command = shlex.split(named)
        except ValueError:
            command = []
        if not command or not shutil.which(command[0]):
            raise InputError(f"the C++ compiler '{named}' is not a program on this machine; name another one.")
        return (
            _zig(target, command, static)
            if "zig" in Path(command[0]).name or "ziglang" in command
            else _gnu(arch, command)
        )
    if arch not in _GNU:
        raise InputError(f"there is no tool chain for '{arch}'; name a target such as rpi5.")
    if importlib.util.find_spec("ziglang"):
        return _zig(target, [sys.executable, "-m", "ziglang", "c++"], static)
    if path := shutil.which(f"{_GNU[arch]}-g++"):
        return _gnu(arch, [path])
    raise InputError(
        f"there is no C++ compiler for {target.name}; pip install ziglang, install g++-{_GNU[arch]}, or name one with "
        f"--cxx or {NAMED}."
    )


def _zig(target: Target, command: list[str], static: bool) -> Toolchain:
    triple = _MUSL[target.arch] if static else f"{_GNU[target.arch]}.{target.glibc}"
    flags = ("-target", triple, f"-mcpu={_ZIG_CPU[target.arch]}", "-fno-sanitize=undefined")
    # zig builds a whole C++ library for a target that it links C++ for, and nothing here uses one.
    linker = (*command[:-1], "cc") if command[-1] == "c++" else ()
    return Toolchain(f"ziglang for {triple}", tuple(command), flags, linker)


def _gnu(arch: str, command: list[str]) -> Toolchain:
    return Toolchain(shlex.join(command), tuple(command), (*_GNU_CPU[arch], "-static-libstdc++", "-static-libgcc"))


def compile_cxx(
    target: Target, out: Path, files: list[Path], flags: list[str], cxx: str | None = None, static: bool = False
) -> Toolchain:
    """Compile and link C++ files for a target, stripped. Raises InputError with the compiler's last words."""
    chain = find(target, cxx, static)
    last = ["-s", "-Wl,-z,max-page-size=65536", "-Wl,-z,noexecstack", "-o", str(out)]

    def call(*words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")[-2000:]
            raise InputError(f"{chain.name} does not compile {out.name} for {target.name}: {said}")

    if not chain.linker:
        call(*chain.command, *chain.flags, *flags, *map(str, files), *last)
        return chain
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{i}.o") for i in range(len(files))]
        own = [flag for flag in flags if not flag.startswith("-Wl,") and flag not in ("-s", "-static", "-shared")]
        for file, made in zip(files, objects):
            call(*chain.command, *chain.flags, *own, "-c", str(file), "-o", made)
        call(*chain.linker, *chain.flags, *(f for f in flags if not f.startswith("-std=")), *objects, *last)
    return chain


def build_core(target: Target, out: Path, cxx: str | None = None) -> elf_check.Elf:
    """librunnel for a target, stripped and checked. Raises InputError."""
    flags = [*FLAGS, "-shared", f"-I{CORE / 'include'}", "-Wl,--as-needed", "-Wl,-z,defs", "-Wl,--gc-sections"]
    return _checked(target, out, sources(), flags, cxx, static=False)


def build_runner(target: Target, out: Path, cxx: str | None = None) -> elf_check.Elf:
    """runnel-run for a target or this machine: static, stripped and checked. Raises InputError."""
    if target.native:
        try:
            build_board.build(out, shlex.split(cxx) if cxx else None)
        except NoCompiler as error:
            raise InputError(f"{error}.") from None
        return elf_check.read(out.read_bytes())
    flags = [*build_board.FLAGS, f"-I{CORE / 'include'}"]
    return _checked(target, out, build_board.sources(), flags, cxx, static=True)


def _checked(
    target: Target, out: Path, files: list[Path], flags: list[str], cxx: str | None, static: bool
) -> elf_check.Elf:
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        compile_cxx(target, part, files, flags, cxx, static)
        elf = elf_check.check(part, target)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return elf


__all__ = ["CORE_BYTES", "NAMED", "RUNNER_BYTES", "Toolchain", "build_core", "build_runner", "compile_cxx", "find"]
