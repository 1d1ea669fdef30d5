"""``--on qemu``: a bundle's own target under qemu-user, with runnel-run built for it."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runnel import targets
from runnel.errors import InputError
from runnel.runtime import build_board
from runnel.runtime.build_core import CORE
from runnel.runtime.bundle import Bundle
from runnel.runtime.processor import processor
from runnel.tools import toolchain

TARGETS = {"aarch64": "aarch64", "armv7": "armv7", "x86_64": "x86-64-v2"}  # what the binary is built for
QEMU = {"aarch64": "aarch64", "armv7": "arm", "x86_64": "x86_64"}
HELP = "qemu: emulate the processor that the bundle is made for, with the program that boards run; or a board"


def place(text: str) -> str:
    """What ``--on`` takes: qemu, or the address of a board."""
    if text != "qemu" and "://" not in text:
        raise argparse.ArgumentTypeError(f"'{text}' is neither qemu nor ssh://user@board")
    return text


def command(path: str | os.PathLike[str]) -> list[str]:
    """runnel-run for a bundle's processor, behind an emulator where that is not this machine's. Raises InputError,
    BundleError."""
    return command_for(Bundle(path).manifest["target"]["arch"])


def command_for(arch: str) -> list[str]:
    """runnel-run for a processor, behind an emulator where that is not this machine's. Raises InputError."""
    if arch not in TARGETS:
        raise InputError(f"the bundle is made for {arch}, which is not emulated; known are {', '.join(TARGETS)}.")
    before: list[str] = []
    if arch != processor()[0]:
        found = build_board.find_emulator(QEMU[arch])
        if found is None:
            raise InputError(f"qemu-{QEMU[arch]} is not installed; install qemu-user (apt-get install qemu-user).")
        before = [found]
    return [*before, str(runner(arch))]


def runner(arch: str) -> Path:
    """runnel-run for a processor, built when its sources changed. Raises InputError."""
    digest = hashlib.sha256()
    for source in [*build_board.sources(), *sorted(CORE.parent.rglob("*.h"))]:
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnel"
    out = cache / f"runnel-run-{arch}-{digest.hexdigest()[:16]}"
    if not out.exists():
        cache.mkdir(parents=True, exist_ok=True)
        toolchain.build_runner(targets.load("host" if arch == processor()[0] else TARGETS[arch]), out)
    return out


def call(path: str, verb: str, words: Sequence[str], as_json: bool, statics: Sequence[tuple[str, Any]] = ()) -> int:
    """Runs a command of runnel-run on a bundle; its exit code. statics: values of static inputs."""
    line = [*command(path), verb, path, *words, *(["--json"] if as_json else [])]
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, value) in enumerate(statics):
            if np.ndim(value):
                np.save(Path(folder) / f"{i}.npy", value)
                line += ["--set", f"{name}={folder}/{i}.npy"]
            else:
                line += ["--set", f"{name}={value}"]
        return subprocess.run(line, check=False).returncode


def chunk_words(path: str, text: str | None, rate: float | None) -> list[str]:
    """``--chunk`` in frames. Raises InputError."""
    from runnel.tools.units import frame_count

    if text is None or text == "all":
        return [] if text is None else ["--chunk", "all"]
    return ["--chunk", str(frame_count(text, rate or Bundle(path).manifest["clock"].get("rate"), "--chunk"))]
