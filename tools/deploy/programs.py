"""What runs on a board: runnel-run and the agent, built for its processor when their sources changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from runnel import targets
from runnel.errors import InputError
from runnel.runtime import build_board
from runnel.runtime.build_core import CORE
from runnel.runtime.bundle import processor
from runnel.tools import elf_check, emulate, toolchain

AGENT_BYTES = 120_000  # the most of a stripped agent, which may have to go over a slow line


def runner(arch: str) -> Path:
    """runnel-run for a processor. Raises InputError where there is no tool chain for it."""
    _known(arch)
    return emulate.runner(arch)


def agent(arch: str) -> Path:
    """runnel-agent for a processor. Raises InputError where there is no tool chain for it."""
    _known(arch)
    digest = hashlib.sha256()
    for source in [*build_board.agent_sources(), *sorted(build_board.AGENT.parent.rglob("*.h"))]:
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnel"
    out = cache / f"runnel-agent-{arch}-{digest.hexdigest()[:16]}"
    if not out.exists():
        cache.mkdir(parents=True, exist_ok=True)
        build_agent(arch, out)
    return out


def build_agent(arch: str, out: Path) -> None:
    """Builds runnel-agent, static and small. Raises InputError."""
    if arch == processor()[0]:
        try:
            build_board.build(out, files=build_board.agent_sources())
        except build_board.build_core.NoCompiler as error:
            raise InputError(f"{error}.") from None
        return
    flags = [flag for flag in build_board.FLAGS if flag != "-O2"]
    flags += ["-Os", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", f"-I{CORE / 'include'}"]
    target = targets.load(emulate.TARGETS[arch])
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        toolchain.compile_cxx(target, part, build_board.agent_sources(), flags, static=True)
        elf_check.check(part, target)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _known(arch: str) -> None:
    if arch not in emulate.TARGETS:
        raise InputError(f"there are no programs for a board with a '{arch}'; known are {', '.join(emulate.TARGETS)}.")
